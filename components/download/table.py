"""The table beside each image shard, as img2dataset writes it: one row a sample, good or bad, and a summary."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.download.sources import Raw, Skip, written
from components.images import ImageError
from components.manifest import canonical

TABLE_SUFFIX, STATS_SUFFIX = ".parquet", "_stats.json"
SUCCESS, NO_DOWNLOAD, NO_RESIZE, SKIPPED = "success", "failed_to_download", "failed_to_resize", "skipped"
# Columns in their order, and whether they hold text or whole numbers.
COLUMNS: dict[str, type] = {
    "url": str,
    "caption": str,
    "key": str,
    "status": str,
    "error_message": str,
    "width": int,
    "height": int,
    "original_width": int,
    "original_height": int,
    "exif": str,
    "sha256": str,
    "class": int,
}
Row = Mapping[str, str | float | int | None]


def row(key: str, raw: Raw, status: str, **found: str | float | None) -> Row:
    """One sample's row.

    raw: what is known of it (origin is the url; extra: columns of the source's own, which COLUMNS go before); found:
    of its COLUMNS what came out: error_message, width, height, original_width, original_height, exif. sha256 is that
    of the bytes as the source had them, where it had some.
    """
    given = bytes(raw.image) if isinstance(raw.image, bytes) else b""
    return {
        **{name: _whole(value) if COLUMNS.get(name) is int else value for name, value in raw.extra.items()},
        "url": raw.origin or None,
        "caption": raw.captions[0] if raw.captions else None,
        "key": key,
        "status": status,
        "sha256": hashlib.sha256(given).hexdigest() if given else None,
        "class": raw.label if raw.label >= 0 else None,
        **found,
    }


def _whole(value: str | float) -> int | None:
    """A whole number that a source gives, as a text perhaps; None for anything else."""
    try:
        number = float(value)
    except ValueError:
        return None
    return int(number) if number.is_integer() and abs(number) < 1 << 53 else None


def bad_row(key: str, raw: Raw, error: Skip | ImageError, *, loaded: bool) -> Row:
    """The row of a sample that has no picture. loaded: its bytes were there, and no picture came of them."""
    status = SKIPPED if isinstance(error, Skip) else NO_RESIZE if loaded else NO_DOWNLOAD
    return row(key, raw, status, error_message=written(f"{error.reason}: {error.detail}"))


def _kind(values: Sequence[Any]) -> type:
    """What a column of the source's own holds: whole numbers of 64 bits, numbers, or else texts."""
    kinds = {
        float if isinstance(value, float) else int if isinstance(value, int) and abs(value) < 1 << 63 else str
        for value in values
        if value is not None
    }
    return kinds.pop() if len(kinds) == 1 else float if kinds == {int, float} else str


def _parquet(rows: Sequence[Row]) -> bytes:
    """The rows as Parquet: COLUMNS, then the others by name. One version of pyarrow gives the same bytes for them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    others = sorted({name for one in rows for name in one} - COLUMNS.keys())
    columns = {name: [one.get(name) for one in rows] for name in (*COLUMNS, *others)}
    kinds = COLUMNS | {name: _kind(columns[name]) for name in others}
    types = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    arrays = [
        pa.array([None if value is None else kinds[name](value) for value in values], types[kinds[name]])
        for name, values in columns.items()
    ]
    table = pa.Table.from_arrays(arrays, names=list(columns))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, version="2.6", data_page_version="1.0", compression="snappy", row_group_size=max(1, len(rows))
    )
    return bytes(sink.getvalue())


def _stats(rows: Sequence[Row]) -> bytes:
    """Counts by img2dataset's names, and `skipped`, without its times; status_dict counts reasons, not details."""
    status = Counter(str(one["status"]) for one in rows)
    reasons = Counter(str(one.get("error_message") or SUCCESS).partition(":")[0] for one in rows)
    values = {
        "count": len(rows),
        "successes": status[SUCCESS],
        "failed_to_download": status[NO_DOWNLOAD],
        "failed_to_resize": status[NO_RESIZE],
        "skipped": status[SKIPPED],
        "status_dict": dict(reasons),
    }
    return canonical(values, indent=4)


def side_files(rows: Sequence[Row]) -> dict[str, bytes]:
    """The side files of a shard, suffix -> content: NNNNN-hash.parquet and NNNNN-hash_stats.json."""
    return {TABLE_SUFFIX: _parquet(rows), STATS_SUFFIX: _stats(rows)}


def sums_of(path: Path) -> set[str]:
    """sha256 sums of the pictures that a table says are in its shard, as the source had them."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["status", "sha256"]).to_pydict()
    return {given for status, given in zip(table["status"], table["sha256"], strict=True) if status == SUCCESS}
