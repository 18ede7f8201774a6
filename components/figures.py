"""How figures are written, for all who show them: the table in the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.errors import UsageError

FORMAT = 1
PARTS = {  # what is shown
    *("task", "dataset", "split", "num_pictures", "chance", "headline", "rows", "splats", "bytes_per_picture"),
    *("stored_formats", "trained", "left_out", "intervals", "notes"),
}
KINDS = ("ratio", "chance_corrected_ratio")
TITLES = {
    "acc1": "top-1 accuracy",
    "acc5": "top-5 accuracy",
    "mean_per_class_recall": "mean per-class recall",
    "mean_average_precision": "mean average precision",
    "image_retrieval_recall@1": "caption to picture",
    "image_retrieval_recall@5": "caption to picture",
    "text_retrieval_recall@1": "picture to caption",
    "text_retrieval_recall@5": "picture to caption",
}


def check_format(scores: object, where: str = "scores.json") -> None:
    """UsageError where scores.json is of another format than these words are for, or not whole."""
    if not isinstance(scores, Mapping) or scores.get("format") != FORMAT:
        found = repr(scores.get("format")) if isinstance(scores, Mapping) else "none"
        raise UsageError(f"{where} is of format {found}; this version shows format {FORMAT}")
    missing = sorted(PARTS - scores.keys())
    if missing:
        raise UsageError(f"{where} lacks {', '.join(missing)}: changed by hand? `splatclip run` writes it again")


def percent(figure: Mapping[str, Any]) -> str:
    """A share with its interval, in per cent."""
    low, high = figure["interval"]
    return f"{100 * figure['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def ratio(figure: Mapping[str, Any] | None) -> str:
    """A ratio with its interval; None: its base cannot be told from guessing."""
    if figure is None:
        return "undefined"
    low, high = figure["interval"]
    return f"{figure['value']:.3f} [{low:.3f}, {high:.3f}]"


def heading(scores: Mapping[str, Any]) -> str:
    """Which pictures were scored."""
    count = f"{scores['num_pictures']:,} pictures of {scores['dataset']}, split {scores['split']}"
    return f"{count}, {scores['num_classes']} classes" if scores["num_classes"] else count


def title_of(metric: str) -> str:
    """A metric's name for people."""
    name = TITLES.get(metric, metric)
    return f"{name}, recall@{metric.partition('@')[2]}" if "@" in metric else name


def label(row: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    """A row's name for people."""
    if row["name"] != "splats":
        return str(row["label"])
    budget = scores["splats"]["num_gaussians_budget"]
    return f"splats, {budget:,} Gaussians" if budget != 1 else "splats, 1 Gaussian"


def base_of(scores: Mapping[str, Any]) -> str:
    """The row that ratios are shown to: the control, or the untouched teacher where there is none."""
    return "control" if any(row["name"] == "control" for row in scores["rows"]) else "teacher"


def column_titles(scores: Mapping[str, Any], metric: str) -> list[tuple[str, str]]:
    """First and second line of the headings above the rows' names, figures, ratios and corrected ratios."""
    to = "control" if base_of(scores) == "control" else "untouched teacher"
    unit = f"recall@{metric.partition('@')[2]}, %" if "@" in metric else "%"
    return [
        ("", f"chance {100 * scores['chance'][metric]:.3g} %"),
        (TITLES[metric], f"{unit} [95 % interval]"),
        ("ratio to", to),
        ("the same,", "chance-corrected"),
    ]


def line(row: Mapping[str, Any], scores: Mapping[str, Any], metric: str) -> list[str]:
    """The cells of a row under `column_titles`."""
    base, figure = base_of(scores), row["figures"][metric]
    ratios = ["1", "1"] if row["name"] == base else [ratio(figure[kind][f"to_{base}"]) for kind in KINDS]
    return [label(row, scores), percent(figure), *ratios]


def undefined(scores: Mapping[str, Any]) -> list[str]:
    """The note that explains "undefined", where it was written."""
    base = base_of(scores)
    figures = [row["figures"][metric] for row in scores["rows"] for metric in scores["headline"]]
    shown = [figure[kind].get(f"to_{base}", {}) for figure in figures for kind in KINDS]
    if None not in shown:
        return []
    return [f"undefined: the {base} cannot be told from guessing (or from 0) on so few pictures or so little training"]


def beside(name: str, ratio: float) -> str:
    """How large the splats are beside another form of the same picture."""
    if 0.995 <= ratio < 1.005:
        return f"as large as {name}"
    if ratio >= 1:
        return f"{ratio:.2f}x smaller than {name}"
    return f"{1 / ratio:.2f}x LARGER than {name}"


def facts(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What goes with the rows: fidelity, size, what trained, what was left out."""
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
        ("", f"as files: {beside('raw RGB', ratios['raw'])}, {beside('JPEG quality 90', ratios['jpeg90'])}"),
    ]
    if "trained_share" in trained:
        share = f"{100 * trained['trained_share']:.1f} % of the parameters (the token table left out)"
        facts.append(("trained", f"{share}, {100 * trained['trained_vision_share']:.1f} % of the vision side"))
    left_out = {reason: count for reason, count in scores["left_out"]["counts"].items() if count}
    if left_out:
        facts.append(("left out", ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())))
    return facts


def settings(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """In which sense the rows were tested."""
    grouped: dict[str, list[str]] = {}
    for row in rows:
        grouped.setdefault(row["setting"], []).append(row["name"])
    if len(grouped) == 1:
        return [("setting", next(iter(grouped)))]
    return [("setting", f"{setting}: {', '.join(names)}") for setting, names in grouped.items()]


def explanations(scores: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All that is said under the rows, as pairs of a word and a line."""
    lines = [*settings(scores["rows"]), *facts(scores), ("intervals", scores["intervals"]["note"])]
    return lines + [("note", note) for note in [*undefined(scores), *scores["notes"]]]
