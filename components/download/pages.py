"""How much memory the pages of a Parquet file take, by their own headers: by those the reader makes room for them.

What a file's footer says of sizes binds nobody. A page header is a Thrift struct in the compact protocol, as
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift describes it.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.images import ImageError

if TYPE_CHECKING:
    from pyarrow.parquet import FileMetaData

MOST = 1 << 30  # bytes of a page, decompressed
BATCH = 256 << 20  # bytes of values that are repeated from a dictionary, of all rows that are read at a time
LISTED = 1 << 24  # values of a row group's lists: a single row may have them all
_SPARE = 1 << 20  # what a page may have besides pictures within the limit
_DICTIONARY, _SECOND = 2, 3  # kinds of pages
_ABOUT = {0: 5, _DICTIONARY: 7, _SECOND: 8}  # kind of page -> number of the struct that tells of it
_DELTA = 7  # encoding that repeats the beginnings of values
_PADDING = 100  # that some old writers leave out of a column's length; the reader allows for as much
_DEEP = 8


@dataclass(frozen=True)
class Page:
    """num_bytes: decompressed; num_values: as its header says; delta: its values repeat the beginnings of others."""

    num_bytes: int
    num_values: int
    dictionary: bool
    delta: bool


def _varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number without an end in a page's header")


def _value(data: bytes | mmap.mmap, at: int, kind: int, depth: int) -> tuple[Any, int]:
    """A value of one of Thrift's kinds, None where it is of no use here, and where the next one begins."""
    if kind in {1, 2}:
        return kind == 1, at
    if kind == 3:
        return None, at + 1
    if kind in {4, 5, 6}:
        number, at = _varint(data, at)
        return (number >> 1) ^ -(number & 1), at
    if kind == 7:
        return None, at + 8
    if kind == 8:
        size, at = _varint(data, at)
        return None, at + size
    if kind == 12 and depth < _DEEP:
        return _struct(data, at, depth + 1)
    raise ValueError(f"a page's header holds what none does (kind {kind})")


def _struct(data: bytes | mmap.mmap, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct's values by number, and where what follows begins. Raises ValueError or IndexError."""
    found: dict[int, Any] = {}
    number = 0
    while byte := data[at]:
        at += 1
        number += byte >> 4
        if not byte >> 4:
            raw, at = _varint(data, at)
            number = (raw >> 1) ^ -(raw & 1)
        found[number], at = _value(data, at, byte & 0x0F, depth)
    return found, at + 1


def _whole(found: dict[int, Any], number: int) -> int:
    value = found.get(number)
    if not isinstance(value, int) or value < 0:
        raise ValueError("a page's header without a size")
    return value


def pages(data: bytes | mmap.mmap, start: int, size: int, num_values: int) -> Iterator[Page]:
    """The pages of a column of one row group, as far as the reader goes. Raises ValueError or IndexError."""
    at, end, seen = start, min(start + size + _PADDING, len(data)), 0
    while seen < num_values and at < min(start + size, end):
        header, at = _struct(data, at)
        kind = _whole(header, 1)
        about = header.get(_ABOUT.get(kind, 0), {})
        if not isinstance(about, dict):
            raise ValueError("a page's header that tells nothing of it")
        packed, values = _whole(header, 3), _whole(about, 1) if about else 0
        if at + packed > end:
            raise ValueError("a page that does not fit into its column")
        seen += 0 if kind == _DICTIONARY else values
        delta = about.get(4 if kind == _SECOND else 2) == _DELTA
        yield Page(_whole(header, 2), values, kind == _DICTIONARY, delta)
        at += packed


def rows_at_a_time(
    path: Path, footer: FileMetaData, group: int, columns: list[str], indexed: list[str], *, max_bytes: int, most: int
) -> int:
    """How many rows of a row group may be read together so that memory stays bounded; at most `most`.

    columns: those that are read, by their paths; indexed: those that stay dictionaries.
    Raises ImageError `too_large` where a page is larger than its values may be, ValueError or IndexError where the
    file is damaged.
    """
    longest = 1
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for number in range(footer.num_columns):
            name = footer.schema.column(number).path
            if name not in columns:
                continue
            listed = footer.schema.column(number).max_repetition_level > 0
            chunk, values = footer.row_group(group).column(number), 0
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and 0 < (first := chunk.dictionary_page_offset) < start:
                start = first
            if start < 0 or chunk.total_compressed_size < 0:
                raise ValueError("a column outside the file")
            for page in pages(data, start, chunk.total_compressed_size, chunk.num_values):
                limit = min(MOST, page.num_values * max_bytes + _SPARE)
                if page.num_bytes > limit:
                    raise ImageError("too_large", f"a page of {page.num_bytes} bytes of column {name!r}; limit {limit}")
                values += 0 if page.dictionary else page.num_values
                if listed and (values > LISTED or page.delta):
                    raise ImageError("too_large", f"lists of {values} values in column {name!r}; limit {LISTED}")
                if page.delta or (page.dictionary and name not in indexed):
                    longest = max(longest, page.num_bytes)
    return max(1, min(most, BATCH // longest))
