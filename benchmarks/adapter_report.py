"""The table of benchmarks/adapter.py: every figure over seeds, with its interval, from rows that hold every answer."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from records import Journal, Row, table

from components import scores
from components.scores import Estimate

Hits = NDArray[np.bool_]
NUM_BOOTSTRAP = 4000
HEADER = [
    "row", "N", "split", "seeds", "accuracy", "ratio to the control", "chance-corrected", "ratio, control + stage 1",
    "trained", "trained, millions", "PSNR dB", "compression", "minutes", "CPU minutes", "steps",
]  # fmt: skip
EXPLAINED = f"""\
Accuracy in %, of the prompt classifier: the classes were trained on, nothing here is zero-shot. Intervals are 95 %,
{NUM_BOOTSTRAP:,} paired resamplings of the pictures; over several seeds figures are of the mean hit of a picture, and
each seed's own accuracy stands beside its number. Trained: share of vision tower, stem and text tower without its token
table. Learning rates: the same number of trials for student and control, chosen on the validation split; the test split
is for final rows alone, whose students were all trained before the first of them was scored. Compression: W H 3 bytes
over 16 bytes a Gaussian."""


def packed(hits: Hits) -> str:
    """Bits as text."""
    return base64.b85encode(np.packbits(hits).tobytes()).decode()


def unpacked(text: str, count: int) -> Hits:
    """What `packed` made."""
    bits = np.unpackbits(np.frombuffer(base64.b85decode(text), dtype=np.uint8), count=count)
    return bits.astype(bool)


def compare(
    hits: Sequence[Hits], base: Sequence[Hits], chance: float, num_bootstrap: int = NUM_BOOTSTRAP
) -> dict[str, Estimate | None]:
    """Accuracy, and ratios to a base, of one model in several seeds; hits: a seed each, [n].

    Over seeds: the mean accuracy of all seeds over the base's mean accuracy of all seeds. The intervals resample
    pictures, the same ones for model, base and all seeds; they do not cover the choice of seeds.
    """
    both = np.stack([np.mean(hits, axis=0), np.mean(base, axis=0)])
    samples = scores.bootstrap_means(both, num_bootstrap, seed=0)
    own, other = (float(row.mean()) for row in both)
    return {
        "accuracy": scores.estimate(own, samples[0]),
        "ratio": scores.ratio(own, samples[0], other, samples[1]),
        "corrected": scores.ratio(own, samples[0], other, samples[1], chance),
    }


def _shown(found: Estimate | None, scale: float = 1.0, digits: int = 3) -> str:
    if found is None:
        return "-"
    value, low, high = (f"{scale * v:.{digits}f}" for v in (found.value, found.low, found.high))
    return f"{value} [{low}, {high}]"


def _all(rows: Sequence[Row], name: str) -> list[Hits]:
    return [unpacked(row["hits"][name], row["n"]) for row in rows]


def _mean(rows: Sequence[Row], name: str, digits: int, scale: float = 1.0) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    return f"{scale * sum(values) / len(values):.{digits}f}" if values else "-"


def _line(name: str, students: Sequence[Row], controls: Sequence[Row], model: str) -> list[Any]:
    """One line: `model` is "splats" of the students or a name of the controls' hits."""
    mine, key = (students if model == "splats" else controls), students[0]["key"]
    hits, chance = _all(mine, model), 1.0 / students[0]["num_classes"]
    found = compare(hits, _all(controls, "control"), chance)
    ratio, corrected = (_shown(found[kind]) if model != "control" else "1" for kind in ("ratio", "corrected"))
    longer = "-"
    if all("control_stage1" in row["hits"] for row in controls):
        longer = _shown(compare(hits, _all(controls, "control_stage1"), chance)["ratio"])
    splats = model == "splats"
    seeds = " ".join(f"{row['key']['seed']} ({100 * own.mean():.1f})" for row, own in zip(students, hits, strict=True))
    return [
        name, key["N"] if splats else "-", key["split"], seeds, _shown(found["accuracy"], 100, 1), ratio, corrected,
        longer, _mean(mine, "trained_share", 1, 100) + " %" if model in ("splats", "control") else "-",
        _mean(mine, "trained", 3, 1e-6) if model in ("splats", "control") else "-",
        _mean(mine, "psnr_db", 2) if splats else "-", _mean(mine, "compression", 1) if splats else "-",
        _mean(mine, "seconds", 1, 1 / 60) if model in ("splats", "control") else "-",
        _mean(mine, "cpu_seconds", 1, 1 / 60) if model in ("splats", "control") else "-",
        _mean(mine, "steps", 0) if model in ("splats", "control") else "-",
    ]  # fmt: skip


def lines(rows: Sequence[Row]) -> list[list[Any]]:
    """The lines of the table: students in the order they were made, each control once a split and kind."""
    controls = {
        (row["key"]["control"], row["key"]["seed"], row["key"]["split"]): row for row in rows if _is(row, "control")
    }
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if _is(row, "student"):
            key = row["key"]
            groups.setdefault((key["row"], key["N"], key["split"], key["params"]), []).append(row)
    made, shown = [], set()
    for (name, *_), students in groups.items():
        used = [controls[s["control"], s["key"]["seed"], s["key"]["split"]] for s in students]
        made.append(_line(name, students, used, "splats"))
        mark = tuple((one["key"]["control"], one["key"]["seed"], one["key"]["split"]) for one in used)
        if mark in shown:
            continue
        shown.add(mark)
        told = {
            "teacher": "RGB teacher, untouched",
            "control": "RGB control",
            "control_stage1": "RGB control + stage 1",
        }
        made += [
            _line(f"{label} ({students[0]['policy']})", students, used, which)
            for which, label in told.items()
            if all(which in row["hits"] for row in used)
        ]
    return made


def _is(row: Mapping[str, Any], kind: str) -> bool:
    return bool(row["key"]["kind"] == kind)


def markdown(journal: Journal, title: str) -> str:
    """The whole report."""
    rows = journal.rows()
    left = [
        [row["key"]["row"], row["key"]["N"], row["key"]["seed"], row["reason"]] for row in rows if _is(row, "left out")
    ]
    parts = [
        f"# {title}",
        "\n".join(f"- {note}" for note in journal.notes()),
        table(HEADER, lines(rows)),
        EXPLAINED,
    ]
    if left:
        parts.append("## Left out\n\n" + table(["row", "N", "seed", "reason"], left))
    return "\n\n".join(parts) + "\n"
