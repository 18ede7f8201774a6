"""Source `urls`: pictures from lists of web addresses, as DataComp, LAION or CC12M are given out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from components.config import DownloadParams
from components.download.fetch import TABLES, Tree
from components.download.filters import FILTERED
from components.download.http import Fetched, Fetcher, Job, Outcome
from components.download.img2dataset import Img2dataset
from components.download.rows import Rows
from components.download.sources import Raw, Ref, Result, Skip, StreamingSource
from components.download.url_table import CARRIED, read_table
from components.errors import PermanentError
from components.images import ImageError

if TYPE_CHECKING:
    import pyarrow as pa


_Wanted = tuple[Ref, dict[str, str]]


def _engine(params: DownloadParams) -> Fetcher | Img2dataset:
    if params.urls.engine == "img2dataset":
        return Img2dataset(params.urls, max_bytes=params.max_bytes)
    return Fetcher(params.urls, max_bytes=params.max_bytes)


class UrlSource(StreamingSource):
    """Rows of tables, in the tables' order; a row's key is its number over all that are not filtered.

    Limits: some 200 bytes of memory a row; of the tables themselves rows.MOST_BYTES, the others are read again when
    their turn comes. What enters the cache key is the tables' content: what the web answers is not part of it, and
    shards that are committed stay as they are.
    """

    tables: tuple[str, ...] = TABLES
    carried: tuple[str, ...] = CARRIED

    def __init__(self, tree: Tree, params: DownloadParams) -> None:
        self._tree, self._params = tree, params
        self._names = [name for name in tree.names() if name.lower().endswith(self.tables)]
        if not self._names:
            kinds = " or ".join(self.tables)
            raise PermanentError(f"download.path {tree.url!r}: no list of URLs there; expected {kinds}")
        self.fingerprint = tree.fingerprint(self._names)
        self._place = f"download.path {tree.url!r}"
        self._filtered: dict[str, Counter[str]] = {}

    @cached_property
    def _rows(self) -> Rows:
        return Rows(self._names, self._kept)

    def _read(self, name: str) -> pa.Table:
        """One table; the same rows each time."""
        where = f"{self._tree.url}/{name}"
        return read_table(self._tree.path(name), name, self._params.urls, where, self.carried)

    def _kept(self, name: str) -> pa.Table:
        """One table without the rows that filters leave out, which are counted."""
        from pyarrow import compute

        table = self._read(name)
        if FILTERED not in table.column_names:
            return table
        self._filtered[name] = Counter(filter(None, table[FILTERED].to_pylist()))
        return table.filter(compute.equal(table[FILTERED], "")).drop_columns(FILTERED)

    def _list(self) -> Sequence[Ref]:
        number = len(self._rows)
        self.left_out = dict(sorted(sum(self._filtered.values(), Counter()).items()))
        if not number:
            said = ", ".join(f"{reason} {count}" for reason, count in self.left_out.items())
            raise PermanentError(
                f"{self._place}: its {len(self._names)} lists hold no row" + (f" that is kept ({said})" if said else "")
            )
        width = max(9, len(str(number - 1)))
        return [Ref(f"{row:0{width}d}", "", 0, row) for row in range(number)]

    def row(self, ref: Ref) -> dict[str, str]:
        """What the tables say of one sample; columns that its table lacks are left out."""
        return self._rows[ref.position]

    def load(self, ref: Ref) -> Raw:
        """Fetch one sample alone; `stream` is the way to fetch many."""
        with self.stream(iter([ref])) as results:
            _, raw, error = next(result for result in results if result is not None)
        if error is not None:
            raise error
        return raw

    @contextmanager
    def stream(self, refs: Iterator[Ref | None]) -> Iterator[Iterator[Result | None]]:
        """See Source. Leaving the context gives up what is under way."""
        with _engine(self._params) as fetcher:
            yield self._results(fetcher.fetch(None if ref is None else self._job(ref) for ref in refs))

    def _job(self, ref: Ref) -> Job[_Wanted]:
        row = self.row(ref)
        skip = Skip("no_caption", "the row has none") if row.get("caption", "-").strip() == "" else None
        return Job(row["url"].strip(), (ref, row), skip)

    def _results(self, done: Iterator[tuple[Job[_Wanted], Outcome] | None]) -> Iterator[Result | None]:
        for result in done:
            if result is None:
                yield None
                continue
            job, outcome = result
            ref, row = job.payload  # the row: to look it up again might take reading its table again
            found = self._checked(row, outcome) if isinstance(outcome, Fetched) else outcome
            yield (ref, found, None) if isinstance(found, Raw) else (ref, self._raw(row), found)

    def about(self, ref: Ref) -> Raw:
        """See Source."""
        return self._raw(self.row(ref))

    @staticmethod
    def _raw(row: dict[str, str], body: bytes = b"", **extra: str) -> Raw:
        caption = row.get("caption", "").strip()
        carried = {name: value for name, value in row.items() if name not in {"url", "caption", "sha256"}}
        url = row["url"].strip()
        return Raw(body, (caption,) if caption else (), origin=url, extra={**carried, **extra})

    def _checked(self, row: dict[str, str], found: Fetched) -> Raw | ImageError:
        digest = hashlib.sha256(found.body).hexdigest()
        expected = row.get("sha256", "").lower()
        if expected and expected != digest:
            return ImageError("other_content", f"sha256 is {digest}, the list says {expected[:80]}")
        return self._raw(row, found.body, url=row["url"].strip(), sha256=digest)

    def close(self) -> None:
        """See Source."""
        self._tree.close()
