"""What makes the control fair: the same batches, texts, losses, steps and rates, chosen on validation, test unseen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flows import PARAMS, make_flow
from torch import Tensor, nn

from components.manifest import Artifact
from components.signals import Stop
from components.store import open_store
from components.train_adapter import phases
from components.train_adapter.data import Given, Stream, TextFeatures
from components.train_adapter.phases import Phases, Trained
from components.train_adapter.stage import run
from components.train_adapter.validate import Validation

RATES = PARAMS.stage2_learning_rates


@dataclass
class Phase:
    """One phase as it ran. events: what each step drew and what its losses were given, in order."""

    steps: int
    lr: float
    settings: dict[str, Any]
    events: list[tuple[Any, ...]] = field(default_factory=list)


@dataclass
class Watched:
    """A whole run: its phases by name, and the splits whose shards were opened."""

    phases: dict[str, Phase] = field(default_factory=dict)
    splits: set[tuple[str, str]] = field(default_factory=set)
    events: list[tuple[Any, ...]] | None = None  # of the step that runs

    def note(self, *event: Any) -> None:
        if self.events is not None:
            self.events.append(event)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """A run of every phase, watched through what the phases call."""
    flow, seen = make_flow(tmp_path_factory.mktemp("flow")), Watched()
    with pytest.MonkeyPatch.context() as patch:
        _watch(patch, seen)
        run(PARAMS, **flow)
    return seen


def _watch(patch: pytest.MonkeyPatch, seen: Watched) -> None:
    at, draw, train = Stream.at, TextFeatures.draw, phases.train
    clip_loss, distance = phases.clip_loss, phases.embedding_distance

    def watched_open(opened: Callable[[Artifact, Any], Any]) -> Callable[[Artifact, Any], Any]:
        def watch(self: Artifact, entry: Any) -> Any:
            name = entry if isinstance(entry, str) else entry.name
            if name.endswith(".tar"):
                seen.splits.add((self.manifest.stage, name.partition("/")[0]))
            return opened(self, entry)

        return watch

    def watched_at(self: Stream, step: int) -> Given:
        given = at(self, step)
        seen.note("batch", step, given.batch.keys, given.flip.tolist())
        return given

    def watched_draw(self: TextFeatures, given: Given, model: Any = None) -> Any:
        text, features = draw(self, given, model)
        seen.note("texts", text.texts, text.index.tolist(), features.tolist())
        return text, features

    def watched_clip_loss(features: Tensor, texts: Tensor, scale: Tensor, positives: Tensor) -> Tensor:
        seen.note("contrastive", list(features.shape), texts.tolist(), float(scale), positives.tolist())
        return clip_loss(features, texts, scale, positives)

    def watched_distance(features: Tensor, targets: Tensor) -> Tensor:
        seen.note("anchor", list(features.shape), targets.tolist())
        return distance(features, targets)

    def watched_train(step_fn: Callable[[int], Any], params: Any, **settings: Any) -> Any:
        same = {name: value for name, value in settings.items() if name not in {"checkpoint", "validate", "label"}}
        phase = seen.phases[settings["label"]] = Phase(same.pop("steps"), same.pop("lr"), same)

        def step(number: int) -> Any:
            seen.events = phase.events
            result = step_fn(number)
            if isinstance(result, tuple):
                loss, values = result
                parts = values.get("contrastive", math.nan), values.get("distance", math.nan)
                weighed = parts[0] + PARAMS.anchor_weight * parts[1]
                seen.note("loss", sorted(values), math.isclose(float(loss.detach()), weighed, rel_tol=1e-5))
            seen.events = None
            return result

        return train(step, params, **settings)

    patch.setattr(Artifact, "local", watched_open(Artifact.local))
    patch.setattr(Artifact, "content", watched_open(Artifact.content))
    patch.setattr(Stream, "at", watched_at)
    patch.setattr(TextFeatures, "draw", watched_draw)
    patch.setattr(phases, "clip_loss", watched_clip_loss)
    patch.setattr(phases, "embedding_distance", watched_distance)
    patch.setattr(phases, "train", watched_train)


def test_the_test_split_is_never_opened(watched: Watched) -> None:
    assert watched.splits == {(stage, split) for stage in ("download", "splat_fit") for split in ("train", "val")}


@pytest.mark.parametrize("rate", RATES)
def test_student_and_control_learn_the_same_from_the_same(watched: Watched, rate: float) -> None:
    student, control = watched.phases[f"stage2_lr{rate:g}"], watched.phases[f"control_lr{rate:g}"]
    assert len(student.events) == 5 * student.steps > 0
    kinds = [event[0] for event in student.events[:5]]
    assert kinds == ["batch", "texts", "contrastive", "anchor", "loss"]
    assert student.events[4] == ("loss", ["contrastive", "distance"], True), "the loss is both, weighed as asked for"
    assert student == control
    longer = watched.phases[f"control_stage1_lr{rate:g}"]
    added = sum(watched.phases[name].steps for name in ("stage1_tokens", "stage1_cls"))
    assert (longer.steps, longer.lr, longer.settings) == (student.steps + added, student.lr, student.settings)
    assert longer.events[: len(student.events)] == student.events
    assert len(longer.events) == 5 * longer.steps


def test_all_try_the_same_rates(watched: Watched) -> None:
    for name in ("stage2", "control", "control_stage1"):
        tried = [watched.phases[f"{name}_lr{rate:g}"].lr for rate in RATES]
        assert tuple(tried) == RATES
    assert len(watched.phases) == 2 + 3 * len(RATES)


class Scripted(Validation):
    """A validation whose values are given, by the order in which it is asked."""

    def __init__(self, values: Sequence[Mapping[str, float]]) -> None:
        super().__init__(None, None, None)  # type: ignore[arg-type]
        self._values = list(values)

    def of(self, model: Any, encode: Any) -> dict[str, float]:
        return dict(self._values.pop(0))


def choose(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: Sequence[Mapping[str, float]],
    rates: tuple[float, ...] = (1e-3, 1e-2),
) -> tuple[Trained, Phases]:
    """What is kept of a toy model trained at `rates`, where validation says `values`."""
    monkeypatch.setattr(Phases, "_contrastive", lambda self, model, encode: lambda step: model.weight.square().sum())
    made = Phases(
        params=replace(PARAMS, stage2_learning_rates=rates),
        teacher=None,  # type: ignore[arg-type]
        stream=SimpleNamespace(batch_size=1),  # type: ignore[arg-type]
        targets=None,  # type: ignore[arg-type]
        texts=None,  # type: ignore[arg-type]
        validation=Scripted(values),
        checkpoints=open_store(str(folder)),
        stop=Stop(),
    )
    torch.manual_seed(0)
    return made._choose("control", nn.Linear(3, 1, bias=False), phases.encode_images, 4), made


@pytest.mark.parametrize(
    ("name", "first", "second", "kept"),
    [
        ("val_accuracy", 0.4, 0.5, 1e-2),
        ("val_accuracy", 0.5, 0.4, 1e-3),
        ("val_accuracy", 0.5, 0.5, 1e-3),
        ("val_loss", 1.2, 1.1, 1e-2),
        ("val_loss", 1.1, 1.2, 1e-3),
        ("val_loss", 1.1, 1.1, 1e-3),
    ],
)
def test_the_rate_that_wins_on_validation_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, first: float, second: float, kept: float
) -> None:
    best, _ = choose(tmp_path / "both", monkeypatch, [{name: first}, {name: second}])
    assert best.learning_rate == kept
    assert best.validation == {name: second if kept == 1e-2 else first}
    alone, _ = choose(tmp_path / "alone", monkeypatch, [best.validation], (kept,))
    assert torch.equal(best.state["weight"], alone.state["weight"]), "the tensors are those of that rate"


def test_rates_alike_to_six_digits_do_not_share_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = (1e-3, 1.0000001e-3)
    best, made = choose(tmp_path, monkeypatch, [{"val_accuracy": 0.4}, {"val_accuracy": 0.5}], rates)
    assert best.learning_rate == rates[1]
    assert [row["phase"] for row in made.rows] == ["control_lr0.001", "control_lr0.0010000001"]
