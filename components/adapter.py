"""SplatClip: a CLIP teacher that reads splats.

A stem's latents stand in for the patch embeddings; the rest is the teacher's own.

What trains is named by a freeze policy; everything else stays bit for bit the teacher's, and only trained tensors are
stored.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from components.errors import PermanentError, UsageError
from components.stems import StemConfig, build_stem
from components.tokens import SplatTensors

if TYPE_CHECKING:
    from components.manifest import Artifact
    from components.openclip import LoadedTeacher

ADAPTER_FORMAT = 1
PATCH_EMBEDDING = "visual.conv1."
TOKEN_TABLE = "token_embedding.weight"  # noqa: S105 - the table of text tokens
# What each policy frees in the teacher, as prefixes of parameter names; a stem always trains.
FREEZE_POLICIES: dict[str, tuple[str, ...]] = {
    "stem": (),
    "paper": ("visual.transformer.resblocks.0.", "visual.transformer.resblocks.1.", "visual.ln_post.", "visual.proj"),
}


def check_teacher(clip: nn.Module) -> None:
    """Raise PermanentError unless the vision tower is open_clip's VisionTransformer: its parts are used singly."""
    visual = getattr(clip, "visual", None)
    parts = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post", "proj")
    missing = [name for name in parts if not hasattr(visual, name)]
    if missing:
        raise PermanentError(
            f"the teacher's vision tower is {type(visual).__name__}, without {', '.join(missing)}; "
            "splats can stand in for patches in open_clip's VisionTransformer only: choose a ViT model without timm"
        )


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


@dataclass(frozen=True)
class TrainedShare:
    """How many parameters train, of how many.

    total: vision tower, stem and text tower without its token table; vision_total: vision tower and stem; all_total:
    everything, token table too: the paper's 9.7 % is of that.
    """

    trained: int
    total: int
    vision_total: int
    all_total: int

    @property
    def share(self) -> float:
        """Trained share without the token table."""
        return self.trained / self.total

    @property
    def vision_share(self) -> float:
        """Trained share of the vision side."""
        return self.trained / self.vision_total

    @property
    def all_share(self) -> float:
        """Trained share of all parameters."""
        return self.trained / self.all_total


def _free(model: nn.Module, prefixes: Iterable[str]) -> TrainedShare:
    starts = tuple(prefixes)
    counts = {"trained": 0, "vision": 0, "table": 0, "all": 0}
    for name, parameter in model.named_parameters():
        inner = name.removeprefix("clip.")
        parameter.requires_grad_(bool(starts) and inner.startswith(starts))
        size = parameter.numel()
        counts["all"] += size
        counts["trained"] += size if parameter.requires_grad else 0
        counts["vision"] += size if inner.startswith(("visual.", "stem.")) else 0
        counts["table"] += size if inner.endswith(TOKEN_TABLE) else 0
    return TrainedShare(counts["trained"], counts["all"] - counts["table"], counts["vision"], counts["all"])


def _policy(policy: str) -> tuple[str, ...]:
    if policy not in FREEZE_POLICIES:
        raise UsageError(f"unknown freeze policy {policy!r}; choose one of: {', '.join(FREEZE_POLICIES)}")
    return FREEZE_POLICIES[policy]


def apply_freeze_policy(model: SplatClip, policy: str) -> TrainedShare:
    """Let the stem and what `policy` names train, freeze the rest (requires_grad), and count.

    `stem`: the stem alone. `paper`: the stem, the first two blocks, the final norm and the projection (GaussianVision,
    arXiv 2509.22615). Class token, positional embedding and text tower are frozen in both.
    """
    return _free(model, ("stem.", *_policy(policy)))


def apply_control_policy(clip: nn.Module, policy: str) -> TrainedShare:
    """The control's twin of apply_freeze_policy: the teacher's patch embedding trains in place of the stem."""
    check_teacher(clip)
    return _free(clip, (PATCH_EMBEDDING, *_policy(policy)))


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


def describe(config: StemConfig, policy: str, **more: Any) -> bytes:
    """adapter.json: what load_adapter needs, and `more` for the reader."""
    values = {"format": ADAPTER_FORMAT, "policy": policy, "stem": config.as_json(), **more}
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
    return values


def _load_file(model: nn.Module, artifact: Artifact, name: str) -> None:
    where = f"{artifact.url}/{name}"
    with artifact.local(name) as path:
        load_trained(model, read_tensors(path, where), where)


def load_adapter(artifact: Artifact, teacher: LoadedTeacher, device: torch.device | str = "cpu") -> SplatClip:
    """The trained SplatClip of a train_adapter artifact, in eval mode, on a copy of its teacher."""
    values = read_description(artifact)
    config = StemConfig.from_json(values.get("stem", {}), f"{artifact.url}/adapter.json")
    model = SplatClip(copy.deepcopy(teacher.model), config)
    apply_freeze_policy(model, values["policy"])
    _load_file(model, artifact, "adapter.safetensors")
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
    model: nn.Module = copy.deepcopy(teacher.model)
    apply_control_policy(model, read_description(artifact)["policy"])
    _load_file(model, artifact, name)
    return model.to(device).eval()
