"""Stage `train_teacher`: import a pretrained CLIP, or train a small one on the image shards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from components.augment import crop_and_flip
from components.batches import Batch
from components.checkpoints import CHECKPOINTS
from components.config import TrainTeacherParams, semantic
from components.contrastive import clip_loss, num_correct, prompt_classifier
from components.device import mixed_precision, pick_device, precision
from components.distributed import World, joined
from components.errors import PermanentError
from components.loader import ImageSet
from components.manifest import Artifact, Commit, FileEntry, canonical, open_artifact, sha256_bytes
from components.openclip import (
    CONFIG_FILE,
    CURVE_FILE,
    MODEL_FILE,
    Tokenizer,
    build,
    built_config,
    image_side,
    model_config,
    normalize_images,
    preprocess_stats,
    save_model,
    tokenizer,
)
from components.prompts import Prompts, load_prompts
from components.report import Report
from components.scratch import scratch_folder
from components.store import open_store, sha256_file
from components.texts import TextBank
from components.trainer import (
    Checkpoint,
    CurveRow,
    curve_csv,
    delete_checkpoints,
    has_validation,
    num_steps,
    train,
)

VERSION = 2
CROP_PADDING = 8  # a crop moves by up to 1/8 of the side


class Training:
    """A fresh CLIP, the pictures and texts it learns from, and its step and validation."""

    def __init__(self, params: TrainTeacherParams, images: Artifact, device: torch.device, world: World) -> None:
        self.params, self.device, self.world = params, device, world
        world.check_batch("train_teacher", params.batch_size, params.accumulate_steps)
        torch.manual_seed(params.seed)
        self.model = build(params.model, device=device)
        self.model.set_grad_checkpointing(params.checkpoint_activations)
        self.mean, self.std = preprocess_stats(self.model)
        self.side = image_side(self.model)
        self.prompts: Prompts | None = load_prompts(images)
        self.tokenizer: Tokenizer = tokenizer(model_config(params.model))
        names, templates = (self.prompts.class_names, self.prompts.templates) if self.prompts else ((), ())
        self.bank = TextBank(self.tokenizer, names, templates, seed=params.seed)
        self.train_set = ImageSet(images, "train", image_size=self.side)
        validates = has_validation(images.manifest)
        self.val_set = ImageSet(images, "val", image_size=self.side) if validates else None
        self.steps_per_epoch = self.train_set.steps_per_epoch(params.batch_size)
        self.steps = num_steps(params.epochs, self.steps_per_epoch)
        self._feed = self.train_set.feed(params.batch_size, seed=params.seed, world=world)
        self.steps_made = 0  # by this call: an earlier one's checkpoint may have had others

    def _image_features(self, images: torch.Tensor) -> torch.Tensor:
        pixels = normalize_images(images.to(self.device), self.mean, self.std)
        with mixed_precision(self.device):
            features: torch.Tensor = self.model.encode_image(pixels, normalize=True)
        return features

    def _text_features(self, tokens: torch.Tensor) -> torch.Tensor:
        with mixed_precision(self.device):
            features: torch.Tensor = self.model.encode_text(tokens, normalize=True)
        return features

    def _in_parts(self, encode: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """Features in accumulate_steps parts, whose activations are computed again in the backward pass."""
        if self.params.accumulate_steps == 1:
            return encode(rows)
        parts = rows.tensor_split(self.params.accumulate_steps)
        return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts if len(part)])

    def step(self, number: int) -> tuple[torch.Tensor, Mapping[str, float]]:
        """The share of one training step's contrastive loss that is this process's."""
        batch, epoch = self._feed(number)
        self.steps_made += 1
        count = len(batch.labels.keys)
        texts = self.bank.draw(batch.labels, epoch=epoch).to(self.device)
        images = batch.pixels
        if self.params.augment:
            start = self.world.part(count).start
            images = crop_and_flip(images, self.side // CROP_PADDING, of=count, start=start)
        self.world.part_ways(number, self.params.seed)
        image_features = self._in_parts(self._image_features, images)
        mine = self.world.part(len(texts.tokens))
        own = texts.tokens[mine] if mine.stop > mine.start else texts.tokens[:1]  # a process without texts joins in
        text_features = self._in_parts(self._text_features, own)[: mine.stop - mine.start]
        text_features = self.world.gather(text_features.float(), len(texts.tokens))
        loss = clip_loss(image_features, text_features, self.model.logit_scale, texts.positives)
        return loss, {"logit_scale": float(self.model.logit_scale.detach()) / self.world.size}

    @torch.no_grad()
    def validate(self) -> Mapping[str, float]:
        """val_accuracy by class prompts; val_loss where the set has captions only; nothing without such pictures."""
        if self.val_set is None:
            return {}
        self.model.eval()
        try:
            return self._accuracy(self.val_set, self.prompts) if self.prompts else self._loss(self.val_set)
        finally:
            self.model.train()

    def _accuracy(self, val_set: ImageSet, prompts: Prompts) -> Mapping[str, float]:
        with mixed_precision(self.device):
            classifier = prompt_classifier(self.model, self.tokenizer, prompts.class_names, prompts.templates)
        correct = sum(
            num_correct(self._image_features(batch.pixels), classifier, batch.classes.to(self.device))
            for batch in self._my_batches(val_set)
        )
        return {"val_accuracy": self.world.totals([correct])[0] / len(val_set)}

    def _my_batches(self, val_set: ImageSet) -> Iterator[Batch]:
        return val_set.batches(self.params.batch_size, shuffle=False, drop_last=False, turns=self.world)

    def _loss(self, val_set: ImageSet) -> Mapping[str, float]:
        total = 0.0
        for batch in self._my_batches(val_set):
            texts = self.bank.draw(batch.labels, epoch=0).to(self.device)
            image_features = self._image_features(batch.pixels)
            text_features = self._text_features(texts.tokens)
            loss = clip_loss(image_features, text_features, self.model.logit_scale, texts.positives)
            total += float(loss) * len(batch)
        return {"val_loss": self.world.totals([total])[0] / len(val_set)}

    def run(self, checkpoint: Checkpoint) -> list[CurveRow]:
        """Train, resumed from the checkpoint if there is one."""
        self.model.train()
        rows = train(
            self.step,
            dict(self.model.named_parameters()),
            steps=self.steps,
            lr=self.params.learning_rate,
            warmup=self.params.warmup_steps,
            weight_decay=self.params.weight_decay,
            clip_norm=self.params.clip_norm,
            seed=self.params.seed,
            checkpoint=checkpoint,
            label="train_teacher",
            validate=self.validate,
            validate_every=self.steps_per_epoch,
            batch_size=self.params.batch_size,
        )
        self.model.eval()
        return rows


def _source(params: TrainTeacherParams) -> str:
    """A fingerprint of the files that the parameters name: the model's configuration and a local checkpoint."""
    checkpoint = Path(params.pretrained) if params.pretrained else None
    weights = sha256_file(checkpoint) if checkpoint is not None and checkpoint.is_file() else ""
    return sha256_bytes(canonical({"config": model_config(params.model), "weights": weights}))


def _config(params: TrainTeacherParams, model: Any, class_names: tuple[str, ...]) -> dict[str, Any]:
    mean, std = preprocess_stats(model)
    pretrained = Path(params.pretrained).name if Path(params.pretrained).is_file() else params.pretrained
    return {
        **built_config(model),
        "model": Path(params.model).stem if params.model.endswith(".json") else params.model,
        "pretrained": pretrained,
        "trained_here": not params.pretrained,
        "class_names": list(class_names),
        "mean": list(mean),
        "std": list(std),
    }


def _commit(commit: Commit, model: Any, config: dict[str, Any], rows: list[CurveRow]) -> list[FileEntry]:
    with scratch_folder() as folder:
        path = folder / MODEL_FILE
        save_model(model.state_dict(), path)
        files = [commit.put_file(MODEL_FILE, path)]
    files.append(commit.put_file(CONFIG_FILE, canonical(config, indent=1)))
    files.append(commit.put_file(CURVE_FILE, curve_csv(rows)))
    return files


def run(params: TrainTeacherParams, *, images: str, store: str) -> Report:
    """Commit a CLIP model: the pretrained one that `params` names, or one trained on the image shards.

    images: the download stage's output (its prefix or manifest.json); store: the root that outputs go under. Output:
    model.safetensors, config.json (open_clip's configuration, and how the model came to be), curve.csv (empty for an
    imported model). Pictures of another size than the model's are resized as open_clip does. A call that was stopped
    goes on from its last checkpoint; a finished one is returned at once.

    Raises UsageError for an unknown model or device, PermanentError for an unknown tag, a checkpoint that does not fit,
    samples without text or a loss that is not finite, TransientError where weights cannot be fetched, Interrupted after
    SIGTERM.
    """
    started = time.monotonic()
    root = open_store(store)
    artifact = open_artifact(images, root)
    commit = Commit(
        root,
        stage="train_teacher",
        version=VERSION,
        params=semantic(params),
        inputs={"images": artifact},
        source=_source(params),
    )
    speeds: dict[str, float] = {}
    with joined(params.device) as world:
        device = pick_device(params.device, params.threads)
        cached = world.share(lambda: commit.finished() is not None)
        if not cached:
            if world.leads:
                commit.begin(CHECKPOINTS)
            speeds = _make(params, artifact, device, commit, world)
            world.wait()  # for process 0's manifest
        if world.leads:
            delete_checkpoints(commit.store)  # of this call, or of one that was killed between its manifest and this
        finished = commit.finished()
    if finished is None:
        raise PermanentError(f"{commit.url} has no manifest after its training; give all processes the same store")
    return Report(
        stage="train_teacher",
        url=finished.url,
        manifest_sha256=finished.manifest.sha256,
        cached=cached,
        metrics=finished.manifest.metrics,
        seconds=time.monotonic() - started,
        speeds=speeds,
        manifest=finished.manifest,
    )


def _count(module: Any) -> int:
    return sum(p.numel() for p in module.parameters())


def _make(
    params: TrainTeacherParams, artifact: Artifact, device: torch.device, commit: Commit, world: World
) -> dict[str, float]:
    """Import or train the model; process 0 commits it. Returns the speeds."""
    model: Any
    rows: list[CurveRow] = []
    class_names: tuple[str, ...] = ()
    metrics: dict[str, Any] = {"steps": 0}
    speeds: dict[str, float] = {}
    if not params.pretrained:
        training = Training(params, artifact, device, world)
        model = training.model
        rows, metrics, speeds = _train(params, training, commit)
        class_names = training.prompts.class_names if training.prompts else ()
    elif world.leads:
        model = build(params.model, params.pretrained)
    if world.leads:
        counted = {
            "num_parameters": _count(model),
            "num_parameters_vision": _count(model.visual),
            "num_parameters_token_table": _count(model.token_embedding),
        }
        files = _commit(commit, model, _config(params, model, class_names), rows)
        commit.finalise(shards=[], files=files, metrics={**metrics, **counted})
    return speeds


def _train(
    params: TrainTeacherParams, training: Training, commit: Commit
) -> tuple[list[CurveRow], dict[str, Any], dict[str, float]]:
    started = time.monotonic()
    rows = training.run(Checkpoint(store=commit.store, name="teacher", every=params.checkpoint_steps))
    seconds = time.monotonic() - started
    last = {name: value for name, value in rows[-1].items() if name.startswith(("val_", "loss"))}
    metrics = {
        "steps": training.steps,
        "num_train": len(training.train_set),
        "precision": precision(training.device),
        **last,
    }
    speed = training.steps_made * params.batch_size / seconds
    return rows, metrics, {"images_per_s": speed} if training.steps_made else {}
