"""benchmarks/adapter.py: a tiny grid, made, gone on with, and what its table says."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import adapter as script  # noqa: E402
from adapter_grid import ablation_rows, control_fields, final_rows  # noqa: E402
from adapter_report import compare, packed, unpacked  # noqa: E402

from components import scores  # noqa: E402
from components.config import TrainAdapterParams, semantic  # noqa: E402
from components.errors import UsageError  # noqa: E402


def call(folder: Path, *more: str) -> list[dict[str, Any]]:
    """The rows after a call of the script."""
    command = ["adapter.py", "--images", str(folder), "--params", str(ROOT / "tests" / "tiny.yaml"), "--grid", "final"]
    command += ["--num-gaussians", "12", "--store", str(folder / "store"), "--out", str(folder / "out")]
    command += ["--set", "train_teacher.epochs=0.4", "--set", "train_adapter.control_with_stage1=false"]
    command += ["--set", "train_adapter.stage1_token_epochs=0.3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [*command, *more])
        script.main()
    made: list[dict[str, Any]] = json.loads((folder / "out.json").read_text())
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
        held = [(folder / "store" / row["artifact"] / "control.safetensors").exists() for row in trained]
        assert held == [True, False], "the first student's run trains the control"
        assert trained[0]["seconds"] > 0
    assert {row["key"]["split"] for row in [*of(rows, "student"), *of(rows, "control")]} == {"test"}
    for row in of(rows, "student"):
        assert row["n"] == 32
        assert set(row["hits"]) == {"splats", "rendered"}
        assert row["compression"] == pytest.approx(32 * 32 * 3 / (16 * 12), rel=0.01)
    for row in of(rows, "control"):
        assert set(row["hits"]) == {"teacher", "control"}


def test_the_table_says_what_the_rows_hold(rows: list[dict[str, Any]], folder: Path) -> None:
    lines = (folder / "out.md").read_text().splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ") for line in lines if line.startswith("| ")}
    assert {"paper, qkv", "render, qkv", "RGB teacher, untouched (qkv)", "RGB control (qkv)"} <= set(cells)
    name = "render, qkv"
    mine = [row for row in of(rows, "student") if row["key"]["row"] == name]
    hits = np.stack([unpacked(row["hits"]["splats"], row["n"]) for row in mine])
    base = np.stack([unpacked(row["hits"]["control"], row["n"]) for row in of(rows, "control")])
    assert cells[name][1:3] == ["12", "test"]
    assert cells[name][3] == f"0 ({100 * hits[0].mean():.1f}) 1 ({100 * hits[1].mean():.1f})"
    assert cells[name][4].startswith(f"{100 * hits.mean():.1f} [")
    if base.mean() > 0.2:
        assert cells[name][5].startswith(f"{hits.mean() / base.mean():.3f} [")


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
    seen = {str(control_fields(semantic(row.params(base, 0)))) for row in final_rows(base)}
    assert len(seen) == 1, "neither stem nor number of Gaussians"
    kept = control_fields(semantic(base))
    assert {"freeze_policy", "lora_rank", "stage2_epochs", "stage2_learning_rates", "batch_size", "seed"} <= set(kept)
    assert not [name for name in kept if name.startswith(("stem", "stage1", "resampler"))]
    ablation = ablation_rows(base)
    assert all(not row.final for row in ablation), "the ablation never sees the test split"
    assert len({row.name for row in ablation}) == len(ablation)
