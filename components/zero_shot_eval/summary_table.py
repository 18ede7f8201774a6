"""The table of several evaluation sets in the terminal, from summary.json."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.figures import percent, ratio

WIDTH = 118  # columns, where the output is no terminal
COLUMNS = ("teacher", "control", "rendered", "splats")
SHORT = {
    "acc1": "top-1",
    "mean_per_class_recall": "per class",
    "mean_average_precision": "mAP",
    "image_retrieval_recall@1": "to picture @1",
    "image_retrieval_recall@5": "to picture @5",
    "text_retrieval_recall@1": "to caption @1",
    "text_retrieval_recall@5": "to caption @5",
    "score": "mean",
}
UNDEFINED = "the base cannot be told from 0 (or from guessing) on these pictures; a mean of ratios leaves such sets out"
READINGS = {
    "ratio_of_means": "ratio of the means",
    "mean_of_ratios": "mean of the sets' ratios",
    "chance_corrected_ratio_of_means": "ratio of the means, chance taken off",
}


def _cells(rows: Mapping[str, Any]) -> list[str]:
    plain = [f"{100 * rows[name]['value']:.1f}" if name in rows else "-" for name in COLUMNS[:-1]]
    return [*plain, percent(rows["splats"])]


def _base(rows: Mapping[str, Any]) -> str:
    return "control" if "control" in rows else "teacher"


def _table(budget: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    heads = ("set", "metric, %", *COLUMNS[:-1], "splats [95 % interval]", "ratio to control")
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place > 1 else "left", no_wrap=place > 0, overflow="fold")
    for one in budget["sets"]:
        for metric, found in one["metrics"].items():
            rows = found["rows"]
            share = ratio(rows["splats"]["ratio"].get("to_control")) if "control" in rows else "no control"
            table.add_row(one["set"], SHORT[metric], *_cells(rows), share)
    for group, found in budget["means"].items():
        for metric, mean in found["metrics"].items():
            base = _base(mean["rows"])
            share = ratio(mean["relative"]["splats"][f"to_{base}"]["ratio_of_means"])
            name = f"{found['sets']} {'of classes' if group == 'classification' else 'of captions'}"
            table.add_row(name, SHORT[metric], *_cells(mean["rows"]), share if base == "control" else "-", style="bold")
    return table


def _relative(budget: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Both readings of the relative score over the sets of classes, and in which sense the sets were tested."""
    lines = []
    found = budget["means"].get("classification")
    for base, figures in found["metrics"]["score"]["relative"]["splats"].items() if found else ():
        told = f"splats {base.replace('_', ' ')}, classes"
        for reading, words in READINGS.items():
            over = f" ({figures['mean_of_ratios_sets']} of {found['sets']})" if reading == "mean_of_ratios" else ""
            lines.append((told, f"{ratio(figures[reading])}  {words}{over}"))
            told = ""
    settings: dict[str, list[str]] = {}
    for one in budget["sets"]:
        settings.setdefault(one["settings"]["splats"], []).append(one["set"])
    lines += [("setting", f"{setting}: {', '.join(names)}") for setting, names in settings.items()]
    ratios = [
        rows["splats"]["ratio"].get("to_control", {})
        for one in budget["sets"]
        for rows in (found["rows"] for found in one["metrics"].values())
    ]
    if None in ratios or any(text.startswith("undefined") for _, text in lines):
        lines.append(("undefined", UNDEFINED))
    return lines


def show_summary(summary: Mapping[str, Any]) -> None:
    """Print the table of summary.json to stdout; colours on a terminal only."""
    plain = Console(file=sys.stdout)
    text = io.StringIO()
    width = plain.width if plain.is_terminal else WIDTH
    console = Console(file=text, width=width, highlight=False, force_terminal=plain.is_terminal)
    for budget in summary["budgets"]:
        console.print()
        console.print(Text(f"{len(budget['sets'])} sets, at most {budget['num_gaussians']:,} Gaussians", style="bold"))
        console.print(_table(budget))
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim")
        facts.add_column(overflow="fold")
        for name, value in [*_relative(budget), ("intervals", summary["intervals"])]:
            facts.add_row(Text(name), Text(value))
        console.print(facts)
    for one in summary["failed"]:
        console.print(Text(f"failed: {one['set']}: {one['message']}", style="red"), soft_wrap=True)
    lines = text.getvalue().splitlines()
    print("\n".join(lines if plain.is_terminal else [one.rstrip() for one in lines]), flush=True)
