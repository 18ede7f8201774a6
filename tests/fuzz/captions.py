"""What a set says of its pictures: caption files, class names, templates, and the texts beside a tar's pictures."""

from __future__ import annotations

import io
import random
from functools import lru_cache

from PIL import Image

from components.config import DownloadParams
from components.download.fetch import open_tree
from components.download.folder import FolderSource
from components.download.sources import Source
from components.download.webdataset import WebdatasetSource
from components.errors import PermanentError, SplatClipError
from components.images import ImageError
from components.prompts import parse_class_names, parse_kind, parse_templates
from components.shards import Sample, write_shard
from fuzz.checks import WHERE, folder, hold, read, written
from fuzz.mutators import json_changed, line_changed
from fuzz.targets import by_first_byte

MAX_LEN = 4096
SKIPPED = (ImageError, PermanentError, SplatClipError)


@lru_cache(maxsize=1)
def picture() -> bytes:
    """The smallest picture."""
    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")
    return stream.getvalue()


def _params(path: str, source: str) -> DownloadParams:
    return DownloadParams(source=source, path=path, dataset="x")


def _loaded(source: Source) -> None:
    """Every sample is read or left out by name."""
    with source:
        refs = read(lambda: source.refs)
        for ref in refs or ():
            about = source.about(ref)
            hold(all(isinstance(text, str) for text in about.captions), f"captions {about.captions!r}")
            try:
                raw = source.load(ref)
            except SKIPPED as error:
                hold(bool(str(error)), "left out without a word")
                continue
            hold(bool(raw.captions) or raw.label >= 0 or bool(raw.labels is not None), "neither caption nor class")
            "".join(raw.captions).encode()


def _folder(name: str, data: bytes) -> None:
    root = folder() / WHERE / name.partition(".")[2]
    written(f"{WHERE}/{root.name}/a.png", picture())
    written(f"{WHERE}/{root.name}/{name}", data)
    source = read(lambda: FolderSource(open_tree(str(root)), _params(str(root), "folder")))
    if source is not None:
        _loaded(source)


def table(data: bytes) -> None:
    """captions.csv."""
    _folder("captions.csv", data)


def lines(data: bytes) -> None:
    """captions.jsonl."""
    _folder("captions.jsonl", data)


def names(data: bytes) -> None:
    """classnames.txt, templates, dataset_type.txt."""
    found = read(parse_class_names, data, WHERE)
    hold(found is None or (len(found) > 1 and all(found)), f"class names {found!r}")
    templates = read(parse_templates, data, WHERE)
    hold(templates is None or all(one.count("{c}") == 1 for one in templates), f"templates {templates!r}")
    read(parse_kind, data, WHERE)


def beside(data: bytes) -> None:
    """A tar's sample: its kind, then json, txt, cls and npy with NUL, NUL bytes between them."""
    kind, *texts = data.split(b"\0\0", 4)
    root = folder() / WHERE / "tars"
    fields = {"png": picture(), **dict(zip(("json", "txt", "cls", "npy"), texts, strict=False))}
    written(f"{WHERE}/tars/classnames.txt", b"cat\ndog\n")
    written(f"{WHERE}/tars/dataset_type.txt", kind[:40] or b"classification")
    write_shard(root / "0.tar", [Sample("a", fields)])
    source = read(lambda: WebdatasetSource(open_tree(str(root)), _params(str(root), "webdataset")))
    if source is not None:
        _loaded(source)


def run(data: bytes) -> None:
    """By its first byte one of them."""
    by_first_byte(data, {b"C": table, b"L": lines, b"N": names, b"W": beside})


def changed(data: bytes, rng: random.Random) -> bytes:
    """One line, or the json beside a picture, changed as JSON."""
    if data[:1] == b"W":
        kind, *texts = data.split(b"\0\0", 4)
        texts[:1] = [json_changed(text, rng) for text in texts[:1]]
        return b"\0\0".join([kind, *texts])
    return data[:1] + line_changed(data[1:], rng)
