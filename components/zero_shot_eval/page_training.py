"""Training curves of the teacher, the splat reader and the control, from their curve.csv."""

from __future__ import annotations

from collections.abc import Sequence

from components.zero_shot_eval.page_charts import Line, line_chart
from components.zero_shot_eval.page_data import CurvePoint, Run
from components.zero_shot_eval.page_markup import Html, el

TEACHER, TOKENS, CLS = "train_teacher", "stage1_tokens", "stage1_cls"
SIDES = {"stage2": "splat reader", "control": "control", "control_stage1": "control, stage 1's steps too"}
KINDS = {"stage2": "splats", "control": "control", "control_stage1": "control_stage1"}
CHOSEN = {"stage2": "student", "control": "control", "control_stage1": "control_stage1"}
STEPS = "steps"


def side_of(phase: str) -> tuple[str, float] | None:
    """A stage-2 phase's side and learning rate, from its name: stage2_lr0.001."""
    side, found, rate = phase.rpartition("_lr")
    if not found or side not in SIDES:
        return None
    try:
        return side, float(rate)
    except ValueError:
        return None


def points(curve: Sequence[CurvePoint], phase: str, name: str) -> list[tuple[float, float]]:
    """(step, value) of a phase."""
    return [(one.step, one.values[name]) for one in curve if one.phase == phase and name in one.values]


def validation(curve: Sequence[CurvePoint], phase: str) -> str:
    """The last validation figure of a phase."""
    for name, words in (("val_accuracy", "validation {:.1%}"), ("val_loss", "validation loss {:.3f}")):
        found = points(curve, phase, name)
        if found:
            return words.format(found[-1][1]).replace("%", "\u00a0%")
    return ""


def chosen_rate(run: Run, side: str) -> float | None:
    """The learning rate that a side of stage 2 kept."""
    node = run.node("adapter")
    manifest = None if node is None else node.manifest
    value = None if manifest is None else manifest.metrics.get(f"{CHOSEN[side]}_learning_rate")
    return None if value is None else float(value)


def charts(run: Run) -> list[Html]:
    """All of a run's curves, small."""
    found = []
    teacher, adapter = run.curve("teacher"), run.curve("adapter")
    for name, title in (("loss", "Teacher: contrastive loss"), ("val_accuracy", "Teacher: accuracy on validation")):
        curve = points(teacher, TEACHER, name)
        if curve:
            shares = name == "val_accuracy"
            found.append(line_chart([Line("", curve, "teacher")], title=title, x_name=STEPS, percent=shares))
    for phase, title in (
        (TOKENS, "Stage 1: stem against the teacher's patch tokens, loss"),
        (CLS, "Stage 1: against its image embedding, loss"),
    ):
        curve = points(adapter, phase, "loss")
        if curve:
            line = Line("", curve, "splats", note=validation(adapter, phase))
            found.append(line_chart([line], title=title, x_name=STEPS))
    phases = list(dict.fromkeys(one.phase for one in adapter))
    for sides, title in (
        (("stage2", "control"), "Stage 2: contrastive loss, splat reader and control"),
        (("control_stage1",), "The control with stage 1's steps: contrastive loss"),
    ):
        lines = [one for phase in phases if (one := _stage2(run, adapter, phase, sides)) is not None]
        if lines:
            found.append(line_chart(lines, title=title, x_name=STEPS))
    return found


def _stage2(run: Run, curve: Sequence[CurvePoint], phase: str, sides: Sequence[str]) -> Line | None:
    known = side_of(phase)
    if known is None or known[0] not in sides:
        return None
    side, rate = known
    line = points(curve, phase, "contrastive") or points(curve, phase, "loss")
    if not line:
        return None
    kept = chosen_rate(run, side)
    several = len({one.phase for one in curve if one.phase.startswith(f"{side}_lr")}) > 1
    note = ", ".join(word for word in (validation(curve, phase), "kept" if rate == kept and several else "") if word)
    label = f"{SIDES[side]}, rate {rate:g}"
    return Line(label, line, KINDS[side], faint=kept is not None and rate != kept, note=note)


def training_parts(run: Run) -> list[Html]:
    """The curves, or a word where there are none."""
    found = charts(run)
    if not found:
        return [el("p", "Nothing was trained here, or the store has the curves no more.", class_="note")]
    return [el("div", *found, class_="charts")]


def charts_together(a: Run, b: Run) -> list[Html]:
    """The curves of two runs over each other: of stage 2 only the rates that were kept."""
    curves = [(run.curve("teacher"), run.curve("adapter"), run) for run in (a, b)]
    panels: list[tuple[str, bool, list[Line]]] = []

    def add(title: str, shares: bool, lines: list[Line | None]) -> None:
        drawn = [line for line in lines if line is not None]
        if drawn:
            panels.append((title, shares, drawn))

    nodes = [run.node("teacher") for run in (a, b)]
    if nodes[0] is None or nodes[1] is None or nodes[0].sha256 != nodes[1].sha256:
        for name, title in (("loss", "Teacher: contrastive loss"), ("val_accuracy", "Teacher: accuracy on validation")):
            lines = [
                _of(letter, points(curve, TEACHER, name)) for letter, (curve, _, _) in zip("ab", curves, strict=True)
            ]
            add(title, name == "val_accuracy", lines)
    for phase, title in ((TOKENS, "Stage 1: patch tokens, loss"), (CLS, "Stage 1: image embedding, loss")):
        add(
            title,
            False,
            [
                _of(letter, points(curve, phase, "loss"), validation(curve, phase))
                for letter, (_, curve, _) in zip("ab", curves, strict=True)
            ],
        )
    for side, title in SIDES.items():
        kept = [_of(letter, *_kept(run, curve, side)) for letter, (_, curve, run) in zip("ab", curves, strict=True)]
        add(f"Stage 2, {title}: contrastive loss at the rate kept", False, kept)
    drawn = [line_chart(lines, title=title, x_name=STEPS, percent=shares) for title, shares, lines in panels]
    if not drawn:
        return [el("p", "Nothing was trained here, or the store has the curves no more.", class_="note")]
    return [el("div", *drawn, class_="charts")]


def _of(letter: str, line: list[tuple[float, float]], note: str = "") -> Line | None:
    return Line(letter.upper(), line, letter, note=note) if line else None


def _kept(run: Run, curve: Sequence[CurvePoint], side: str) -> tuple[list[tuple[float, float]], str]:
    """The curve of a side at the rate that was kept, and what was reached."""
    kept = chosen_rate(run, side)
    for phase in dict.fromkeys(one.phase for one in curve):
        if side_of(phase) == (side, kept):
            words = (f"rate {kept:g}", validation(curve, phase))
            return points(curve, phase, "contrastive") or points(curve, phase, "loss"), ", ".join(filter(None, words))
    return [], ""
