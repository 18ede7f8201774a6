"""The phases of training: the student's two stages, the control, and the choice of learning rates on validation.

Student: stage 1 trains the stem alone, first on the teacher's patch embeddings (the trunk is not run), then on its
image embedding; stage 2 is contrastive, with an anchor to the teacher's embedding, under the freeze policy. Control:
the untouched teacher, given stage 2's steps, batches, texts, losses and freed parts, with its patch embedding trained
in place of the stem. control_stage1: the same once more, with as many steps more as the student's stage 1 had; they
are contrastive steps too, as a picture model has nothing to distil, and one schedule runs through all of them. Each
of the three tries the same learning rates and keeps the one that scores best on the validation split.

Where the policy frees a part of the text tower, that part joins after the warm-up steps, at the learning rate's peak:
until then its features are the frozen ones, and its weights have neither gradient nor decay.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.adapter import SplatClip, encode_patches, patch_embeddings, trained_state
from components.config import TrainAdapterParams
from components.contrastive import clip_loss
from components.device import mixed_precision
from components.freeze import TrainedShare, apply_control_policy, apply_freeze_policy, trains_text
from components.openclip import LoadedTeacher
from components.signals import Stop
from components.store import Store
from components.train_adapter.data import Given, Stream, TextFeatures
from components.train_adapter.loss import embedding_distance, token_loss
from components.train_adapter.targets import Targets
from components.train_adapter.validate import Validation
from components.trainer import Checkpoint, CurveRow, num_steps, train

BETAS = (0.9, 0.98)
Encode = Callable[[Any, Given], Tensor]


@dataclass(frozen=True)
class Trained:
    """A finished model: its trained tensors, the learning rate chosen and its validation values."""

    state: dict[str, Tensor]
    learning_rate: float
    validation: Mapping[str, float]


def encode_splats(model: Any, given: Given) -> Tensor:
    """Student: image features of the splats [B, D], not normalised."""
    features: Tensor = model.encode_splats(given.splats, normalize=False)
    return features


def encode_images(model: Any, given: Given) -> Tensor:
    """Control: image features of the pixels [B, D], not normalised."""
    features: Tensor = model.encode_image(given.images)
    return features


def _shown(rate: float) -> str:
    """A learning rate in a phase's name: short where that is exact, so that two rates never share a checkpoint."""
    short = f"{rate:g}"
    return short if float(short) == rate else repr(rate)


class Phases:
    """Runs phases one after another; a finished one is found again by its checkpoint's name."""

    def __init__(
        self,
        *,
        params: TrainAdapterParams,
        teacher: LoadedTeacher,
        stream: Stream,
        targets: Callable[[], Targets],
        texts: TextFeatures,
        validation: Validation,
        checkpoints: Store,
        stop: Stop,
    ) -> None:
        self.params, self.teacher, self.stream, self.texts = params, teacher, stream, texts
        self.validation, self.checkpoints, self._targets = validation, checkpoints, targets
        self._stop = stop
        self.rows: list[CurveRow] = []

    def steps(self, epochs: float) -> int:
        """Steps of so many epochs; none for none."""
        return num_steps(epochs, self.stream.steps_per_epoch) if epochs > 0 else 0

    def _run(
        self,
        name: str,
        model: nn.Module,
        step_fn: Callable[[int], Any],
        *,
        steps: int,
        lr: float,
        encode: Encode | None,
    ) -> Mapping[str, float]:
        """Train what is free in `model`; returns the validation values, none without `encode`."""
        if steps == 0:
            return {}
        params = self.params
        self._stop.check("finished phases are kept; run the same command again to go on")
        rows = train(
            step_fn,
            {key: p for key, p in model.named_parameters() if p.requires_grad},
            steps=steps,
            lr=lr,
            warmup=params.warmup_steps,
            weight_decay=params.weight_decay,
            clip_norm=params.clip_norm,
            betas=BETAS,
            seed=params.seed,
            checkpoint=Checkpoint(store=self.checkpoints, name=name, every=params.checkpoint_steps),
            label=name,
            batch_size=self.stream.batch_size,
            validate=(lambda: self.validation.of(model, encode)) if encode is not None else None,
        )
        self.rows += rows
        last = rows[-1]
        return {key: float(last[key]) for key in self.validation.names if key in last}

    def stage1(self, student: SplatClip) -> Mapping[str, float]:
        """Distil: only the stem trains. Returns the validation values after it."""
        params, clip = self.params, student.clip
        student.set_grad_checkpointing(params.checkpoint_activations)
        apply_freeze_policy(student, "stem")
        scale = torch.tensor(student.config.tokens.std, device=clip.logit_scale.device)

        def tokens(latents: Tensor, given: Given) -> Tensor:
            with torch.no_grad():
                patches = patch_embeddings(clip, given.images)
            return token_loss(latents, patches, scale)

        def token_step(step: int) -> Iterator[Tensor]:
            for given in self._parts(step):
                with mixed_precision(given.images.device):
                    latents = student.patch_latents(given.splats)
                yield given.share * tokens(latents, given)

        def cls_step(step: int) -> Iterator[tuple[Tensor, dict[str, float]]]:
            for given in self._parts(step):
                with mixed_precision(given.images.device):
                    latents = student.patch_latents(given.splats)
                    features = encode_patches(clip, latents)
                loss = given.share * embedding_distance(features, self._targets().of(given))
                values = {"distance": float(loss.detach())}
                if self._matches_patches(student):
                    token = given.share * tokens(latents, given)
                    loss, values = loss + token, {**values, "tokens": float(token.detach())}
                yield loss, values

        count, rate = self.steps(params.stage1_token_epochs), params.stage1_token_learning_rate
        self._run("stage1_tokens", student, token_step, steps=count, lr=rate, encode=None)
        count, rate = self.steps(params.stage1_cls_epochs), params.stage1_cls_learning_rate
        return self._run("stage1_cls", student, cls_step, steps=count, lr=rate, encode=encode_splats)

    def _matches_patches(self, student: SplatClip) -> bool:
        rows, columns = student.config.grid
        return student.config.num_latents == rows * columns

    def _parts(self, step: int) -> list[Given]:
        return self.stream.at(step).parts(self.params.accumulate_steps)

    def _features(self, model: Any, encode: Encode, given: Given) -> Tensor:
        """Image features of this process's part of a batch, [b, D], not normalised.

        With accumulate_steps, those of one part after the other, whose activations are dropped and computed again when
        the gradient of the whole batch's loss has come back to it (as GradCache does, arXiv 2101.06983).
        """

        def encoded(part: Given) -> Tensor:
            with mixed_precision(part.images.device):
                return encode(model, part)

        if self.params.accumulate_steps == 1:
            return encoded(given)
        parts = given.parts(self.params.accumulate_steps)
        return torch.cat([checkpoint(encoded, part, use_reentrant=False) for part in parts])

    def _contrastive(self, model: Any, encode: Encode) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
        scale = model.logit_scale.detach()
        text_joins = self.params.warmup_steps if trains_text(model) else math.inf

        def step_fn(step: int) -> tuple[Tensor, dict[str, float]]:
            given = self.stream.at(step)
            features = self._features(model, encode, given)
            text, text_features = self.texts.draw(given, model if step >= text_joins else None)
            contrast = clip_loss(F.normalize(features.float(), dim=-1), text_features, scale, text.positives)
            values = {"contrastive": float(contrast.detach())}
            if self.params.anchor_weight == 0:
                return contrast, values
            distance = given.share * embedding_distance(features, self._targets().of(given))
            return contrast + self.params.anchor_weight * distance, {**values, "distance": float(distance.detach())}

        return step_fn

    def _choose(self, name: str, start: nn.Module, encode: Encode, steps: int) -> Trained:
        """Train a copy of `start` at each learning rate; keep the best on validation, the first of equals."""
        best: Trained | None = None
        for rate in self.params.stage2_learning_rates:
            model = copy.deepcopy(start)
            step_fn = self._contrastive(model, encode)
            values = self._run(f"{name}_lr{_shown(rate)}", model, step_fn, steps=steps, lr=rate, encode=encode)
            if best is None or self.validation.better(values, best.validation):
                best = Trained(trained_state(model), rate, values)
        if best is None:
            raise RuntimeError("no learning rate to try")
        return best

    def free(self, student: SplatClip) -> TrainedShare:
        """Let train what stage 2 trains."""
        params = self.params
        return apply_freeze_policy(student, params.freeze_policy, lora_rank=params.lora_rank, seed=params.seed)

    def free_control(self, clip: nn.Module) -> TrainedShare:
        """The control's twin of `free`."""
        params = self.params
        return apply_control_policy(clip, params.freeze_policy, lora_rank=params.lora_rank, seed=params.seed)

    def stage2(self, student: SplatClip) -> Trained:
        """The student after stage 1, trained contrastively under the freeze policy."""
        self.free(student)
        return self._choose("stage2", student, encode_splats, self.steps(self.params.stage2_epochs))

    def control(self, *, with_stage1: bool) -> Trained:
        """The fair control, with stage 1's steps added or not."""
        params = self.params
        clip = copy.deepcopy(self.teacher.model)
        clip.set_grad_checkpointing(params.checkpoint_activations)
        self.free_control(clip)
        steps = self.steps(params.stage2_epochs)
        if with_stage1:
            steps += self.steps(params.stage1_token_epochs) + self.steps(params.stage1_cls_epochs)
        return self._choose("control_stage1" if with_stage1 else "control", clip, encode_images, steps)
