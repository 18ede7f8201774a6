"""Sets of numbered pictures and splats, and batches that are held to them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.images import encode
from components.loader import Batch
from components.manifest import Artifact, Commit
from components.shards import Sample, ShardIndex, write_shard
from components.splats import Splats
from components.store import open_store

SIZE, ROOM = 8, 5
CACHED, STREAMED = 4 << 30, 0


def image(i: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, (size, size, 3), dtype=np.uint8)


def splats(i: int) -> Splats:
    rng = np.random.default_rng(1000 + i)
    n = 1 + i % ROOM
    cholesky = np.column_stack([rng.uniform(0.5, 2, n), rng.uniform(-1, 1, n), rng.uniform(0.5, 2, n)])
    return Splats.unpack(
        Splats(rng.uniform(0, SIZE, (n, 2)), cholesky, rng.uniform(-0.1, 1, (n, 3)), SIZE, SIZE).pack()[0]
    )


def image_sample(i: int) -> Sample:
    fields = {"png": encode(image(i), "png"), "txt": f"picture {i}".encode(), "cls": str(i % 3).encode()}
    return Sample(f"s{i:04d}", fields)


def splat_sample(i: int) -> Sample:
    fields = {"gs2d": splats(i).pack()[0], "txt": f"picture {i}".encode(), "cls": str(i % 3).encode()}
    return Sample(f"s{i:04d}", fields)


def commit(
    root: Path, stage: str, shards: Sequence[Sequence[Sample]], split: str = "train", index: bool = True
) -> Artifact:
    made = Commit(open_store(str(root)), stage=stage, version=1, params={"num_gaussians": ROOM}, inputs={})
    entries = []
    for number, samples in enumerate(shards):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.tar"
            layout = write_shard(path, samples)
            side = {".idx": ShardIndex.of(layout).to_bytes()} if index else {}
            entries.append(made.put_shard(path, index=number, split=split, ok=len(samples), side_files=side))
    return made.finalise(shards=entries, files=[], metrics={"image_size": SIZE})


def groups(numbers: Sequence[Sequence[int]], make: object = image_sample) -> list[list[Sample]]:
    return [[make(i) for i in group] for group in numbers]  # type: ignore[operator]


SHARDS = [range(10), range(10, 17), range(17, 30)]


def keys(batches: Sequence[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def check(batch: Batch) -> None:
    """Everything in a batch belongs to its keys."""
    for row, key in enumerate(batch.keys):
        i = int(key[1:])
        assert batch.captions[row] == [f"picture {i}"]
        assert int(batch.classes[row]) == i % 3
        shard = next(place for place, group in enumerate(SHARDS) if i in group)
        assert batch.places[row].tolist() == [shard, i - SHARDS[shard][0]]
        if batch.images is not None:
            np.testing.assert_array_equal(batch.images[row].numpy(), image(i))
        if batch.splats is not None:
            expected = splats(i)
            mask = batch.splats.mask[row]
            assert int(mask.sum()) == len(expected)
            np.testing.assert_array_equal(batch.splats.means[row][mask].numpy(), expected.means)
            np.testing.assert_array_equal(batch.splats.cholesky[row][mask].numpy(), expected.cholesky)
            np.testing.assert_array_equal(batch.splats.colors[row][mask].numpy(), expected.colors)
            assert not batch.splats.colors[row][~mask].any()
