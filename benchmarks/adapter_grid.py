"""The rows of benchmarks/adapter.py: what each changes in the profile's train_adapter section, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from components.config import FREEZE_POLICIES, STEMS, TrainAdapterParams, semantic
from components.errors import UsageError

BUDGETS = (64, 24, 12)
PLAIN = {"crop_min": 1.0, "rotate_degrees": 0.0, "color_jitter": 0.0, "drop_gaussians": 0.0}
# What only the student has: models that differ in nothing else are measured against one and the same control.
STUDENT_ONLY = (
    "stem", "stem_", "resampler_", "num_latents", "stage1_", "drop_gaussians", "cache_embeddings", "control",
)  # fmt: skip


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


def control_fields(base: TrainAdapterParams, student: TrainAdapterParams) -> dict[str, Any]:
    """What of a student's semantic parameters decides the control that goes with it.

    base: the profile, which says whether there is a control_stage1. Where there is, its steps are those of the
    student's stage 1 as well: whole epochs by their sum, others one by one, as steps are rounded in each phase.
    """
    values = {name: value for name, value in semantic(student).items() if not name.startswith(STUDENT_ONLY)}
    if not base.control_with_stage1:
        return values
    epochs = [float(student.stage1_token_epochs), float(student.stage1_cls_epochs)]
    whole = all(one.is_integer() for one in epochs)
    return {**values, "control_with_stage1": True, "stage1_epochs": [sum(epochs)] if whole else epochs}


def final_rows(base: TrainAdapterParams, budgets: tuple[int, ...] = BUDGETS) -> list[Spec]:
    """Each stem that is reported, at each number of Gaussians."""
    return [
        Spec(f"{stem}, {base.freeze_policy}", number, True, {"stem": stem})
        for number in budgets
        for stem in ("splat", "paper", "render")
    ]


def resampler_changes(base: TrainAdapterParams) -> dict[str, dict[str, Any]]:
    """Stem `paper` with other layers, widths and heads than the profile's (those are row "stem paper")."""
    tried: dict[str, tuple[str, int]] = {
        "1 layer": ("resampler_layers", 1),
        "2 layers": ("resampler_layers", 2),
        "half the width": ("stem_width", base.stem_width // 2),
        "twice the width": ("stem_width", 2 * base.stem_width),
        "4 heads": ("resampler_heads", 4),
        "16 heads": ("resampler_heads", 16),
    }
    return {
        f"paper, {name}": {"stem": "paper", one: value}
        for name, (one, value) in tried.items()
        if value != getattr(base, one)
    }


def ablation_rows(base: TrainAdapterParams, number: int = BUDGETS[0]) -> list[Spec]:
    """One change of the profile each, at one number of Gaussians; the profile itself first."""
    both = base.stage1_token_epochs + base.stage1_cls_epochs
    half = {"num_latents": 8, "stage1_token_epochs": 0.0, "stage1_cls_epochs": both}
    changes: dict[str, dict[str, Any]] = {
        "as the profile": {},
        **{f"stem {stem}": {"stem": stem} for stem in STEMS if stem != base.stem},
        **resampler_changes(base),
        "8 latents, no tokens": half,
        "no token distillation": {"stage1_token_epochs": 0.0, "stage1_cls_epochs": both},
        "no augmentation": {"augment": False, **PLAIN},
        "crops": {"crop_min": 0.7},
        "crops, rotation, colour": {"crop_min": 0.7, "rotate_degrees": 10.0, "color_jitter": 0.2},
        "Gaussians dropped": {"drop_gaussians": 0.2},
        "no anchor": {"anchor_weight": 0.0},
        "teacher's embeddings not cached": {"cache_embeddings": False},
        **{f"policy {one}": {"freeze_policy": one} for one in FREEZE_POLICIES if one != base.freeze_policy},
    }
    return [Spec(name, number, False, made) for name, made in changes.items()]


def quick_rows(base: TrainAdapterParams, number: int = BUDGETS[0]) -> list[Spec]:
    """The profile's own stem and `paper`, on validation."""
    return [row for row in ablation_rows(base, number) if row.name in ("as the profile", "stem paper")]


GRIDS: dict[str, Callable[[TrainAdapterParams, Sequence[int]], list[Spec]]] = {
    "final": lambda base, budgets: final_rows(base, tuple(budgets) or BUDGETS),
    "ablation": lambda base, budgets: [row for number in budgets or BUDGETS[:1] for row in ablation_rows(base, number)],
    "quick": lambda base, budgets: [row for number in budgets or BUDGETS[:1] for row in quick_rows(base, number)],
}


def chosen(grid: str, base: TrainAdapterParams, names: Sequence[str], budgets: Sequence[int]) -> list[Spec]:
    """The grid's rows whose name contains one of `names`, at these numbers of Gaussians (none: the grid's own).

    UsageError where no row is left.
    """
    rows = GRIDS[grid](base, budgets)
    specs = [spec for spec in rows if not names or any(part in spec.name for part in names)]
    if not specs:
        known = ", ".join(sorted({spec.name for spec in rows}))
        raise UsageError(f"--rows: no row is left of the grid {grid!r}; it has: {known}")
    return specs
