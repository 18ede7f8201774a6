"""HTML by construction: text is escaped, and only what was made here goes in as it is."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

VOID = {"img", "meta"}
EMPTY = {"ellipse", "path"}  # of SVG, which has to be told that nothing is inside


class Html(str):
    """Markup: goes into other markup as it is, where a plain str is escaped."""

    __slots__ = ()


def text_of(child: str) -> str:
    """A child as markup."""
    return child if isinstance(child, Html) else escape(child, quote=False)


def join(children: Iterable[str], between: str = "") -> Html:
    """Several children as one."""
    return Html(text_of(between).join(text_of(child) for child in children))


def el(tag: str, *children: str, **attributes: str | int | None) -> Html:
    """An element. class_ is class, view_box is viewBox, aria_label is aria-label; an attribute of None is left out."""
    head = tag
    for name, value in attributes.items():
        if value is not None:
            written = {"view_box": "viewBox"}.get(name, name.rstrip("_").replace("_", "-"))
            head += f' {written}="{escape(str(value))}"'
    if tag in VOID or tag in EMPTY:
        return Html(f"<{head}/>" if tag in EMPTY else f"<{head}>")
    return Html(f"<{head}>{join(children)}</{tag}>")


def section(name: str, title: str, *children: str) -> Html:
    """A part of the page under a heading; name: its anchor."""
    return el("section", el("h2", title, id=name), *children, aria_labelledby=name)


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    silent: bool = False,
    words: bool = False,
    stack: Sequence[str] = (),
    strong: Sequence[int] = (),
) -> Html:
    """A table whose first column names its rows, in a box that scrolls sideways where it must.

    caption: what the table is; silent: it is heard only, by those who cannot see where the table stands; words: its
    cells are words, not figures; stack: short names of the cells, which then stand under the row's name on a phone;
    strong: the rows that are set off.
    """
    head = el("tr", *(el("th", one, scope="col") for one in heads))
    body = []
    for i, (first, *others) in enumerate(rows):
        names: Sequence[str | None] = stack or [None] * len(others)
        cells = [el("td", _unbroken(one), data_name=name) for name, one in zip(names, others, strict=True)]
        cells.insert(0, el("th", first, scope="row"))
        body.append(el("tr", *cells, class_="strong" if i in strong else None))
    inner = el(
        "table",
        el("caption", caption, class_="silent" if silent else None),
        el("thead", head),
        el("tbody", *body),
        class_="words" if words else "stacks" if stack else None,
        style=f"--cells:{2 if len(stack) == 4 else 3}" if stack else None,
    )
    return el("div", inner, class_="scroll", role="region", aria_label=caption, tabindex=0)


def _unbroken(cell: str) -> str:
    """A cell whose interval, in brackets, is kept on one line."""
    value, bracket, interval = cell.partition(" [")
    if isinstance(cell, Html) or not bracket:
        return cell
    return join([f"{value} ", whole(f"[{interval}")])


def pairs(items: Iterable[tuple[str, str]], class_: str = "facts") -> Html:
    """A list of words and what is said of them."""
    return el("dl", *(join([el("dt", name), el("dd", value)]) for name, value in items), class_=class_)


def details(summary: str, *children: str) -> Html:
    """What is folded away until asked for."""
    return el("details", el("summary", summary), *children)


def data_uri(data: bytes, kind: str) -> str:
    """A file as an address. kind: png, webp ..."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def whole(text: str) -> Html:
    """Text that is not broken across lines."""
    return el("span", text, class_="whole")


def number(value: float) -> str:
    """A short number: 3,510 or 0.0632."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
