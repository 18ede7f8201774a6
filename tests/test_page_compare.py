"""Two evaluations side by side: differences that are right, what differs, the same pictures; and the curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pages import Page, pixels
from worlds import PARAMS, World, by_name, make_world, put_adapter, put_images, put_splats, scores_of

from components import figures
from components.config import ZeroShotEvalParams
from components.manifest import Artifact, Commit
from components.store import open_store
from components.zero_shot_eval import page_charts, page_training
from components.zero_shot_eval.page import report_html
from components.zero_shot_eval.page_data import Run, load_run
from components.zero_shot_eval.page_difference import Pair, mean_difference, outcome, score_difference
from components.zero_shot_eval.page_scores import signed
from components.zero_shot_eval.predictions import Predictions


@pytest.fixture(scope="module")
def other(world: World, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The same pictures, one splat file without Gaussians, one learning rate instead of two."""
    tmp = tmp_path_factory.mktemp("other")
    splats = put_splats(world.store, tmp, world.images, list(world.pictures), pruned="p00")
    adapter = put_adapter(world.store, tmp, world.images, world.teacher, splats, rates=(1e-3,))
    return world.run(splats=splats, adapter=adapter)


def against(world: World, one: Artifact, two: Artifact) -> Page:
    page = Page(report_html(one.url, str(world.store), tags={"git.sha": "abc"}, against=two.url))
    page.check()
    return page


def test_both_scores_and_what_lies_between_them(world: World, scored: Artifact, other: Artifact) -> None:
    page = against(world, scored, other)
    rows = {row[0]: row[1:] for row in page.tables["top-1 accuracy"][1:]}
    one, two = (by_name(scores_of(made))["splats"]["figures"]["acc1"] for made in (scored, other))
    assert rows["splats"][:2] == [figures.percent(one), figures.percent(two)]
    assert rows["splats"][2].partition(" ")[0] == signed(100 * (one["value"] - two["value"]))
    assert rows["RGB teacher, untouched"][2:] == ["0.0 [0.0, 0.0]", "the same"]
    assert page.tables["Means over pictures"][3] == ["Gaussians", "9.0", "8.8", "+0.2 [−0.2, +0.7]"]


def test_what_differs_is_listed_and_nothing_else(world: World, scored: Artifact, other: Artifact) -> None:
    page = against(world, scored, other)
    assert page.tables["Parameters, versions and backends"][1:] == [
        ["splat_fit.pruned", '""', "p00"],
        ["train_adapter.stage2_learning_rates", "0.001, 0.002", "0.001"],
    ]
    made = {row[0]: row[1:] for row in page.tables["What each was made from"]}
    assert made["teacher"] == [world.teacher.manifest.path, "the same"]
    assert made["evaluation"] == [scored.manifest.path, other.manifest.path]
    same = against(world, scored, scored)
    assert "No parameter, version or backend." in same.text


def test_the_same_pictures_in_both(world: World, scored: Artifact, other: Artifact) -> None:
    page = against(world, scored, other)
    shown = {alt: [] for alt, _ in page.images}
    for alt, src in page.images:
        shown[alt].append(src)
    photographs = [src for alt, sources in shown.items() if alt.startswith("Photograph") for src in sources]
    renders = [src for alt, sources in shown.items() if alt.startswith("Render") for src in sources]
    assert len(renders) == 2 * len(photographs) == 24
    black = [src for src in shown["Render of 0 Gaussians, 20.0 dB"] if not pixels(src).any()]
    assert len(black) == 1
    assert any((pixels(src) == world.pictures["p00"]).all() for src in photographs)


def test_other_pictures_are_not_paired(world: World, scored: Artifact, tmp_path: Path) -> None:
    images, pictures, _ = put_images(world.store, tmp_path, captions=False, seed=4)
    splats = put_splats(world.store, tmp_path, images, list(pictures))
    done = world.run(images=images, splats=splats)
    page = against(world, scored, done)
    assert (
        "they scored different pictures: a difference may be the pictures' own, and its interval is not paired"
        in page.text
    )
    assert "A: its own pictures" in page.headings
    assert "download.seed" in {row[0] for row in page.tables["Parameters, versions and backends"]}


def test_other_tasks_are_not_subtracted(world: World, scored: Artifact, tmp_path: Path) -> None:
    captioned = make_world(tmp_path, captions=True)
    done = captioned.run(ZeroShotEvalParams(**{**vars(PARAMS), "num_bootstrap": 100}))
    page = against(world, scored, done)
    assert "The two answer different questions" in page.text
    assert {"Scores of A, %", "Scores of B, %"} <= page.tables.keys()
    assert page.tables["Recall in both directions"]
    again = Page(report_html(done.url, str(captioned.store), tags={}, against=done.url))
    again.check()
    assert "0.0 [0.0, 0.0] points" in again.text
    assert ", the same." in again.text


def made_up(hits: np.ndarray, keys: list[str], scored: Artifact) -> Run:
    """An evaluation with these hits of the splat reader."""
    whole = np.zeros(len(hits), np.int64)
    seen = Predictions(keys, whole, {}, [], {"acc1": {"splats": hits}}, {}, 20 + hits, whole, whole, whole)
    row = {"name": "splats", "figures": {"acc1": {"value": float(hits.mean()), "interval": [0, 1]}}}
    scores = {"task": "classification", "class_names": ["a", "b"], "rows": [row], "templates": []}
    nodes = load_run(scored.url, open_store("unused")).nodes
    return Run(scored, scores, seen, nodes)


def test_intervals_of_a_difference_are_those_of_the_textbook(scored: Artifact) -> None:
    rng = np.random.default_rng(0)
    one = (rng.random(4000) < 0.7).astype(float)
    two = np.where(rng.random(4000) < 0.9, one, 1 - one)
    keys = [str(i) for i in range(4000)]
    for same in (True, False):
        pair = Pair(made_up(one, keys, scored), made_up(two, keys if same else keys[::-1], scored))
        assert pair.same_pictures == same
        found = score_difference(pair, "acc1", "splats")
        spread = (one - two).std() if same else np.hypot(one.std(), two.std())
        half = 1.96 * spread / np.sqrt(4000)
        assert found.value == pytest.approx(one.mean() - two.mean())
        assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.25 * half)
        exact = mean_difference(pair, lambda run: run.predictions.psnr_db)
        assert (exact.low, exact.high) == pytest.approx((found.value - half, found.value + half), rel=1e-3)
        assert outcome(found) == "A is better"


CURVE = """phase,step,lr,loss,distance,tokens,val_accuracy,contrastive
stage1_tokens,50,0.003,0.9,,,,
stage1_tokens,100,0.003,0.4,,,,
stage1_cls,20,0.001,0.2,0.1,,0.61,
stage2_lr0.001,50,0.001,3.2,0.1,,,3.0
stage2_lr0.001,100,0.001,3.1,0.1,,0.7,2.9
stage2_lr0.002,50,0.002,3.4,0.1,,0.69,3.1
control_lr0.001,50,0.001,3.3,0.1,,0.71,3.05
"""


def test_curves_are_drawn_as_they_were_written(scored: Artifact, tmp_path: Path) -> None:
    commit = Commit(open_store(str(tmp_path)), stage="train_adapter", version=1, params={}, inputs={})
    metrics = {"student_learning_rate": 0.001, "control_learning_rate": 0.001}
    made = commit.finalise(shards=[], files=[commit.put_file("curve.csv", CURVE.encode())], metrics=metrics)
    run = load_run(scored.url, open_store("unused"))
    node = next(node for node in run.nodes if "adapter" in node.roles)
    drawn = Run(run.artifact, run.scores, run.predictions, [type(node)(node.roles, node.path, node.sha256, made)])
    page = Page("".join(page_training.training_parts(drawn)).encode())
    assert [given["aria-label"].partition(":")[0] for given in page.drawings("svg")] == [
        "Stage 1",
        "Stage 1",
        "Stage 2",
    ]
    assert "splat reader, rate 0.001 validation 70.0 %, kept" in page.text
    lines = [given for given in page.drawings("path") if given["class"] != "grid"]
    # the axis runs from 0.4 to 1 over 300 units and the steps from 0 to 100: 0.9 at step 50, 0.4 at step 100
    assert lines[0]["d"] == "M500 50.0L1000 300.0"
    assert [given["class"] for given in lines[2:]] == ["k-splats dot", "k-splats", "k-control dot"]
    both = Page("".join(page_training.charts_together(drawn, drawn)).encode())
    kinds = [given["class"] for given in both.drawings("path") if given["class"] != "grid"]
    assert (
        kinds == ["k-a", "k-b", "k-a dot", "k-b dot"] * 2
    )  # tokens, embedding, the splat reader's rate, the control's
    assert "rate 0.001, validation 70.0 %" in both.text
    assert "0.002" not in both.text


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(69.0, 72.5, [69, 70, 71, 72, 73]), (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1]), (5.0, 5.0, [4.5, 4.75, 5, 5.25, 5.5])],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert page_charts.ticks(low, high) == expected


def test_an_interval_lies_where_its_axis_says() -> None:
    span = page_charts.Span("a", 70.0, 69.0, 72.0, "splats", "70.0 [69.0, 72.0]")
    page = Page(page_charts.interval_chart([span], title="accuracy", unit="%").encode())
    bar, dot = (next(given for given in page.drawings("i") if given.get("class") == name) for name in ("bar", "dot"))
    assert bar["style"] == "left:0.00%;width:100.00%"
    assert dot["style"] == "left:33.33%"
