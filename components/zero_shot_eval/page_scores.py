"""The page's figures: what the terminal's table says, drawn and explained."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np

from components.class_scores import average_precision
from components.figures import (
    TITLES,
    base_of,
    beside,
    column_titles,
    explanations,
    label,
    line,
    percent,
    ratio,
    title_of,
)
from components.scores import FloatArray, confusion_matrix, per_class_recall
from components.zero_shot_eval.page_charts import Bar, Span, bars, histogram, interval_chart
from components.zero_shot_eval.page_data import Run, content
from components.zero_shot_eval.page_markup import Html, details, el, join, pairs, table, whole
from components.zero_shot_eval.rows import RECALL_AT

MATRIX_CLASSES = 30  # more do not fit a screen; their confusions are listed instead
LISTED = 20
ANSWERS = {
    "acc1": "names the right class for",
    "image_retrieval_recall@5": "finds the picture among the first five for",
    "text_retrieval_recall@5": "finds a fitting caption among the first five for",
}


def signed(value: float, digits: int = 1) -> str:
    """A difference, with a proper minus; never "-0.0"."""
    text = f"{value:+,.{digits}f}"
    return f"{0:.{digits}f}" if not text.strip("+-0.,") else text.replace("-", "−")


def splats_row(run: Run) -> dict[str, Any]:
    """The row that all is about."""
    row = run.row("splats")
    if row is None:
        raise KeyError("scores.json has no row of the splats")
    return row


def verdict(run: Run) -> Html:
    """The outcome in a sentence or two."""
    scores, row = run.scores, splats_row(run)
    base = base_of(scores)
    words: list[str] = []
    for who, metric in zip(("The splat reader", "It"), scores["headline"], strict=False):
        figure = row["figures"][metric]
        share = figure["ratio"][f"to_{base}"]
        what = ANSWERS.get(metric, f"reaches, in {title_of(metric)},")
        value, interval = _parted(percent(figure), " %")
        words += [f"{who} {what} ", whole(f"{value} {interval}")]
        words += [f" of the {_asked(metric)}"] if metric in ANSWERS else []
        if share is not None:
            words += ["; that is ", whole(ratio(share)), f" of what {_reader(base)} reaches on the photographs"]
        words.append(". ")
    return el("p", *words, class_="lead")


def _asked(metric: str) -> str:
    return "captions" if metric.startswith("image_retrieval") else "pictures"


def _reader(base: str) -> str:
    return "its fair control" if base == "control" else "the untouched teacher"


def tiles(run: Run) -> Html:
    """The main figures, large."""
    scores, row = run.scores, splats_row(run)
    base = base_of(scores)
    items = []
    for metric in scores["headline"]:
        figure = row["figures"][metric]
        share = figure["ratio"][f"to_{base}"]
        items.append(_tile(title_of(metric), *_parted(percent(figure), " %")))
        items.append(_tile(f"ratio to {_reader(base)}", *_parted(ratio(share))))
    splats, size = scores["splats"], scores["bytes_per_picture"]
    ratios = splats["compression"]
    items.append(_tile("PSNR, mean", f"{splats['psnr_db_mean']:.2f} dB", _range(splats)))
    smaller = f"{beside('raw RGB', ratios['raw'])}, {beside('JPEG quality 90', ratios['jpeg90'])}"
    items.append(_tile("bytes a picture", f"{size['gs2d']:,.0f}", smaller))
    return el("dl", *items, class_="tiles" if len(items) % 3 else "tiles thirds")


def _range(splats: dict[str, Any]) -> str:
    return f"{splats['psnr_db_min']:.1f} to {splats['psnr_db_max']:.1f}"


def _parted(text: str, unit: str = "") -> tuple[str, str]:
    """A figure and its interval, written as in the table."""
    value, _, interval = text.partition(" ")
    return value + unit, interval


def _tile(name: str, value: str, below: str) -> Html:
    return el("div", el("dt", name), el("dd", el("b", value), el("small", below)))


def score_parts(run: Run) -> list[Html]:
    """An interval chart and the table of each main metric, and what is said under them."""
    scores, found = run.scores, []
    for metric in scores["headline"]:
        spans = [
            Span(
                label(row, scores),
                100 * row["figures"][metric]["value"],
                100 * row["figures"][metric]["interval"][0],
                100 * row["figures"][metric]["interval"][1],
                row["name"],
                percent(row["figures"][metric]),
                strong=row["name"] == "splats",
            )
            for row in scores["rows"]
        ]
        titles = column_titles(scores, metric)
        found.append(interval_chart(spans, title=f"{title_of(metric)}, with 95 % intervals; {titles[0][1]}", unit="%"))
        found.append(
            table(
                [" ".join(part for part in pair if part) for pair in titles],
                [line(row, scores, metric) for row in scores["rows"]],
                caption=title_of(metric),
                silent=True,
                stack=["%", " ".join(titles[2]), titles[3][1]],
                strong=[i for i, row in enumerate(scores["rows"]) if row["name"] == "splats"],
            )
        )
    named = scores["left_out"]["named"]
    found.append(pairs(explanations(scores)))
    if any(named.values()):
        items = [(reason, ", ".join(keys)) for reason, keys in named.items() if keys]
        found.append(details("Keys of pictures left out, the first hundred of each kind", pairs(items)))
    return found


def size_parts(run: Run) -> list[Html]:
    """Bytes a picture in each form, and how the PSNR is spread."""
    scores = run.scores
    size = scores["bytes_per_picture"]
    stored = "/".join(scores["stored_formats"])
    names = {
        "gs2d": ("splats (.gs2d)", "splats"),
        "jpeg90": ("JPEG, quality 90", "plain"),
        "stored": (f"as stored ({stored})", "plain"),
        "raw": ("raw RGB", "plain"),
    }
    items = [Bar(text, size[name], f"{size[name]:,.0f}", kind) for name, (text, kind) in names.items()]
    return [
        el(
            "div",
            bars(items, title="Bytes a picture, mean"),
            histogram(
                run.predictions.psnr_db,
                title=f"Pictures by PSNR of their splats, mean {scores['splats']['psnr_db_mean']:.2f} dB",
                unit="dB",
            ),
            class_="two",
        )
    ]


def answer_parts(run: Run) -> list[Html]:
    """Which classes were taken for which, or recall at each depth."""
    if run.scores["task"] == "retrieval":
        return [recall_table(run)]
    if run.scores["task"] == "multilabel":
        return [class_table(run)]
    return [el("div", confusions(run), class_table(run), class_="two")]


def confusions(run: Run) -> Html:
    """What the splat reader took for what: the matrix, or the most frequent mistakes where it would be too large."""
    names, seen = run.scores["class_names"], run.predictions
    counts = confusion_matrix(seen.guesses["splats"], seen.classes, len(names))
    return _matrix(counts, names) if len(names) <= MATRIX_CLASSES else _mistakes(counts, names)


def by_class(run: Run) -> tuple[str, FloatArray]:
    """What the splat reader's answers are scored by in each class, and that figure [C]."""
    seen = run.predictions
    if seen.truth is not None:
        return "Average precision", average_precision(seen.class_scores["splats"], seen.truth)
    counts = confusion_matrix(seen.guesses["splats"], seen.classes, len(run.scores["class_names"]))
    return "Recall", per_class_recall(counts)


def recall_table(run: Run) -> Html:
    """Recall in both directions for all rows."""
    scores = run.scores
    metrics = [f"{kind}_retrieval_recall@{k}" for kind in ("image", "text") for k in RECALL_AT]
    rows = [[label(row, scores), *(percent(row["figures"][metric]) for metric in metrics)] for row in scores["rows"]]
    rows.append(["chance", *(f"{100 * scores['chance'][metric]:.3g}" for metric in metrics)])
    strong = [i for i, row in enumerate(scores["rows"]) if row["name"] == "splats"]
    heads = ["recall, % [95 % interval]", *(f"{TITLES[metric]} @{metric.partition('@')[2]}" for metric in metrics)]
    return table(heads, rows, caption="Recall in both directions", stack=heads[1:], strong=strong)


def _matrix(counts: np.ndarray, names: list[str]) -> Html:
    """Rows are true classes, columns what the splat reader took them for; shaded by share of the row."""
    totals = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shares = counts / totals
    head = el("tr", el("td", ""), *(el("th", el("span", name), scope="col") for name in names))
    body = []
    for i, name in enumerate(names):
        cells = [
            el(
                "td",
                f"{counts[i, j]:,}" if counts[i, j] else "",
                style=f"--share:{shares[i, j]:.3f}" if counts[i, j] else None,
                class_="hit" if i == j else "miss",
            )
            for j in range(len(names))
        ]
        body.append(el("tr", el("th", name, scope="row"), *cells))
    caption = "Confusion matrix of the splat reader: a row is a true class, a column what it was taken for; pictures"
    inner = el("table", el("caption", caption), el("thead", head), el("tbody", *body), class_="matrix")
    return el("div", inner, class_="scroll", role="region", aria_label="Confusion matrix", tabindex=0)


def _mistakes(counts: np.ndarray, names: list[str]) -> Html:
    """The most frequent mistakes, where a matrix would be too large."""
    off = counts.copy()
    np.fill_diagonal(off, 0)
    order = np.argsort(-off, axis=None, kind="stable")[:LISTED]
    found = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, off.shape), strict=True) if off[i, j]]
    rows = [[names[i], names[j], f"{off[i, j]:,} of {counts[i].sum():,}"] for i, j in found]
    return table(["true class", "taken for", "pictures"], rows, caption="The splat reader's most frequent mistakes")


def class_table(run: Run) -> Html:
    """Recall or average precision by class, from per_class.csv; those where splats fall furthest behind first."""
    lines = list(csv.DictReader(io.StringIO(content(run.artifact, "per_class.csv").decode())))
    base = base_of(run.scores)
    column = "recall" if run.scores["task"] == "classification" else "average_precision"
    known = [one for one in lines if one[column]]
    known.sort(key=lambda one: float(one[column]) - float(one[f"{column}_{base}"]))
    cut = len(known) > MATRIX_CLASSES
    rows = []
    for one in known[:LISTED] if cut else known:
        own, other = 100 * float(one[column]), 100 * float(one[f"{column}_{base}"])
        rows.append([one["class"], f"{int(one['pictures']):,}", f"{own:.1f}", f"{other:.1f}", signed(own - other)])
    most = f"; the {LISTED} of {len(known):,} furthest behind" if cut else ""
    caption = f"{column.replace('_', ' ').capitalize()} by class, %{most}"
    return table(["class", "pictures", "splats", base, "difference"], rows, caption=caption)


def heading_line(run: Run) -> Html:
    """What was scored and by what."""
    scores = run.scores
    model = scores["model"]
    made = "trained here" if model["trained_here"] else f"imported, {model['pretrained']}"
    counted = f"{scores['num_pictures']:,} pictures"
    kind = f"{scores['num_classes']:,} classes" if scores["num_classes"] else f"{scores['num_captions']:,} captions"
    budget = f"at most {scores['splats']['num_gaussians_budget']:,} Gaussians a picture"
    return el("p", join([counted, kind, budget, f"teacher {model['name']} ({made})"], " · "), class_="about")
