"""splat-fit killed with SIGKILL at random moments and started again ends with the bytes of an undisturbed run.

The seed of the moments is printed; SPLATCLIP_TEST_SEED sets it.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from picture_sets import commit_images, png_samples
from s3 import moto_server, new_bucket

from components.manifest import MANIFEST, open_artifact
from components.store import open_store

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parent.parent
PARAMS = "splat_fit: {num_gaussians: 25, num_iters: 150, threads: 1}\n"
LONGEST_S = 60


@dataclass
class _Work:
    """The command to disturb; its store and what the manifest must be."""

    params: Path
    store: str
    images: str

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "components", "splat-fit", "--params", str(self.params)]
        return subprocess.Popen(
            [*command, "--images", self.images, "--store", self.store],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self) -> tuple[str, float]:
        """Run to the end: where the result is, and the seconds it took."""
        started = time.monotonic()
        out, err = (process := self.start()).communicate(timeout=LONGEST_S)
        assert process.returncode == 0, err
        return out.strip(), time.monotonic() - started


def _work(folder: Path, store: str, num_shards: int, per_shard: int) -> _Work:
    params = folder / "params.yaml"
    params.write_text(PARAMS)
    shards = [("train" if i else "test", png_samples(i * per_shard, per_shard)) for i in range(num_shards)]
    return _Work(params, store, commit_images(store, shards).url)


def _kill_at_random(work: _Work, longest: float, times: int, rng: random.Random) -> int:
    """Start the command and kill it, `times` times; returns how often it had finished before the blow.

    When it had, its output is taken away so that it has work again.
    """
    hits = early = 0
    while hits < times:
        assert early < 10 * times, "the command always ends before it can be killed"
        process = work.start()
        delay = rng.uniform(0.1, longest)
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
        _, err = process.communicate()
        if process.returncode == -signal.SIGKILL:
            hits += 1
            continue
        assert process.returncode == 0, f"after {hits} kills: {err}"
        early += 1
        store = open_store(work.store)
        for name in store.list("splat_fit/"):
            store.delete(name)
    return early


def _same_after_kills(tmp_path: Path, store: str, times: int, num_shards: int, per_shard: int) -> bytes:
    seed = int(os.environ.get("SPLATCLIP_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SPLATCLIP_TEST_SEED={seed}")
    plain = tmp_path / "undisturbed"
    plain.mkdir()
    undisturbed = _work(plain, str(plain / "store"), num_shards, per_shard)
    url, seconds = undisturbed.finish()
    expected = Path(url, MANIFEST).read_bytes()
    work = _work(tmp_path, store, num_shards, per_shard)
    _kill_at_random(work, seconds, times, random.Random(seed))
    url, _ = work.finish()
    artifact = open_artifact(url, open_store(work.store))
    assert open_store(url).get_bytes(MANIFEST) == expected, f"SPLATCLIP_TEST_SEED={seed}"
    for shard in artifact.manifest.shards:  # and what it names is whole
        with artifact.local(shard), artifact.local(shard.files[0]):
            pass
    listed = {name for shard in artifact.manifest.shards for name in (shard.name, shard.files[0].place)}
    there = {name for name in open_store(url).list() if not name.startswith("_done/")}
    assert there == {MANIFEST} | listed, "a kill left a shard that the manifest does not name"
    return expected


@pytest.fixture(scope="module")
def s3_bucket() -> Iterator[str]:
    """A bucket on a moto server, whose address is in the environment."""
    with moto_server():
        yield new_bucket()


def test_three_kills_on_a_folder(tmp_path: Path) -> None:
    _same_after_kills(tmp_path, str(tmp_path / "store"), times=3, num_shards=6, per_shard=6)


def test_a_kill_on_s3_and_the_same_bytes_as_on_a_folder(tmp_path: Path, s3_bucket: str) -> None:
    """The undisturbed run is on a folder, the killed one on S3: the manifests are the same bytes."""
    _same_after_kills(tmp_path, f"{s3_bucket}/some/prefix", times=1, num_shards=4, per_shard=6)


@pytest.mark.full
@pytest.mark.parametrize("place", ["folder", "s3"])
def test_ten_kills(place: str, tmp_path: Path, s3_bucket: str) -> None:
    store = str(tmp_path / "store") if place == "folder" else f"{s3_bucket}/{tmp_path.name}"
    _same_after_kills(tmp_path, store, times=10, num_shards=24, per_shard=20)


def test_sigterm_ends_with_143_and_says_so(tmp_path: Path) -> None:
    work = _work(tmp_path, str(tmp_path / "store"), 12, 40)
    work.params.write_text(PARAMS.replace("150", "3000"))
    process = work.start()
    while not list(tmp_path.glob("store/splat_fit/*/_done/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    asked = time.monotonic()
    _, err = process.communicate(timeout=LONGEST_S)
    assert process.returncode == 143, err
    assert "stopped by SIGTERM" in err
    assert "run the same command again" in err
    assert "Traceback" not in err
    assert time.monotonic() - asked < 5
    assert not list(tmp_path.glob("store/splat_fit/*/manifest.json"))
