"""The page of two evaluations side by side: A is the one asked for, B the one it is held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from components.figures import heading, label, percent, ratio, settings, title_of
from components.scores import Estimate, FloatArray
from components.zero_shot_eval.page_charts import Bar, Span, bars, histogram, interval_chart
from components.zero_shot_eval.page_data import Run
from components.zero_shot_eval.page_difference import (
    Pair,
    mean_difference,
    outcome,
    output_differences,
    parameter_differences,
    ratio_difference,
    score_difference,
)
from components.zero_shot_eval.page_markup import Html, details, el, join, pairs, section, table, whole
from components.zero_shot_eval.page_origin import lineage, origin_blocks
from components.zero_shot_eval.page_scores import (
    LISTED,
    answer_parts,
    by_class,
    confusions,
    recall_table,
    signed,
    splats_row,
)
from components.zero_shot_eval.page_together import pictures_together
from components.zero_shot_eval.page_training import charts_together

Of = Callable[[Run], FloatArray]
MEANS: tuple[tuple[str, int, Of], ...] = (
    ("PSNR, dB", 2, lambda run: run.predictions.psnr_db),
    ("bytes of a .gs2d file", 1, lambda run: run.predictions.gs2d_bytes.astype(np.float64)),
    ("Gaussians", 1, lambda run: run.predictions.num_gaussians.astype(np.float64)),
)

DIFFERENT = "The two answer different questions (another task or other classes), so no difference is worked out."
COVERED = {
    True: "95 %; each resampling draws the same pictures for A and B; other training runs are not covered",
    False: "95 %; A's and B's pictures are drawn apart; other training runs are not covered",
}


def compare_body(a: Run, b: Run, tags: Mapping[str, str]) -> Html:
    """The page of two evaluations; tags: of A's run."""
    pair = Pair(a, b)
    heads = [_about(run, name) for run, name in ((a, "a"), (b, "b"))]
    notes = [el("p", f"Mind that {caveat}.", class_="note") for caveat in pair.caveats()]
    return join(
        [
            el(
                "header",
                el("p", "SplatCLIP: two evaluations side by side", class_="eyebrow"),
                el("h1", _title(a, b)),
                el("ul", *heads, class_="versus"),
            ),
            _lead(pair),
            *notes,
            section("scores", "Scores", *_scores(pair)),
            section("differs", "What differs", *_differs(pair)),
            section("pictures", "Photographs and their splats", *pictures_together(pair)),
            section("size", "Size and fidelity", *_sizes(pair)),
            section("answers", "Answers", *_answers(pair)),
            section("training", "Training", *charts_together(a, b)),
            section("origin", "Versions and lineage", *_origin(pair, tags)),
        ]
    )


def _title(a: Run, b: Run) -> str:
    names = list(dict.fromkeys(f"{run.scores['dataset']}, split {run.scores['split']}" for run in (a, b)))
    return " against ".join(names)


def _about(run: Run, name: str) -> Html:
    letter = el("b", name.upper())
    budget = run.scores["splats"]["num_gaussians_budget"]
    told = f"{heading(run.scores)}, at most {budget:,} Gaussians a picture, teacher {run.scores['model']['name']}"
    return el("li", letter, el("span", el("code", run.artifact.manifest.path), el("small", told)), class_=f"k-{name}")


def _points(found: Estimate, digits: int = 1, scale: float = 100.0) -> str:
    low, high = (signed(scale * end, digits) for end in (found.low, found.high))
    return f"{signed(scale * found.value, digits)} [{low}, {high}]"


def _lead(pair: Pair) -> Html:
    if not pair.same_task:
        return el("p", DIFFERENT, class_="lead")
    words = []
    for metric in pair.a.scores["headline"]:
        found = score_difference(pair, metric, "splats")
        told = whole(f"{_points(found)} points")
        words.append(join([f"A − B in {title_of(metric)} of the splat reader: ", told, f", {outcome(found)}."]))
    return el("p", join(words, " "), class_="lead")


def _scores(pair: Pair) -> list[Html]:
    a, b = pair.a, pair.b
    if not pair.same_task:
        return [el("div", *(_own_scores(run, name) for run, name in ((a, "A"), (b, "B"))), class_="two")]
    parts = []
    names = [name for name in a.row_names if name in b.row_names]
    for metric in a.scores["headline"]:
        spans: list[Span] = []
        rows: list[list[str]] = []
        strong: list[int] = []
        for name in names:
            figures = [row["figures"][metric] for run in (a, b) if (row := run.row(name)) is not None]
            for figure, run, letter in zip(figures, (a, b), "ab", strict=True):
                low, high = figure["interval"]
                row = next(row for row in run.scores["rows"] if row["name"] == name)
                text = f"{letter.upper()} · {label(row, run.scores)}"
                spans.append(
                    Span(text, 100 * figure["value"], 100 * low, 100 * high, letter, percent(figure), name == "splats")
                )
            found = score_difference(pair, metric, name)
            strong += [len(rows)] if name == "splats" else []
            rows.append([_row_name(name, a), *(percent(one) for one in figures), _points(found), outcome(found)])
        ratios = [splats_row(run)["figures"][metric]["ratio"].get("to_control") for run in (a, b)]
        between = ratio_difference(pair, metric)
        if between is not None:
            shown = [_points(between, 3, 1.0), outcome(between)]
            rows.append(["splats, ratio to control", *(ratio(one) for one in ratios), *shown])
        parts.append(interval_chart(spans, title=f"{title_of(metric)}, with 95 % intervals", unit="%"))
        unit = f"{title_of(metric)}, % [95 % interval]"
        heads = [unit, "A", "B", "A − B, points", "outcome"]
        parts.append(table(heads, rows, caption=title_of(metric), silent=True, stack=heads[1:], strong=strong))
    lines = [(f"{name}: {what}", text) for run, name in ((a, "A"), (b, "B")) for what, text in _notes(run)]
    lines.append(("intervals", COVERED[pair.same_pictures]))
    return [*parts, pairs(lines)]


def _row_name(name: str, run: Run) -> str:
    row = run.row(name)
    return "splats" if name == "splats" or row is None else str(row["label"])


def _notes(run: Run) -> list[tuple[str, str]]:
    return [*settings(run.scores["rows"]), *(("note", note) for note in run.scores["notes"])]


def _own_scores(run: Run, name: str) -> Html:
    rows = [
        [label(row, run.scores), *(percent(row["figures"][metric]) for metric in run.scores["headline"])]
        for row in run.scores["rows"]
    ]
    return table([name, *(title_of(metric) for metric in run.scores["headline"])], rows, caption=f"Scores of {name}, %")


def _differs(pair: Pair) -> list[Html]:
    changed = parameter_differences(pair)
    if not changed:
        return [el("p", "No parameter, version or backend.", class_="note")]
    return [table(["parameter", "A", "B"], changed, caption="Parameters, versions and backends", words=True)]


def _sizes(pair: Pair) -> list[Html]:
    a, b = pair.a, pair.b
    items = []
    for run, letter in ((a, "a"), (b, "b")):
        size = run.scores["bytes_per_picture"]["gs2d"]
        items.append(Bar(f"{letter.upper()} · splats (.gs2d)", size, f"{size:,.0f}", letter))
    for name, text in (("jpeg90", "JPEG, quality 90"), ("raw", "raw RGB")):
        sizes = [run.scores["bytes_per_picture"][name] for run in (a, b)]
        shown = " / ".join(dict.fromkeys(f"{size:,.0f}" for size in sizes))
        items.append(Bar(text, sizes[0], shown, "plain"))
    rows = []
    for what, digits, of in MEANS:
        means = [f"{np.mean(of(run)):,.{digits}f}" for run in (a, b)]
        apart = mean_difference(pair, of)
        told = signed(apart.value, digits) if apart.low == apart.high else _points(apart, digits, 1.0)
        rows.append([what, *means, told])
    mean = ", ".join(f"{name} {rows[0][i]} dB" for i, name in ((1, "A"), (2, "B")))
    together = None if pair.same_splats else b.predictions.psnr_db
    chart = histogram(
        a.predictions.psnr_db, title=f"Pictures by PSNR of their splats, mean {mean}", unit="dB", others=together
    )
    return [
        el("div", bars(items, title="Bytes a picture, mean"), chart, class_="two"),
        table(["", "A", "B", "A − B [95 %]"], rows, caption="Means over pictures"),
    ]


def _answers(pair: Pair) -> list[Html]:
    a, b = pair.a, pair.b
    if not pair.same_task:
        return [el("div", el("h3", name), *answer_parts(run)) for run, name in ((a, "A"), (b, "B"))]
    if a.scores["task"] == "retrieval":
        return [*_shared(pair), *(_titled(name, recall_table(run)) for run, name in ((a, "a"), (b, "b")))]
    if a.scores["task"] == "multilabel":
        return [el("div", *_shared(pair), _class_table(pair), class_="two")]
    matrices = (_titled(name, confusions(run)) for run, name in ((a, "a"), (b, "b")))
    return [
        el("div", *_shared(pair), _class_table(pair), class_="two"),
        el("div", *matrices, class_="two"),
    ]


def _titled(letter: str, inner: Html) -> Html:
    return el("div", el("h3", letter.upper()), inner, class_=f"side k-{letter}")


def _shared(pair: Pair) -> list[Html]:
    """How many pictures both readers got right, or only one of them; where they scored the same ones."""
    metric = pair.a.right_metric
    if not pair.same_pictures:
        return []
    one, two = (run.predictions.hits[metric]["splats"] > 0 for run in (pair.a, pair.b))
    counts = {"both": one & two, "only A": one & ~two, "only B": two & ~one, "neither": ~one & ~two}
    share = [[name, f"{which.sum():,}", f"{100 * which.mean():.1f} %"] for name, which in counts.items()]
    what = {
        "classification": "Right from splats",
        "multilabel": "Best-scored class is one of the picture's, from splats",
        "retrieval": "A fitting caption among the first five, from splats",
    }[pair.a.scores["task"]]
    return [table(["in", "pictures", "share"], share, caption=f"{what}, picture by picture")]


def _class_table(pair: Pair) -> Html:
    """Recall or average precision by class of both splat readers, the largest differences first."""
    found = [by_class(run) for run in (pair.a, pair.b)]
    recalls = [100 * values for _, values in found]
    apart = recalls[0] - recalls[1]
    known = [int(i) for i in np.argsort(-np.abs(apart), kind="stable") if np.isfinite(apart[i])]
    names = pair.a.scores["class_names"]
    rows = [[names[i], f"{recalls[0][i]:.1f}", f"{recalls[1][i]:.1f}", signed(float(apart[i]))] for i in known[:LISTED]]
    most = f"; the {LISTED} of {len(known):,} that differ most" if len(known) > LISTED else ""
    return table(["class", "A", "B", "A − B"], rows, caption=f"{found[0][0]} by class from splats, %{most}")


def _origin(pair: Pair, tags: Mapping[str, str]) -> list[Html]:
    a, b = pair.a, pair.b
    return [
        table(["output", "A", "B"], output_differences(pair), caption="What each was made from", words=True),
        origin_blocks(tags, "Tags when this page was made"),
        details("Lineage of A", lineage(a)),
        details("Lineage of B", lineage(b)),
    ]
