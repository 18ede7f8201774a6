"""Rows of a stranger's Parquet file, a few in memory at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.download.fetch import Tree
from components.download.pages import rows_at_a_time
from components.download.sources import Skip
from components.errors import PermanentError
from components.images import ImageError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import FileMetaData, ParquetFile

FOOTER = 1 << 16  # bytes at a file's end that are fetched first: its footer is rarely longer
TEXTS = 1 << 20  # bytes of a row's texts
_ROWS = 16  # read at a time: pictures may have megabytes


def damaged(where: str, error: Exception) -> PermanentError:
    """What a file that cannot be read is told as."""
    reason = str(error).partition("\n")[0] or type(error).__name__
    return PermanentError(f"{where} is no Parquet file that can be read ({reason}); tell whoever keeps the dataset")


def read_footer(tree: Tree, name: str) -> tuple[FileMetaData, pa.Schema]:
    """What a file says of itself at its end, and its columns; of a remote one that alone is fetched.

    Raises PermanentError, also where it says that it has more rows than bytes.
    """
    import pyarrow as pa
    from pyarrow import parquet

    data = tree.tail(name, FOOTER)
    needed = int.from_bytes(data[-8:-4], "little") + 8 if data[-4:] == b"PAR1" else 0
    if needed > len(data):
        data = tree.tail(name, needed)
    try:
        footer = parquet.read_metadata(pa.BufferReader(data))
        size, _ = tree.identity(name)
        if not 0 <= footer.num_rows <= size:
            raise ValueError(f"{footer.num_rows} rows in {size} bytes")
        return footer, footer.schema.to_arrow_schema()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise damaged(f"{tree.url}: {name}", error) from error


@dataclass(frozen=True)
class Row:
    """picture: its bytes, None where there are none; path: what is there of it else."""

    picture: bytes | None
    path: str | None
    texts: tuple[str, ...]
    label: int | None


class Reader:
    """The rows of one file, asked for in rising order for the most part.

    image, text, label: columns; the last two may be empty. max_bytes: of a picture. The reader makes room for whole
    pages, whatever the pictures in them; see pages.rows_at_a_time for what bounds it.
    """

    def __init__(self, tree: Tree, name: str, *, image: str, text: str, label: str, max_bytes: int) -> None:
        from pyarrow import parquet

        self.name, self._image, self._text, self._label, self._max_bytes = name, image, text, label, max_bytes
        self._path = tree.path(name)
        self._footer = parquet.read_metadata(self._path)
        leaves = [self._footer.schema.column(number).path for number in range(self._footer.num_columns)]
        self._texts = [leaf for leaf in leaves if text and (leaf == text or leaf.startswith(f"{text}."))]
        others = {image, f"{image}.bytes", f"{image}.path", label}
        self._columns = [leaf for leaf in leaves if leaf in others or leaf in self._texts]
        self._file: ParquetFile = parquet.ParquetFile(  # few bytes can stand for very many texts: as a dictionary
            self._path, metadata=self._footer, memory_map=True, read_dictionary=self._texts
        )
        self._starts = [0]
        for group in range(self._footer.num_row_groups):
            self._starts.append(self._starts[-1] + self._footer.row_group(group).num_rows)
        self._batches: Any = iter(())
        self._first, self._group = 0, -1
        self._batch: pa.RecordBatch = None
        self._sizes: pa.Array = None  # in bytes, of the batch's texts, each once
        self._refused: ImageError | None = None  # of all rows of the group

    def row(self, position: int) -> Row:
        """One row. Raises ImageError, or Skip; Arrow's errors, OSError, ValueError, IndexError or StopIteration where
        the file is damaged.
        """
        if self._group < 0 or not self._starts[self._group] <= position < self._starts[self._group + 1]:
            self._enter(next(group for group in range(len(self._starts)) if position < self._starts[group + 1]))
        elif self._refused is None and position < self._first:
            self._enter(self._group)
        if self._refused is not None:
            raise self._refused
        while self._batch is None or position >= self._first + len(self._batch):
            self._first += 0 if self._batch is None else len(self._batch)
            self._batch = next(self._batches)
            self._sizes = None
        at = position - self._first
        picture = self._batch[self._image][at].as_py()
        label = self._batch[self._label][at].as_py() if self._label else None
        found, path = (picture.get("bytes"), picture.get("path")) if isinstance(picture, dict) else (picture, None)
        return Row(found, path, self._texts_of(self._batch[self._text], at) if self._text else (), label)

    def _enter(self, group: int) -> None:
        self._batches, self._batch, self._refused = iter(()), None, None
        self._group, self._first = group, self._starts[group]
        try:
            rows = rows_at_a_time(
                self._path, self._footer, group, self._columns, self._texts, max_bytes=self._max_bytes, most=_ROWS
            )
        except ImageError as error:
            self._refused = error
            return
        self._batches = self._file.iter_batches(rows, row_groups=[group], columns=self._columns)

    def _texts_of(self, column: pa.Array, at: int) -> tuple[str, ...]:
        """A row's texts, each once. Raises Skip where they are too long or not UTF-8."""
        import pyarrow as pa
        from pyarrow import compute

        if not column[at].is_valid:
            return ()
        listed = column.slice(at, 1) if isinstance(column, pa.DictionaryArray) else column[at].values
        if self._sizes is None:
            self._sizes = compute.binary_length(listed.dictionary)
        size = compute.sum(compute.take(self._sizes, listed.indices)).as_py() or 0
        if size > TEXTS:
            raise Skip("bad_caption", f"texts of {size} bytes; the limit is {TEXTS}")
        try:
            texts = [text.strip() for text in listed.to_pylist() if text is not None]
        except UnicodeDecodeError as error:
            raise Skip("bad_caption", f"a text that is not UTF-8 ({error.reason} at byte {error.start})") from None
        return tuple(dict.fromkeys(text for text in texts if text))

    def close(self) -> None:
        """Let go of the file."""
        self._batches, self._batch = iter(()), None
        self._file.close()
