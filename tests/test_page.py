"""The report page: the scores' own figures, the right pictures, nothing from outside."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from pages import Page, pixels
from worlds import CLASSES, World, content, gaussians, make_world, scores_of

from components import figures
from components.errors import PermanentError, UsageError
from components.manifest import Artifact, Commit
from components.splats import Splats
from components.store import open_store
from components.zero_shot_eval.page import report_html
from components.zero_shot_eval.page_data import CurvePoint, Node, Run
from components.zero_shot_eval.page_markup import el, table
from components.zero_shot_eval.page_pictures import LARGEST, MANY, Picture, render
from components.zero_shot_eval.page_pictures import gaussians as outlined

TAGS = {"git.sha": "0" * 40, "git.dirty": "<b>true</b>"}


@pytest.fixture(scope="module")
def page(world: World, scored: Artifact) -> Page:
    return Page(report_html(scored.url, str(world.store), tags=TAGS))


def predictions(artifact: Artifact) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content(artifact, "predictions.csv").decode())))


def test_it_stands_alone_and_says_what_scores_json_says(page: Page, scored: Artifact) -> None:
    page.check(200_000)
    scores = scores_of(scored)
    expected = [figures.line(row, scores, "acc1") for row in scores["rows"]]
    assert page.tables["top-1 accuracy"][1:] == expected
    for _, words in figures.explanations(scores):
        assert words in page.text
    assert f"{scores['splats']['psnr_db_mean']:.2f} dB" in page.text
    assert "p05" in page.text  # left out, without a class
    assert page.headings[0] == "balls, split test"


def test_the_same_bytes_every_time(world: World, scored: Artifact, page: Page) -> None:
    assert report_html(scored.url, str(world.store), tags=TAGS) == page.data


def test_tags_are_shown_and_escaped(page: Page) -> None:
    assert TAGS["git.sha"] in page.text
    assert TAGS["git.dirty"] in page.text
    assert b"<b>true</b>" not in page.data


def test_pictures_from_the_worst_psnr_to_the_best(world: World, scored: Artifact, page: Page) -> None:
    lines = predictions(scored)
    order = sorted(range(len(lines)), key=lambda i: float(lines[i]["psnr_db"]))
    shown = [src for alt, src in page.images if alt.startswith("Photograph")]
    assert len(shown) == 12
    for place, i in [*enumerate(order[:4]), *((k - 4 + 12, order[k - 4]) for k in range(4))]:
        assert (pixels(shown[place]) == world.pictures[lines[i]["key"]]).all(), place
    for i in order[:4]:
        took = {row: int(lines[i][f"class_{row}"]) for row in ("splats", "control")}
        signs = {row: "✓" if guess == int(lines[i]["class"]) else "✗" for row, guess in took.items()}
        said = " · ".join(f"{row} {signs[row]} {CLASSES[took[row]]}" for row in took)
        assert f"{float(lines[i]['psnr_db']):.1f} dB · {said}" in page.text
    renders = [src for alt, src in page.images if alt.startswith("Render")]
    number = list(world.pictures).index(lines[order[0]]["key"])
    file = Splats.unpack(gaussians(number).pack()[0])
    assert (pixels(renders[0]) == np.rint(np.clip(file.render(), 0, 1) * 255)).all()
    keys = [world.pictures[lines[i]["key"]].tobytes() for i in order]
    places = [keys.index(pixels(src).tobytes()) for src in shown]
    assert places == sorted(places)
    assert len(set(places)) == 12


def test_every_gaussian_is_drawn(page: Page) -> None:
    assert len(page.drawings("ellipse")) == 12 * 9


def test_the_confusion_matrix_counts_every_picture(page: Page, scored: Artifact) -> None:
    counts = np.zeros((3, 3), int)
    for line in predictions(scored):
        counts[int(line["class"]), int(line["class_splats"])] += 1
    caption = next(name for name in page.tables if name.startswith("Confusion matrix"))
    head, *body = page.tables[caption]
    assert head == ["", *CLASSES]
    assert [row[0] for row in body] == list(CLASSES)
    assert [[int(cell or 0) for cell in row[1:]] for row in body] == counts.tolist()


def test_lineage_names_every_manifest(world: World, scored: Artifact, page: Page) -> None:
    for made in (scored, world.images, world.splats, world.teacher, world.adapter):
        assert made.manifest.sha256 in page.text
        assert made.manifest.path in page.text
    assert "num_gaussians 9" in page.text


def test_captions_make_a_page_of_recall(tmp_path: Path) -> None:
    world = make_world(tmp_path, captions=True)
    done = world.run()
    page = Page(report_html(done.url, str(world.store), tags={}))
    page.check()
    scores = scores_of(done)
    for metric in scores["headline"]:
        assert page.tables[figures.title_of(metric)][1:] == [
            figures.line(row, scores, metric) for row in scores["rows"]
        ]
    recall = page.tables["Recall in both directions"]
    for row, cells in zip(scores["rows"], recall[1:], strict=False):
        metrics = [f"{kind}_retrieval_recall@{k}" for kind in ("image", "text") for k in (1, 5)]
        assert cells[1:] == [figures.percent(row["figures"][metric]) for metric in metrics]
    assert "a red ball, number p00" in page.text


def test_the_folder_of_a_run_is_an_evaluation_too(world: World, scored: Artifact, page: Page, tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests/zero_shot_eval.json").write_bytes(scored.manifest.to_bytes())
    for ref in (tmp_path, tmp_path / "manifests/zero_shot_eval.json", f"{scored.url}/manifest.json"):
        assert report_html(str(ref), str(world.store), tags=TAGS) == page.data


def test_what_is_gone_from_the_store_is_said(world: World, scored: Artifact, tmp_path: Path) -> None:
    shutil.copytree(Path(scored.url), tmp_path / scored.manifest.path)
    page = Page(report_html(str(tmp_path / scored.manifest.path), str(tmp_path), tags={}))
    page.check()
    assert page.images == []
    assert "none is shown" in page.text
    assert "the store has it no more" in page.text
    assert page.tables["top-1 accuracy"]


@pytest.mark.parametrize("made", ["images", "splats"])
def test_a_shard_that_is_gone_is_said_and_a_damaged_one_refused(
    made: str, world: World, scored: Artifact, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(world.store, store)
    evaluation = store / scored.manifest.path
    gone = store / getattr(world, made).manifest.path / getattr(world, made).manifest.shards[0].name
    data = gone.read_bytes()
    gone.write_bytes(data[:-1])
    with pytest.raises(PermanentError, match="changed or damaged"):
        report_html(str(evaluation), str(store), tags={})
    gone.unlink()
    page = Page(report_html(str(evaluation), str(store), tags={}))
    assert page.images == []
    assert "none is shown" in page.text
    assert page.tables["top-1 accuracy"]


def test_a_curve_that_is_gone_is_left_out(tmp_path: Path) -> None:
    commit = Commit(open_store(str(tmp_path)), stage="train_teacher", version=1, params={}, inputs={})
    entry = commit.put_file("curve.csv", b"phase,step,loss\nteacher,1,2.5\n")
    made = commit.finalise(shards=[], files=[entry], metrics={})
    run = Run(made, {}, None, [Node(("teacher",), made.manifest.path, made.manifest.sha256, made)])  # type: ignore[arg-type]
    assert run.curve("teacher") == [CurvePoint("teacher", 1, {"loss": 2.5})]
    made.store.delete(entry.place)
    assert run.curve("teacher") == []


def test_what_is_no_evaluation_is_refused(world: World, scored: Artifact, tmp_path: Path) -> None:
    store = str(world.store)
    with pytest.raises(UsageError, match=r"was made by splat_fit; give an evaluation"):
        report_html(world.splats.url, store, tags={})
    with pytest.raises(UsageError, match=r"was made by train_teacher; give an evaluation"):
        report_html(scored.url, store, tags={}, against=world.teacher.url)
    with pytest.raises(UsageError, match=r"nowhere: there is no such folder or file; give an evaluation"):
        report_html(str(tmp_path / "nowhere"), store, tags={})
    with pytest.raises(PermanentError, match=r"has no manifest\.json"):
        report_html(str(tmp_path), store, tags={})
    (tmp_path / "copy.json").write_bytes(scored.manifest.to_bytes())
    with pytest.raises(PermanentError, match=r"is not finished under the store .*/other, .* or give its prefix there"):
        report_html(scored.url, str(tmp_path / "other"), tags={}, against=str(tmp_path / "copy.json"))
    commit = Commit(open_store(str(tmp_path)), stage="zero_shot_eval", version=1, params={}, inputs={})
    files = [commit.put_file("scores.json", content(scored, "scores.json"))]
    with pytest.raises(UsageError, match=r"no predictions.csv: version 1 of the stage made it; run zero-shot-eval"):
        report_html(commit.finalise(shards=[], files=files, metrics={}).url, str(tmp_path), tags={})


def picture(
    count: int, cholesky: list[float], means: list[float] | None = None, side: int = 32
) -> tuple[Picture, Splats]:
    rng = np.random.default_rng(0)
    places = np.tile(means, (count, 1)) if means else rng.uniform(0, side, (count, 2))
    splats = Splats(places, np.tile(cholesky, (count, 1)), np.full((count, 3), 0.5), side, side)
    photo = np.zeros((side, side, 3), np.uint8)
    return Picture("a", photo, 0, "png", 0, ((0, splats),)), splats


@pytest.mark.parametrize(("l00", "l10", "l11"), [(4, 3, 2), (4, -3, 2), (2, 1, 5), (3, -0.5, 6), (6, 0, 2), (2, 0, 6)])
def test_an_ellipse_lies_where_its_gaussian_is(l00: float, l10: float, l11: float) -> None:
    shown, splats = picture(1, [l00, l10, l11], [10.0, 20.0])
    found = Page(outlined(shown, splats).encode()).drawings("ellipse")[0]
    scale = 25  # 800 units over 32 pixels; the centre of pixel 10 is 10.5 pixels from the edge
    assert found["transform"].startswith(f"translate({10.5 * scale:.0f} {20.5 * scale:.0f})")
    turn = np.radians(float(found["transform"].partition("rotate(")[2].rstrip(")") or 0))
    axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    radii = np.diag([float(found["rx"]) / scale, float(found["ry"]) / scale]) ** 2
    lower = np.array([[l00, 0.0], [l10, l11]])
    assert axes @ radii @ axes.T == pytest.approx(lower @ lower.T, abs=0.3)


def test_very_many_gaussians_and_large_pictures_stay_small() -> None:
    shown, splats = picture(MANY + 1, [4.0, 0.0, 4.0], side=512)
    for drawn in (outlined(shown, splats), render(splats, 20.0)):
        assert len(drawn) < 120_000
        assert pixels(Page(drawn.encode()).images[0][1]).shape[0] <= 2 * LARGEST
    none, empty = picture(0, [1.0, 0.0, 1.0], side=16)
    assert Page(outlined(none, empty).encode()).drawings("ellipse") == []


def test_text_is_escaped_and_markup_is_not() -> None:
    assert el("p", "a < b & c", el("b", "d"), title='"x"') == '<p title="&quot;x&quot;">a &lt; b &amp; c<b>d</b></p>'
    shown = Page(table(["name", "value"], [["<i>", "0.98 [0.97, 0.99]"]], caption="<c>").encode())
    assert shown.tables == {"<c>": [["name", "value"], ["<i>", "0.98 [0.97, 0.99]"]]}
