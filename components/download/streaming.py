"""Samples that come from far away, each in its own time, put back into the order of their shards."""

from __future__ import annotations

import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from threading import Lock
from types import TracebackType

from components.download.sources import Raw, Ref, ShardPlan, Skip, Source
from components.images import ImageError
from components.manifest import SampleNote
from components.shards import Sample

AHEAD = 32768  # samples that are begun before the oldest shard is whole: one slow host must not hold up the others
PENDING = 4  # pictures waiting to be decoded, as a multiple of the threads
Made = Sample | SampleNote


def note_of(key: str, error: Skip | ImageError) -> SampleNote:
    """What a manifest keeps of a sample that is not ok."""
    outcome = "skipped" if isinstance(error, Skip) else "failed"
    return SampleNote(key=key, outcome=outcome, reason=error.reason, detail=error.detail)


class _Spool:
    """One shard's samples in a temporary file, in any order, until all are there."""

    def __init__(self) -> None:
        self._stream = tempfile.TemporaryFile(prefix="splatclip-")  # noqa: SIM115  closed by close()
        self._spans: dict[str, list[tuple[str, int]]] = {}
        self._starts: dict[str, int] = {}
        self.notes: dict[str, SampleNote] = {}

    def put(self, made: Made) -> None:
        if isinstance(made, SampleNote):
            self.notes[made.key] = made
            return
        self._starts[made.key] = self._stream.seek(0, 2)
        for content in made.fields.values():
            self._stream.write(content)
        self._spans[made.key] = [(ext, len(content)) for ext, content in made.fields.items()]

    def __len__(self) -> int:
        return len(self.notes) + len(self._spans)

    def get(self, key: str) -> Made:
        if key in self.notes:
            return self.notes[key]
        self._stream.seek(self._starts[key])
        return Sample(key, {ext: self._stream.read(size) for ext, size in self._spans[key]})

    def close(self) -> None:
        self._stream.close()


class _Gate:
    """Hands out refs in order, no more than AHEAD beyond what was released."""

    def __init__(self, shards: Sequence[ShardPlan], ahead: int) -> None:
        self._refs = (ref for shard in shards for ref in shard.refs)
        self._room, self._lock, self._closed = ahead, Lock(), False

    def __iter__(self) -> Iterator[Ref | None]:
        """None: not now."""
        for ref in self._refs:
            while True:
                with self._lock:
                    if self._closed:
                        return
                    if self._room > 0:
                        self._room -= 1
                        break
                yield None
            yield ref

    def release(self, count: int) -> None:
        with self._lock:
            self._room += count

    def close(self) -> None:
        with self._lock:
            self._closed = True


class ShardStream:
    """Reads the samples of many shards at a time and gives them out shard by shard. A context manager.

    shards: those to read, in order. make: a sample as shards hold it, from what the source gave, run in `pool`; raises
    ImageError. seen: sha256 sums of the pictures of earlier shards; a picture that was there before is left out, or
    None to keep them all. check: called every now and then; raises to stop.
    """

    def __init__(
        self,
        source: Source,
        shards: Sequence[ShardPlan],
        make: Callable[[Ref, Raw], Sample],
        pool: ThreadPoolExecutor,
        *,
        seen: set[str] | None,
        check: Callable[[], None],
        workers: int,
    ) -> None:
        self._source, self._make, self._pool = source, make, pool
        self._seen, self._check, self._most = seen, check, PENDING * workers
        self._shard_of = {ref.position: shard.index for shard in shards for ref in shard.refs}
        self._spools: dict[int, _Spool] = {}
        self._pending: deque[tuple[int, Future[Made]]] = deque()
        self._files = ExitStack()
        largest = max((len(shard.refs) for shard in shards), default=0)
        self._gate = _Gate(shards, max(AHEAD, 2 * largest))

    def __enter__(self) -> ShardStream:
        self._results = self._files.enter_context(self._source.stream(iter(self._gate)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.close()
        for _, future in self._pending:
            future.cancel()
        self._files.close()
        for spool in self._spools.values():
            spool.close()

    def samples(self, shard: ShardPlan, notes: list[SampleNote]) -> Iterator[Sample]:
        """The shard's good samples in order, as soon as all of it has come; the others go to `notes`."""
        spool = self._spool(shard.index)
        while len(spool) < len(shard.refs):
            self._advance()
        for ref in shard.refs:
            made = self._once(spool.get(ref.key))
            if isinstance(made, SampleNote):
                notes.append(made)
            else:
                yield made
        self._spools.pop(shard.index).close()
        self._gate.release(len(shard.refs))

    def _advance(self) -> None:
        """Take one result, or a moment's rest, and what the threads have made meanwhile."""
        self._check()
        try:
            result = next(self._results)
        except StopIteration:
            if not self._pending:
                raise RuntimeError("the source ended before it had given all samples") from None
            result = None
            self._pending[0][1].exception()  # waits for it
        if result is not None:
            ref, found = result
            index = self._shard_of[ref.position]
            if isinstance(found, Raw):
                self._pending.append((index, self._pool.submit(self._made, ref, found)))
            else:
                self._keep(index, note_of(ref.key, found))
        while self._pending and (self._pending[0][1].done() or len(self._pending) > self._most):
            index, future = self._pending.popleft()
            self._keep(index, future.result())

    def _keep(self, index: int, made: Made) -> None:
        self._spool(index).put(made)

    def _spool(self, index: int) -> _Spool:
        if index not in self._spools:
            self._spools[index] = _Spool()
        return self._spools[index]

    def _made(self, ref: Ref, raw: Raw) -> Made:
        try:
            return self._make(ref, raw)
        except (Skip, ImageError) as error:
            return note_of(ref.key, error)

    def _once(self, made: Made) -> Made:
        """A picture whose bytes an earlier sample had is left out: by the shards' order, not by that of arrival."""
        if self._seen is None or isinstance(made, SampleNote):
            return made
        digest = str(json.loads(made.fields["json"])["sha256"])
        if digest in self._seen:
            return note_of(made.key, Skip("duplicate", "an earlier picture has the same bytes"))
        self._seen.add(digest)
        return made
