"""The rows of many tables by their number over all of them, a few tables in memory at a time."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

MOST_BYTES = 1 << 30  # of tables that are kept; at least one is


@dataclass(frozen=True)
class _Kept:
    columns: dict[str, pa.Array]
    num_rows: int
    num_bytes: int


class Rows:
    """Rows of tables, which `read` gives by name: once to be counted, and again when one is asked for that had to go.

    A sequence of mappings; columns that a row's table lacks, or has empty, are left out. Several threads may read.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], pa.Table]) -> None:
        self._names, self._read = names, read
        self._tables: OrderedDict[int, _Kept] = OrderedDict()
        self._lock = Lock()
        self._ends = list(accumulate(self._table(number).num_rows for number in range(len(names))))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> dict[str, str]:
        number = bisect_right(self._ends, position)
        with self._lock:
            columns = self._table(number).columns
        here = position - (self._ends[number - 1] if number else 0)
        values = ((name, column[here].as_py()) for name, column in columns.items())
        return {name: value for name, value in values if value is not None}

    def _table(self, number: int) -> _Kept:
        if number not in self._tables:
            table = self._read(self._names[number])
            columns = {
                name: table[name].combine_chunks() for name in table.column_names
            }  # a third of a table's time a row
            self._tables[number] = _Kept(columns, table.num_rows, table.nbytes)
            while len(self._tables) > 1 and sum(table.num_bytes for table in self._tables.values()) > MOST_BYTES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(number)
        return self._tables[number]
