"""Files of schedules: read strictly, times as Kubeflow reads them, the commands that apply them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from applied_schedules import NAME
from conftest import ROOT
from kfp_worlds import DIGEST, SHA, STORE
from kubeflow import Kubeflow
from kubeflow_contract import cron_fields

from components.__main__ import main
from components.errors import UsageError
from pipelines.schedule_files import cron, read_schedules

BASE: dict[str, Any] = {
    "name": "nightly", "cron": "0 2 * * *", "params": str(ROOT / "params.yaml"), "store": STORE, "image": DIGEST
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        folder = tmp_path / "schedules"
        folder.mkdir(exist_ok=True)
        values = {key: value for key, value in {**BASE, **changes}.items() if value is not None}
        path = folder / f"{changes.get('name', 'nightly')}.yaml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_the_commands(server: Kubeflow, write: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = write().parent
    assert main(["pipeline", "schedule", "apply", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{NAME}: enabled"
    server.trigger(next(iter(server.recurring)), "FAILED")
    assert main(["pipeline", "schedule", "list"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["SCHEDULE", "STATE", "WHEN"]
    assert row.split()[:10] == [NAME, "ENABLED", "0", "0", "2", "*", "*", "*", SHA[:7], "FAILED"]
    assert main(["pipeline", "schedule", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["last_state"] == "FAILED"
    for action, status in (("pause", "DISABLED"), ("resume", "ENABLED")):
        assert main(["pipeline", "schedule", action, "nightly"]) == 0
        assert [one["status"] for one in server.recurring.values()] == [status]
    write(name="other", interval="24h", cron=None)
    (folder / "nightly.yaml").unlink()
    assert main(["pipeline", "schedule", "apply", str(folder), "--prune"]) == 0
    assert [one["display_name"] for one in server.recurring.values()] == ["train-eval/other"]
    assert main(["pipeline", "schedule", "delete", "other"]) == 0
    assert main(["pipeline", "schedule", "delete", "other"]) == 42
    server.recurring.clear()


def test_the_committed_example_is_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", SHA)
    (one,) = read_schedules(ROOT / "schedules")
    assert (one.full_name, one.cron, one.enabled) == (NAME, "0 0 2 * * *", False)
    assert one.params.tracking.environment == "staging"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"naem": "x"}, "unknown key 'naem' .did you mean 'name'"),
        ({"name": "Nightly!"}, "use lower-case"),
        ({"cron": None}, "give either cron"),
        ({"interval": "24h"}, "give either cron"),
        ({"cron": None, "interval": "5s"}, "a minute or more"),
        ({"cron": None, "interval": 60}, "interval is 60; expected str"),
        ({"cron": "0 2 * *"}, "has 4 fields"),
        ({"store": "runs/store"}, "nightly.yaml: store 'runs/store'"),
        ({"store": None}, "store is missing"),
        ({"enabled": "yes please"}, "expected bool"),
        ({"set": ["splat_fit.num_gausians=3"]}, "did you mean 'num_gaussians'"),
        ({"set": ["tracking.environment=prod"], "image": "a:b"}, "by its digest alone"),
        ({"params": "missing.yaml"}, "cannot read the parameters"),
    ],
)
def test_what_is_no_schedule_is_refused(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", SHA)
    with pytest.raises(UsageError, match=said):
        read_schedules(write(**wrong))


def test_two_of_one_name_and_empty_folders_are_refused(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", SHA)
    path = write()
    (path.parent / "second.yaml").write_text(path.read_text())
    with pytest.raises(UsageError, match=r"second\.yaml: .*nightly\.yaml has the same name"):
        read_schedules(path.parent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"no \*\.yaml file"):
        read_schedules(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0 2 * * *", "0 0 2 * * *"),  # Kubeflow alone would run it every hour
        ("30 0 2 * * *", "30 0 2 * * *"),
        ("*/15 8-18 1,15 * MON-FRI", "0 */15 8-18 1,15 * MON-FRI"),
        ("0 0 9 ? JAN 2", "0 0 9 ? JAN 2"),
        ("@daily", "@daily"),
    ],
)
def test_cron(text: str, meant: str) -> None:
    assert cron(text, "f") == meant
    assert len(cron_fields(meant)) in (1, 6)


@pytest.mark.parametrize(
    "text",
    ["", "60 2 * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *", "0 0 * * 7", "a * * * *", "5-1 * * * *",
     "*/0 * * * *", "* * * * * * *", "@reboot", "1-2-3 * * * *"]
)  # fmt: skip
def test_no_cron(text: str) -> None:
    with pytest.raises(UsageError, match="f: cron"):
        cron(text, "f")
