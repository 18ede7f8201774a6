"""Samples that come from far away, each in its own time, put back into the order of their shards."""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from threading import Lock
from types import TracebackType

from components.download.sources import Raw, Ref, ShardPlan, Skip, StreamingSource, written
from components.download.table import Row, bad_row
from components.images import ImageError
from components.manifest import SampleNote
from components.shards import Sample

AHEAD = 32768  # samples that are begun before the oldest shard is whole: one slow host must not hold up the others
OPEN = 64  # shards at a time, each with a temporary file
# Pictures waiting to be decoded, as a multiple of the threads; fewer where they have more bytes together. As many bytes
# again may wait in http.Fetcher.
PENDING = 4
PENDING_BYTES = 128 << 20
Made = tuple[Sample | SampleNote, Row]
"""A sample, or why there is none, and its row in the shard's table."""
Extra = Mapping[str, str | float | int]


def refused(ref: Ref, raw: Raw, error: Skip | ImageError, *, loaded: bool) -> Made:
    """A sample that is not ok. raw: what is known of it; loaded: its bytes were there."""
    outcome = "skipped" if isinstance(error, Skip) else "failed"
    note = SampleNote(key=ref.key, outcome=outcome, reason=error.reason, detail=written(error.detail))
    return note, bad_row(ref.key, raw, error, loaded=loaded)


class _Spool:
    """One shard's samples, good ones in a temporary file, in any order, until all are there."""

    def __init__(self) -> None:
        self._stream = tempfile.TemporaryFile(prefix="splatclip-")  # noqa: SIM115  closed by close()
        self._spans: dict[str, tuple[int, list[tuple[str, int]]]] = {}
        self._notes: dict[str, SampleNote] = {}
        self._rows: dict[str, Row] = {}
        self._extras: dict[str, Extra] = {}

    def put(self, key: str, made: Made, extra: Extra | None) -> None:
        """extra: the source's own columns, where they may be asked for."""
        result, self._rows[key] = made
        if isinstance(result, SampleNote):
            self._notes[key] = result
            return
        if extra is not None:
            self._extras[key] = extra
        start = self._stream.seek(0, 2)
        for content in result.fields.values():
            self._stream.write(content)
        self._spans[key] = start, [(ext, len(content)) for ext, content in result.fields.items()]

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Made:
        if key in self._notes:
            return self._notes[key], self._rows[key]
        start, fields = self._spans[key]
        self._stream.seek(start)
        return Sample(key, {ext: self._stream.read(size) for ext, size in fields}), self._rows[key]

    def about(self, key: str) -> Raw:
        """What the source said of a good sample, whose picture was read since."""
        row = self._rows[key]
        captions = () if row["caption"] is None else (str(row["caption"]),)
        label = -1 if row["class"] is None else int(row["class"])
        return Raw(b"", captions, label, str(row["url"] or ""), extra=self._extras[key])

    def close(self) -> None:
        with suppress(OSError):  # a full disk takes no last bytes, which nobody wants any more
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

    shards: those to read, in order. make: a sample as shards hold it, from what the source gave, run in `pool`. seen:
    sha256 sums of the pictures of earlier shards; a picture that was there before is left out; None: all are kept.
    check: called every now and then; raises to stop.
    """

    def __init__(
        self,
        source: StreamingSource,
        shards: Sequence[ShardPlan],
        make: Callable[[Ref, Raw], Made],
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
        self._pending: deque[tuple[Ref, int, Future[Made], Extra | None]] = deque()
        self._pending_bytes = 0
        self._files = ExitStack()
        largest = max((len(shard.refs) for shard in shards), default=0)
        self._gate = _Gate(shards, max(min(AHEAD, OPEN * largest), 2 * largest))

    def __enter__(self) -> ShardStream:
        self._results = self._files.enter_context(self._source.stream(iter(self._gate)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._gate.close()
        for _, _, future, _ in self._pending:
            future.cancel()
        self._files.close()
        for spool in self._spools.values():
            spool.close()

    def samples(self, shard: ShardPlan) -> Iterator[Made]:
        """The shard's samples in order, good and bad, as soon as all of it has come."""
        spool = self._spool(shard.index)
        while len(spool) < len(shard.refs):
            self._advance()
        for ref in shard.refs:
            yield self._once(ref, spool)
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
            self._pending[0][2].exception()  # waits for it
        if result is not None:
            ref, raw, error = result
            if error is None:
                extra = None if self._seen is None else raw.extra
                self._pending.append((ref, len(raw.image), self._pool.submit(self._make, ref, raw), extra))
                self._pending_bytes += len(raw.image)
            else:
                self._keep(ref, refused(ref, raw, error, loaded=False))
        while self._pending and (
            self._pending[0][2].done() or len(self._pending) > self._most or self._pending_bytes > PENDING_BYTES
        ):
            ref, size, future, extra = self._pending.popleft()
            self._pending_bytes -= size
            self._keep(ref, future.result(), extra)

    def _keep(self, ref: Ref, made: Made, extra: Extra | None = None) -> None:
        self._spool(self._shard_of[ref.position]).put(ref.key, made, extra)

    def _spool(self, index: int) -> _Spool:
        if index not in self._spools:
            self._spools[index] = _Spool()
        return self._spools[index]

    def _once(self, ref: Ref, spool: _Spool) -> Made:
        """A picture whose bytes an earlier sample had is left out: by the shards' order, not by that of arrival."""
        result, row = made = spool.get(ref.key)
        if self._seen is None or isinstance(result, SampleNote):
            return made
        digest = str(row["sha256"])
        if digest in self._seen:
            again = Skip("duplicate", "an earlier picture has the same bytes")
            note, line = refused(ref, spool.about(ref.key), again, loaded=True)
            return note, {**line, "sha256": digest}
        self._seen.add(digest)
        return made
