"""Source `folder`: pictures with captions.csv or captions.jsonl, or in sub-folders named after their classes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from components.config import DownloadParams
from components.download.fetch import Tree
from components.download.sources import (
    CLASSNAMES,
    SPLITS,
    TEMPLATES,
    Raw,
    Ref,
    Skip,
    Source,
    plain_key,
    rank,
    splits_to_read,
    unique,
    written,
)
from components.download.webdataset import class_files
from components.errors import PermanentError
from components.fields import shown
from components.images import EXTENSIONS, ImageError, Limits
from components.store import StoreNotFound

CAPTION_FILES = ("captions.csv", "captions.jsonl")
_IMAGE_COLUMNS, _CAPTION_COLUMNS = ("image", "file", "filename"), ("caption", "captions")
EXPECTED = (
    "expected pictures with captions.csv (columns image, caption, perhaps class) or captions.jsonl beside them, "
    "or sub-folders named after classes"
)


@dataclass
class _Entry:
    captions: list[str] = field(default_factory=list)
    class_name: str = ""


def _csv_rows(text: str, where: str) -> Iterator[tuple[str, list[str], str]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        columns = [name.strip().lower() for name in reader.fieldnames or []]
    except csv.Error as error:
        raise PermanentError(f"{where}: line 1 is not valid CSV: {error}") from error
    reader.fieldnames = columns
    image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    caption = next((name for name in _CAPTION_COLUMNS if name in columns), None)
    if image is None or (caption is None and "class" not in columns):
        raise PermanentError(
            f"{where}: its first line is {shown(columns)}; expected the columns image, caption and perhaps class"
        )
    try:
        for row in reader:
            _check_width(row, f"{where}: line {reader.line_num}", columns)
            captions = [row[caption]] if caption else []
            yield row[image].strip(), captions, row.get("class", "").strip()
    except csv.Error as error:
        raise PermanentError(f"{where}: line {reader.line_num} is not valid CSV: {error}") from error


def _check_width(row: dict[str | Any, str | Any], where: str, columns: list[str]) -> None:
    """A row's values are as many as the columns; DictReader puts the rest under None, and None where one is missing."""
    extra = row.get(None, [])
    if any(value.strip() for value in extra):
        raise PermanentError(
            f"{where} has {len(columns) + len(extra)} values for the {len(columns)} columns {','.join(columns)}; "
            'put a caption that holds commas in double quotes: "A dog, a cat"'
        )
    if missing := [name for name in columns if row[name] is None]:
        raise PermanentError(f"{where} has no value for {', '.join(missing)}; write a comma for each, or the value")


def _jsonl_rows(text: str, where: str) -> Iterator[tuple[str, list[str], str]]:
    for number, line in enumerate(io.StringIO(text, newline=None), 1):  # U+2028 and its like may be in a caption
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            image = next(str(row[name]) for name in _IMAGE_COLUMNS if name in row)
            several = row.get("captions", [])
            captions = [row.get("caption", ""), *(several if isinstance(several, list) else [several])]
            if not all(isinstance(caption, str) for caption in captions):
                raise TypeError("a caption is not a text")
        except (ValueError, TypeError, AttributeError, StopIteration, RecursionError) as error:
            raise PermanentError(
                f'{where}: line {number} ({error or "no image"}): expected {{"image": ..., "caption": ...}}'
            ) from None
        class_name = row.get("class")
        yield image, captions, "" if class_name is None else str(class_name)


class FolderSource(Source):
    """Pictures of a folder. With sub-folders `train` and `test` these are the splits; so is `test` alone where nothing
    is to be trained on.
    """

    def __init__(self, tree: Tree, params: DownloadParams) -> None:
        self._tree = tree
        self._limits = Limits(max_bytes=params.max_bytes)
        names = tree.names()
        pictures = [name for name in names if name.rpartition(".")[2].lower() in EXTENSIONS]
        if not pictures:
            raise PermanentError(f"download.path {tree.url!r}: no pictures there ({', '.join(EXTENSIONS)}); {EXPECTED}")
        tops = {name.split("/")[0] for name in pictures if "/" in name}
        self._in_splits = {"train", "test"} <= tops or (not params.trains and "test" in tops and tops <= set(SPLITS))
        unread: set[str] = set()
        if self._in_splits:
            there = tops & set(SPLITS)
            unread = there - splits_to_read(there, params)
            names, pictures = ([n for n in part if n.split("/")[0] not in unread] for part in (names, pictures))
        files = [name for name in names if self._is_caption_file(name)]
        self._entries: dict[str, _Entry] = {}
        for name in files:
            self._read(name)
        self._entries = {name: entry for name, entry in self._entries.items() if name.split("/")[0] not in unread}
        if not files:
            self._from_folders(pictures)
        given, self.templates = class_files(tree, {name: name for name in names})
        self.class_names = given or self._found_classes()
        if self.class_names and not self.templates:
            self.templates = ["a photo of a {c}."]
        self._labels = {name: label for label, name in enumerate(self.class_names)}
        self._there = set(pictures)
        self._names = sorted(self._there | set(self._entries))
        if not files:  # sorted by class: deal them anew, or the shards would hold one class each
            self._names.sort(key=lambda name: rank(params.seed, name))
        texts = [name for name in (CLASSNAMES, TEMPLATES) if name in names]
        self.fingerprint = tree.fingerprint([*pictures, *files, *texts])

    def _list(self) -> list[Ref]:
        return unique([self._ref(position, name) for position, name in enumerate(self._names)], [""])

    def _is_caption_file(self, name: str) -> bool:
        folder, _, last = name.rpartition("/")
        return last in CAPTION_FILES and (not folder or (self._in_splits and folder in SPLITS))

    def _read(self, name: str) -> None:
        where = f"{self._tree.url}/{name}"
        try:
            text = self._tree.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise PermanentError(f"{where}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
        folder = name.rpartition("/")[0]
        rows = _csv_rows(text, where) if name.endswith(".csv") else _jsonl_rows(text, where)
        for image, captions, class_name in rows:
            path = image.replace("\\", "/").removeprefix("./")
            entry = self._entries.setdefault(f"{folder}/{path}" if folder else path, _Entry())
            entry.captions += [caption.strip() for caption in captions if caption.strip()]
            entry.class_name = class_name or entry.class_name

    def _from_folders(self, pictures: list[str]) -> None:
        depth = 1 if self._in_splits else 0
        for name in pictures:
            parts = name.split("/")
            if len(parts) < depth + 2:
                raise PermanentError(
                    f"download.path {self._tree.url!r}: {name} has no caption and no class; {EXPECTED}"
                )
            self._entries[name] = _Entry(class_name=parts[depth])

    def _found_classes(self) -> list[str]:
        """Names that sub-folders or caption files give, sorted; two or more of them, or none."""
        found = sorted({entry.class_name for entry in self._entries.values() if entry.class_name})
        if len(found) == 1:
            raise PermanentError(
                f"download.path {self._tree.url!r}: {found[0]!r} is its only class, and classification needs two or "
                "more; add pictures of another class, or give captions.csv with the columns image, caption alone"
            )
        if bad := [name for name in found if written(name).splitlines() != [name.strip()]]:  # a line when stored
            raise PermanentError(
                f"download.path {self._tree.url!r}: the class name {bad[0]!r} begins or ends with a space, has a "
                "line break or is not UTF-8; rename it"
            )
        return found

    def _ref(self, position: int, name: str) -> Ref:
        top = name.split("/", maxsplit=1)[0]
        split = top if self._in_splits and top in SPLITS else ""
        return Ref(plain_key(name.rpartition(".")[0] or name), split, 0, position)

    def close(self) -> None:
        """See Source."""
        self._tree.close()

    def load(self, ref: Ref) -> Raw:
        """See Source."""
        name = self._names[ref.position]
        entry = self._entries.get(name)
        if entry is None:
            raise Skip("no_caption", f"{name} is in no caption file")
        if name not in self._there:
            raise ImageError("missing", f"{name} is named by a caption but is not there, or is no picture's name")
        label = self._labels.get(entry.class_name, -1)
        if entry.class_name and label < 0:
            raise Skip("bad_class", f"{name}: class {entry.class_name!r} is not in {CLASSNAMES}")
        if not entry.captions and label < 0:
            raise Skip("no_caption", f"{name} has an empty caption and no class")
        try:
            self._limits.check_bytes(self._tree.path(name).stat().st_size)  # before it is in memory
            return replace(self.about(ref), image=self._tree.read(name))
        except (StoreNotFound, FileNotFoundError):
            raise ImageError("missing", f"{name} went away") from None

    def about(self, ref: Ref) -> Raw:
        """See Source."""
        name = self._names[ref.position]
        entry = self._entries.get(name, _Entry())
        return Raw(b"", tuple(dict.fromkeys(entry.captions)), self._labels.get(entry.class_name, -1), name)
