"""The rows of benchmarks/adapter.py: what each changes in the profile's train_adapter section, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from components.config import STEMS, TrainAdapterParams

BUDGETS = (64, 24, 12)
POLICY = "qkv"  # trains no more than 10 % of a teacher as small as params/cifar10.yaml's; `paper` a quarter of it
PLAIN = {"crop_min": 1.0, "rotate_degrees": 0.0, "color_jitter": 0.0, "drop_gaussians": 0.0}
# What only the student has: models that differ in nothing else are measured against one and the same control.
STUDENT_ONLY = ("stem", "stem_", "resampler_", "num_latents", "stage1_", "drop_gaussians", "control")


@dataclass(frozen=True)
class Spec:
    """A student. num_gaussians: of its fits; changes: fields of train_adapter; final: scored on the test split, once.

    What is not final is scored on the validation split alone.
    """

    name: str
    num_gaussians: int
    final: bool
    changes: Mapping[str, Any] = field(default_factory=dict)

    def params(self, base: TrainAdapterParams, seed: int) -> TrainAdapterParams:
        """The student's parameters, without a control."""
        return replace(base, **{**self.changes, "seed": seed, "control": False, "control_with_stage1": False})


def control_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """What of train_adapter's semantic parameters decides the control."""
    return {name: value for name, value in values.items() if not name.startswith(STUDENT_ONLY)}


def final_rows(base: TrainAdapterParams, budgets: tuple[int, ...] = BUDGETS) -> list[Spec]:
    """Each stem that is reported, at each number of Gaussians."""
    return [
        Spec(f"{stem}, {POLICY}", number, True, {"stem": stem, "freeze_policy": POLICY})
        for number in budgets
        for stem in ("splat", "paper", "render")
    ]


def ablation_rows(base: TrainAdapterParams, number: int = BUDGETS[0]) -> list[Spec]:
    """One change of the profile each, at one number of Gaussians."""
    both = base.stage1_token_epochs + base.stage1_cls_epochs
    half = {"num_latents": 8, "stage1_token_epochs": 0.0, "stage1_cls_epochs": both}
    changes: dict[str, dict[str, Any]] = {
        "as the profile": {},
        **{f"stem {stem}": {"stem": stem} for stem in STEMS if stem != base.stem},
        "8 latents, no tokens": half,
        "no token distillation": {"stage1_token_epochs": 0.0, "stage1_cls_epochs": both},
        "no augmentation": {"augment": False, **PLAIN},
        "crops": {"crop_min": 0.7},
        "crops, rotation, colour": {"crop_min": 0.7, "rotate_degrees": 10.0, "color_jitter": 0.2},
        "Gaussians dropped": {"drop_gaussians": 0.2},
        "no anchor": {"anchor_weight": 0.0},
    }
    policies = ("stem", "qkv", "paper", "paper+text", "lora")
    changes |= {f"policy {policy}": {"freeze_policy": policy} for policy in policies if policy != POLICY}
    return [Spec(name, number, False, {"freeze_policy": POLICY, **made}) for name, made in changes.items()]


def quick_rows(base: TrainAdapterParams, number: int = BUDGETS[0]) -> list[Spec]:
    """The profile's own stem and `paper`, on validation."""
    return [row for row in ablation_rows(base, number) if row.name in ("as the profile", "stem paper")]


GRIDS: dict[str, Callable[[TrainAdapterParams], list[Spec]]] = {
    "final": final_rows,
    "ablation": ablation_rows,
    "quick": quick_rows,
}
