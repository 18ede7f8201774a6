"""The report: an evaluation as one HTML file that needs no network and no script."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from components.store import open_store
from components.zero_shot_eval.page_data import Run, load_run
from components.zero_shot_eval.page_markup import Html, el, join, section
from components.zero_shot_eval.page_origin import origin_parts
from components.zero_shot_eval.page_pictures import gallery
from components.zero_shot_eval.page_scores import answer_parts, heading_line, score_parts, size_parts, tiles, verdict
from components.zero_shot_eval.page_training import training_parts

STYLE = Path(__file__).with_name("page.css")


def report_html(ref: str, store: str, *, tags: Mapping[str, str], against: str | None = None) -> bytes:
    """The page of an evaluation, or of two side by side; the same bytes for the same evaluations, tags and packages.

    ref, against: zero_shot_eval's prefix, its manifest, or the folder that `splatclip run` wrote its outcome to; what
    it was made from is looked for in its own store and in `store`. tags: of the tracked run, shown as they are.
    Raises UsageError where one of them is no evaluation, PermanentError where it is missing or damaged.
    """
    place = open_store(store)
    run = load_run(ref, place)
    if against is not None:
        from components.zero_shot_eval.page_compare import compare_body

        other = load_run(against, place)
        return document(f"{_name(run)}: two evaluations", compare_body(run, other, tags))
    return document(_name(run), body(run, tags))


def _name(run: Run) -> str:
    return f"{run.scores['dataset']}, split {run.scores['split']}"


def body(run: Run, tags: Mapping[str, str]) -> Html:
    """The page of one evaluation."""
    answers = {"classification": "What was taken for what", "multilabel": "By class", "retrieval": "Recall"}
    return join(
        [
            el("header", el("p", "SplatCLIP evaluation", class_="eyebrow"), el("h1", _name(run)), heading_line(run)),
            verdict(run),
            tiles(run),
            section("scores", "Scores", *score_parts(run)),
            section("pictures", "Photographs and their splats", *gallery(run)),
            section("size", "Size and fidelity", *size_parts(run)),
            section("answers", answers[run.scores["task"]], *answer_parts(run)),
            section("training", "Training", *training_parts(run)),
            section("origin", "Versions and lineage", *origin_parts(run, tags)),
        ]
    )


def document(title: str, inner: Html) -> bytes:
    """A whole page."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("title", f"SplatCLIP: {title}"),
        Html(f"<style>{STYLE.read_text(encoding='utf-8')}</style>"),
    )
    page = el("html", head, el("body", el("main", inner)), lang="en")
    return f"<!doctype html>\n{page}\n".encode()
