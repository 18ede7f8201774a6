"""Samples as they lie in shards, still encoded: by columns for batches, one by one for buffers that shuffle them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson

from components.errors import PermanentError
from components.json_text import parse, whole
from components.shards import IndexedShard

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
SPLAT_EXTENSION = "gs2d"
TEXT_EXTENSIONS = ("json", "txt", "cls")
COPIED = 64  # records whose places are looked up together
Buffer = bytes | memoryview
Texts = tuple[Buffer | None, ...]  # what a sample's json, txt and cls fields hold


class Record(NamedTuple):
    """One sample of an Encoded, with bytes of its own."""

    key: str
    image: bytes | None
    splats: bytes | None
    texts: Texts
    place: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Encoded:
    """B samples, column by column. images, splats: None where not asked for; texts: json, txt and cls of each.

    places [B, 2] int64: each sample's shard's index and its row in the image shard, or in the splat shard where
    pictures are not asked for. Views keep the shard's file mapped.
    """

    keys: list[str]
    images: Sequence[Buffer] | None
    splats: Sequence[Buffer] | None
    texts: list[Texts]
    places: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def of(cls, records: Sequence[Record]) -> Encoded:
        """The same samples."""
        images = [record.image for record in records if record.image is not None]
        splats = [record.splats for record in records if record.splats is not None]
        return cls(
            [record.key for record in records],
            images if len(images) == len(records) else None,
            splats if len(splats) == len(records) else None,
            [record.texts for record in records],
            np.array([record.place for record in records], np.int64).reshape(-1, 2),
        )

    @classmethod
    def joined(cls, parts: Sequence[Encoded]) -> Encoded:
        """Samples of several stretches, at least one, one after the other."""
        if len(parts) == 1:
            return parts[0]

        def both(name: str) -> Any:
            columns = [getattr(part, name) for part in parts]
            return None if columns[0] is None else [one for column in columns for one in column]

        places = np.concatenate([part.places for part in parts])
        return cls(both("keys"), both("images"), both("splats"), both("texts"), places)

    def part(self, rows: slice) -> Encoded:
        """Some of the samples."""
        images = None if self.images is None else self.images[rows]
        splats = None if self.splats is None else self.splats[rows]
        return Encoded(self.keys[rows], images, splats, self.texts[rows], self.places[rows])

    def labels(self, where: str) -> tuple[list[list[str]], list[int]]:
        """Each sample's captions and class number, or -1; PermanentError, naming `where`, on a damaged field."""
        captions, numbers = [], []
        for i, (about, txt, written) in enumerate(self.texts):
            try:
                values: dict[str, Any] = {} if about is None else _json(about)
                found = [
                    caption if type(caption) is str else str(caption)
                    for caption in values.get("captions") or ()
                    if caption
                ]
                if not found and txt is not None:
                    found = [text] if (text := str(txt, "utf-8").strip()) else []
                numbers.append(whole(values.get("class", -1) if written is None else bytes(written)))
            except (ValueError, AttributeError, TypeError) as error:
                raise PermanentError(
                    f"{where}: sample {self.keys[i]!r}: its json, txt or cls is damaged: {error}"
                ) from error
            captions.append(found)
        return captions, numbers


def _json(data: Buffer) -> Any:
    """What json.loads gives, in a fifth of its time where the file is strict JSON in UTF-8."""
    try:
        return orjson.loads(data)
    except ValueError:
        return parse(bytes(data))


@dataclass(frozen=True, slots=True)
class Rows:
    """Some samples of one image shard and of the splat shard fitted to it; nothing is read before `encoded`.

    images, splats: None where not asked for; image_rows, splat_rows: the samples' rows in each. Keys and texts are the
    image shard's where there is one. where: what errors call their place.
    """

    index: int
    images: IndexedShard | None
    image_rows: Sequence[int]
    splats: IndexedShard | None
    splat_rows: Sequence[int]
    where: str

    @classmethod
    def none(cls, index: int, where: str) -> Rows:
        """No sample."""
        return cls(index, None, (), None, (), where)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def _rows(self) -> Sequence[int]:
        return self.splat_rows if self.images is None else self.image_rows

    def part(self, first: int, last: int) -> Rows:
        """The samples from the first number up to the second."""
        return replace(self, image_rows=self.image_rows[first:last], splat_rows=self.splat_rows[first:last])

    def encoded(self) -> Encoded:
        """All of them. PermanentError, naming the sample, where one lacks its picture or splats."""
        rows, shard = self._rows, self.splats if self.images is None else self.images
        if shard is None:
            return Encoded.of([])
        keys = shard.keys
        chosen = keys[rows.start : rows.stop] if isinstance(rows, range) else [keys[i] for i in rows]
        images = splats = None
        if self.images is not None:
            images = self._whole(self._pictures(self.images), chosen, f"picture ({', '.join(IMAGE_EXTENSIONS)})")
        if self.splats is not None:
            what = "splats (gs2d) beside it; fit the splats again"
            splats = self._whole(self.splats.column(SPLAT_EXTENSION, self.splat_rows), chosen, what)
        places = np.empty((len(rows), 2), np.int64)
        places[:, 0], places[:, 1] = self.index, rows
        texts = zip(*(shard.column(extension, rows) for extension in TEXT_EXTENSIONS), strict=True)
        return Encoded(chosen, images, splats, list(texts), places)

    def _pictures(self, shard: IndexedShard) -> list[memoryview | None]:
        columns = [shard.column(name, self.image_rows) for name in IMAGE_EXTENSIONS if name in shard.index.fields]
        if len(columns) == 1:
            return columns[0]
        return [next((one for one in found if one is not None), None) for found in zip(*columns, strict=True)]

    def _whole(self, column: list[memoryview | None], keys: Sequence[str], what: str) -> list[memoryview]:
        found = [one for one in column if one is not None]
        if len(found) < len(keys):
            lacking = next(key for key, one in zip(keys, column or [None] * len(keys), strict=True) if one is None)
            raise PermanentError(f"{self.where}: sample {lacking!r} has no {what}")
        return found

    def records(self) -> Iterator[Record]:
        """One by one, each with bytes of its own."""
        for start in range(0, len(self), COPIED):
            some = self.part(start, start + COPIED).encoded()
            for i, place in enumerate(some.places.tolist()):
                image = None if some.images is None else bytes(some.images[i])
                splats = None if some.splats is None else bytes(some.splats[i])
                texts = tuple([None if one is None else bytes(one) for one in some.texts[i]])
                yield Record(some.keys[i], image, splats, texts, tuple(place))
