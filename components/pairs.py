"""The samples of image shards and of the splat shards fitted to them, paired by key, in the shards' order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import islice
from typing import TypeVar

from components.config import SQUARE_MODES
from components.errors import PermanentError
from components.manifest import Artifact, ShardEntry
from components.records import Rows
from components.shards import IndexedShard, read_index

INDEX_SUFFIX = ".idx"
T = TypeVar("T")


def ahead(jobs: Iterable[Callable[[], T]]) -> Iterator[T]:
    """What each job returns, in order; the next one is done in a thread while the one before is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        waiting = iter(jobs)
        coming = [pool.submit(job) for job in islice(waiting, 1)]
        while coming:
            done = coming.pop().result()  # an error is raised before the next job begins
            coming = [pool.submit(job) for job in islice(waiting, 1)]
            yield done
            del done  # else it would be held while the next one is waited for


class ShardPairs:
    """The image shards of a split and, where given, the splat shards fitted to them (the same index, split and order).

    num_samples: how many the manifests promise; missing: how many have no partner, counted as shards are read;
    texts_at: whose texts they bear, for errors.
    """

    def __init__(
        self, images: Artifact, split: str, splats: Artifact | None, *, want_images: bool, want_splats: bool
    ) -> None:
        mode = images.manifest.params.get("resize_mode", SQUARE_MODES[0])
        if mode not in SQUARE_MODES:
            raise PermanentError(
                f"{images.url}: its pictures are of several sizes (download.resize_mode {mode!r}); training and "
                f"scoring need squares of one: set it to {' or '.join(SQUARE_MODES)} and run download again"
            )
        self._images, self._splats = images, splats
        self._want_images, self._want_splats = want_images, want_splats
        self._image_shards = images.manifest.split(split)
        self._splat_shards = {} if splats is None else {entry.index: entry for entry in splats.manifest.split(split)}
        self.texts_at = images.url if want_images or splats is None else splats.url
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

    def _open(self, artifact: Artifact, entry: ShardEntry) -> IndexedShard:
        side = next((file for file in entry.files if file.name.endswith(INDEX_SUFFIX)), None)
        with ExitStack() as stack:  # what is mapped stays so while the shard is held
            source = stack.enter_context(artifact.content(entry))
            index = None
            if side is not None:
                index = read_index(stack.enter_context(artifact.content(side)), f"{artifact.url}/{side.place}")
            return IndexedShard(source, index, f"{artifact.url}/{entry.name}")

    def read(self, entry: ShardEntry) -> Rows:
        """The samples of one image shard, in its order; those without a partner are counted in `missing`."""
        if self._splats is None:
            images = self._open(self._images, entry)
            rows = range(len(images))
            return Rows(entry.index, images, rows, None, rows, self.texts_at)
        partner = self._splat_shards.get(entry.index)
        if partner is None:
            self.missing["splats"] += entry.ok
            return Rows.none(entry.index, self.texts_at)
        splats = self._open(self._splats, partner)
        fits = splats if self._want_splats else None
        if not self._want_images:
            self.missing["splats"] += entry.ok - len(splats)
            rows = range(len(splats))
            return Rows(entry.index, None, rows, fits, rows, self.texts_at)
        images = self._open(self._images, entry)
        image_rows: Sequence[int] = range(len(images))
        splat_rows: Sequence[int] = range(len(splats))
        if images.keys != splats.keys:
            places = {key: j for j, key in enumerate(splats.keys)}
            pairs = [(i, places[key]) for i, key in enumerate(images.keys) if key in places]
            self.missing["splats"] += len(images) - len(pairs)
            self.missing["image"] += len(splats) - len(pairs)
            image_rows, splat_rows = [i for i, _ in pairs], [j for _, j in pairs]
        return Rows(entry.index, images, image_rows, fits, splat_rows, self.texts_at)

    def stream(self, limit: int) -> Iterator[Rows]:
        """All samples in the shards' order, a shard at a time, the next one read ahead; ShuffledEpoch shuffles them.

        Raises PermanentError where a shard does not hold what its manifest promises.
        """
        yield from ahead(partial(self.checked, entry, limit) for entry, _ in self.portions(limit))

    def _promised(self, entry: ShardEntry) -> int:
        if self._splats is None:
            return entry.ok
        return self._splat_shards[entry.index].ok if entry.index in self._splat_shards else 0

    def checked(self, entry: ShardEntry, limit: int) -> Rows:
        """The samples of a shard that are served; PermanentError where they are not what its manifest promises."""
        rows = self.read(entry)
        if len(rows) != self._promised(entry):
            raise PermanentError(
                f"{self._images.url}/{entry.name}: {len(rows)} samples, where the manifests promise "
                f"{self._promised(entry)}; the splats are of other pictures, or a shard was changed: fit them again"
            )
        if not limit:
            return rows
        before = sum(self._promised(other) for other in self._image_shards if other.index < entry.index)
        return rows.part(0, max(0, limit - before))

    def unpaired(self) -> dict[str, int]:
        """What `missing` will count in a whole pass, by the manifests: `checked` refuses shards that differ."""
        return {"image": 0, "splats": sum(entry.ok - self._promised(entry) for entry in self._image_shards)}

    def portions(self, limit: int) -> list[tuple[ShardEntry, int]]:
        """The shards in their order and how many of each one's records are served, `limit` at most in all (0: all)."""
        found, left = [], limit or self.num_samples
        for entry in self._image_shards:
            count = min(left, self._promised(entry))
            left -= count
            if count:
                found.append((entry, count))
        return found

    def read_all(self, limit: int) -> Iterator[Rows]:
        """Shard after shard, until `limit` samples are read (0: all)."""
        count = 0
        for entry in self._image_shards:
            rows = self.read(entry)
            yield rows.part(0, limit - count) if limit else rows
            count += len(rows)
            if limit and count >= limit:
                return
