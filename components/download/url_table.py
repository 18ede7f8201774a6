"""Lists of URLs: .parquet, .csv, .tsv and .jsonl files with a column of addresses and one of captions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.download.fetch import TABLES
from components.download.filters import NSFW, NSFW_COLUMNS, SIMILARITY, SIMILARITY_COLUMNS, filtered
from components.errors import PermanentError, UsageError
from components.fields import nearest
from components.url_params import UrlParams

if TYPE_CHECKING:
    import pyarrow as pa

URL_COLUMNS = ("url", "image_url", "image")
CAPTION_COLUMNS = ("caption", "text", "alt", "alt_text")
SUM_COLUMNS = ("sha256",)
CARRIED = ("uid", "nsfw", "punsafe", "license", "licence", "original_width", "original_height")
"""Columns that go along with a picture where a table has them, whatever the case of their names."""
_BATCH = 65536


def _column(wanted: str, usual: Sequence[str], there: Sequence[str], where: str, what: str) -> str | None:
    """The table's own name of a column: the one asked for, else the first usual one, whatever its case."""
    if wanted:
        if wanted not in there:
            raise PermanentError(
                f"{where}: no column {wanted!r}{nearest(wanted, there)} for the {what}; has: {', '.join(there)[:400]}"
            )
        return wanted
    lower = {name.lower(): name for name in reversed(there)}
    return next((lower[name] for name in usual if name in lower), None)


def _judged_by(there: Sequence[str], params: UrlParams, where: str) -> dict[str, str]:
    """The columns that rows are left out by, where that is asked for."""
    found = {}
    for name, wanted, usual, asked in (
        (NSFW, params.nsfw_column, NSFW_COLUMNS, params.max_nsfw < 1),
        (SIMILARITY, params.similarity_column, SIMILARITY_COLUMNS, params.min_similarity > -1),
    ):
        if not asked:
            continue
        parameter = {NSFW: "max_nsfw", SIMILARITY: "min_similarity"}[name]
        column = _column(wanted, usual, there, where, f"filter {parameter}")
        if column is None:
            raise PermanentError(
                f"{where}: none of its columns ({', '.join(there)}) is called {' or '.join(usual)}; name the one that "
                f"download.urls.{parameter} goes by in {name[1:]}_column"
            )
        found[name] = column
    return found


def columns_of(there: Sequence[str], params: UrlParams, where: str, usual: Sequence[str] = CARRIED) -> dict[str, str]:
    """What is read of a table: `url`, `caption`, `sha256`, what rows are left out by and what is carried along -> the
    table's column. usual: what is carried along where it is there.
    """
    url = _column(params.url_column, URL_COLUMNS, there, where, "addresses")
    if url is None:
        raise PermanentError(
            f"{where}: none of its columns ({', '.join(there)[:500]}) is called {' or '.join(URL_COLUMNS)}; name it in "
            "download.urls.url_column"
        )
    found = {"url": url} | _judged_by(there, params, where)
    if (caption := _column(params.caption_column, CAPTION_COLUMNS, there, where, "captions")) is not None:
        found["caption"] = caption
    if (digest := _column("", SUM_COLUMNS, there, where, "sums")) is not None:
        found["sha256"] = digest
    lower = {name.lower(): name for name in reversed(there)}
    wanted = {name: name for name in params.carry}
    if missing := [name for name in wanted if name not in there]:
        raise PermanentError(f"{where}: no column {missing[0]!r}{nearest(missing[0], there)}; see download.urls.carry")
    return {**{name: lower[name] for name in usual if name in lower}, **wanted, **found}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _parquet(path: Path, params: UrlParams, where: str, usual: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            columns = columns_of(table.schema_arrow.names, params, where, usual)
            for batch in table.iter_batches(_BATCH, columns=sorted(set(columns.values()))):
                yield {name: [_text(value) for value in batch[column].to_pylist()] for name, column in columns.items()}
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise PermanentError(f"{where}: not a whole Parquet file ({reason}); fetch or write it again") from error


def _blocks(rows: Iterator[dict[str, str]], columns: dict[str, str]) -> Iterator[dict[str, list[str]]]:
    block: dict[str, list[str]] = {name: [] for name in columns}
    for row in rows:
        for name, column in columns.items():
            block[name].append(row.get(column, ""))
        if len(block["url"]) == _BATCH:
            yield block
            block = {name: [] for name in columns}
    yield block


def _csv(path: Path, params: UrlParams, where: str, usual: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t" if where.lower().endswith(".tsv") else ",", strict=True)
        try:
            columns = columns_of([name.strip() for name in reader.fieldnames or []], params, where, usual)
            reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
            rows = (_whole(row, f"{where}: line {reader.line_num}") for row in reader)
            yield from _blocks(rows, columns)
        except (csv.Error, UnicodeDecodeError) as error:
            raise PermanentError(f"{where}: near line {reader.line_num}: {error}; write it as UTF-8 CSV") from error


def _whole(row: dict[Any, Any], where: str) -> dict[str, str]:
    if None in row or None in row.values():
        raise PermanentError(
            f"{where} has more or fewer values than the first line has names; put texts with commas in double quotes"
        )
    return row


def _jsonl(path: Path, params: UrlParams, where: str, usual: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    def rows() -> Iterator[dict[str, str]]:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise TypeError("not an object")
                except (ValueError, TypeError, RecursionError) as error:
                    raise PermanentError(
                        f'{where}: line {number} ({error}): expected {{"url": ..., "caption": ...}}'
                    ) from None
                yield {str(name): _text(value) for name, value in row.items()}

    names: dict[str, None] = {}  # a line may lack what others have
    for row in rows():
        names |= dict.fromkeys(row)
    if names:
        yield from _blocks(rows(), columns_of(list(names), params, where, usual))


def read_table(path: Path, name: str, params: UrlParams, where: str, usual: Sequence[str] = CARRIED) -> pa.Table:
    """One table's rows as text columns: url, and caption, sha256, filters.FILTERED and carried ones where it has them.

    usual: columns that are carried along where it has them.

    Raises PermanentError that names the file, the line or column, and what to do.
    """
    import pyarrow as pa

    suffix = next((suffix for suffix in TABLES if name.lower().endswith(suffix)), None)
    if suffix is None:
        raise UsageError(f"{where}: a list of URLs is one of: {', '.join(TABLES)}")
    reader = {".parquet": _parquet, ".jsonl": _jsonl}.get(suffix, _csv)
    batches = [
        pa.table({key: pa.array(_printable(values), pa.large_string()) for key, values in block.items()})
        for block in (filtered(block, params) for block in reader(path, params, where, usual))
        if block["url"]
    ]
    return pa.concat_tables(batches) if batches else pa.table({"url": pa.array([], pa.large_string())})


def _printable(values: list[str]) -> list[str]:
    """JSON can spell half a surrogate pair, which is no text; a mark takes its place."""
    return [value.encode("utf-8", "replace").decode() if not value.isascii() else value for value in values]
