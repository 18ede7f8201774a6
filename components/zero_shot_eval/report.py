"""The table in the terminal, from scores.json."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.figures import check_format, column_titles, explanations, heading, line

WIDTH = 100  # columns, where the output is no terminal or a wider one


def _table(scores: Mapping[str, Any], metric: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for place, (first, second) in enumerate(column_titles(scores, metric)):
        table.add_column(
            f"{first}\n{second}",
            header_style="dim" if place == 0 else "",
            justify="right" if place else "left",
            overflow="ellipsis" if place else "fold",
            no_wrap=place > 0,  # where it is narrow the rows' names fold, never a figure
        )
    for row in scores["rows"]:
        table.add_row(*line(row, scores, metric), style="bold" if row["name"] == "splats" else "")
    return table


def show(scores: Mapping[str, Any], sheet: Path | str | None) -> None:
    """Print the table of scores.json to stdout; colours on a terminal only.

    sheet: where the contact sheet lies, named in the last line. Raises UsageError if the scores are of another format.
    """
    check_format(scores)
    plain = Console(file=sys.stdout)
    width = min(plain.width, WIDTH) if plain.is_terminal else WIDTH
    text = io.StringIO()
    console = Console(file=text, width=width, highlight=False, force_terminal=plain.is_terminal)
    console.print()
    console.print(Text(heading(scores), style="bold"))
    for metric in scores["headline"]:
        console.print(_table(scores, metric))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in explanations(scores):
        facts.add_row(Text(name), Text(value))
    console.print(facts)
    if sheet is not None:
        console.print(Text.assemble(("contact sheet    ", "dim"), str(sheet)), soft_wrap=True)
    lines_out = text.getvalue().splitlines()
    print("\n".join(lines_out if plain.is_terminal else [one.rstrip() for one in lines_out]), flush=True)
