"""SplatClip: a CLIP teacher that reads splats.

A stem's latents stand in for the patch embeddings; the rest is the teacher's own. What trains is named by a freeze
policy (freeze.py), and only trained tensors are stored.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.errors import PermanentError
from components.freeze import FREEZE_POLICIES, LORA_RANK, apply_control_policy, apply_freeze_policy, check_teacher
from components.lora import merge_lora
from components.stems import StemConfig, build_stem
from components.tokens import SplatTensors

if TYPE_CHECKING:
    from components.manifest import Artifact
    from components.openclip import LoadedTeacher

ADAPTER_FORMAT = 1


def patch_embeddings(clip: Any, images: Tensor) -> Tensor:
    """The teacher's patch embeddings before the positional one: images [B, 3, H, W], normalised -> [B, L, width]."""
    embedded: Tensor = clip.visual.conv1(images)
    return embedded.flatten(2).transpose(1, 2)


def encode_patches(clip: Any, patches: Tensor) -> Tensor:
    """The teacher's vision tower from its patch embeddings on: [B, L, width] -> image features [B, D], not normalised.

    With as many tokens as the teacher has patches this is open_clip's own VisionTransformer.forward after conv1. With
    another number only the class token gets its positional embedding; the others bring their own.
    """
    visual: Any = clip.visual
    table = visual.positional_embedding.to(patches.dtype)
    token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    if patches.shape[1] == len(table) - 1:
        x = torch.cat([token, patches], dim=1) + table
    else:
        x = torch.cat([token + table[0], patches], dim=1)
    x = visual.transformer(visual.ln_pre(visual.patch_dropout(x)))
    pooled: Tensor = visual._pool(x)[0]  # its pooling has no public name
    return pooled if visual.proj is None else pooled @ visual.proj


class SplatClip(nn.Module):
    """A teacher's CLIP with a stem before its trunk. The CLIP given is used as it is, not copied."""

    def __init__(self, clip: nn.Module, config: StemConfig) -> None:
        super().__init__()
        check_teacher(clip)
        self.clip: Any = clip
        self.config = config
        self.stem = build_stem(config)
        self.checkpoint_stem = False

    @property
    def logit_scale(self) -> Tensor:
        """The teacher's, a log; exponentiate it once."""
        scale: Tensor = self.clip.logit_scale
        return scale

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside the stem and the towers' blocks: they are computed again in the backward pass."""
        self.clip.set_grad_checkpointing(enable)
        self.checkpoint_stem = enable

    def patch_latents(self, splats: SplatTensors) -> Tensor:
        """What stands in for the patch embeddings, before the positional embedding: [B, L, width]."""
        if self.checkpoint_stem and torch.is_grad_enabled():
            kept: Tensor = checkpoint(self.stem, splats, use_reentrant=False)
            return kept
        latents: Tensor = self.stem(splats)
        return latents

    def encode_splats(self, splats: SplatTensors, normalize: bool = True) -> Tensor:
        """Image features of splats, [B, D]."""
        features = encode_patches(self.clip, self.patch_latents(splats))
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = True) -> Tensor:
        """Text features of tokens [U, L], [U, D]: the teacher's own."""
        features: Tensor = self.clip.encode_text(tokens, normalize=normalize)
        return features


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the tensors that train, by name, on the CPU."""
    own = {name: p.detach().cpu().clone().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    return dict(sorted(own.items()))


def load_trained(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Put stored tensors into the model.

    Exactly those that train in it must be there, else PermanentError naming `where`.
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    wrong = sorted(wanted.keys() ^ state.keys())
    wrong += sorted(n for n in wanted.keys() & state.keys() if wanted[n].shape != state[n].shape)
    if wrong:
        named = f"{', '.join(wrong[:3])} ({len(wrong)} tensors in all)"
        raise PermanentError(f"{where} does not fit the teacher: {named}; use the teacher it was trained with")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])


def read_tensors(path: Path, where: str) -> dict[str, Tensor]:
    """Tensors of a safetensors file; PermanentError naming `where` when it is not one."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise PermanentError(f"{where} cannot be read as safetensors: {error}") from None
    return tensors


def describe(config: StemConfig, policy: str, *, lora_rank: int = LORA_RANK, **more: Any) -> bytes:
    """adapter.json: what load_adapter needs, and `more` for the reader."""
    values = {"format": ADAPTER_FORMAT, "policy": policy, "stem": config.as_json(), **more}
    if policy == "lora":
        values["lora_rank"] = lora_rank
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode()


def read_description(artifact: Artifact) -> dict[str, Any]:
    """adapter.json of a train_adapter artifact, format and policy checked."""
    where = f"{artifact.url}/adapter.json"
    with artifact.local("adapter.json") as path:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise PermanentError(f"{where} is not JSON: {error}") from None
    if not isinstance(values, dict) or values.get("format") != ADAPTER_FORMAT:
        raise PermanentError(f"{where} is not of format {ADAPTER_FORMAT}; use the version that wrote it")
    if values.get("policy") not in FREEZE_POLICIES:
        raise PermanentError(f"{where}: unknown freeze policy {values.get('policy')!r}")
    rank = values.setdefault("lora_rank", LORA_RANK)
    if not isinstance(rank, int) or rank < 1:
        raise PermanentError(f"{where}: lora_rank is {rank!r}; it must be an integer above 0")
    return values


def _load_file(model: nn.Module, artifact: Artifact, name: str) -> None:
    where = f"{artifact.url}/{name}"
    with artifact.local(name) as path:
        load_trained(model, read_tensors(path, where), where)


def load_adapter(artifact: Artifact, teacher: LoadedTeacher, device: torch.device | str = "cpu") -> SplatClip:
    """The trained SplatClip of a train_adapter artifact, in eval mode, on a copy of its teacher.

    Low-rank updates are merged into their weights.
    """
    values = read_description(artifact)
    config = StemConfig.from_json(values.get("stem", {}), f"{artifact.url}/adapter.json")
    model = SplatClip(copy.deepcopy(teacher.model), config)
    apply_freeze_policy(model, values["policy"], lora_rank=values["lora_rank"])
    _load_file(model, artifact, "adapter.safetensors")
    merge_lora(model.clip.visual)
    return model.to(device).eval()


def load_control(
    artifact: Artifact, teacher: LoadedTeacher, which: str = "control", device: torch.device | str = "cpu"
) -> nn.Module:
    """The fair control, `which` = "control" or "control_stage1": a trained copy of the teacher's CLIP, in eval mode.

    Raises PermanentError when the adapter was trained without that control.
    """
    name = f"{which}.safetensors"
    if name not in {entry.name for entry in artifact.manifest.files}:
        raise PermanentError(f"{artifact.url} has no {name}: it was trained without this control")
    values = read_description(artifact)
    model: nn.Module = copy.deepcopy(teacher.model)
    apply_control_policy(model, values["policy"], lora_rank=values["lora_rank"])
    _load_file(model, artifact, name)
    merge_lora(model.get_submodule("visual"))
    return model.to(device).eval()
