"""Which pictures are scored, and what each of them weighs: one walk over a split's image and splat shards."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from components.errors import PermanentError
from components.images import EXTENSIONS, decode_rgb, encode
from components.json_text import parse, whole
from components.manifest import Artifact, ShardEntry
from components.shards import IndexedShard

JPEG_QUALITY = 90
JPEG_PICTURES = 1000  # re-encoded at most: the mean of more is no better known
WITHOUT_SPLATS = "without splats"
WITHOUT_PHOTOGRAPH = "without a photograph"


@dataclass(frozen=True)
class Photograph:
    """A stored photograph: its shard, its file's extension and bytes, and those of its raw RGB."""

    shard: ShardEntry
    format: str
    stored_bytes: int
    raw_bytes: int


@dataclass(frozen=True)
class SplatFile:
    """A stored .gs2d file: its shard, bytes, number of Gaussians, and PSNR in dB after the round trip."""

    shard: ShardEntry
    num_bytes: int
    num_gaussians: int
    psnr_db: float


@dataclass(frozen=True)
class Inventory:
    """The pictures of a split that have both forms, by key in the image shards' order; left_out: reason -> keys."""

    photographs: dict[str, Photograph]
    splats: dict[str, SplatFile]
    left_out: dict[str, list[str]]

    @property
    def keys(self) -> list[str]:
        """Keys of the scored pictures."""
        return list(self.photographs)

    def without(self, keys: Iterable[str], reason: str) -> Inventory:
        """The same less some pictures, which are counted under `reason`."""
        gone = set(keys)
        return Inventory(
            {key: one for key, one in self.photographs.items() if key not in gone},
            {key: one for key, one in self.splats.items() if key not in gone},
            {**self.left_out, reason: sorted(gone)},
        )


def opened(artifact: Artifact, shards: Iterable[ShardEntry]) -> Iterator[tuple[ShardEntry, IndexedShard, str]]:
    """Each shard's entry, the shard, and where it lies."""
    for entry in shards:
        with artifact.local(entry) as path, IndexedShard(path) as shard:
            yield entry, shard, f"{artifact.url}/{entry.name}"


def picture_ext(shard: IndexedShard, i: int) -> str | None:
    """Extension of a sample's picture, None where it has none."""
    return next((ext for ext in EXTENSIONS if shard.has(i, ext)), None)


def _photographs(images: Artifact, split: str) -> dict[str, Photograph]:
    found: dict[str, Photograph] = {}
    for entry, shard, where in opened(images, images.manifest.split(split)):
        for i, key in enumerate(shard.keys):
            ext = picture_ext(shard, i)
            if ext is None:
                continue
            if key in found:
                raise PermanentError(f"{where}: the key {key!r} is there twice in split {split!r}; keys must differ")
            data = bytes(shard.field(i, ext))
            try:
                with Image.open(io.BytesIO(data)) as picture:
                    width, height = picture.size
            except OSError as error:
                raise PermanentError(f"{where}: {key}.{ext} is not a picture: {error}") from error
            found[key] = Photograph(entry, ext, len(data), width * height * 3)
    return found


def _about(data: bytes, where: str) -> tuple[int, float]:
    try:
        values: Any = parse(data)
        return whole(values["num_gaussians"]), float(values["psnr_db"])
    except (ValueError, KeyError, TypeError) as error:
        raise PermanentError(f"{where} has no num_gaussians and psnr_db ({error!r}); fit the splats again") from error


def _splat_files(splats: Artifact, split: str) -> dict[str, SplatFile]:
    found: dict[str, SplatFile] = {}
    for entry, shard, where in opened(splats, splats.manifest.split(split)):
        for i, key in enumerate(shard.keys):
            if not shard.has(i, "gs2d"):
                continue
            data = bytes(shard.field(i, "json")) if shard.has(i, "json") else b""
            found[key] = SplatFile(entry, len(shard.field(i, "gs2d")), *_about(data, f"{where}: {key}.json"))
    return found


def take_inventory(images: Artifact, splats: Artifact, split: str) -> Inventory:
    """Pair the photographs and splat files of a split by key.

    Raises PermanentError where the split is missing in either, no picture has both, or a sample is damaged.
    """
    photographs, files = _photographs(images, split), _splat_files(splats, split)
    both = [key for key in photographs if key in files]
    if not both:
        raise PermanentError(
            f"split {split!r} has no picture with both a photograph ({len(photographs)} in {images.url}) "
            f"and splats ({len(files)} in {splats.url}); fit this image set again"
        )
    return Inventory(
        {key: photographs[key] for key in both},
        {key: files[key] for key in both},
        {
            WITHOUT_SPLATS: sorted(photographs.keys() - files.keys()),
            WITHOUT_PHOTOGRAPH: sorted(files.keys() - photographs.keys()),
        },
    )


def read_labels(images: Artifact, inventory: Inventory, num_classes: int) -> dict[str, tuple[int, ...]]:
    """The classes that each picture of a multilabel set shows; a picture whose json names none is left out.

    Raises PermanentError where the json is damaged, or names a class beyond num_classes.
    """
    found: dict[str, tuple[int, ...]] = {}
    for key, data in fetch(images, {key: one.shard for key, one in inventory.photographs.items()}, ["json"]).items():
        try:
            listed = parse(data).get("classes")
            if listed is not None:
                found[key] = tuple(whole(number) for number in listed)
        except (ValueError, TypeError, AttributeError) as error:
            raise PermanentError(f"{images.url}: {key}.json is damaged ({error!r}); make the set again") from error
        if any(not 0 <= number < num_classes for number in found.get(key, ())):
            raise PermanentError(
                f"{images.url}: picture {key!r} is of the classes {list(found[key])}, but classnames.txt names "
                f"{num_classes} (0..{num_classes - 1})"
            )
    return found


def fetch(artifact: Artifact, wanted: dict[str, ShardEntry], extensions: Iterable[str]) -> dict[str, bytes]:
    """Bytes of the first field of `extensions` of each wanted key, wherever it lies."""
    choices = tuple(extensions)
    shards = {entry.name: entry for entry in wanted.values()}
    found: dict[str, bytes] = {}
    for _, shard, _ in opened(artifact, [shards[name] for name in sorted(shards)]):
        for i, key in enumerate(shard.keys):
            if key in wanted:
                ext = next((ext for ext in choices if shard.has(i, ext)), None)
                if ext is not None:
                    found[key] = bytes(shard.field(i, ext))
    return found


def jpeg_bytes(images: Artifact, inventory: Inventory) -> tuple[float, int]:
    """Mean bytes of the photographs as JPEG of quality 90, over at most 1000 spread evenly, and over how many."""
    keys = inventory.keys
    count = min(JPEG_PICTURES, len(keys))
    chosen = {keys[i * len(keys) // count]: None for i in range(count)}
    data = fetch(images, {key: inventory.photographs[key].shard for key in chosen}, EXTENSIONS)
    sizes = [len(encode(decode_rgb(data[key]), "jpg", JPEG_QUALITY)) for key in chosen]
    return sum(sizes) / count, count
