"""Source `webdataset`: tars as img2dataset or CLIP_benchmark write them, in a folder, on S3 or behind http(s)."""

from __future__ import annotations

import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.config import DownloadParams
from components.download.fetch import Tree, open_tree
from components.download.sources import (
    CLASSNAMES,
    DEFAULT_TEMPLATES,
    SPLITS,
    TEMPLATES,
    Raw,
    Ref,
    Skip,
    Source,
    plain_key,
    splits_to_read,
    unique,
)
from components.errors import PermanentError
from components.evalsets import shipped_prompts
from components.images import EXTENSIONS, ImageError, Limits
from components.json_text import parse
from components.manifest import MANIFEST, Manifest
from components.prompts import DATASET_TYPE, parse_class_names, parse_kind, parse_templates
from components.shards import IndexedShard

_NPY_HEADER = 1024  # bytes at most; NumPy pads its own to 128
MAX_OPEN = 64  # tars mapped at a time: a split's samples may be scattered over all of them


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2.tar before 10.tar."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def own_manifest(tree: Tree, names: list[str]) -> Manifest | None:
    """The manifest of a tree that is an output of this stage; None where there is none, or somebody else's."""
    if MANIFEST in names:
        with suppress(PermanentError):
            return Manifest.from_bytes(tree.read(MANIFEST), f"{tree.url}/{MANIFEST}")
    return None


def text_files(names: list[str], manifest: Manifest | None) -> dict[str, str]:
    """Where class names, templates and the kind of a set lie, of those that it has: under these names, or, in an output
    of this stage, under those that its manifest says.
    """
    texts = (CLASSNAMES, TEMPLATES, DATASET_TYPE)
    entries = manifest.files if manifest is not None else []
    listed = {entry.name: entry.place for entry in entries if entry.place in names}
    return {name: listed[name] for name in texts if name in listed} | {name: name for name in texts if name in names}


def shard_files(names: list[str], manifest: Manifest | None) -> list[str]:
    """The tars, in their numbers' order; of an output of this stage those that its manifest lists: others are orphans,
    such as a second worker's of the same samples.
    """
    tars = sorted((name for name in names if name.endswith(".tar")), key=_natural)
    listed = {shard.place for shard in manifest.shards} if manifest is not None else set()
    return [name for name in tars if name in listed] or tars


def class_files(tree: Tree, lie: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Class names and prompt templates that lie beside the data, as `text_files` says; both empty where there are none.

    Raises PermanentError naming the file and the line, as parse_class_names and parse_templates do: a class name's
    number is its line, and a file that the later stages would refuse is better refused before the pictures are read.
    """
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    if CLASSNAMES in lie:
        class_names = parse_class_names(tree.read(lie[CLASSNAMES]), f"{tree.url}/{lie[CLASSNAMES]}")
    if TEMPLATES in lie:
        templates = parse_templates(tree.read(lie[TEMPLATES]), f"{tree.url}/{lie[TEMPLATES]}")
    return list(class_names), list(templates or (DEFAULT_TEMPLATES if class_names else ()))


def has_split(path: str, split: str) -> bool:
    """Whether tars of their own are a split: test/*.tar, beside train/*.tar. Errors are those of `open_tree`."""
    tree = open_tree(path)
    try:
        return any(name.startswith(f"{split}/") and name.endswith(".tar") for name in tree.names())
    finally:
        tree.close()


class WebdatasetSource(Source):
    """Samples of tars, in the tars' order. `train`, `val` and `test` sub-folders are taken as splits.

    Limits: the keys of all samples are held in memory, some 300 bytes a sample at the peak. The tars are read once for
    their keys, when these are first asked for, and once for the pictures of each split that is dealt out of them;
    remote tars stay in a temporary folder in between, up to SPOOL_BYTES, beyond which they are fetched anew. A resumed
    run reads all keys again. A finished one reads none, but its fingerprint takes the content of local tars (of remote
    ones the size and ETag, where there is one).
    """

    def __init__(self, tree: Tree, params: DownloadParams) -> None:
        self._tree = tree
        self._limits = Limits(max_bytes=params.max_bytes)
        names = tree.names()
        manifest = own_manifest(tree, names)
        self._tars = shard_files(names, manifest)
        in_splits = [name for name in self._tars if name.split("/")[0] in SPLITS and "/" in name]
        self._has_splits = bool(in_splits)
        if in_splits:  # the layout of splits; other folders' tars are not part of it
            wanted = splits_to_read({name.split("/")[0] for name in in_splits}, params)
            self._tars = [name for name in in_splits if name.split("/")[0] in wanted]
        if not self._tars:
            raise PermanentError(
                f"download.path {tree.url!r}: no .tar files there; expected *.tar, or train/ and test/ with tars"
            )
        lie = text_files(names, manifest)
        if DATASET_TYPE in lie:
            self.kind = parse_kind(tree.read(lie[DATASET_TYPE]), f"{tree.url}/{lie[DATASET_TYPE]}")
        if self.kind != "retrieval":
            self.class_names, self.templates = class_files(tree, lie)
        self.fingerprint = tree.fingerprint([*self._tars, *lie.values()])
        if not self.class_names and self.kind != "retrieval":
            self._take_shipped(params.dataset)
        self._open: OrderedDict[int, IndexedShard] = OrderedDict()

    def _take_shipped(self, dataset: str) -> None:
        """Class names and templates of a known set that brings none."""
        shipped = shipped_prompts(dataset)
        if shipped is not None:
            self.class_names, self.templates = (list(lines) for lines in shipped)
            lines = "\n".join([self.fingerprint, *self.class_names, "", *self.templates])
            self.fingerprint = hashlib.sha256(lines.encode()).hexdigest()

    def _list(self) -> list[Ref]:
        refs = []
        for group, name in enumerate(self._tars):
            split = name.split("/")[0] if self._has_splits else ""
            for position, key in enumerate(self._shard(group).keys):
                refs.append(Ref(plain_key(key), split, group, position))
        if not refs:
            raise PermanentError(f"download.path {self._tree.url!r}: its {len(self._tars)} tars hold no sample")
        return unique(refs, [name.removesuffix(".tar") for name in self._tars])

    def _shard(self, group: int) -> IndexedShard:
        if group not in self._open:
            self._open[group] = IndexedShard(self._tree.path(self._tars[group]))
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(group)
        return self._open[group]

    def close(self) -> None:
        """See Source."""
        while self._open:
            self._open.popitem()[1].close()
        self._tree.close()

    def group_name(self, group: int) -> str | None:
        """See Source."""
        return self._tars[group]

    def load(self, ref: Ref) -> Raw:
        """See Source."""
        shard = self._shard(ref.group)
        images = [ext for ext in EXTENSIONS if shard.has(ref.position, ext)]
        if not images:
            raise ImageError("missing", f"{self._tars[ref.group]}: sample {shard.keys[ref.position]!r} has no picture")
        captions = self._texts(shard, ref.position)
        labels = self._labels(shard, ref.position) if self.kind == "multilabel" else None
        label = self._label(shard, ref.position) if labels is None else -1
        if not captions and label < 0 and labels is None:
            raise Skip("no_caption", "neither a caption nor a known class")
        picture = shard.field(ref.position, images[0])
        self._limits.check_bytes(len(picture))  # before it is copied
        return Raw(bytes(picture), captions, label, f"{self.about(ref).origin}.{images[0]}", labels)

    def about(self, ref: Ref) -> Raw:
        """See Source: where it lies; its texts may be what is wrong with it."""
        return Raw(b"", origin=f"{self._tars[ref.group]}/{self._shard(ref.group).keys[ref.position]}")

    def _texts(self, shard: IndexedShard, position: int) -> tuple[str, ...]:
        """Captions: in a retrieval set a line each, as CLIP_benchmark has them; else the text and those of the json.

        Skip where the text is not UTF-8: what it says can only be guessed.
        """
        text = ""
        if shard.has(position, "txt"):
            try:
                text = bytes(shard.field(position, "txt")).decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                told = f"a text that is not UTF-8 ({error.reason} at byte {error.start})"
                raise Skip("bad_caption", told) from None
        if self.kind == "retrieval":
            return tuple(line for line in text.splitlines() if line.strip())
        captions = _captions(self._meta(shard, position))
        return tuple(dict.fromkeys((text, *captions))) if text else captions

    def _labels(self, shard: IndexedShard, position: int) -> tuple[int, ...]:
        """Classes from a vector of zeros and ones, one a class name."""
        if not shard.has(position, "npy"):
            raise Skip("no_class", "a multilabel set needs a .npy of zeros and ones a picture")
        named = f"{len(self.class_names)} zeros and ones, one a line of {CLASSNAMES}"
        data = shard.field(position, "npy")
        if len(data) > _NPY_HEADER + 16 * len(self.class_names):  # what a header announces is allocated
            raise Skip("bad_class", f"a .npy file of {len(data)} bytes; expected {named}")
        try:
            marks = _array(bytes(data), len(self.class_names))
        except (ValueError, EOFError, OSError) as error:
            raise Skip("bad_class", f"not a .npy file of {named}: {error}") from None
        if not np.isin(marks, (0, 1)).all():
            raise Skip("bad_class", f"other values than {named}")
        return tuple(np.flatnonzero(marks).tolist())

    def _label(self, shard: IndexedShard, position: int) -> int:
        if not self.class_names or not shard.has(position, "cls"):
            return -1
        text = bytes(shard.field(position, "cls")).decode("ascii", "replace").strip()
        if not text.isdigit() or len(text) > 9 or int(text) >= len(self.class_names):
            raise Skip("bad_class", f"class {text[:40]!r}; {CLASSNAMES} has {len(self.class_names)}")
        return int(text)

    def _meta(self, shard: IndexedShard, position: int) -> Any:
        if not shard.has(position, "json"):
            return {}
        try:
            return parse(bytes(shard.field(position, "json")))
        except ValueError as error:
            raise Skip("bad_json", str(error)[:200]) from None


def _array(data: bytes, length: int) -> NDArray[Any]:
    """The vector of numbers in a .npy file; ValueError, EOFError or OSError where it is none of that length."""
    stream = io.BytesIO(data)
    try:
        major, _ = np.lib.format.read_magic(stream)
        read = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}.get(major)
        if read is None:
            raise ValueError(f"version {major} of the format")
        shape, _, kind = read(stream)
    except (TokenError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        # NumPy reads a header as Python's literal; the errors are those of Python's parser
        raise ValueError(f"its header is damaged: {type(error).__name__}") from None
    if shape != (length,) or kind.kind not in "biuf":
        raise ValueError(f"an array of shape {shape} and type {kind}")
    stream.seek(0)
    return np.asarray(np.load(stream, allow_pickle=False))


def _captions(meta: Any) -> tuple[str, ...]:
    if not isinstance(meta, dict):
        return ()
    several = meta.get("captions")
    found = [meta.get("caption"), *(several if isinstance(several, list) else [])]
    texts = (text.strip() for text in found if isinstance(text, str))
    return tuple(dict.fromkeys(text for text in texts if text))
