"""benchmarks/adapter.py: a tiny grid, made, gone on with, and what its table says."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import adapter as script  # noqa: E402
from adapter_grid import ablation_rows, chosen, control_fields, final_rows, quick_rows  # noqa: E402
from adapter_report import compare, lines, order_told, packed, unpacked  # noqa: E402

from components import scores  # noqa: E402
from components.config import FREEZE_POLICIES, TrainAdapterParams, semantic  # noqa: E402
from components.errors import UsageError  # noqa: E402
from components.manifest import open_artifact  # noqa: E402
from components.store import open_store  # noqa: E402
from components.train_adapter import stage  # noqa: E402

pytestmark = pytest.mark.full


def call(folder: Path, *more: str, grid: str = "final", out: str = "out") -> list[dict[str, Any]]:
    """The rows after a call of the script."""
    command = ["adapter.py", "--images", str(folder), "--params", str(ROOT / "tests" / "tiny.yaml"), "--grid", grid]
    command += ["--num-gaussians", "12"] if grid == "final" else []
    command += ["--store", str(folder / "store"), "--out", str(folder / out)]
    command += ["--set", "train_adapter.freeze_policy=qkv"]
    command += ["--set", "train_teacher.epochs=0.4", "--set", "train_adapter.control_with_stage1=false"]
    command += ["--set", "train_adapter.stage1_token_epochs=0.3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, *more])
        script.main()
    made: list[dict[str, Any]] = json.loads((folder / f"{out}.json").read_text())
    return made


def of(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["key"]["kind"] == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    return call(folder, "--rows", "paper", "render", "--seeds", "0", "1")


def test_students_of_a_seed_share_one_control_and_see_the_test_split_last(
    rows: list[dict[str, Any]], folder: Path
) -> None:
    kinds = [row["key"]["kind"] for row in rows]
    assert [kinds.count(kind) for kind in ("trained", "control trained", "student", "control")] == [4, 2, 4, 2]
    assert max(i for i, kind in enumerate(kinds) if kind == "trained") < kinds.index("control")
    for seed in (0, 1):
        trained = [row for row in of(rows, "trained") if row["key"]["seed"] == seed]
        root = open_store(str(folder / "store"))
        held = [open_artifact(root.sub(row["artifact"]).url, root).has("control.safetensors") for row in trained]
        assert held == [True, False], "the first student's run trains the control"
        assert trained[0]["seconds"] > 0
    assert {row["key"]["split"] for row in [*of(rows, "student"), *of(rows, "control")]} == {"test"}
    for row in of(rows, "student"):
        assert row["n"] == 32
        assert set(row["hits"]) == {"splats", "rendered"}
        assert row["compression"] == pytest.approx(32 * 32 * 3 / (16 * 12), rel=0.01)
    for row in of(rows, "control"):
        assert set(row["hits"]) == {"teacher", "control"}


def cells(folder: Path, out: str = "out") -> dict[str, list[str]]:
    """Lines of the first table of the report by their first cell."""
    first = (folder / f"{out}.md").read_text().split("\n\n")[2]
    return {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in first.splitlines()}


def shown(found: scores.Estimate | None, scale: float = 1.0, digits: int = 3) -> str:
    if found is None:
        return "-"
    return "{} [{}, {}]".format(*(f"{scale * v:.{digits}f}" for v in (found.value, found.low, found.high)))


@pytest.mark.parametrize("model", ["splats", "rendered", "teacher"])
def test_the_table_says_what_the_rows_hold(rows: list[dict[str, Any]], folder: Path, model: str) -> None:
    names = {"splats": "render, qkv", "rendered": "splats rendered, untouched teacher (qkv)"}
    name = names.get(model, "RGB teacher, untouched (qkv)")
    found = cells(folder)
    assert {"paper, qkv", "RGB control (qkv)", name} <= set(found)
    students = [row for row in of(rows, "student") if row["key"]["row"] == "render, qkv"]
    mine = of(rows, "control") if model == "teacher" else students
    hits = np.stack([unpacked(row["hits"][model], row["n"]) for row in mine]).astype(float)
    base = np.stack([unpacked(row["hits"]["control"], row["n"]) for row in of(rows, "control")])
    both = [hits.mean(0), base.mean(0)]
    own, other = scores.bootstrap_means(both, 4000, seed=0)
    assert found[name][1:3] == ["-" if model == "teacher" else "12", "test"]
    assert found[name][3] == f"0 ({100 * hits[0].mean():.1f}) 1 ({100 * hits[1].mean():.1f})"
    assert found[name][4] == shown(scores.estimate(hits.mean(), own), 100, 1)
    assert found[name][5] == shown(scores.ratio(hits.mean(), own, base.mean(), other))
    chance = 1 / mine[0]["num_classes"]
    assert found[name][6] == shown(scores.ratio(hits.mean(), own, base.mean(), other, chance))


def test_ratio_cells_of_models_that_are_not_at_chance(rows: list[dict[str, Any]]) -> None:
    random = np.random.default_rng(0)
    made = [{**row, "n": 400} for row in rows]
    for row in [*of(made, "student"), *of(made, "control")]:
        rates = {"splats": 0.6, "rendered": 0.3, "teacher": 0.65, "control": 0.7}
        row["hits"] = {name: packed(random.random(400) < rates[name]) for name in row["hits"]}
    found = {line[0]: line for line in lines(made)}
    mine = [row["hits"]["splats"] for row in of(made, "student") if row["key"]["row"] == "render, qkv"]
    hits, base = (
        np.mean([unpacked(text, 400) for text in texts], axis=0)
        for texts in (mine, [row["hits"]["control"] for row in of(made, "control")])
    )
    own, other = scores.bootstrap_means([hits, base], 4000, seed=0)
    assert found["render, qkv"][5] == shown(scores.ratio(hits.mean(), own, base.mean(), other))
    assert found["render, qkv"][5].startswith(f"{hits.mean() / base.mean():.3f} [0.")
    assert found["RGB control (qkv)"][5:7] == ["1", "1"]
    assert float(found["splats rendered, untouched teacher (qkv)"][5].split()[0]) < 0.5


def test_the_report_says_what_was_trained_before_the_test_split_was_seen(
    rows: list[dict[str, Any]], folder: Path
) -> None:
    report = (folder / "out.md").read_text()
    assert "4 of 4 final students had been trained by then." in report.replace("\n", " ")
    assert report.count("splats rendered, untouched teacher") == 1, "one line a number of Gaussians"
    picked = [of(rows, "student")[0], *of(rows, "trained")]
    order = [{**row, "made": {**row["made"], "date": "2026-01-01 00:00:00"}} for row in picked]
    order[1]["made"]["date"] = "2025-12-31 23:59:59"
    assert "1 of 4" in order_told(order)
    assert "Trained after it: render, qkv, N 12, seed 0; paper" in order_told(order)


def test_hits_of_other_pictures_are_not_paired(rows: list[dict[str, Any]]) -> None:
    changed = [dict(row) for row in rows]
    next(row for row in changed if row["key"]["kind"] == "control")["pictures"] = "other"
    with pytest.raises(UsageError, match=r"not scored on the same pictures: .*seed 0, test.*digest other"):
        lines(changed)
    del next(row for row in changed if row["key"]["kind"] == "control")["pictures"]
    with pytest.raises(UsageError, match="earlier version wrote the row"):
        lines(changed)


def test_rows_that_are_not_final_are_scored_on_validation_alone(rows: list[dict[str, Any]], folder: Path) -> None:
    del rows  # made first: their teacher is found in the store
    made = call(folder, grid="quick", out="quick")
    assert [row["key"]["row"] for row in of(made, "student")] == ["as the profile", "stem paper"]
    assert {row["key"]["split"] for row in [*of(made, "student"), *of(made, "control")]} == {"val"}
    assert len(of(made, "control trained")) == 1
    assert cells(folder, "quick")["stem paper"][1:3] == ["64", "val"]
    report = (folder / "quick.md").read_text()
    assert "No row has been scored on the test split." in report
    row = of(made, "trained")[0]
    value = f"{100 * row['student_val_accuracy']:.1f}"
    assert f"| as the profile | 64 | {value} | 0 ({value}) | 0.001 |" in report.split("## Validation split")[1]
    control = f"{100 * of(made, 'control trained')[0]['control_val_accuracy']:.1f}"
    assert f"| RGB control (qkv) | - | {control} | 0 ({control}) |" in report.split("## Validation split")[1]


def test_a_row_that_the_test_split_has_judged_is_trained_anew_for_a_reason_only(
    rows: list[dict[str, Any]], folder: Path
) -> None:
    (folder / "again.json").write_text(json.dumps(rows))
    asked = ("--rows", "render", "--set", "train_adapter.stage1_cls_epochs=0.3")
    with pytest.raises(UsageError, match=r"already scored on the test split.*render, qkv, N 12, seed 0.*--again"):
        call(folder, *asked, out="again")
    assert json.loads((folder / "again.json").read_text()) == rows
    made = call(folder, *asked, "--again", "the schedule had a fault", out="again")
    assert made[-1]["again"] == "the schedule had a fault"
    report = (folder / "again.md").read_text()
    assert "| render, qkv | 12 | 0 | the schedule had a fault |" in report
    assert "Trained after it: render, qkv, N 12, seed 0." in report


def test_what_the_profile_gets_wrong_stops_the_call_and_what_a_row_gets_wrong_leaves_it_out(
    rows: list[dict[str, Any]], folder: Path
) -> None:
    (folder / "left.json").write_text(json.dumps(of(rows, "trained") + of(rows, "control trained")))
    eight, none = ("--set", "train_adapter.num_latents=8"), ("--set", "train_adapter.stage1_token_epochs=0")
    with pytest.raises(UsageError, match="stage1_token_epochs"):
        call(folder, "--rows", "paper", "render", *eight, out="left")
    made = call(folder, "--rows", "paper", "render", *eight, *none, out="left")
    assert [row["key"]["row"] for row in of(made, "left out")] == ["render, qkv"]
    assert len(of(made, "student")) == 1
    assert "## Left out" not in (folder / "left.md").read_text(), "an earlier call trained the row"
    kept = [row for row in made if row["key"].get("row") != "render, qkv" or row["key"]["kind"] == "left out"]
    (folder / "left.json").write_text(json.dumps(kept))
    call(folder, "--rows", "paper", "render", *eight, *none, out="left")
    assert "| render, qkv | 12 | 0 | stem 'render' makes" in (folder / "left.md").read_text()


def test_a_kill_between_a_student_and_its_controls_row_is_gone_on_from(
    rows: list[dict[str, Any]], folder: Path
) -> None:
    (folder / "killed.json").write_text(json.dumps(rows[:1]))
    assert rows[0]["key"]["kind"] == "trained"
    made = call(folder, "--rows", "paper", out="killed")
    before, after = (of(one, "control trained")[0] for one in (rows, made))
    assert {**before, "made": 0} == {**after, "made": 0}, "also its times"
    assert before["seconds"] > 0
    assert [row["hits"] for row in of(made, "control")] == [of(rows, "control")[0]["hits"]]


def test_a_second_call_makes_nothing_and_takes_up_where_rows_are_missing(
    rows: list[dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--rows", "paper", "render", "--seeds", "0", "1")
    assert call(folder, *asked) == rows
    (folder / "out.json").write_text(json.dumps(rows[:-2]))
    again = call(folder, *asked)
    assert [row["key"] for row in again] == [row["key"] for row in rows]
    assert [row.get("hits") for row in again] == [row.get("hits") for row in rows]
    with pytest.raises(UsageError, match=r"no row.*paper, qkv"):
        call(folder, "--rows", "nonsense")


def test_rows_of_a_stage_of_another_version_are_not_taken_up(
    rows: list[dict[str, Any]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all("train_adapter" in row["origin"]["stages"] for row in rows)
    before = json.loads((folder / "out.json").read_text())
    (folder / "later.json").write_text(json.dumps(before))
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    later = call(folder, "--rows", "paper", "--seeds", "0", out="later")
    assert later[: len(before)] == before
    assert len(of(later[len(before) :], "student")) == 1


def test_seeds_are_pooled_before_the_ratio() -> None:
    random = np.random.default_rng(0)
    own, base = random.random((2, 500)) < 0.6, random.random((2, 500)) < 0.7
    found = compare(list(own), list(base), 0.1, 500)
    assert found["ratio"] is not None
    assert found["corrected"] is not None
    assert found["ratio"].value == pytest.approx(own.mean() / base.mean())
    assert found["corrected"].value == pytest.approx((own.mean() - 0.1) / (base.mean() - 0.1))
    one = compare([own[0]], [base[0]], 0.1, 500)["ratio"]
    assert one is not None
    assert found["ratio"].high - found["ratio"].low < one.high - one.low, "two seeds say more than one"
    same = compare(list(own), list(own), 0.1, 50)["ratio"]
    assert same == scores.Estimate(1.0, 1.0, 1.0)
    assert np.array_equal(unpacked(packed(own[0]), 500), own[0])


def test_what_the_control_depends_on() -> None:
    base = TrainAdapterParams(freeze_policy="qkv")
    seen = {str(control_fields(base, row.params(base, 0))) for row in final_rows(base)}
    assert len(seen) == 1, "neither stem nor number of Gaussians"
    kept = control_fields(base, base)
    assert {"freeze_policy", "lora_rank", "stage2_epochs", "stage2_learning_rates", "batch_size", "seed"} <= set(kept)
    assert not [name for name in kept if name.startswith(("stem", "stage1", "resampler", "control"))]


def test_the_longer_control_depends_on_the_steps_of_stage_1() -> None:
    base = TrainAdapterParams(control_with_stage1=True, stage1_token_epochs=3.0, stage1_cls_epochs=2.0)

    def kept(token: float, cls: float) -> dict[str, Any]:
        return control_fields(base, replace(base, stage1_token_epochs=token, stage1_cls_epochs=cls))

    assert kept(3.0, 2.0) == kept(0.0, 5.0), "as many steps"
    assert kept(3.0, 2.0) != kept(3.0, 1.0)
    assert kept(2.5, 2.5) != kept(3.0, 2.0), "each phase rounds its steps"
    assert kept(3.0, 2.0) != control_fields(replace(base, control_with_stage1=False), base)
    other = replace(base, stem="paper", stage1_token_learning_rate=1e-4)
    assert control_fields(base, other) == kept(3.0, 2.0)


def test_the_ablation_changes_one_thing_a_row() -> None:
    base = TrainAdapterParams(freeze_policy="lora")
    ablation = ablation_rows(base)
    assert all(not row.final for row in ablation), "the ablation never sees the test split"
    assert len({row.name for row in ablation}) == len(ablation)
    made = [str(semantic(row.params(base, 0))) for row in ablation]
    assert len(set(made)) == len(made), "no two rows are the same training"
    assert {row.params(base, 0).freeze_policy for row in ablation} == set(FREEZE_POLICIES)
    assert {"paper, 2 layers", "paper, half the width", "paper, 4 heads"} <= {row.name for row in ablation}
    assert {row.num_gaussians for row in chosen("ablation", base, [], [24])} == {24}
    assert {row.num_gaussians for row in chosen("final", base, [], [])} == {64, 24, 12}
    for rows in (final_rows(base), quick_rows(base)):
        assert {row.params(base, 0).freeze_policy for row in rows} == {"lora"}, "the profile's own"
