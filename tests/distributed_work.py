"""What the tests run in one process and in two, started as torchrun would.

Losses and weights are compared in float32, as bfloat16 rounds differently for slices of other sizes.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forks import Forked

UNLIKE = 100  # sample numbers from here on draw captions of their own
LONGEST_S = 400  # on a machine that does much else


def start(name: str, arguments: dict[str, Any], processes: int) -> list[Forked]:
    """The work in so many processes that know of each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    started = []
    for rank in range(processes):
        numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)} if processes > 1 else {}
        started.append(Forked(work, name, json.dumps(arguments), env={**shared, **numbers}))
    return started


def ended(started: list[Forked]) -> list[tuple[int, str]]:
    """Exit code and stderr of each, by rank."""
    return [process.ended(LONGEST_S) for process in started]


def run(name: str, arguments: dict[str, Any], processes: int) -> None:
    """Do the work; all processes must end well."""
    for code, err in ended(start(name, arguments, processes)):
        assert code == 0, err


def loss(out: str) -> None:
    """clip_loss and its gradients, images by slice and the texts from a trained tower: a list of tensors to `out`."""
    import torch
    import torch.nn.functional as F
    from safetensors.torch import save_file

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
            parts = {str(i): part for i, part in enumerate([total, *grads]) if part is not None}
            save_file({name: part.detach().contiguous() for name, part in parts.items()}, out)


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


def texts(folder: str, most: int) -> None:
    """Captions drawn together and, in between, in validation by each for itself, which draws the same captions too.

    most: texts whose features are kept. Every process checks the features of every batch against the text tower's.
    """
    import torch
    import torch.nn.functional as F
    from flows import CONFIG

    from components import device
    from components.batches import Batch, Labels, SplatBatch
    from components.distributed import World, joined
    from components.openclip import build, model_config, tokenizer
    from components.texts import TextBank
    from components.train_adapter import data
    from components.train_adapter.validate import Validation

    device.precision = lambda _: "fp32"
    path = Path(folder) / f"model-{os.environ.get('RANK', '0')}.json"
    path.write_text(json.dumps(CONFIG))
    torch.manual_seed(0)
    clip = build(str(path), "").requires_grad_(False)  # a tower that trains is never kept
    data.MAX_CACHED_TEXTS, data.TEXT_CHUNK = most, 2
    bank = TextBank(tokenizer(model_config(str(path))))
    features = data.TextFeatures(clip, bank)

    def given(numbers: list[int], split: str, whole: bool, epoch: int = 0) -> data.Given:
        captions = [[f"caption {(number * 7 + k) % 23 + number // UNLIKE}" for k in range(3)] for number in numbers]
        keys, classes = [f"{split}{number}" for number in numbers], torch.full((len(numbers),), -1)
        labels = Labels(keys, captions, classes) if whole else None
        images, none = torch.zeros(len(numbers), 3, 2, 2), torch.zeros(len(numbers), 0)
        places = torch.zeros(len(numbers), 2, dtype=torch.int64)
        batch = Batch(keys, None, None, captions, classes, places, labels)
        return data.Given(batch, epoch, none, images, SplatBatch(none, none, none, none))

    class Val:
        """Three batches: one process scores two of them, the other one."""

        def in_order(self, _: int, turns: World) -> list[data.Given]:
            batches = [list(range(place * 4, place * 4 + 4)) for place in range(3)]
            return [given(batch, "val", False) for batch in batches[turns.rank :: turns.size]]

    validation = Validation(Val(), features, None)  # type: ignore[arg-type]

    def checked(batch: data.Given) -> None:
        text, found = features.draw(batch)
        with torch.no_grad():
            expected = F.normalize(clip.encode_text(text.tokens).float(), dim=-1)
        assert torch.allclose(found, expected, atol=1e-5), text.texts

    with joined("cpu") as world:
        scores = []
        for step in range(12):
            if step % 3 == 1:
                scores.append(validation.of(clip, lambda _, batch: torch.ones(len(batch.batch), 24))["val_loss"])
            checked(given([step, step + 1, step + 5, step + 9, step + 14], "train", world.size > 1, step))
        assert max(scores) - min(scores) < 1e-5
        features.draw(given([UNLIKE * (23 + world.rank * 23)], "train", world.size > 1))  # captions new to both


def lossless(at: int, parts: int) -> None:
    """A training whose loss is not finite in process 1 alone at one step; its backward pass is a joint one."""
    import torch

    from components.distributed import joined
    from components.trainer import train

    weight = torch.nn.Parameter(torch.ones(4, 2))
    with joined("cpu") as world:

        def step_fn(step: int) -> Any:
            for part in range(parts):
                rows = world.gather(weight[world.part(4)] * 2, 4)
                hurt = step == at and world.rank == 1 and part == 0
                yield rows.square().mean() * (float("nan") if hurt else 1.0)

        train(step_fn, {"weight": weight}, steps=6, lr=1e-3, warmup=1, weight_decay=0.0, label="phase")


WORK: dict[str, Callable[..., None]] = {"loss": loss, "lossless": lossless, "stages": stages, "texts": texts}


def work(name: str, arguments: str) -> None:
    """What each process does; it ends as the command does."""
    from components.errors import SplatClipError

    try:
        WORK[name](**json.loads(arguments))
    except SplatClipError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
