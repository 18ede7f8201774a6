"""The words and the table that go with the scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import by_name

from components.__main__ import main
from components.manifest import Manifest
from components.zero_shot_eval import outputs, report, rows, wording


def test_wording() -> None:
    names = ["airplane", "fire_truck"]
    assert wording.classification_setting(names, []) == "zero-shot"
    assert wording.classification_setting(names, ["cat"]) == "zero-shot"
    assert wording.classification_setting(names, ["Airplane", "fire truck"]) == "in-distribution, prompt classifier"
    assert wording.classification_setting(names, ["airplane"]).endswith("(1 of 2 classes trained on)")
    assert not wording.is_zero_shot(wording.classification_setting(names, None))
    assert not wording.is_zero_shot(wording.retrieval_setting(True, False))
    assert wording.is_zero_shot(wording.retrieval_setting(False, True))


def example(accuracies: dict[str, float], n: int = 2000) -> dict:
    """A scores.json of CIFAR-10's shape with these accuracies."""
    rng = np.random.default_rng(0)
    targets, found = np.arange(n) % 10, []
    for name, accuracy in accuracies.items():
        logits = rng.random((n, 10))
        logits[np.arange(n), targets] = np.where(rng.random(n) < accuracy, 2.0, -1.0)
        found.append(rows.classification_row(name, wording.IN_DISTRIBUTION, logits, targets))
    chance = rows.classification_chance(10)
    return {
        "format": 1,
        "dataset": "cifar10",
        "split": "test",
        "task": "classification",
        "num_pictures": n,
        "num_classes": 10,
        "chance": chance,
        "headline": ["acc1"],
        "rows": rows.compare(found, chance, {}, 500, 0, truth=targets),
        "splats": {
            "psnr_db_mean": 25.51,
            "num_gaussians_mean": 61.2,
            "num_gaussians_budget": 64,
            "compression": {"paper": 3.0, "raw": 2.93, "jpeg90": 0.96, "stored": 0.95},
        },
        "bytes_per_picture": {"gs2d": 1048, "stored": 992.1, "jpeg90": 1003.7, "raw": 3072},
        "stored_formats": {"jpg": n},
        "trained": {"trained_share": 0.097, "trained_vision_share": 0.131},
        "left_out": {"counts": {"without splats": 3}},
        "intervals": {"note": "95 %, 500 paired resamplings of the pictures; other training runs are not covered"},
        "notes": [],
    }


def made(stage: str, **values: Any) -> Manifest:
    """A stage's manifest without shards and files."""
    empty: dict[str, Any] = {"params": {}, "inputs": {}, "shards": [], "files": [], "counts": {}, "metrics": {}}
    about = {"stage": stage, "version": 1, "key": "0" * 16, "path": f"{stage}/{'0' * 16}", "params_hash": ""}
    return Manifest(**about | empty | values)


def test_the_table_is_plain_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    scores = example({"teacher": 0.594, "control": 0.636, "control_stage1": 0.64, "splats": 0.526})
    report.show(scores, "runs/cifar10/contact_sheet.png")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "…" not in shown
    splats = next(row for row in scores["rows"] if row["name"] == "splats")["figures"]["acc1"]
    fair = splats["chance_corrected_ratio"]["to_control"]
    line = next(line for line in shown.splitlines() if "splats, 64 Gaussians" in line)
    assert f"{100 * splats['value']:.1f} [" in line
    assert f"{splats['ratio']['to_control']['value']:.3f} [" in line
    assert f"{fair['value']:.3f} [{fair['interval'][0]:.3f}, {fair['interval'][1]:.3f}]" in line
    for text in ("25.51 dB", "61.2 of 64", ".gs2d 1,048", "1.04x LARGER than JPEG", "9.7 %", "3 without splats"):
        assert text in shown
    assert shown.rstrip().endswith("runs/cifar10/contact_sheet.png")
    assert "in-distribution, prompt classifier" in shown


def test_ratios_are_worked_out_from_the_values() -> None:
    scores = example({"teacher": 0.9, "control": 0.6, "splats": 0.3})
    found = by_name(scores)
    acc = {name: row["metrics"]["acc1"] for name, row in found.items()}
    figure = found["splats"]["figures"]["acc1"]
    assert figure["ratio"]["to_control"]["value"] == pytest.approx(acc["splats"] / acc["control"], abs=1e-6)
    fair = (acc["splats"] - 0.1) / (acc["control"] - 0.1)
    assert figure["chance_corrected_ratio"]["to_control"]["value"] == pytest.approx(fair, abs=1e-6)
    assert figure["ratio"]["to_teacher"]["value"] == pytest.approx(acc["splats"] / acc["teacher"], abs=1e-6)
    low, high = figure["interval"]
    half = 1.96 * (acc["splats"] * (1 - acc["splats"]) / 2000) ** 0.5
    assert (low, high) == pytest.approx((acc["splats"] - half, acc["splats"] + half), abs=0.004)


def test_a_control_at_chance_gives_no_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    scores = example({"teacher": 0.5, "control": 0.1, "splats": 0.3}, n=300)
    assert by_name(scores)["splats"]["figures"]["acc1"]["chance_corrected_ratio"]["to_control"] is None
    report.show(scores, None)
    assert "undefined: the control cannot be told from guessing" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("accuracies", "stage1_steps", "said", "unsaid"),
    [
        ({"splats": 0.7}, 9, "as well; see the control with stage 1's steps (train_adapter.control_with_stage1)", ""),
        ({"splats": 0.7, "control_stage1": 0.6}, 9, "as well; see the control with stage 1's steps", "(train_adapter"),
        ({"splats": 0.7}, 0, "the stem is larger than the control's patch embedding", "stage 1's"),
        ({"splats": 0.5}, 9, "", "patch embedding"),
    ],
)
def test_above_the_control_the_stem_is_named(
    accuracies: dict[str, float],
    stage1_steps: int,
    said: str,
    unsaid: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = example({"teacher": 0.6, "control": 0.6, **accuracies})
    splats = made("splat_fit")
    adapter = made(
        "train_adapter",
        params={"stage2_learning_rates": [1e-3, 2e-3]},
        inputs={"splats": {"path": splats.path, "sha256": splats.sha256}},
        metrics={"stage1_steps": stage1_steps},
    )
    scores["notes"] = outputs.notes(adapter, splats, scores["rows"], scores["headline"])
    assert len(scores["notes"]) == bool(said)
    report.show(scores, None)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    shown = " ".join(shown.split())
    assert said in shown
    assert not unsaid or unsaid not in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "is of format none"),
        ("null", "is of format none"),
        ("{}", "is of format None; this version shows format 1"),
        ('{"format": 1}', "lacks bytes_per_picture, chance, dataset, "),
        ("{", "no scores to show"),
    ],
)
def test_what_is_not_scores_is_refused(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "scores.json").write_text(text)
    assert main(["show", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert f"{tmp_path}/scores.json" in shown.err
    assert said in shown.err
    assert not shown.out
