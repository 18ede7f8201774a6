"""Sets of real pictures: download -> splat_fit -> verify, in a folder and on S3; a byte that is changed anywhere."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from s3 import new_bucket

from components.config import DownloadParams, SplatFitParams
from components.download import stage as download
from components.errors import PermanentError
from components.findings import DAMAGE
from components.loader import ImageSet
from components.manifest import Artifact, open_artifact
from components.splat_fit import stage as splat_fit
from components.store import open_store
from components.verify import verify

pytestmark = pytest.mark.full

# All of it with SPLATCLIP_TEST_CIFAR10=60000: several minutes more
CIFAR10 = int(os.environ.get("SPLATCLIP_TEST_CIFAR10", "6000"))
SETS = {
    "cifar10": (CIFAR10, DownloadParams(source="webdataset", path="cifar10", image_size=32, shard_size=4000)),
    "flickr8k-1k": (
        1000,
        DownloadParams(source="webdataset", path="flickr8k-1k", image_size=224, image_format="jpg", shard_size=100),
    ),
}


def through(store: str, folder: Path, name: str, pictures: int = 0) -> tuple[Artifact, Artifact]:
    """The outputs of both stages, of all that SETS says or of some pictures; all of the store is sound."""
    number, params = SETS[name]
    pictures = pictures or number
    few = pictures // 6
    params = replace(params, path=str(folder / name), num_train=pictures - 2 * few, num_val=few, num_test=few)
    images = open_artifact(download.run(params, store=store).url, open_store(store))
    fit = SplatFitParams(num_gaussians=8, num_iters=2, threads=1)
    splats = open_artifact(splat_fit.run(fit, images=images.url, store=store).url, open_store(store))
    assert images.manifest.counts["in"] == pictures
    assert images.manifest.counts["ok"] == splats.manifest.counts["in"]
    result = verify(store)
    assert result.findings == []
    assert sum(read.files for read in result.outputs) == len(open_store(store).list())
    return images, splats


@pytest.mark.parametrize("name", SETS)
def test_the_same_sums_in_a_folder_and_on_s3(name: str, shared_data: Path, tmp_path: Path, endpoint: str) -> None:
    here = through(str(tmp_path / "store"), shared_data, name)
    there = through(f"{new_bucket()}/some/store", shared_data, name)
    print(name, here[1].manifest.counts, [one.manifest.sha256 for one in here])
    for one, other in zip(here, there, strict=True):
        assert one.manifest.to_bytes() == other.manifest.to_bytes()
        assert one.store.list() == other.store.list()


def read_all(images: str, splats: str, store: str) -> None:
    """What the next stage does: all pictures and splats of all splits, decoded."""
    pictures, fitted = (open_artifact(url, open_store(store)) for url in (images, splats))
    for split in pictures.manifest.splits():
        ImageSet(pictures, split, splats=fitted)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_byte_that_is_changed_anywhere_is_seen(kind: str, shared_data: Path, tmp_path: Path, endpoint: str) -> None:
    seed = int(os.environ.get("SPLATCLIP_TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SPLATCLIP_TEST_SEED={seed}")
    rng = random.Random(seed)
    store = str(tmp_path / "store") if kind == "folder" else f"{new_bucket()}/some/store"
    images, splats = through(store, shared_data, "flickr8k-1k", pictures=240)
    read_all(images.url, splats.url, store)
    root = open_store(store)
    names = root.list()
    read = [name for name in names if name.endswith((".tar", ".idx", "manifest.json"))]
    assert len(read) == 14
    for name in names:
        data = root.get_bytes(name)
        changed = bytearray(data)
        changed[at := rng.randrange(len(data))] ^= rng.randrange(1, 256)
        root.put_bytes(name, bytes(changed))
        told = [line for line in verify(store).findings if line.level == DAMAGE]
        assert any(name.removesuffix("manifest.json").rstrip("/") in str(line) for line in told), f"{name} at {at}"
        if name in read:
            with pytest.raises(PermanentError, match=r"sha256|manifest|sum"):
                read_all(images.url, splats.url, store)
        root.put_bytes(name, data)
    assert verify(store).findings == []
    read_all(images.url, splats.url, store)
