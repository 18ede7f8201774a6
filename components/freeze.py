"""Freeze policies: what of a CLIP trains beside a stem, by name, and how much of it that is.

Everything that a policy does not free stays bit for bit the teacher's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from components.errors import PermanentError, UsageError
from components.lora import add_lora, is_update

PATCH_EMBEDDING = "visual.conv1."
TOKEN_TABLE = "token_embedding.weight"  # noqa: S105 - the table of text tokens
_HEAD = ("visual.ln_post.", "visual.proj")
_PAPER = ("visual.transformer.resblocks.0.", "visual.transformer.resblocks.1.", *_HEAD)
# What each policy frees in the teacher, as prefixes of parameter names ({last}: of the text tower's blocks); a stem
# always trains, and so do low-rank updates, which `lora` alone adds.
FREEZE_POLICIES: dict[str, tuple[str, ...]] = {
    "stem": (),
    "qkv": ("visual.transformer.resblocks.0.attn.in_proj_", *_HEAD),
    "paper": _PAPER,
    "paper+text": (*_PAPER, "transformer.resblocks.{last}.", "ln_final.", "text_projection"),
    "lora": _HEAD,
}
LORA_RANK = 8


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


@dataclass(frozen=True)
class TrainedShare:
    """How many parameters train, of how many.

    total: vision tower, stem and text tower without its token table; vision_total: vision tower and stem; all_total:
    everything, token table too: the paper's 9.7 % is of that. Low-rank updates count on both sides.
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
        """Trained parameters, those of the text tower too, over those of the vision side."""
        return self.trained / self.vision_total

    @property
    def all_share(self) -> float:
        """Trained share of all parameters."""
        return self.trained / self.all_total

    def __str__(self) -> str:
        """For a log."""
        return (
            f"{self.trained:,} parameters train: {self.share:.1%} without the token table, {self.vision_share:.1%} "
            f"of the vision side, {self.all_share:.1%} of all"
        )


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


def _policy(policy: str, clip: Any, lora_rank: int, seed: int) -> tuple[str, ...]:
    """Prefixes of the names of what the policy frees, in a CLIP; low-rank updates are added where it asks for them."""
    if policy not in FREEZE_POLICIES:
        raise UsageError(f"unknown freeze policy {policy!r}; choose one of: {', '.join(FREEZE_POLICIES)}")
    prefixes = FREEZE_POLICIES[policy]
    if policy == "paper+text":
        prefixes = tuple(prefix.format(last=len(clip.transformer.resblocks) - 1) for prefix in prefixes)
    if policy == "lora":
        add_lora(clip.visual, lora_rank, seed)
        prefixes += tuple(name for name, _ in clip.named_parameters() if is_update(name))
    return prefixes


def apply_freeze_policy(model: Any, policy: str, *, lora_rank: int = LORA_RANK, seed: int = 0) -> TrainedShare:
    """Let the stem of a SplatClip and what `policy` names train, freeze the rest (requires_grad), and count.

    `stem`: the stem alone. `qkv`: with the first block's projection to queries, keys and values, the final norm and the
    projection. `paper`: the stem, the first two blocks, the final norm and the projection (GaussianVision, arXiv
    2509.22615). `paper+text`: with the text tower's last block, final norm and projection. `lora`: the stem, updates of
    rank lora_rank of all weights of the first two blocks, drawn by seed, the final norm and the projection.
    Class token, positional embeddings, the token table and logit_scale are frozen in all. UsageError for another name.
    """
    return _free(model, ("stem.", *_policy(policy, model.clip, lora_rank, seed)))


def apply_control_policy(clip: nn.Module, policy: str, *, lora_rank: int = LORA_RANK, seed: int = 0) -> TrainedShare:
    """The control's twin of apply_freeze_policy: the teacher's patch embedding trains in place of the stem."""
    check_teacher(clip)
    return _free(clip, (PATCH_EMBEDDING, *_policy(policy, clip, lora_rank, seed)))


def trains_text(model: nn.Module) -> bool:
    """Whether a weight of the text tower trains in a SplatClip or an open_clip CLIP."""
    names = (name.removeprefix("clip.") for name, p in model.named_parameters() if p.requires_grad)
    return any(not name.startswith(("visual.", "stem.", "logit_")) for name in names)
