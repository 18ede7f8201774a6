"""The tables of benchmarks/gpu.sh, from its rows."""

from __future__ import annotations

from typing import Any

import splat2d
from records import Journal, Row, table


def rows_of(journal: Journal, **key: Any) -> list[Row]:
    return [row for row in journal.rows() if key.items() <= row["key"].items()]


def peak_of(journal: Journal) -> float | None:
    """GFLOP/s of the device: of all threads at once where it is a processor."""
    return next((row.get("wall_gflops") or row["gflops"] for row in rows_of(journal, kind="peak")), None)


def markdown(journal: Journal) -> str:
    """The whole report; sections without rows say so."""
    peak = peak_of(journal)
    notes = journal.notes()
    notes += [f"measured fp32 peak: {peak:.0f} GFLOP/s (FMA loop on the same device)"] if peak else []
    for row in rows_of(journal, kind="tests"):
        notes.append(f"tests: {'passed' if row['passed'] else 'FAILED'}: {' '.join(row['said'])}")
    how = "Rates are by wall clock from pictures on the host to splats on the host, start included, after one run that"
    how += " warms up. PSNR: float render, not clamped. Kernel share: time in which any kernel runs (CUPTI) by the wall"
    how += (
        " time of the same run. Share of peak: 50 operations a pair of Gaussian and pixel inside the 3-sigma ellipses"
    )
    how += " at the end of the fit, start and copies counted as time; only where their number does not grow. Memory:"
    how += " the most seen taken during the fit; - where it ended before the first look."
    parts = ["# splat2d.fit on a GPU", "\n".join(f"- {line}" for line in notes), how]
    parts += ["## At the control's PSNR", _control(journal, peak)]
    parts += ["## By batch size", _batches(journal, peak)]
    parts += ["## The whole stage", _stage(journal)]
    parts += ["## One picture: against a sort-based rasteriser and plain PyTorch", _others(journal)]
    parts += ["## A training step of the adapter", _adapter(journal)]
    parts += ["## Every fit", _fits(peak, rows_of(journal, kind="fit"))]
    left = [[_named(row["key"]["what"]), row["reason"].replace("\n", " ")] for row in rows_of(journal, kind="left out")]
    left = [one for one, row in zip(left, rows_of(journal, kind="left out"), strict=True) if not _made(journal, row)]
    if left:
        parts += ["## Left out", table(["what", "why"], left)]
    return "\n\n".join(parts) + "\n"


def _made(journal: Journal, left: Row) -> bool:
    return any(row["key"] == left["key"]["what"] for row in journal.rows())


def _named(key: Row) -> str:
    return ", ".join(str(value) if name in ("kind", "recipe") else f"{name} {value}" for name, value in key.items())


def _share(row: Row, field: str) -> str:
    return f"{row[field]:.3f}" if field in row else "-"


def _cells(row: Row, peak: float | None) -> list[Any]:
    memory = f"{row['memory_bytes'] / 1e9:.2f}" if "memory_bytes" in row else "-"
    share = f"{row['gflops'] / peak:.3f}" if peak and "gflops" in row else "-"
    return [f"{row['images_per_s']:.1f}", f"{row['iterations_per_s']:.0f}", share, memory]


RATES = ["images/s", "image-iterations/s", "share of fp32 peak", "memory, GB"]


def _control(journal: Journal, peak: float | None) -> str:
    header = ["N", "recipe", "iterations", "batch", "dB", *RATES, "kernel share", "images/s against the control"]
    rows: list[list[Any]] = []
    for found in rows_of(journal, kind="reached"):
        number, its, batch = (found["key"][name] for name in ("N", "num_iters", "batch"))
        controls = rows_of(
            journal, kind="fit", N=number, recipe="paper", num_iters=found["key"]["control"], batch=batch
        )
        shown = [*controls, *rows_of(journal, kind="fit", N=number, recipe="default", num_iters=its, batch=batch)]
        for row in shown + rows_of(journal, kind="profiled", N=number, num_iters=its):
            key = row["key"]
            cells = [number, f"`{key['recipe']}`", key["num_iters"], key["batch"], f"{row['psnr_db_mean']:.2f}"]
            # A larger batch alone makes a fit faster.
            faster = f"{row['images_per_s'] / controls[0]['images_per_s']:.1f}" if key["batch"] == batch else "-"
            rows.append([*cells, *_cells(row, peak), _share(row, "kernel_share"), faster])
        if its is None:
            rows.append([number, "`default`", found["note"], *["-"] * (len(header) - 3)])
    return table(header, rows) if rows else "Not measured."


def _batches(journal: Journal, peak: float | None) -> str:
    reached = {row["key"]["N"]: row["key"]["num_iters"] for row in rows_of(journal, kind="reached")}
    usual = splat2d.RECIPES["default"].num_iters
    default = rows_of(journal, kind="fit", recipe="default")
    own = [row for row in default if row["key"]["num_iters"] == (reached.get(row["key"]["N"]) or usual)]
    text = f"Recipe `default`, with the iterations that reach the control's PSNR; {usual} where those are not known."
    return text + "\n\n" + _fits(peak, own)


def _fits(peak: float | None, found: list[Row]) -> str:
    header = ["recipe", "N", "iterations", "batch", "dB", "lost in the file, dB (first picture)", *RATES]
    rows = []
    for row in sorted(found, key=lambda one: [one["key"][name] for name in ("recipe", "N", "num_iters", "batch")]):
        key = row["key"]
        cells = [f"`{key['recipe']}`", key["N"], key["num_iters"], key["batch"], f"{row['psnr_db_mean']:.2f}"]
        rows.append([*cells, f"{row['file_loss_db']:.3f}", *_cells(row, peak)])
    return table(header, rows) if rows else "Not measured."


def _stage(journal: Journal) -> str:
    header = ["N", "iterations", "dB after the file", "images/s", "of splat2d.fit's best"]
    rows = []
    for row in rows_of(journal, kind="stage"):
        number, its = row["key"]["N"], row["key"]["num_iters"]
        fits = rows_of(journal, kind="fit", N=number, recipe="default", num_iters=its)
        best = max((fit["images_per_s"] for fit in fits), default=None)
        against = f"{row['images_per_s'] / best:.2f}" if best else "-"
        rows.append([number, its, f"{row['psnr_db_mean']:.2f}", f"{row['images_per_s']:.1f}", against])
    text = "Stage splat_fit in one process: JPEG files out of shards, decoded, fitted, packed, each file read back and"
    text += " measured, committed to a folder."
    return text + "\n\n" + (table(header, rows) if rows else "Not measured.")


def _adapter(journal: Journal) -> str:
    found = rows_of(journal, kind="adapter")
    rgb = {row["key"]["model"]: row for row in found if not row["key"]["stem"]}
    rows = []
    for row in found:
        key, base = row["key"], rgb.get(row["key"]["model"])
        name = f"stem `{key['stem']}`, N {key['N']}" if key["stem"] else "pictures (the control)"
        against = f"{row['samples_per_s'] / base['samples_per_s']:.2f}" if base else "-"
        cells = [f"{row['samples_per_s']:.0f}", against, f"{row['step_ms']:.0f}", f"{row['memory_bytes'] / 1e9:.2f}"]
        rows.append([key["model"], name, key["batch"], *cells])
    header = ["model", "reads", "batch", "samples/s", "of pictures'", "step, ms", "memory, GB"]
    text = "Stage 2's step under the policy `paper`, optimiser included, random weights; the text tower is not run."
    return text + "\n\n" + (table(header, rows) if rows else "Not measured.")


def _others(journal: Journal) -> str:
    header = ["N", "`paper`, best batch, its/s", "`paper`, batch 1", "sort-based, batch 1", "PyTorch, its best batch"]
    header += ["best batch against: sort-based", "PyTorch", "batch 1 against sort-based"]
    rows = []
    for number in sorted({row["key"]["N"] for row in rows_of(journal, kind="torch") + rows_of(journal, kind="sorted")}):
        ours = {
            row["key"]["batch"]: row["iterations_per_s"]
            for row in rows_of(journal, kind="fit", N=number, recipe="paper")
        }
        best = max(ours.values(), default=None)
        rates = [
            row[0]["iterations_per_s"] if row else None
            for row in (rows_of(journal, kind=k, N=number) for k in ("sorted", "torch"))
        ]
        shown = [f"{value:.0f}" if value else "-" for value in (best, ours.get(1), *rates)]
        pairs = [(best, rates[0]), (best, rates[1]), (ours.get(1), rates[0])]
        shown += [f"{mine / rate:.1f}x" if mine and rate else "-" for mine, rate in pairs]
        rows.append([number, *shown])
    text = "Image-iterations a second of the same recipe: Adam on means, shapes and colours. The sort-based one fits a"
    text += (
        " picture after the other: tiles of 16 x 16, 64-bit keys sorted in each iteration, a thread a pixel, warp sums"
    )
    text += " and global atomics (benchmarks/native/sorted_fit.cu)."
    return text + "\n\n" + (table(header, rows) if rows else "Not measured.")
