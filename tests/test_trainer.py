"""The training loop: schedule, checkpoints, resume bit for bit, stopping, errors."""

from __future__ import annotations

import csv
import io
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components import trainer
from components.errors import Interrupted, PermanentError
from components.pace import waiting
from components.series import listening
from components.store import open_store
from components.trainer import Checkpoint, curve_csv, delete_checkpoints, learning_rate, num_steps, train


class Toy(nn.Module):
    """A small net with dropout (random numbers in the step), a norm, a frozen part and a logit scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.Dropout(0.2), nn.Linear(16, 1))
        self.frozen = nn.Linear(4, 4)
        self.logit_scale = nn.Parameter(torch.tensor(4.0))

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.named_parameters() if not name.startswith("frozen")}

    def step(self, number: int) -> tuple[Tensor, dict[str, float]]:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
        out = self.net(self.frozen(x)).squeeze(1)
        loss = (out - x.sum(dim=1)).pow(2).mean() - 0.01 * self.logit_scale
        return loss, {"scale": float(self.logit_scale.detach())}


def fit(model: Toy, step: Callable[[int], Any] | None = None, **changes: Any) -> list[trainer.CurveRow]:
    settings: dict[str, Any] = {
        "steps": 30,
        "lr": 1e-2,
        "warmup": 5,
        "weight_decay": 0.05,
        "label": "toy",
        "log_every": 7,
        "seed": 4,
    }
    return train(step or model.step, model.trained(), **{**settings, **changes})


def same(a: Toy, b: Toy) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_learns_and_logs_means() -> None:
    model = Toy()
    frozen = model.frozen.weight.clone()
    rows = fit(model, steps=60)
    assert [row["step"] for row in rows] == [7, 14, 21, 28, 35, 42, 49, 56, 60]
    assert float(rows[-1]["loss"]) < 0.75 * float(rows[0]["loss"])
    assert list(rows[0]) == ["phase", "step", "lr", "loss", "scale"]
    assert torch.equal(frozen, model.frozen.weight)
    losses: list[float] = []
    again = Toy()

    def recorded(number: int) -> Tensor:
        loss = again.step(number)[0]
        losses.append(float(loss.detach()))
        return loss

    first = fit(again, recorded, steps=60)[0]
    assert first["loss"] == pytest.approx(sum(losses[:7]) / 7)
    assert same(model, again), "training is deterministic"
    assert not same(model, _fitted(seed=5)), "and depends on the seed"


def _fitted(**changes: Any) -> Toy:
    model = Toy()
    fit(model, steps=60, **changes)
    return model


def test_a_step_in_parts_is_the_same_step() -> None:
    """Its losses and values are summed, its gradients accumulated."""
    whole, parted = Toy(), Toy()
    for model in (whole, parted):
        model.net[2] = nn.Identity()  # dropout would draw other numbers for each part

    def loss_of(model: Toy, number: int, rows: slice) -> Tensor:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))[rows]
        return (model.net(model.frozen(x)).squeeze(1) - x.sum(dim=1)).pow(2).sum() / 8

    def parts(number: int) -> Iterator[tuple[Tensor, dict[str, float]]]:
        for rows in (slice(3), slice(3, 8)):
            yield loss_of(parted, number, rows), {"samples": float(rows.stop - (rows.start or 0))}

    expected = fit(whole, lambda number: loss_of(whole, number, slice(8)))
    found = fit(parted, parts)
    assert [row["samples"] for row in found] == [8.0] * len(found)
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-5)
    for name, p in whole.state_dict().items():
        torch.testing.assert_close(parted.state_dict()[name], p, rtol=1e-5, atol=1e-6)


def test_listeners_are_told_the_pace_which_no_curve_holds() -> None:
    told: list[Mapping[str, float]] = []
    model = Toy()

    def step(number: int) -> Tensor:
        with waiting():
            time.sleep(0.002)
        return model.logit_scale * 3.0

    with listening(lambda phase, number, values: told.append(values)):
        rows = fit(model, step, batch_size=8)
    assert len(told) == len(rows)
    for values, row in zip(told, rows, strict=True):
        assert not {"step_s", "data_s", "samples_per_s", "memory_gib", "grad_norm", "steps_per_s"} & row.keys()
        assert values["grad_norm"] == pytest.approx(3.0), "before clipping"
        assert 0.002 <= values["data_s"] <= values["step_s"]
        assert values["samples_per_s"] == pytest.approx(8 / values["step_s"])
        assert 0.05 < values["memory_gib"] < 100


def test_schedule() -> None:
    rates = [learning_rate(step, steps=100, peak=2.0, warmup=10) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert rates[99] < 0.01
    assert sorted(rates[10:], reverse=True) == rates[10:]
    assert learning_rate(2, steps=3, peak=1.0, warmup=10) == 1.0
    assert [num_steps(0.5, 7), num_steps(2, 7), num_steps(0.01, 7)] == [4, 14, 1]


def test_weight_decay_spares_norms_and_biases() -> None:
    model = Toy()

    def still(number: int) -> Tensor:
        return sum((p * 0.0).sum() for p in model.trained().values())  # type: ignore[return-value]

    before = {name: p.detach().clone() for name, p in model.trained().items()}
    fit(model, still, steps=5)
    changed = {name for name, p in model.trained().items() if not torch.equal(p, before[name])}
    assert changed == {"net.0.weight", "net.3.weight"}


def test_logit_scale_stays_in_clips_bounds() -> None:
    model = Toy()
    fit(model, lambda number: -100.0 * model.logit_scale, lr=0.5)
    assert float(model.logit_scale.detach()) == pytest.approx(trainer.MAX_LOG_SCALE)


def test_resume_is_bit_identical(tmp_path: Path) -> None:
    whole = Toy()
    expected = fit(whole)
    store = open_store(str(tmp_path))
    checkpoint = Checkpoint(store=store, name="toy", every=4)
    stopped = Toy()

    def step(number: int) -> Any:
        if number == 17:
            raise KeyError("power cut")
        return stopped.step(number)

    with pytest.raises(KeyError):
        fit(stopped, step, checkpoint=checkpoint)
    resumed = Toy()
    with torch.no_grad():
        resumed.net[0].weight.zero_()
    seen: list[int] = []

    def count(number: int) -> Any:
        seen.append(number)
        return resumed.step(number)

    assert fit(resumed, count, checkpoint=checkpoint) == expected
    assert seen == list(range(16, 30))
    assert same(whole, resumed)
    done = Toy()
    assert fit(done, lambda number: pytest.fail("a finished run has no steps left"), checkpoint=checkpoint) == expected
    assert same(whole, done)
    delete_checkpoints(store)
    assert store.list() == []


def test_a_parameter_that_joins_late_goes_on_bit_by_bit(tmp_path: Path) -> None:
    def late(model: Toy, until: int = 99) -> Callable[[int], Tensor]:
        def step(number: int) -> Tensor:
            if number == until:
                raise KeyError("power cut")
            return model.step(number)[0]

        return step

    class Joining(Toy):
        def step(self, number: int) -> tuple[Tensor, dict[str, float]]:
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(number))
            hidden = self.net(x).squeeze(1) if number >= 10 else self.net(x).squeeze(1).detach()
            return (hidden - self.logit_scale).pow(2).mean(), {}

    whole, stopped, resumed = Joining(), Joining(), Joining()
    expected = fit(whole, late(whole))
    checkpoint = Checkpoint(store=open_store(str(tmp_path)), name="toy", every=4)
    with pytest.raises(KeyError):
        fit(stopped, late(stopped, 17), checkpoint=checkpoint)
    assert fit(resumed, late(resumed), checkpoint=checkpoint) == expected
    assert same(whole, resumed)


def test_sigterm_saves_then_interrupts(tmp_path: Path) -> None:
    whole = Toy()
    expected = fit(whole)
    checkpoint = Checkpoint(store=open_store(str(tmp_path)), name="toy", every=1000)
    model = Toy()

    def step(number: int) -> Any:
        if number == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return model.step(number)

    with pytest.raises(Interrupted, match="step 12 of 30") as caught:
        fit(model, step, checkpoint=checkpoint)
    assert caught.value.exit_code == 143
    resumed = Toy()
    assert fit(resumed, checkpoint=checkpoint) == expected
    assert same(whole, resumed)


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint(store=open_store(str(tmp_path)), name="toy")
    fit(Toy(), checkpoint=checkpoint)
    with pytest.raises(PermanentError, match=r"toy\.safetensors: a checkpoint of another training; delete it"):
        fit(Toy(), checkpoint=checkpoint, lr=2e-2)
    model = Toy()
    with pytest.raises(PermanentError, match="another training"):
        train(
            model.step,
            dict(model.named_parameters()),
            steps=30,
            lr=1e-2,
            warmup=5,
            weight_decay=0.05,
            label="toy",
            seed=4,
            checkpoint=checkpoint,
        )
    (tmp_path / checkpoint.file).write_bytes(b"junk")
    with pytest.raises(PermanentError, match="not a readable checkpoint"):
        fit(Toy(), checkpoint=checkpoint)


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    model = Toy()

    def step(number: int) -> Tensor:
        loss = model.step(number)[0]
        return loss * float("nan") if number == 9 else loss

    with pytest.raises(PermanentError, match=r"toy: the loss is nan at step 9; try a lower learning rate"):
        fit(model, step)


def test_validation_rows_and_csv() -> None:
    model = Toy()
    calls: list[int] = []

    def validate() -> dict[str, float]:
        calls.append(1)
        return {"val_accuracy": len(calls) / 10}

    rows = fit(model, validate=validate, validate_every=10)
    assert [(row["step"], row.get("val_accuracy")) for row in rows] == [
        (7, None),
        (10, 0.1),
        (14, None),
        (20, 0.2),
        (21, None),
        (28, None),
        (30, 0.3),
    ]
    read = list(csv.DictReader(io.StringIO(curve_csv(rows).decode())))
    assert list(read[0]) == ["phase", "step", "lr", "loss", "scale", "val_accuracy"]
    assert [row["val_accuracy"] for row in read] == ["", "0.1", "", "0.2", "", "", "0.3"]
    assert curve_csv([]) == b"phase,step,lr,loss\n"
