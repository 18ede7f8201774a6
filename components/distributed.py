"""Several processes that train one model: who they are and what passes between them.

Every process holds the whole model and works on its slice of each batch. Its loss is its share of the whole batch's
loss, so losses and gradients are summed over processes and come out as one process would have them for the same
batch, whatever the slices' sizes. Gradients are summed after the backward pass rather than by torch's
DistributedDataParallel, which divides by the number of processes and wants one forward call a step; here the whole
batch's features stand between two of them.
"""

from __future__ import annotations

import datetime as dt
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from components import processes
from components.device import pick_device
from components.errors import Interrupted, PermanentError, SplatClipError, TransientError, UsageError

BUCKET = 1 << 24  # numbers summed in one go: 64 MB of float32
PATIENCE = dt.timedelta(hours=2)  # rank 0 may write a large model while the others wait
FAILED = "splatclip/failed"
WORD_S = 5.0  # how long to wait for the word of a process that failed
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """`size` processes, of which this is number `rank`. One alone by default: then nothing is sent anywhere."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes, logs and shows progress for all."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """The contiguous share of `count` things that is this process's; shares differ by one at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def check_batch(self, section: str, batch_size: int, accumulate_steps: int) -> None:
        """Raise UsageError unless every part of every process's share of a batch has a sample."""
        parts = self.size * accumulate_steps
        if batch_size < parts:
            raise UsageError(
                f"{section}: a batch of {batch_size} cannot be dealt to {self.size} processes in {accumulate_steps} "
                f"parts each; batch_size counts the samples of all processes: give {parts} or more, or fewer parts"
            )

    def sum_into(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their sums over all processes; the same shapes everywhere, few calls for many tensors."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        count = 0
        for tensor in tensors:
            if bucket and (tensor.dtype != bucket[0].dtype or count + tensor.numel() > BUCKET):
                _sum_bucket(bucket)
                bucket, count = [], 0
            bucket.append(tensor)
            count += tensor.numel()
        if bucket:
            _sum_bucket(bucket)

    def totals(self, values: Sequence[float]) -> list[float]:
        """Sums of numbers over all processes."""
        if self.size == 1:
            return list(values)
        whole = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(whole)
        return [float(value) for value in whole]

    def same(self, number: int) -> bool:
        """Whether all processes give the same number (63 bits at most); all of them hear the answer."""
        if self.size == 1:
            return True
        bounds = torch.tensor([number, -number])
        dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
        return bool(bounds[0] == -bounds[1])

    def gather(self, rows: Tensor, total: int) -> Tensor:
        """[part(total), ...] of each process -> [total, ...] on all, in the batch's order, with gradients.

        The gradient of a process's rows is the sum over all processes, as each adds its share of the loss.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self, total)  # type: ignore[no-untyped-call]
        return gathered

    def share(self, value: Callable[[], T]) -> T:
        """What `value` returns in process 0, in all of them; it is called in process 0 only."""
        if self.size == 1:
            return value()
        held: list[Any] = [value() if self.leads else None]
        dist.broadcast_object_list(held, src=0)
        result: T = held[0]
        return result

    def collect(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, value)
        return held

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with process 0's."""
        if self.size > 1:
            for tensor in tensors:
                own = tensor.detach()
                whole = own.contiguous()
                dist.broadcast(whole, src=0)
                if whole is not own:
                    own.copy_(whole)

    def part_ways(self, step: int, seed: int) -> None:
        """From here on in a step, other processes than the first draw random numbers of their own."""
        if self.rank > 0:
            torch.manual_seed(random.Random(f"{seed}/{step}/{self.rank}").getrandbits(32))

    def wait(self) -> None:
        """Until all processes are here."""
        self.totals([0.0])


def _sum_bucket(bucket: Sequence[Tensor]) -> None:
    if len(bucket) == 1 and bucket[0].is_contiguous():
        dist.all_reduce(bucket[0])
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    dist.all_reduce(flat)
    for tensor, summed in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(summed.view_as(tensor))


class _Gather(torch.autograd.Function):
    """Rows written into their place among zeros and summed: exact, and slices need not be of one size."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World, total: int) -> Tensor:
        ctx.place = world.part(total)
        whole = rows.new_zeros(total, *rows.shape[1:])
        whole[ctx.place] = rows
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        grad = grads[0].contiguous().clone()
        dist.all_reduce(grad)
        return grad[ctx.place], None, None


def current() -> World:
    """The processes that joined; this one alone if none did."""
    if not (dist.is_available() and dist.is_initialized()):
        return World()
    return World(dist.get_rank(), dist.get_world_size())


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that torchrun started, for the length of the block; alone where it started none.

    device: `auto`, `cpu` or `cuda`, as in params. CPU tensors pass through gloo, CUDA tensors through NCCL, each
    process on the GPU of its LOCAL_RANK. When one process fails, the others raise an error of the same class that names
    it, so that all end with one exit code.
    Raises UsageError where there are more processes than GPUs.
    """
    if processes.world_size() == 1 or dist.is_initialized():
        yield current()
        return
    cuda = pick_device(device).type == "cuda"
    if cuda:
        place, there = processes.local_rank(), torch.cuda.device_count()
        if place >= there:
            raise UsageError(
                f"process {place + 1} on this machine has no GPU of its own: torch sees {there}; "
                f"start torchrun with --nproc-per-node={there}, or set device to cpu"
            )
        torch.cuda.set_device(place)
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    try:
        store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise TransientError(f"the processes that torchrun started do not find each other: {error}") from error
    world, failed = World(rank, size), True
    try:
        yield world
        failed = False
    except BaseException as error:
        word = _word_of_another(store, world) if _lost(error) else None
        if word is None:
            _tell(store, world, error)
            if _lost(error):
                raise TransientError(
                    "another process of this training ended without a word; run the same command again to go on from "
                    f"the last checkpoint ({error})"
                ) from error
            raise
        raise _same_error(word) from error
    finally:
        if not (failed and cuda):  # NCCL would wait for those that are gone; the process ends with its error anyway
            dist.destroy_process_group()


def _lost(error: BaseException) -> bool:
    """Whether an error says that the other side of a connection is gone."""
    text = str(error)
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(name in text for name in ("gloo", "NCCL", "Connection closed by peer"))
    )


def _tell(store: Store, world: World, error: BaseException) -> None:
    """Leave word of a failure for the other processes, unless another came first."""
    code = 1 if isinstance(error, Exception) else Interrupted.exit_code  # a signal or Ctrl-C is no Exception
    code = error.exit_code if isinstance(error, SplatClipError) else code
    word = json.dumps({"rank": world.rank, "code": code, "text": str(error) or type(error).__name__})
    try:
        store.compare_set(FAILED, "", word)
    except RuntimeError:  # the store went with the process that held it: there is nobody left to tell
        return


def _word_of_another(store: Store, world: World) -> dict[str, Any] | None:
    try:
        store.wait([FAILED], dt.timedelta(seconds=WORD_S))
        word: dict[str, Any] = json.loads(store.get(FAILED))
    except (RuntimeError, ValueError):
        return None
    return word if word["rank"] != world.rank else None


def _same_error(word: dict[str, Any]) -> SplatClipError | RuntimeError:
    text = f"process {word['rank']} of this training ended first: {word['text']}"
    for kind in (UsageError, PermanentError, TransientError, Interrupted):
        if kind.exit_code == word["code"]:
            return kind(text)
    return RuntimeError(text)
