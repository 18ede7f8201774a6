"""The tables of benchmarks/fit.py, from its rows."""

from __future__ import annotations

from statistics import fmean, median
from typing import Any

from choices import bootstrap_interval
from records import Journal, Row, table

LADDER_RECIPE = "default"
REFERENCE_PEAK = 177.0  # GFLOP/s a core, where the targets of TARGETS were set
TARGETS: dict[int, dict[str, float]] = {
    400: {"speedup": 12, "gain_db": 0.8, "control_rate": 2650, "torch_ratio": 150, "peak_share": 0.45},
    900: {"speedup": 14, "gain_db": 1.4, "control_rate": 1520, "torch_ratio": 130},
    1600: {"speedup": 16, "gain_db": 1.7, "control_rate": 1260, "torch_ratio": 110},
    3136: {"speedup": 17, "gain_db": 2.0, "control_rate": 870, "torch_ratio": 90, "peak_share": 0.30},
}


def fits(journal: Journal, number: int, recipe: str, num_iters: int | None = None) -> list[Row]:
    """Rows of complete fits, by repeat."""
    keys = {"kind": "fit", "N": number, "recipe": recipe} | ({"num_iters": num_iters} if num_iters else {})
    rows = [row for row in journal.rows() if keys.items() <= row["key"].items()]
    return sorted(rows, key=lambda row: (row["key"]["num_iters"], row["key"]["repeat"]))


def mean_db(row: Row) -> float:
    values: list[float] = row["psnr_db"]
    return fmean(values)


def paired(control: list[Row], other: list[Row], field: str) -> float:
    """Median over repeats of control / other."""
    return median(float(a[field]) / float(b[field]) for a, b in zip(control, other, strict=False))


def peak_of(journal: Journal) -> float | None:
    """GFLOP/s of one core's fp32 peak: the best thread of the best measurement."""
    rows = [row for row in journal.rows() if row["key"]["kind"] == "peak"]
    return max((max(row["gflops"]) for row in rows), default=None)


def latest(journal: Journal, kind: str, number: int) -> Row | None:
    rows = [row for row in journal.rows() if row["key"]["kind"] == kind and row["key"]["N"] == number]
    return rows[-1] if rows else None


def summary(journal: Journal, number: int) -> dict[str, Any]:
    """The figures of one N; None where something was not measured."""
    control = fits(journal, number, "paper")
    chosen = latest(journal, "chosen", number)
    plan = chosen["key"] if chosen else {"reached": None, "third": {}}
    peak, rates, roof = peak_of(journal), latest(journal, "rates", number), latest(journal, "roofline", number)
    out: dict[str, Any] = {"N": number, "control_db": mean_db(control[0])}
    out["control_s"] = median(row["wall_s"] for row in control)
    whole_cpu = [row["num_images"] * row["key"]["num_iters"] / row["fit_cpu_s"] for row in control]
    out["control_rate"] = median(whole_cpu)
    out["peak_gflops"] = peak
    out["reached"], out["third"] = None, {}
    if plan["reached"] is not None:
        rows = fits(journal, number, LADDER_RECIPE, plan["reached"])
        out["reached"] = {
            "num_iters": plan["reached"],
            "db": mean_db(rows[0]),
            "seconds": median(row["wall_s"] for row in rows),
            "speedup": paired(control, rows, "wall_s"),
            "speedup_cpu": paired(control, rows, "cpu_s"),
        }
    for recipe, num_iters in plan["third"].items():
        rows = fits(journal, number, recipe, num_iters)
        gains = [b - a for a, b in zip(control[0]["psnr_db"], rows[0]["psnr_db"], strict=True)]
        out["third"][recipe] = {
            "num_iters": num_iters,
            "share": 1.0 / paired(control, rows, "wall_s"),
            "share_cpu": 1.0 / paired(control, rows, "cpu_s"),
            "seconds": median(row["wall_s"] for row in rows),
            "db": mean_db(rows[0]),
            "gain_db": fmean(gains),
            "interval": bootstrap_interval(gains),
        }
    out["rates"] = {name: rates[name] for name in rates if name not in ("key", "made", "origin")} if rates else None
    out["whole_rates"] = {
        recipe: median(row["num_images"] * row["key"]["num_iters"] / row["fit_wall_s"] for row in rows)
        for recipe, rows in {
            "paper": control,
            **{r: fits(journal, number, r, n) for r, n in plan["third"].items()},
        }.items()
    }
    out["roofline"] = {k: roof[k] for k in roof if k not in ("key", "made", "origin")} if roof else None
    return out


def against(value: float | None, number: int, name: str, scale: float = 1.0, digits: int = 2) -> str:
    """The value, with its target and whether it held where there is one."""
    if value is None:
        return "-"
    target = TARGETS.get(number, {}).get(name)
    if target is None:
        return f"{value:.{digits}f}"
    held = "held" if value >= target * scale else "missed"
    return f"{value:.{digits}f} (target {target * scale:.{digits}f}: {held})"


def numbers_of(journal: Journal) -> list[int]:
    """The N that have a control, in order."""
    return sorted({row["key"]["N"] for row in journal.rows() if row["key"].get("recipe") == "paper"})


def markdown(journal: Journal) -> str:
    """The whole report."""
    all_of = {number: summary(journal, number) for number in numbers_of(journal)}
    peak = peak_of(journal)
    isa = next((row["isa"] for row in journal.rows() if row["key"]["kind"] == "peak"), "")
    notes = journal.notes() + ([f"measured fp32 peak: {peak:.0f} GFLOP/s a core ({isa} FMA loop)"] if peak else [])
    parts = ["# splat2d.fit", "\n".join(f"- {line}" for line in notes)]
    parts.append(
        "Control: recipe `paper` (uniform grid, Adam, 3000 iterations). Times hold the start, the fit, writing .gs2d"
        " files and reading them; PSNR is that of the files, float render, not clamped. Ratios are medians over repeats"
        " in which control and candidate took turns; `CPU` is the same by processor time."
    )
    parts += ["## Time to the control's PSNR", _time_table(all_of)]
    parts += ["## PSNR in a third of the control's wall time", _gain_table(all_of)]
    parts += ["## Iterations a second", _rate_table(all_of, peak)]
    parts += ["## Against plain PyTorch, an iteration", _torch_table(all_of)]
    parts += ["## Render and gradient alone", _roofline_table(all_of, peak)]
    parts += ["## Every complete fit", _fit_table(journal)]
    return "\n\n".join(parts) + "\n"


def _time_table(all_of: dict[int, dict[str, Any]]) -> str:
    header = ["N", "control: dB, s", f"`{LADDER_RECIPE}`: iterations, dB, s", "times faster", "CPU"]
    rows: list[list[Any]] = []
    for number, one in all_of.items():
        found, control = one["reached"], f"{one['control_db']:.2f}, {one['control_s']:.2f}"
        if found is None:
            rows.append([number, control, "no budget of the ladder reached it, or not measured", "-", "-"])
            continue
        candidate = f"{found['num_iters']}, {found['db']:.2f}, {found['seconds']:.3f}"
        faster = against(found["speedup"], number, "speedup", digits=1)
        rows.append([number, control, candidate, faster, f"{found['speedup_cpu']:.1f}"])
    return table(header, rows)


def _gain_table(all_of: dict[int, dict[str, Any]]) -> str:
    header = ["N", "recipe", "iterations", "s", "share of the control's wall time", "CPU", "dB"]
    header += ["gain, dB", "95 % interval over pictures"]
    rows = []
    for number, one in all_of.items():
        for recipe, got in one["third"].items():
            cells = [number, f"`{recipe}`", got["num_iters"], f"{got['seconds']:.2f}", f"{got['share']:.3f}"]
            cells += [f"{got['share_cpu']:.3f}", f"{got['db']:.2f}", against(got["gain_db"], number, "gain_db")]
            rows.append([*cells, "[{:.2f}, {:.2f}]".format(*got["interval"])])
    return table(header, rows)


def _rate_table(all_of: dict[int, dict[str, Any]], peak: float | None) -> str:
    scale = peak / REFERENCE_PEAK if peak else 1.0
    text = "Over the whole run of the control, start and last measurement included, a second of processor time."
    text += f" Targets in proportion to {REFERENCE_PEAK:.0f} GFLOP/s a core." if peak else " Peak not measured."
    rows = [[n, against(one["control_rate"], n, "control_rate", scale, 0)] for n, one in all_of.items()]
    return text + "\n\n" + table(["N", "control, iterations/s a core"], rows)


def _torch_table(all_of: dict[int, dict[str, Any]]) -> str:
    header = ["N", "recipe", "its/s, short run", "torch its/s", "ratio", "its/s, whole run", "ratio, whole run"]
    rows = []
    for number, one in all_of.items():
        torch = (one["rates"] or {}).get("torch")
        for recipe, rate in (one["rates"] or {}).items():
            if recipe == "torch":
                continue
            whole = one["whole_rates"].get(recipe)
            cells = [number, f"`{recipe}`", f"{rate:.0f}", f"{torch:.1f}"]
            cells.append(against(rate / torch, number, "torch_ratio", digits=0))
            rows.append([*cells, *([f"{whole:.0f}", f"{whole / torch:.0f}"] if whole else ["-", "-"])])
    text = "Short runs of 100 iterations on 4 pictures without the start; whole runs are those of the tables above, by"
    text += " wall clock. A recipe that begins with fewer than N Gaussians has cheaper iterations at first; `paper` has"
    text += " all N."
    return text + "\n\n" + table(header, rows)


def _roofline_table(all_of: dict[int, dict[str, Any]], peak: float | None) -> str:
    header = ["N", "pairs inside 3 sigma", "ms an iteration", "share of peak", "without preparation and lists"]
    rows = []
    for number, one in all_of.items():
        roof = one["roofline"]
        if roof and peak:
            cells = [number, roof["pairs_mean"], f"{roof['ms_an_iteration']:.3f}"]
            cells.append(against(roof["gflops"] / peak, number, "peak_share", digits=3))
            rows.append([*cells, f"{roof['gflops_passes'] / peak:.3f}"])
    text = f"50 operations a pair, on splats that `{LADDER_RECIPE}` fitted, one picture a thread, no optimiser step."
    return text + "\n\n" + table(header, rows)


def _fit_table(journal: Journal) -> str:
    header = ["N", "recipe", "iterations", "repeat", "dB", "wall s", "CPU s", "images/s", "bytes"]
    rows: list[list[Any]] = []
    for number in numbers_of(journal):
        found = [row for row in journal.rows() if row["key"]["kind"] == "fit" and row["key"]["N"] == number]
        for row in sorted(found, key=lambda r: (r["key"]["recipe"], r["key"]["num_iters"], r["key"]["repeat"])):
            key = row["key"]
            cells = [number, f"`{key['recipe']}`", key["num_iters"], key["repeat"], f"{mean_db(row):.3f}"]
            cells += [f"{row['wall_s']:.3f}", f"{row['cpu_s']:.3f}", f"{row['num_images'] / row['wall_s']:.2f}"]
            rows.append([*cells, f"{row['bytes_mean']:.0f}"])
    return table(header, rows)
