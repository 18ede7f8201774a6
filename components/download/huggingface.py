"""Source `huggingface`: pictures in the Parquet files of a dataset repository. No code of it is ever run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.config import DownloadParams
from components.download.fetch import Tree
from components.download.parquet_rows import Reader, Row, damaged, read_footer
from components.download.repository import README, Config, choose, choose_splits, read_card
from components.download.sources import DEFAULT_TEMPLATES, Raw, Ref, Skip, Source, splits_to_read
from components.errors import PermanentError
from components.fields import nearest
from components.images import ImageError, Limits

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("image", "img", "picture", "photo", "jpg", "png", "webp")
TEXT_COLUMNS = ("caption", "captions", "text", "texts", "sentence", "sentences", "txt", "alt_text")
LABEL_COLUMNS = ("label", "labels", "cls", "class", "fine_label")


@dataclass(frozen=True)
class Columns:
    """Which columns are read; text and label may be empty. class_names: of the label, by number."""

    image: str
    text: str
    label: str
    class_names: tuple[str, ...]


class HuggingFaceSource(Source):
    """Rows of Parquet files, in the files' order; a row's key is its number over all files that are read.

    Limits: some 200 bytes of memory a row. Of each file the footer is read first; the files themselves are fetched one
    after another when their turn comes, once for each split that is dealt out of them, and stay in a temporary folder
    up to fetch.SPOOL_BYTES. Read are whole pages, twice in memory at times: of files with row groups of 100, as
    `datasets` writes pictures, those; else up to 1,024 pictures.
    """

    def __init__(self, tree: Tree, params: DownloadParams) -> None:
        self._tree, self._params = tree, params
        self._where = f"dataset {params.path!r}"
        names = tree.names()
        card = read_card(tree.read(README).decode("utf-8", "replace"), tree.url) if README in names else {}
        self._config = choose(card, names, params.hub.config, self._where)
        files = choose_splits(self._config.files, params.hub.split, self._where)
        wanted = splits_to_read({split for _, split in files}, params)
        self._files = [(name, split) for name, split in files if split in wanted]
        told = json.dumps([self._files, self._config.features], sort_keys=True, default=str)
        contents = tree.fingerprint([name for name, _ in self._files])
        self.fingerprint = hashlib.sha256(f"{contents}\n{told}".encode()).hexdigest()
        self._limits = Limits(max_bytes=params.max_bytes)
        self._reader: Reader | None = None
        self._columns: Columns | None = None

    def _list(self) -> Sequence[Ref]:
        """See Source. The columns are known after this."""
        refs: list[Ref] = []
        for group, (name, split) in enumerate(self._files):
            footer, schema = read_footer(self._tree, name)
            if self._columns is None:
                self._columns = find_columns(schema, self._config, self._params, f"{self._where}: {name}")
                self.class_names = self._columns.class_names
                self.templates = DEFAULT_TEMPLATES if self.class_names else ()
            columns = self._columns
            for column in (columns.image, columns.text, columns.label):
                if column and column not in schema.names:
                    raise PermanentError(f"{self._where}: {name} has no column {column!r}, which others have")
            refs += [Ref(f"{len(refs) + row:09d}", split, group, row) for row in range(footer.num_rows)]
        if not refs:
            raise PermanentError(f"{self._where}: its {len(self._files)} files hold no row")
        return refs

    def group_name(self, group: int) -> str | None:
        """See Source."""
        return self._files[group][0]

    def about(self, ref: Ref) -> Raw:
        """See Source."""
        return Raw(b"", origin=f"{self._files[ref.group][0]}#{ref.position}")

    def load(self, ref: Ref) -> Raw:
        """See Source."""
        row = self._row(ref, self._columns or self._listed())
        label = self._label(row.label)
        if not row.texts and label < 0:
            raise Skip("no_caption", "neither a caption nor a class")
        if not row.picture:
            raise ImageError("missing", f"only its path is there, {row.path!r:.80}" if row.path else "the row has none")
        self._limits.check_bytes(len(row.picture))
        return Raw(row.picture, row.texts, label, self.about(ref).origin)

    def _listed(self) -> Columns:
        _ = self.refs
        if self._columns is None:
            raise RuntimeError("no file was listed")
        return self._columns

    def _row(self, ref: Ref, columns: Columns) -> Row:
        import pyarrow as pa

        name = self._files[ref.group][0]
        try:
            if self._reader is None or self._reader.name != name:
                self._close_reader()
                self._reader = Reader(
                    self._tree, name, image=columns.image, text=columns.text, label=columns.label,
                    max_bytes=self._limits.max_bytes,
                )  # fmt: skip
            return self._reader.row(ref.position)
        except StopIteration:  # fewer rows than its footer says
            raise damaged(f"{self._where}: {name}", EOFError("its row groups have other sizes than it says")) from None
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            raise damaged(f"{self._where}: {name}", error) from error

    def _label(self, value: Any) -> int:
        if value is None or value == -1:  # of a split whose labels are held back
            return -1
        if not isinstance(value, int) or not 0 <= value < len(self.class_names):
            raise Skip("bad_class", f"class {value!r:.40}; there are {len(self.class_names)}")
        return value

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def close(self) -> None:
        """See Source."""
        self._close_reader()
        self._tree.close()


def _said(schema: pa.Schema, config: Config) -> dict[str, Any]:
    """What the file, or else the README, says of each column, as `datasets` writes it."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        told = {}
    found = dict(told) if isinstance(told, dict) else {}
    for one in config.features if isinstance(config.features, list) else []:
        if isinstance(one, dict) and "name" in one:
            found.setdefault(str(one["name"]), one)
    return found


def _names_of(said: Any) -> tuple[str, ...]:
    """Class names of a column by what is said of it: in a file {"names": [...], "_type": "ClassLabel"}, in a README
    {"dtype": {"class_label": {"names": {"0": ...}}}}. Underscores in them become blanks, as prompts want it.
    """
    if not isinstance(said, dict):
        return ()
    names = said.get("names")
    if names is None and isinstance(said.get("dtype"), dict):
        label = said["dtype"].get("class_label")
        names = label.get("names") if isinstance(label, dict) else None
    if isinstance(names, dict):
        try:
            names = [names[key] for key in sorted(names, key=int)]
        except ValueError:
            return ()
    if not isinstance(names, list):
        return ()
    return tuple(" ".join(str(name).replace("_", " ").split()) for name in names)


def find_columns(schema: pa.Schema, config: Config, params: DownloadParams, where: str) -> Columns:
    """The columns of picture, text and label. Raises PermanentError, which names those there."""
    import pyarrow.types as kinds

    said, there = _said(schema, config), ", ".join(f"{field.name} ({field.type})"[:60] for field in schema)

    def is_image(kind: pa.DataType) -> bool:
        inner = kind.field("bytes").type if kinds.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
        return bool(kinds.is_binary(inner) or kinds.is_large_binary(inner))

    def is_text(kind: pa.DataType) -> bool:
        inner = kind.value_type if kinds.is_list(kind) or kinds.is_large_list(kind) else kind
        return bool(kinds.is_string(inner) or kinds.is_large_string(inner))

    def chosen(wanted: str, usual: Sequence[str], good: Any, what: str, parameter: str) -> str:
        if wanted and wanted not in schema.names:
            raise PermanentError(
                f"{where} has no column {wanted!r}{nearest(wanted, schema.names)} for download.hub.{parameter}; it "
                f"has: {there}"
            )
        if wanted and not good(schema.field(wanted)):
            raise PermanentError(f"{where}: column {wanted!r} is {schema.field(wanted).type}, which is no {what}")
        fitting = [field.name for field in schema if good(field)]
        return wanted or next((name for name in usual if name in fitting), "")

    hub = params.hub
    image = chosen(hub.image_column, IMAGE_COLUMNS, lambda f: is_image(f.type), "picture", "image_column")
    pictures = [field.name for field in schema if is_image(field.type)]
    image = image or (pictures[0] if len(pictures) == 1 else "")
    if not image:
        raise PermanentError(
            f"{where}: which column is the picture? Name it in download.hub.image_column; it has: {there}"
        )
    text = chosen(hub.text_column, TEXT_COLUMNS, lambda f: is_text(f.type), "text or list of texts", "text_column")
    names = {field.name: _names_of(said.get(field.name)) for field in schema if kinds.is_integer(field.type)}

    def is_label(field: pa.Field) -> bool:
        found = names.get(field.name, ())
        return usable(found) or bool(found and field.name == hub.label_column)

    label = chosen(
        hub.label_column, LABEL_COLUMNS, is_label,
        "ClassLabel: a whole number whose names the file or the README gives", "label_column",
    )  # fmt: skip
    if label and not usable(names[label]):
        raise PermanentError(
            f"{where}: column {label!r} has class names {', '.join(map(repr, names[label]))[:200]}; expected two or "
            "more, none of them blank: name another column in download.hub.label_column, or one of texts in text_column"
        )
    if not text and not label:
        raise PermanentError(
            f"{where}: none of its columns is a usual text or a ClassLabel; name one in download.hub.text_column or "
            f"label_column; it has: {there}"
        )
    return Columns(image, text, label, names[label] if label else ())


def usable(class_names: Sequence[str]) -> bool:
    """Whether classes can be told apart by these names, as prompts.parse_class_names asks for."""
    return len(class_names) > 1 and all(class_names)
