"""The training loop: AdamW, warm-up and cosine, clipping, checkpoints, a stop in good order.

Nothing random is carried from step to step: each step's generator is seeded by (seed, step), and a step's batch is a
function of its number, so that a run resumed from a checkpoint is the undisturbed run bit for bit.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from components.errors import PermanentError
from components.manifest import Manifest
from components.progress import progress
from components.series import emit
from components.signals import Stop, stop_on_sigterm
from components.store import Store

CHECKPOINTS = "_checkpoint"
MAX_LOG_SCALE = math.log(100.0)  # CLIP's bound of the logit scale
MOMENTS = ("exp_avg", "exp_avg_sq")
CurveRow = dict[str, float | int | str]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where and how often a run is saved: each `every` steps and at its end, as _checkpoint/<name>.safetensors."""

    store: Store
    name: str
    every: int = 200

    @property
    def file(self) -> str:
        """Its name in the store."""
        return f"{CHECKPOINTS}/{self.name}.safetensors"


def delete_checkpoints(store: Store) -> None:
    """Remove all checkpoints under a prefix: for after the stage's manifest is written."""
    for name in store.list(f"{CHECKPOINTS}/"):
        store.delete(name)


def curve_csv(rows: Sequence[CurveRow]) -> bytes:
    """Curve rows as CSV; columns in order of appearance, empty where a row has no such value."""
    columns = list(dict.fromkeys(["phase", "step", "lr", "loss", *(name for row in rows for name in row)]))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def figures(row: CurveRow) -> dict[str, float]:
    """A row's values that change over time."""
    return {name: float(value) for name, value in row.items() if name not in ("phase", "step")}


def has_validation(images: Manifest, splats: Manifest | None = None) -> bool:
    """Whether `val` holds a picture that is ok; with splats, whether some were fitted to one of its shards' pictures.

    A split that is listed may still be empty: its pictures were all unusable, or none could be fitted.
    """
    shards = [shard for shard in images.shards if shard.split == "val" and shard.ok]
    if splats is None:
        return bool(shards)
    fitted = {shard.index for shard in splats.shards if shard.split == "val" and shard.ok}
    return any(shard.index in fitted for shard in shards)


def learning_rate(step: int, *, steps: int, peak: float, warmup: int) -> float:
    """Rate of step 0 .. steps - 1: linear up to `peak` over `warmup` steps, then half a cosine down to 0."""
    warmup = min(warmup, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def num_steps(epochs: float, steps_per_epoch: int) -> int:
    """Steps that make `epochs` epochs, rounded, at least one."""
    return max(1, round(epochs * steps_per_epoch))


def _decays(name: str, parameter: Tensor) -> bool:
    """Whether weight decay acts on a parameter.

    Exempt are those of fewer than two dimensions (biases, the norms' gains, logit_scale) and, by name, positional and
    class embeddings. All others are decayed: weights, the token table, and the tables that a stem learns (its latents,
    and its heads' centres and offsets).
    """
    last = name.rpartition(".")[2]
    return parameter.ndim >= 2 and last not in {"positional_embedding", "class_embedding"}


class _Run:
    """Parameters, optimiser and what the curve has collected."""

    def __init__(
        self, params: Mapping[str, nn.Parameter], lr: float, weight_decay: float, betas: tuple[float, float], key: str
    ) -> None:
        self.params, self.key = dict(sorted(params.items())), key
        decayed = [p for name, p in self.params.items() if _decays(name, p)]
        plain = [p for name, p in self.params.items() if not _decays(name, p)]
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=betas, fused=True)
        self.step = 0
        self.rows: list[CurveRow] = []
        self.sums: dict[str, float] = {}
        self.count = 0

    def save(self, checkpoint: Checkpoint) -> None:
        tensors = {f"param/{name}": p.detach().cpu().contiguous() for name, p in self.params.items()}
        for name, p in self.params.items():
            for moment in MOMENTS:
                if moment in self.optimiser.state[p]:
                    tensors[f"{moment}/{name}"] = self.optimiser.state[p][moment].cpu().contiguous()
        state = {"step": self.step, "key": self.key, "rows": self.rows, "sums": self.sums, "count": self.count}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "checkpoint.safetensors"
            save_file(tensors, path, metadata={"state": json.dumps(state)})
            checkpoint.store.put_file(checkpoint.file, path)

    def load(self, checkpoint: Checkpoint) -> None:
        if not checkpoint.store.exists(checkpoint.file):
            return
        where = f"{checkpoint.store.url}/{checkpoint.file}"
        remedy = "delete it to start over"
        try:
            with checkpoint.store.local(checkpoint.file) as path, safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            names = {name.partition("/")[2] for name in tensors if name.startswith("param/")}
            if state["key"] != self.key or names != set(self.params):
                raise PermanentError(f"{where}: a checkpoint of another training; {remedy}")
            with torch.no_grad():
                for name, p in self.params.items():
                    p.copy_(tensors[f"param/{name}"])
                    if f"exp_avg/{name}" in tensors:
                        moments = {m: tensors[f"{m}/{name}"].to(p.device) for m in MOMENTS}
                        step = torch.tensor(float(state["step"]), device=p.device)
                        self.optimiser.state[p] = {"step": step, **moments}
            self.step, self.rows, self.sums = int(state["step"]), list(state["rows"]), dict(state["sums"])
            self.count = int(state["count"])
        except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise PermanentError(f"{where}: not a readable checkpoint ({error!r}); {remedy}") from error


StepResult = Tensor | tuple[Tensor, Mapping[str, float]]


def train(
    step_fn: Callable[[int], StepResult],
    params: Mapping[str, nn.Parameter],
    *,
    steps: int,
    lr: float,
    warmup: int,
    weight_decay: float,
    clip_norm: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.98),
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    label: str,
    log_every: int = 50,
    validate: Callable[[], Mapping[str, float]] | None = None,
    validate_every: int = 0,
) -> list[CurveRow]:
    """Run `steps` steps over the named `params`, in place; return the curve.

    step_fn(step) returns the step's loss, and values to log beside it if it likes. It must depend on the step's number
    alone; torch's global generator is seeded by (seed, step) before each call. A parameter named logit_scale is kept in
    [0, ln 100], as CLIP does. The curve has a row every `log_every` steps and at the end: phase (the label), step, lr,
    and the means of loss and values since the row before. validate() adds its values to the last row, and to one every
    `validate_every` steps.

    With a checkpoint there, the run goes on from it; a finished one returns at once, its parameters restored. SIGTERM
    or Ctrl-C: a checkpoint, then Interrupted. Raises PermanentError, naming the step, when the loss is not finite.
    """
    checked: Mapping[str, float] = {}
    run = _Run(params, lr, weight_decay, betas, key=f"{label} {steps} {lr!r} {warmup} {weight_decay!r} {seed}")
    if checkpoint is not None:
        run.load(checkpoint)
    with (
        stop_on_sigterm() as stop,
        progress(label, total=steps, start=run.step) as bar,
    ):
        while run.step < steps:
            rate = learning_rate(run.step, steps=steps, peak=lr, warmup=warmup)
            loss, values = _one_step(run, step_fn, rate=rate, clip_norm=clip_norm, seed=seed, label=label)
            run.step += 1
            for name, value in {"loss": loss, **values}.items():
                run.sums[name] = run.sums.get(name, 0.0) + value
            run.count += 1
            last = run.step == steps
            validated = validate is not None and (last or (validate_every > 0 and run.step % validate_every == 0))
            if last or validated or run.step % log_every == 0:
                means = {name: total / run.count for name, total in run.sums.items()}
                row: CurveRow = {"phase": label, "step": run.step, "lr": rate, **means}
                if validated and validate is not None:
                    checked = validate()
                    row.update(checked)
                run.rows.append(row)
                run.sums, run.count = {}, 0
                emit(label, run.step, {**figures(row), "steps_per_s": bar.rate()})
            bar.advance(1, loss=loss, lr=rate, **checked)
            _save_if_due(run, checkpoint, stop, steps)
    return run.rows


def _one_step(
    run: _Run, step_fn: Callable[[int], StepResult], *, rate: float, clip_norm: float, seed: int, label: str
) -> tuple[float, Mapping[str, float]]:
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    torch.manual_seed(random.Random(f"{seed}/{run.step}").getrandbits(32))  # torch's CPU generator takes 32 bits
    result = step_fn(run.step)
    loss, values = result if isinstance(result, tuple) else (result, {})
    number = float(loss.detach())
    if not math.isfinite(number):
        raise PermanentError(
            f"{label}: the loss is {number} at step {run.step}; try a lower learning rate (now {rate:.3g}), "
            "more warm-up steps or a smaller clip_norm"
        )
    run.optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(run.params.values(), clip_norm)
    run.optimiser.step()
    with torch.no_grad():
        for name, p in run.params.items():
            if name.rpartition(".")[2] == "logit_scale":
                p.clamp_(0.0, MAX_LOG_SCALE)
    return number, values


def _save_if_due(run: _Run, checkpoint: Checkpoint | None, stop: Stop, steps: int) -> None:
    due = stop.requested or run.step == steps or (checkpoint is not None and run.step % checkpoint.every == 0)
    if checkpoint is not None and due:
        run.save(checkpoint)
        stop.check(f"a checkpoint of step {run.step} of {steps} is saved; run the same command again to go on")
    else:
        stop.check("nothing was saved, as no checkpoint was asked for")
