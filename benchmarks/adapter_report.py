"""The table of benchmarks/adapter.py: every figure over seeds, with its interval, from rows that hold every answer."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from records import Journal, Row, table

from components import scores
from components.errors import UsageError
from components.scores import Estimate

Hits = NDArray[np.bool_]
NUM_BOOTSTRAP = 4000
HEADER = [
    "row", "N", "split", "seeds", "accuracy", "ratio to the control", "chance-corrected", "ratio, control + stage 1",
    "trained", "trained, millions", "PSNR dB", "compression", "minutes", "CPU minutes", "steps",
]  # fmt: skip
VALIDATION = ["row", "N", "mean", "each seed", "learning rate", "trained", "minutes", "steps", "scored on"]
EXPLAINED = f"""\
Accuracy in %, of the prompt classifier: the classes were trained on, nothing here is zero-shot. Intervals are 95 %,
{NUM_BOOTSTRAP:,} paired resamplings of the pictures; over several seeds figures are of the mean hit of a picture, and
each seed's own accuracy stands beside its number. All seeds share one fit of the pictures: they differ in teacher and
training. Trained: share of vision tower, stem and text tower without its token table. Learning rates: the same number
of trials for student and control, chosen on the validation split; the test split is for final rows alone. Compression:
W H 3 bytes over 16 bytes a Gaussian. "Splats rendered": the teacher, as it is, looks at pictures drawn from the splats.
Minutes and steps are of training: stem `splat` starts from a ridge regression on 10,000 pictures, which counts as
minutes and as no step; the first student of a seed is charged for the teacher's embeddings, which the others find.
A control stands below the first student that is measured against it; others with the same training share it."""
MODELS = {
    "rendered": "splats rendered, untouched teacher",
    "teacher": "RGB teacher, untouched",
    "control": "RGB control",
    "control_stage1": "RGB control + stage 1",
}


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


def check_pictures(rows: Sequence[Row]) -> None:
    """UsageError unless rows were scored on the same pictures in the same order: hits are paired by their place."""
    seen: dict[Any, str] = {}
    for row in rows:
        key = row["key"]
        name = key.get("row") or f"control {key['control']}"
        seen.setdefault((row.get("pictures"), row["n"]), f"{name}, seed {key['seed']}, {key['split']}")
    if len(seen) > 1 or any(digest is None for digest, _ in seen):
        found = "; ".join(f"{name}: {n} pictures, digest {digest}" for (digest, n), name in seen.items())
        raise UsageError(
            f"rows of one line of the table were not scored on the same pictures: {found}. Where a digest is None, an "
            "earlier version wrote the row: delete it, the store keeps the work. Otherwise the splats leave out other "
            "pictures: fit those that failed again"
        )


def _mean(rows: Sequence[Row], name: str, digits: int, scale: float = 1.0) -> str:
    values = [row[name] for row in rows if row.get(name) is not None]
    return f"{scale * sum(values) / len(values):.{digits}f}" if values else "-"


def _line(name: str, students: Sequence[Row], controls: Sequence[Row], model: str) -> list[Any]:
    """One line: `model` is "splats" or "rendered" of the students' hits, or a name of the controls' hits."""
    check_pictures([*students, *controls])
    splats, trains = model in ("splats", "rendered"), model in ("splats", "control")
    mine, key = (students if splats else controls), students[0]["key"]
    hits, chance = _all(mine, model), 1.0 / students[0]["num_classes"]
    found = compare(hits, _all(controls, "control"), chance)
    ratio, corrected = (_shown(found[kind]) if model != "control" else "1" for kind in ("ratio", "corrected"))
    longer = "-"
    if all("control_stage1" in row["hits"] for row in controls):
        longer = _shown(compare(hits, _all(controls, "control_stage1"), chance)["ratio"])
    seeds = " ".join(f"{row['key']['seed']} ({100 * own.mean():.1f})" for row, own in zip(students, hits, strict=True))
    return [
        name, key["N"] if splats else "-", key["split"], seeds, _shown(found["accuracy"], 100, 1), ratio, corrected,
        longer, _mean(mine, "trained_share", 1, 100) + " %" if trains else "-",
        _mean(mine, "trained", 3, 1e-6) if trains else "-",
        _mean(mine, "psnr_db", 2) if splats else "-", _mean(mine, "compression", 1) if splats else "-",
        _mean(mine, "seconds", 1, 1 / 60) if trains else "-",
        _mean(mine, "cpu_seconds", 1, 1 / 60) if trains else "-",
        _mean(mine, "steps", 0) if trains else "-",
    ]  # fmt: skip


def _grouped(rows: Sequence[Row], kind: str) -> list[list[Row]]:
    """Rows of a kind, those that differ in nothing but the seed together, in the order they were made."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if _is(row, kind):
            key = row["key"]
            groups.setdefault((key["row"], key["N"], key.get("split"), key["params"]), []).append(row)
    return list(groups.values())


def lines(rows: Sequence[Row]) -> list[list[Any]]:
    """The lines of the table: students in the order they were made; rendered splats once an N, split and control;
    each control once a split.
    """
    controls = {
        (row["key"]["control"], row["key"]["seed"], row["key"]["split"]): row for row in rows if _is(row, "control")
    }
    made, shown = [], set()
    for students in _grouped(rows, "student"):
        marks = [(s["control"], s["key"]["seed"], s["key"]["split"]) for s in students]
        used = [controls[mark] for mark in marks]
        made.append(_line(students[0]["key"]["row"], students, used, "splats"))
        for model, label in MODELS.items():
            of_splats = model == "rendered"
            fits = tuple(s["given"]["splats"] for s in students) if of_splats else ()
            mark = (model, fits, tuple(marks))
            if mark not in shown and all(model in row["hits"] for row in (students if of_splats else used)):
                shown.add(mark)
                made.append(_line(f"{label} ({students[0]['policy']})", students, used, model))
    return made


def validation_lines(rows: Sequence[Row]) -> list[list[Any]]:
    """What training says of the validation split: students so far, each control below the first that it goes with."""
    made: list[list[Any]] = []
    shown = set()
    tested = [(_own(row["key"]), row["key"]["split"]) for row in rows if _is(row, "student")]
    for group in _grouped(rows, "trained"):
        name, key = "student_val_accuracy", group[0]["key"]
        own = [_own(row["key"]) for row in group]
        splits = sorted({split for one, split in tested if one in own})
        rates = ", ".join(sorted({f"{row['learning_rate']:g}" for row in group}))
        made.append([
            key["row"], key["N"], _mean(group, name, 1, 100), _each(group, name), rates,
            _mean(group, "trained_share", 1, 100) + " %", _mean(group, "seconds", 1, 1 / 60), _mean(group, "steps", 0),
            ", ".join(splits) or "-",
        ])  # fmt: skip
        control = group[0]["control"]
        runs = [row for row in rows if _is(row, "control trained") and row["key"]["control"] == control]
        for model in ("control", "control_stage1") if control not in shown else ():
            name = f"{model}_val_accuracy"
            if any(row.get(name) is not None for row in runs):
                minutes = _mean(runs, "seconds", 1, 1 / 60) if model == "control" else "-"
                told = f"{MODELS[model]} ({group[0]['policy']})"
                made.append([told, "-", _mean(runs, name, 1, 100), _each(runs, name), "-", "-", minutes, "-", "-"])
        shown.add(control)
    return made


def _own(key: Mapping[str, Any]) -> Row:
    """What names a student: its key without kind and split."""
    return {name: key[name] for name in ("row", "N", "seed", "params")}


def _each(rows: Sequence[Row], name: str) -> str:
    values = [(row["key"]["seed"], row.get(name)) for row in rows]
    return " ".join(f"{seed} ({100 * value:.1f})" for seed, value in values if value is not None) or "-"


def order_told(rows: Sequence[Row]) -> str:
    """By the rows' dates: which final students were trained when the test split was first scored, and which after."""
    scored = [(row["made"]["date"], place) for place, row in enumerate(rows) if row["key"].get("split") == "test"]
    if not scored:
        return "No row has been scored on the test split."
    first = min(scored)
    tested = [_own(row["key"]) for row in rows if _is(row, "student") and row["key"]["split"] == "test"]
    final = [
        ((row["made"]["date"], place), row)
        for place, row in enumerate(rows)
        if _is(row, "trained") and (row.get("final") or _own(row["key"]) in tested)
    ]
    late = [row["key"] for made, row in final if made > first]
    text = f"The test split was first scored at {first[0]} UTC; {len(final) - len(late)} of {len(final)} final students"
    text += " had been trained by then."
    if late:
        named = "; ".join(f"{key['row']}, N {key['N']}, seed {key['seed']}" for key in late)
        text += f" Trained after it: {named}."
    return text


def _is(row: Mapping[str, Any], kind: str) -> bool:
    return bool(row["key"]["kind"] == kind)


def markdown(journal: Journal, title: str) -> str:
    """The whole report of the rows so far. UsageError where rows that are compared saw other pictures."""
    rows = journal.rows()
    went = {(row["key"]["row"], row["key"]["N"], row["key"]["seed"]) for row in rows if _is(row, "trained")}
    placed = [(row["key"]["row"], row["key"]["N"], row["key"]["seed"], row) for row in rows if "row" in row["key"]]
    left = [[*place, row["reason"]] for *place, row in placed if _is(row, "left out") and tuple(place) not in went]
    again = [[*place, row["again"]] for *place, row in placed if _is(row, "trained") and "again" in row]
    parts = [f"# {title}", "\n".join(f"- {note}" for note in journal.notes())]
    if any(_is(row, "student") for row in rows):
        parts.append(table(HEADER, lines(rows)))
    parts += [EXPLAINED, order_told(rows)]
    if any(_is(row, "trained") for row in rows):
        told = "Accuracy in %, of what the training itself scored last; all choices were made on these pictures."
        parts.append(f"## Validation split\n\n{table(VALIDATION, validation_lines(rows))}\n\n{told}")
    if again:
        heading = "## Trained again after the test split had judged the row with other parameters"
        parts.append(f"{heading}\n\n" + table(["row", "N", "seed", "reason"], again))
    if left:
        parts.append("## Left out\n\n" + table(["row", "N", "seed", "reason"], left))
    return "\n\n".join(parts) + "\n"
