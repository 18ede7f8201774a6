"""The training loop: AdamW, warm-up and cosine, clipping, checkpoints, a stop in good order; in one process or several.

Nothing random is carried from step to step: each step's generator is seeded by (seed, step), and a step's batch is a
function of its number, so that a run resumed from a checkpoint is the undisturbed run bit for bit. In several processes
losses and gradients are summed over them (components/distributed.py), and each makes the same step.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from components.checkpoints import REMEDY, Checkpoint, delete_checkpoints
from components.device import same_attention
from components.distributed import World, current
from components.errors import PermanentError
from components.manifest import Manifest
from components.pace import Pace
from components.progress import progress
from components.series import emit
from components.signals import Stop, stop_on_sigterm

__all__ = [
    "Checkpoint",
    "CurveRow",
    "curve_csv",
    "delete_checkpoints",
    "figures",
    "has_validation",
    "learning_rate",
    "num_steps",
    "train",
]
MAX_LOG_SCALE = math.log(100.0)  # CLIP's bound of the logit scale
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # a parameter that joins late has a step of its own
CurveRow = dict[str, float | int | str]


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
        checkpoint.write(tensors, state)

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from what was saved, if anything was."""
        read = checkpoint.read()
        if read is None:
            return
        tensors, state = read
        names = {name.partition("/")[2] for name in tensors if name.startswith("param/")}
        if state.get("key") != self.key or names != set(self.params):
            raise PermanentError(f"{checkpoint.where}: a checkpoint of another training; {REMEDY}")
        try:
            with torch.no_grad():
                for name, p in self.params.items():
                    p.copy_(tensors[f"param/{name}"])
                    if f"exp_avg/{name}" in tensors:
                        self._set_moments(p, [tensors[f"{m}/{name}"].to(p.device) for m in MOMENTS])
            self.step, self.rows, self.sums = int(state["step"]), list(state["rows"]), dict(state["sums"])
            self.count = int(state["count"])
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise checkpoint.damaged(error) from error

    def _set_moments(self, p: Tensor, moments: Sequence[Tensor]) -> None:
        self.optimiser.state[p] = dict(zip(MOMENTS, moments, strict=True))

    def agree(self, world: World) -> None:
        """Take over process 0's parameters, moments and curve, so that all go on from one state."""
        if world.size == 1:
            return
        known = [name for name, p in self.params.items() if "exp_avg" in self.optimiser.state[p]]
        told = world.share(lambda: (self.step, self.rows, self.sums, self.count, known))
        self.step, self.rows, self.sums, self.count, known = told
        with torch.no_grad():
            world.copy_from_first(list(self.params.values()))
            for name in known:
                p = self.params[name]
                held = self.optimiser.state[p]
                empty = {m: torch.zeros((), device=p.device) if m == "step" else torch.zeros_like(p) for m in MOMENTS}
                moments = [held.get(m, empty[m]) for m in MOMENTS]
                world.copy_from_first(moments)
                self._set_moments(p, moments)


Part = Tensor | tuple[Tensor, Mapping[str, float]]
StepResult = Part | Iterator[Part]


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
    batch_size: int = 0,
) -> list[CurveRow]:
    """Run `steps` steps over the named `params`, in place; return the curve.

    step_fn(step) returns the step's loss, and values to log beside it if it likes; or an iterator of such parts, whose
    losses and values are summed and whose gradients are accumulated one after the other. In several processes
    each returns its share, to be summed over processes too. It must depend on the step's number alone; torch's global
    generator is seeded by (seed, step) before each call. A parameter named logit_scale is kept in [0, ln 100], as CLIP
    does. The curve has a row every `log_every` steps and at the end: phase (the label), step, lr, and the means of loss
    and values since the row before. validate() adds its values to the last row, and to one every `validate_every`
    steps. Listeners (components/series.py) are told each row with the gradient's norm before clipping, and the pace:
    see components/pace.py; batch_size: samples a step, over all processes, for that.

    With a checkpoint there, the run goes on from it, in however many processes; a finished one returns at once, its
    parameters restored. SIGTERM or Ctrl-C: a checkpoint, then Interrupted. Process 0 reads, writes and reports for all.
    Raises PermanentError, naming the step, when the loss is not finite.
    """
    checked: Mapping[str, float] = {}
    world = current()
    run = _Run(params, lr, weight_decay, betas, key=f"{label} {steps} {lr!r} {warmup} {weight_decay!r} {seed}")
    if checkpoint is not None and world.leads:
        run.load(checkpoint)
    run.agree(world)
    pace = Pace(batch_size)
    with (
        stop_on_sigterm() as stop,
        progress(label, total=steps, start=run.step, shown=world.leads) as bar,
    ):
        while run.step < steps:
            rate = learning_rate(run.step, steps=steps, peak=lr, warmup=warmup)
            values, norm, stopping = _one_step(
                run, step_fn, world, stop, rate=rate, clip_norm=clip_norm, seed=seed, label=label
            )
            run.step += 1
            pace.step(norm)
            for name, value in values.items():
                run.sums[name] = run.sums.get(name, 0.0) + value
            run.count += 1
            last = run.step == steps
            validated = validate is not None and (last or (validate_every > 0 and run.step % validate_every == 0))
            if last or validated or run.step % log_every == 0:
                means = {name: total / run.count for name, total in run.sums.items()}
                row: CurveRow = {"phase": label, "step": run.step, "lr": rate, **means}
                measured = pace.measured()
                if validated and validate is not None:
                    checked = validate()
                    row.update(checked)
                run.rows.append(row)
                run.sums, run.count = {}, 0
                pace.restart()
                if world.leads:
                    emit(label, run.step, {**figures(row), "steps_per_s": bar.rate(), **measured})
            bar.advance(1, loss=values["loss"], lr=rate, **checked)
            if world.size == 1:
                stopping = stop.requested
            elif stopping:
                stop.request(stop.signal_name or "a signal to another process")
            if checkpoint is not None and (stopping or last or run.step % checkpoint.every == 0):
                if world.leads:
                    run.save(checkpoint)
                if stopping:
                    world.wait()  # until it is saved
            if stopping and checkpoint is not None:
                stop.check(f"a checkpoint of step {run.step} of {steps} is saved; run the same command again to go on")
            elif stopping:
                stop.check("nothing was saved, as no checkpoint was asked for")
    return run.rows


def _one_step(
    run: _Run,
    step_fn: Callable[[int], StepResult],
    world: World,
    stop: Stop,
    *,
    rate: float,
    clip_norm: float,
    seed: int,
    label: str,
) -> tuple[dict[str, float], float, bool]:
    """Make one step.

    Returns loss and values, summed over parts and processes, the gradient's norm, and whether any process is to stop.
    """
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    torch.manual_seed(random.Random(f"{seed}/{run.step}").getrandbits(32))  # torch's CPU generator takes 32 bits
    run.optimiser.zero_grad(set_to_none=True)
    result = step_fn(run.step)
    values: dict[str, float] = {}
    for part in result if isinstance(result, Iterator) else [result]:
        loss, more = part if isinstance(part, tuple) else (part, {})
        for name, value in {"loss": float(loss.detach()), **more}.items():
            values[name] = values.get(name, 0.0) + value
        # Of all processes, as a backward pass that some skip leaves the others waiting in it.
        if math.isfinite(world.totals([values["loss"]])[0]):
            with same_attention(loss.device):
                torch.autograd.backward(loss)
    *totals, stops = world.totals([*values.values(), float(stop.requested)])
    values = dict(zip(values, totals, strict=True))
    if not math.isfinite(values["loss"]):
        raise PermanentError(
            f"{label}: the loss is {values['loss']} at step {run.step}; try a lower learning rate (now {rate:.3g}), "
            "more warm-up steps or a smaller clip_norm"
        )
    world.sum_into([p.grad for p in run.params.values() if p.grad is not None])
    norm = nn.utils.clip_grad_norm_(run.params.values(), clip_norm)
    run.optimiser.step()
    with torch.no_grad():
        for name, p in run.params.items():
            if name.rpartition(".")[2] == "logit_scale":
                p.clamp_(0.0, MAX_LOG_SCALE)
    return values, float(norm), stops > 0
