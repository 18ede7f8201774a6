"""The table in the terminal, from scores.json."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from components.errors import UsageError

FORMAT = 1
KINDS = ("ratio", "chance_corrected_ratio")
WIDTH = 100  # columns, where the output is no terminal or a wider one
TITLES = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "image_retrieval_recall@1": "caption to picture",
    "image_retrieval_recall@5": "caption to picture",
    "text_retrieval_recall@1": "picture to caption",
    "text_retrieval_recall@5": "picture to caption",
}


def _percent(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{100 * figure['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _ratio(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "undefined"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


def _heading(scores: Mapping[str, Any]) -> str:
    count = f"{scores['num_pictures']:,} pictures of {scores['dataset']}, split {scores['split']}"
    return f"{count}, {scores['num_classes']} classes" if scores["task"] == "classification" else count


def _label(row: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    if row["name"] != "splats":
        return str(row["label"])
    budget = scores["splats"]["num_gaussians_budget"]
    return f"splats, {budget:,} Gaussians" if budget != 1 else "splats, 1 Gaussian"


def _table(scores: Mapping[str, Any], metric: str) -> Table:
    base = _base(scores)
    to = "control" if base == "control" else "untouched teacher"
    chance = scores["chance"][metric]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column(f"\nchance {100 * chance:.3g} %", header_style="dim", no_wrap=True)
    unit = f"recall@{metric.partition('@')[2]}, %" if "@" in metric else "%"
    table.add_column(f"{TITLES[metric]}\n{unit} [95 % interval]", justify="right", no_wrap=True)
    table.add_column(f"ratio to\n{to}", justify="right", no_wrap=True)
    table.add_column("the same,\nchance-corrected", justify="right", no_wrap=True)
    for row in scores["rows"]:
        figure = row["figures"][metric]
        ratios = ["1", "1"] if row["name"] == base else [_ratio(figure[kind][f"to_{base}"]) for kind in KINDS]
        style = "bold" if row["name"] == "splats" else ""
        table.add_row(_label(row, scores), _percent(figure), *ratios, style=style)
    return table


def _base(scores: Mapping[str, Any]) -> str:
    """The row that ratios are shown to: the control, or the untouched teacher where there is none."""
    return "control" if any(row["name"] == "control" for row in scores["rows"]) else "teacher"


def _undefined(scores: Mapping[str, Any]) -> list[str]:
    base = _base(scores)
    figures = [row["figures"][metric] for row in scores["rows"] for metric in scores["headline"]]
    shown = [figure[kind].get(f"to_{base}", {}) for figure in figures for kind in KINDS]
    if None not in shown:
        return []
    return [f"undefined: the {base} cannot be told from guessing (or from 0) on so few pictures or so little training"]


def _against(name: str, ratio: float) -> str:
    """How large the splats are beside another form of the same picture."""
    if 0.995 <= ratio < 1.005:
        return f"as large as {name}"
    if ratio >= 1:
        return f"{ratio:.2f}x smaller than {name}"
    return f"{1 / ratio:.2f}x LARGER than {name}"


def _facts(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    splats, sizes, trained = scores["splats"], scores["bytes_per_picture"], scores["trained"]
    ratios = splats["compression"]
    stored = "/".join(scores["stored_formats"])
    kept = splats["num_gaussians_mean"]
    budget = splats["num_gaussians_budget"]
    pruned = "" if kept == budget else f", {kept:,.1f} of {budget:,} kept"
    facts = [
        ("PSNR", f"{splats['psnr_db_mean']:.2f} dB, mean over pictures, after the file's round trip{pruned}"),
        (
            "bytes a picture",
            f".gs2d {sizes['gs2d']:,.0f} | stored {stored} {sizes['stored']:,.0f} | "
            f"JPEG quality 90 {sizes['jpeg90']:,.0f} | raw RGB {sizes['raw']:,.0f}",
        ),
        ("compression", f"{ratios.get('paper', 0):.2f}x against raw RGB by the paper's count (16 bytes a Gaussian)"),
        ("", f"as files: {_against('raw RGB', ratios['raw'])}, {_against('JPEG quality 90', ratios['jpeg90'])}"),
    ]
    if "trained_share" in trained:
        share = f"{100 * trained['trained_share']:.1f} % of the parameters (the token table left out)"
        facts.append(("trained", f"{share}, {100 * trained['trained_vision_share']:.1f} % of the vision side"))
    left_out = {reason: count for reason, count in scores["left_out"]["counts"].items() if count}
    if left_out:
        facts.append(("left out", ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())))
    return facts


def _settings(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    grouped: dict[str, list[str]] = {}
    for row in rows:
        grouped.setdefault(row["setting"], []).append(row["name"])
    if len(grouped) == 1:
        return [("setting", next(iter(grouped)))]
    return [("setting", f"{setting}: {', '.join(names)}") for setting, names in grouped.items()]


def show(scores: Mapping[str, Any], sheet: Path | str | None) -> None:
    """Print the table of scores.json to stdout; colours on a terminal only.

    sheet: where the contact sheet lies, named in the last line. Raises UsageError if the scores are of another format.
    """
    if scores.get("format") != FORMAT:
        raise UsageError(f"scores.json is of format {scores.get('format')!r}; this version shows format {FORMAT}")
    plain = Console(file=sys.stdout)
    width = min(plain.width, WIDTH) if plain.is_terminal else WIDTH
    text = io.StringIO()
    console = Console(file=text, width=width, highlight=False, force_terminal=plain.is_terminal)
    console.print()
    console.print(Text(_heading(scores), style="bold"))
    for metric in scores["headline"]:
        console.print(_table(scores, metric))
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    lines = [*_settings(scores["rows"]), *_facts(scores), ("intervals", scores["intervals"]["note"])]
    lines += [("note", note) for note in [*_undefined(scores), *scores["notes"]]]
    for name, value in lines:
        facts.add_row(Text(name), Text(value))
    console.print(facts)
    if sheet is not None:
        console.print(Text.assemble(("contact sheet    ", "dim"), str(sheet)), soft_wrap=True)
    lines_out = text.getvalue().splitlines()
    print("\n".join(lines_out if plain.is_terminal else [line.rstrip() for line in lines_out]), flush=True)
