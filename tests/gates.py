"""Scored models for the tests of promotion, quick to make: the files of a flow without its work."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import requests

from components import registry
from components.manifest import Artifact, Commit, canonical
from components.operations import PromoteParams
from components.promote.stage import run
from components.report import Report
from components.store import open_store
from components.tracking_client import connect

MODEL = "splatclip"


def figure(value: float, half: float) -> dict[str, Any]:
    return {
        "value": value,
        "interval": [value - half, value + half],
        "chance_corrected": None,
        "ratio": {"to_control": {"value": value, "interval": [value - half, value + half]}},
        "chance_corrected_ratio": {},
    }


def scores(value: float, half: float, **changes: Any) -> dict[str, Any]:
    """scores.json with two rows."""
    rows = [
        {"name": name, "label": name, "setting": "zero-shot", "n": 100, "figures": {"acc1": figure(score, half)}}
        for name, score in (("control", 0.9), ("splats", value))
    ]
    return {
        "format": 1,
        "dataset": "balls",
        "split": "test",
        "task": "classification",
        "num_pictures": 100,
        "class_names": ["red", "green"],
        "templates": ["a {c}."],
        "chance": {"acc1": 0.5},
        "headline": ["acc1"],
        "rows": rows,
        "model": {"name": "tiny", "pretrained": "trained-here", "trained_here": True},
        "splats": {"num_gaussians_mean": 9.0, "psnr_db_mean": 30.0},
        "bytes_per_picture": {"gs2d": 1.0, "stored": 2.0, "jpeg90": 3.0, "raw": 4.0},
        "trained": {"trained_share": 0.1},
        "intervals": {"note": "95 %"},
        "notes": ["a note"],
        **changes,
    }


def put(store: str, stage: str, files: dict[str, bytes], inputs: dict[str, Artifact], **params: Any) -> Artifact:
    commit = Commit(open_store(store), stage=stage, version=1, params=params, inputs=inputs)
    entries = [commit.put_file(name, data) for name, data in files.items()]
    metrics = {"dataset": "balls", "image_size": 32} if stage == "download" else {"acc1_splats": 0.5}
    return commit.finalise(shards=[], files=entries, metrics=metrics)


def scored(store: str, value: float, half: float = 0.001, *, seed: int = 0, **changes: Any) -> dict[str, str]:
    """What promote takes: a teacher, an adapter of its own, and scores."""
    images = put(store, "download", {}, {}, set="balls")
    teacher = put(store, "train_teacher", {"config.json": b"{}", "model.safetensors": b"t" * 999}, {"images": images})
    given = {"images": images, "teacher": teacher}
    made = {"adapter.json": b"{}", "adapter.safetensors": repr((value, seed)).encode()}
    adapter = put(store, "train_adapter", made, given, value=value, seed=seed)
    judged = {"scores.json": canonical(scores(value, half, **changes))}
    found = put(store, "zero_shot_eval", judged, {**given, "adapter": adapter}, about=repr((half, sorted(changes))))
    return {"teacher": teacher.url, "adapter": adapter.url, "scores": found.url, "store": store}


def promote(store: str, value: float, half: float = 0.001, **more: Any) -> Report:
    """The stage on a model of that score."""
    return run(PromoteParams(model_name=MODEL), **scored(store, value, half, **more))


@functools.cache
def _empty_database() -> Path:
    """MLflow takes seconds to make one."""
    path = Path(tempfile.mkdtemp(prefix="splatclip-")) / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


def default_database(folder: Path) -> None:
    """An empty database where MLflow's is by default in that working directory."""
    (folder / "runs").mkdir()
    shutil.copyfile(_empty_database(), folder / "runs" / "mlflow.db")


def gate(uri: str, folder: str, model: str, value: float, barrier: Any = None) -> None:
    """Target of a process of its own: promote a model."""
    os.environ |= {"MLFLOW_TRACKING_URI": uri, "SPLATCLIP_TRACKING": "on"}
    given = scored(str(Path(folder) / "store"), value)
    if barrier is not None:
        barrier.wait()
    run(PromoteParams(model_name=model), **given)


def gate_killed_before_alias(uri: str, folder: str, model: str, value: float) -> None:
    """The same, killed when the version is registered and the aliases are not."""

    def die(*_: object) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    registry._settle = die
    gate(uri, folder, model, value)


def gate_killed_at(
    uri: str, folder: str, model: str, value: float, request: int, seconds: float, barrier: Any = None
) -> None:
    """The same, killed so long after its request of that number set out; a gate makes about twenty-five."""
    send, sent = requests.Session.send, itertools.count(1)

    def sending(*args: Any, **options: Any) -> Any:
        if next(sent) == request:
            timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        return send(*args, **options)

    requests.Session.send = sending  # type: ignore[method-assign]
    gate(uri, folder, model, value, barrier)
