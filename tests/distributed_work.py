"""What the tests run in one process and in two: `python distributed_work.py NAME JSON`; started as torchrun would.

Losses and weights are compared in float32, as bfloat16 rounds differently for slices of other sizes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LONGEST_S = 400  # on a machine that does much else


def start(name: str, arguments: dict[str, Any], processes: int) -> list[subprocess.Popen[str]]:
    """The work in so many processes that know of each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(Path(__file__).resolve()), name, json.dumps(arguments)]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    started = []
    for rank in range(processes):
        numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)} if processes > 1 else {}
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env={**shared, **numbers}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
    return started


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and stderr of each, by rank."""
    found = []
    try:
        for process in started:
            _, err = process.communicate(timeout=LONGEST_S)
            found.append((process.returncode, err))
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return found


def run(name: str, arguments: dict[str, Any], processes: int) -> None:
    """Do the work; all processes must end well."""
    for code, err in ended(start(name, arguments, processes)):
        assert code == 0, err


def loss(out: str) -> None:
    """clip_loss and its gradients, images by slice and the texts from a trained tower: a list of tensors to `out`."""
    import torch
    import torch.nn.functional as F

    from components.contrastive import clip_loss
    from components.distributed import joined

    torch.manual_seed(0)
    count, distinct = 7, 5
    encode, describe = torch.nn.Linear(6, 4), torch.nn.Linear(3, 4)
    scale = torch.nn.Parameter(torch.tensor(1.5))
    images, texts = torch.randn(count, 6), torch.randn(distinct, 3)
    positives = torch.rand(count, distinct) < 0.3
    positives[torch.arange(count), torch.arange(count) % distinct] = True
    with joined("cpu") as world:
        image_features = F.normalize(encode(images[world.part(count)]), dim=-1)
        text_features = world.gather(F.normalize(describe(texts[world.part(distinct)]), dim=-1), distinct)
        share = clip_loss(image_features, text_features, scale, positives)
        share.backward()
        grads = [p.grad for p in (*encode.parameters(), *describe.parameters(), scale)]
        world.sum_into([grad for grad in grads if grad is not None])
        total = torch.tensor(world.totals([float(share.detach())]))
        if world.leads:
            torch.save([total, *grads], out)


def stages(calls: list[list[Any]], streamed: bool = False, fails: int = -1) -> None:
    """Training stages one after the other: [stage, params, inputs] each.

    streamed: the sets are taken to be larger than memory; fails: the process that meets a damaged batch.
    """
    import importlib

    from components import config, device, loader
    from components.distributed import joined
    from components.errors import PermanentError
    from components.params import section_from_dict
    from components.train_adapter.data import Stream

    os.environ["SPLATCLIP_TRACKING"] = "off"
    device.precision = lambda _: "fp32"
    at = Stream.at

    def broken_at(self: Any, step: int) -> Any:
        if step == 2 and self.world.rank == fails:
            raise PermanentError("this batch is damaged")
        return at(self, step)

    Stream.at = broken_at  # type: ignore[method-assign]
    if streamed:
        loader.ImageSet.__init__.__kwdefaults__["max_cached_bytes"] = 0
    with joined("cpu"):  # once: the processes meet at one port
        for stage, params, inputs in calls:
            module = importlib.import_module(f"components.{stage}.stage")
            section = getattr(config, "".join(word.title() for word in stage.split("_")) + "Params")
            module.run(section_from_dict(section, params, "params"), **inputs)


WORK: dict[str, Callable[..., None]] = {"loss": loss, "stages": stages}

if __name__ == "__main__":
    from components.errors import SplatClipError

    try:
        WORK[sys.argv[1]](**json.loads(sys.argv[2]))
    except SplatClipError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
