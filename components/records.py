"""Samples as they lie in image and splat shards, paired by key, and their decoding."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from components.errors import PermanentError
from components.images import ImageError, decode_rgb, fit_square
from components.manifest import Artifact, ShardEntry
from components.shards import IndexedShard, read_index
from components.splats import PaddedSplats, unpack_padded

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
SPLAT_EXTENSION = "gs2d"
INDEX_SUFFIX = ".idx"
DECODE_THREADS = 4
SPLAT_BYTES = 8 * 4 + 1  # a Gaussian decoded: eight float32 and its place in the mask


class Record(NamedTuple):
    """One sample, still encoded. image, splats: None where not asked for; number: its class, or -1.

    place: (its shard's index, its row in the image shard, or in the splat shard where pictures are not asked for).
    The bytes lie in the shard's file, which stays mapped as long as a record of it is held; `alone` copies them.
    """

    key: str
    image: bytes | memoryview | None
    splats: bytes | memoryview | None
    captions: list[str]
    number: int
    place: tuple[int, int]

    def alone(self) -> Record:
        """The same with bytes of its own."""
        image = None if self.image is None else bytes(self.image)
        return self._replace(image=image, splats=None if self.splats is None else bytes(self.splats))


def _json(data: memoryview) -> Any:
    """What json.loads gives, in a fifth of its time where the file is strict JSON in UTF-8."""
    try:
        return orjson.loads(data)
    except ValueError:
        return json.loads(bytes(data))


def _texts(shard: IndexedShard, i: int, where: str) -> tuple[list[str], int]:
    """A sample's captions and class number, from its json, txt and cls fields."""
    try:
        about, written = shard.get(i, "json"), shard.get(i, "cls")
        values: dict[str, Any] = {} if about is None else _json(about)
        captions = [str(caption) for caption in values.get("captions") or () if caption]
        if not captions and (alone := shard.get(i, "txt")) is not None:
            captions = [text] if (text := str(alone, "utf-8").strip()) else []
        number = int(values.get("class", -1)) if written is None else int(bytes(written))
    except (ValueError, AttributeError, TypeError) as error:
        raise PermanentError(f"{where}: sample {shard.keys[i]!r}: its json, txt or cls is damaged: {error}") from error
    return captions, number


def _image_field(shard: IndexedShard, i: int, where: str) -> memoryview:
    for extension in IMAGE_EXTENSIONS:
        if (data := shard.get(i, extension)) is not None:
            return data
    raise PermanentError(f"{where}: sample {shard.keys[i]!r} has no picture ({', '.join(IMAGE_EXTENSIONS)})")


class ShardPairs:
    """The image shards of a split and, where given, the splat shards fitted to them (the same index, split and order).

    num_samples: how many records the manifests promise; missing: how many have no partner, counted as shards are read.
    """

    def __init__(
        self, images: Artifact, split: str, splats: Artifact | None, *, want_images: bool, want_splats: bool
    ) -> None:
        self._images, self._splats = images, splats
        self._want_images, self._want_splats = want_images, want_splats
        self._image_shards = images.manifest.split(split)
        self._splat_shards = {} if splats is None else {entry.index: entry for entry in splats.manifest.split(split)}
        used = self._image_shards if splats is None else list(self._splat_shards.values())
        self.num_samples = sum(entry.ok for entry in used)
        self.image_size = int(images.manifest.metrics.get("image_size", images.manifest.params.get("image_size", 0)))
        self.num_gaussians = 0 if splats is None else int(splats.manifest.params["num_gaussians"])
        self.missing: Counter[str] = Counter({"image": 0, "splats": 0})
        if splats is not None:
            known = {entry.index for entry in self._image_shards}
            strange = sorted(set(self._splat_shards) - known)
            if strange:
                raise PermanentError(f"{splats.url}: shards {strange} have no image shard; fit the splats again")

    def _open(self, stack: ExitStack, artifact: Artifact, entry: ShardEntry) -> IndexedShard:
        source = stack.enter_context(artifact.content(entry))
        side = next((file for file in entry.files if file.name.endswith(INDEX_SUFFIX)), None)
        index = None
        if side is not None:
            index = read_index(stack.enter_context(artifact.content(side)), f"{artifact.url}/{side.name}")
        return stack.enter_context(IndexedShard(source, index, f"{artifact.url}/{entry.name}"))

    def read(self, entry: ShardEntry) -> list[Record]:
        """The records of one image shard, in its order; those without a partner are counted in `missing`."""
        if self._splats is None:
            with ExitStack() as stack:
                shard = self._open(stack, self._images, entry)
                return [self._record(entry.index, shard, i, None, 0) for i in range(len(shard))]
        partner = self._splat_shards.get(entry.index)
        if partner is None:
            self.missing["splats"] += entry.ok
            return []
        with ExitStack() as stack:
            splats = self._open(stack, self._splats, partner)
            if not self._want_images:
                self.missing["splats"] += entry.ok - len(splats)
                return [self._record(entry.index, None, 0, splats, j) for j in range(len(splats))]
            images = self._open(stack, self._images, entry)
            places = {key: j for j, key in enumerate(splats.keys)}
            pairs = [(i, places[key]) for i, key in enumerate(images.keys) if key in places]
            self.missing["splats"] += len(images) - len(pairs)
            self.missing["image"] += len(splats) - len(pairs)
            return [self._record(entry.index, images, i, splats, j) for i, j in pairs]

    def _record(self, index: int, images: IndexedShard | None, i: int, splats: IndexedShard | None, j: int) -> Record:
        wanted = splats if splats is not None and self._want_splats else None
        data = None if wanted is None else wanted.field(j, SPLAT_EXTENSION)
        if images is not None:
            captions, number = _texts(images, i, self._images.url)
            return Record(images.keys[i], _image_field(images, i, self._images.url), data, captions, number, (index, i))
        if splats is None or self._splats is None:
            raise PermanentError("a record of neither picture nor splats")
        captions, number = _texts(splats, j, self._splats.url)
        return Record(splats.keys[j], None, data, captions, number, (index, j))

    def stream(self, limit: int) -> Iterator[Record]:
        """All records in the shards' order, the next shard read ahead; ShuffledEpoch (lanes.py) shuffles them.

        Raises PermanentError where a shard does not hold what its manifest promises.
        """
        shards = [entry for entry, _ in self.portions(limit)]
        if not shards:
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(self.checked, shards[0], limit)
            for place in range(len(shards)):
                records = ahead.result()
                if place + 1 < len(shards):
                    ahead = pool.submit(self.checked, shards[place + 1], limit)
                yield from records

    def _promised(self, entry: ShardEntry) -> int:
        if self._splats is None:
            return entry.ok
        return self._splat_shards[entry.index].ok if entry.index in self._splat_shards else 0

    def checked(self, entry: ShardEntry, limit: int) -> list[Record]:
        """The records of a shard that are served; PermanentError where they are not what its manifest promises."""
        records = self.read(entry)
        if len(records) != self._promised(entry):
            raise PermanentError(
                f"{self._images.url}/{entry.name}: {len(records)} samples, where the manifests promise "
                f"{self._promised(entry)}; the splats are of other pictures, or a shard was changed: fit them again"
            )
        if not limit:
            return records
        before = sum(self._promised(other) for other in self._image_shards if other.index < entry.index)
        return records[: max(0, limit - before)]

    def portions(self, limit: int) -> list[tuple[ShardEntry, int]]:
        """The shards in their order and how many of each one's records are served, `limit` at most in all (0: all)."""
        found, left = [], limit or self.num_samples
        for entry in self._image_shards:
            count = min(left, self._promised(entry))
            left -= count
            if count:
                found.append((entry, count))
        return found

    def read_all(self, limit: int) -> Iterator[list[Record]]:
        """Record lists of shard after shard, until `limit` records are read (0: all)."""
        count = 0
        for entry in self._image_shards:
            records = self.read(entry)
            yield records[: limit - count] if limit else records
            count += len(records)
            if limit and count >= limit:
                return


class Decoder:
    """Decodes records in a few threads.

    image_size, num_gaussians: 0 where pictures or splats are not wanted; splat_size: side in pixels of the pictures
    that all splats must be of, 0: any.
    """

    def __init__(self, *, image_size: int, num_gaussians: int, splat_size: int = 0) -> None:
        self._image_size, self._num_gaussians = image_size, num_gaussians
        self._picture = (splat_size, splat_size) if splat_size else None
        self.bytes_per_sample = image_size * image_size * 3 + num_gaussians * SPLAT_BYTES
        threads = min(DECODE_THREADS, len(os.sched_getaffinity(0)))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def _image(self, record: Record) -> npt.NDArray[np.uint8]:
        if record.image is None:
            raise PermanentError(f"sample {record.key!r} has no picture")
        try:
            image = decode_rgb(bytes(record.image))
        except ImageError as error:
            raise PermanentError(f"sample {record.key!r}: {error}; run the download again") from error
        if image.shape[:2] != (self._image_size, self._image_size):
            image = fit_square(image, self._image_size)
        return image

    def images(self, records: Sequence[Record]) -> npt.NDArray[np.uint8]:
        """[B, H, W, 3]; PermanentError naming the sample that cannot be decoded."""
        return np.stack(list(self._pool.map(self._image, records)))

    def splats(self, records: Sequence[Record]) -> PaddedSplats:
        """Padded to num_gaussians; PermanentError naming the sample that is damaged, has too many or another size."""
        files = [record.splats or b"" for record in records]
        return unpack_padded(files, self._num_gaussians, lambda i: f"sample {records[i].key!r}", picture=self._picture)
