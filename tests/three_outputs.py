"""A store of three outputs, each made from the one before, and what verify says of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from picture_sets import commit_images, png_samples

from components.manifest import Artifact, Commit, Manifest, SampleNote
from components.shards import ShardIndex, write_shard
from components.store import Store
from components.verify import Verified

NOTES = [
    SampleNote(key="bad", outcome="failed", reason="truncated", detail="at byte 7"),
    SampleNote(key="dull", outcome="skipped", reason="no_caption"),
]


def commit_splats(root: Store, images: Artifact, notes: list[SampleNote] | None = None, ok: int = 3) -> Artifact:
    """An output with a shard, an index, a file and bad samples, made from images."""
    commit = Commit(root, stage="splat_fit", version=2, params={"num_gaussians": 8}, inputs={"images": images})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.tar"
        layout = write_shard(path, png_samples(20, 3))
        side: dict[str, Path | bytes] = {".idx": ShardIndex.of(layout).to_bytes()}
        metrics = {"psnr_db_sum": 91.5}
        commit.put_shard(path, index=0, split="train", ok=ok, notes=notes or [], side_files=side, metrics=metrics)
    return commit.finalise(
        shards=list(commit.done().values()), files=[commit.put_file("reader.bin", b"model")], metrics={"psnr": 30.5}
    )


def commit_scores(root: Store, splats: Artifact) -> Artifact:
    commit = Commit(root, stage="zero_shot_eval", version=1, params={}, inputs={"splats": splats})
    return commit.finalise(shards=[], files=[commit.put_file("scores.json", b"{}")], metrics={})


def whole(root: Store, notes: list[SampleNote] | None = None) -> tuple[Artifact, Artifact, Artifact]:
    """A store of three outputs, each made from the one before."""
    images = commit_images(root.url, [("train", png_samples(0, 3)), ("test", png_samples(3, 2))])
    splats = commit_splats(root, images, notes)
    return images, splats, commit_scores(root, splats)


def damage(result: Verified) -> list[str]:
    return [str(finding) for finding in result.findings if finding.level == "damage"]


def warnings(result: Verified) -> list[str]:
    return [str(finding) for finding in result.findings if finding.level == "warning"]


def rewrite(artifact: Artifact, change: Callable[[Manifest], Manifest]) -> None:
    artifact.store.put_bytes("manifest.json", change(artifact.manifest).to_bytes())
