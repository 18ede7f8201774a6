"""Reading a report page: is it well formed and self-contained, and what stands in it."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
from PIL import Image

VOID = {"meta", "img"}


class Page(HTMLParser):
    """tables: caption -> rows of cells; headings; images: (alt, src); text; tags: (name, attributes)."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.data = data
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.images: list[tuple[str, str]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._open: list[str] = []
        self._parts: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(data.decode())
        self.close()
        assert self._open == [], f"never closed: {self._open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._parts).split())

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if tag == "img":
            self.images.append((given["alt"], given["src"]))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in {"th", "td"}:
            self._rows[-1].append("")
        elif tag in {"h1", "h2", "h3"}:
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if "style" in self._open:
            return
        self._parts.append(data)
        if {"th", "td"} & set(self._open):
            self._rows[-1][-1] += data
        elif "caption" in self._open:
            self._caption += data
        elif {"h1", "h2", "h3"} & set(self._open):
            self.headings[-1] += data

    def drawings(self, name: str) -> list[dict[str, str]]:
        """Attributes of all elements of a name."""
        return [given for tag, given in self.tags if tag == name]

    def check(self, largest: int = 1_500_000) -> None:
        """No network, no script, nothing without words, of a size to send around."""
        assert len(self.data) < largest
        text = re.sub(r"base64,[A-Za-z0-9+/=]+", "", self.data.decode())
        assert not re.search(
            r"https?:|//|url\(|@import|<script|<link|<iframe|javascript|\son\w+=", text.replace("</", "<")
        )
        assert all(alt and src.startswith("data:image/") for alt, src in self.images)
        assert all(given.get("aria-label") for given in self.drawings("svg"))
        assert all(given.get("scope") in {"row", "col"} for given in self.drawings("th"))
        assert all(caption for caption in self.tables)
        names = [given["id"] for _, given in self.tags if "id" in given]
        assert len(names) == len(set(names))
        assert {given["aria-labelledby"] for _, given in self.tags if "aria-labelledby" in given} <= set(names)


def pixels(src: str) -> np.ndarray:
    """The picture of a data address."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition("base64,")[2]))).convert("RGB"))
