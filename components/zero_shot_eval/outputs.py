"""The files of an evaluation: scores.json, CLIP_benchmark's JSON, per_class.csv, contact_sheet.png."""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.images import EXTENSIONS, decode_rgb
from components.manifest import Artifact, Manifest, canonical, output_key
from components.splats import Splats, compression_ratio
from components.zero_shot_eval.embed import Embedded
from components.zero_shot_eval.inventory import Inventory, Photograph, SplatFile, fetch
from components.zero_shot_eval.predictions import Truth, classes_of
from components.zero_shot_eval.rows import Row
from components.zero_shot_eval.sheet import SheetPicture, choose, draw_sheet, to_png
from components.zero_shot_eval.wording import is_zero_shot

MAX_NAMED = 100  # keys named a reason in scores.json
SPLATS = "splats"


def _mean(values: Sequence[float]) -> float:
    return round(math.fsum(values) / len(values), 4)


def size_figures(inventory: Inventory, jpeg90: tuple[float, int], budget: int) -> dict[str, Any]:
    """Fidelity and size of the scored pictures: the keys `splats`, `bytes_per_picture` and so on of scores.json."""
    photographs: list[Photograph] = list(inventory.photographs.values())
    files: list[SplatFile] = list(inventory.splats.values())
    gs2d = _mean([one.num_bytes for one in files])
    raw = _mean([one.raw_bytes for one in photographs])
    stored = _mean([one.stored_bytes for one in photographs])
    gaussians = _mean([one.num_gaussians for one in files])
    ratios = {"raw": raw / gs2d, "stored": stored / gs2d, "jpeg90": jpeg90[0] / gs2d}
    if gaussians > 0:  # black pictures may keep none
        ratios["paper"] = compression_ratio(1, 1, gaussians) * raw / 3  # W * H = raw / 3
    return {
        "splats": {
            "num_gaussians_budget": budget,
            "num_gaussians_mean": gaussians,
            "psnr_db_mean": _mean([one.psnr_db for one in files]),
            "psnr_db_min": round(min(one.psnr_db for one in files), 4),
            "psnr_db_max": round(max(one.psnr_db for one in files), 4),
            "compression": {name: round(value, 4) for name, value in sorted(ratios.items())},
        },
        "bytes_per_picture": {"gs2d": gs2d, "stored": stored, "jpeg90": round(jpeg90[0], 4), "raw": raw},
        "jpeg90_pictures": jpeg90[1],
        "stored_formats": dict(sorted(Counter(one.format for one in photographs).items())),
    }


def left_out(inventory: Inventory) -> dict[str, Any]:
    """Counts by reason, and the first keys of each."""
    kept = {reason: keys for reason, keys in inventory.left_out.items() if keys}
    return {
        "counts": {reason: len(keys) for reason, keys in kept.items()},
        "named": {reason: keys[:MAX_NAMED] for reason, keys in kept.items()},
    }


def interval_note(num_bootstrap: int, task: str) -> dict[str, Any]:
    """What the intervals are, for scores.json and the table."""
    searched = "; what is searched stays the same" if task == "retrieval" else ""
    note = f"95 %, {num_bootstrap:,} paired resamplings of the pictures{searched}; other training runs are not covered"
    return {"confidence": 0.95, "num_bootstrap": num_bootstrap, "note": note}


def notes(adapter: Manifest, splats: Manifest, rows: Sequence[Mapping[str, Any]], headline: Sequence[str]) -> list[str]:
    """What a reader of the scores has to know. rows: of scores.json; headline: the metrics that the table shows."""
    found = []
    if not _fitted_alike(adapter, splats):
        found.append(
            "the adapter was trained on other splats than these; a stem reads badly what it was not trained for"
        )
    one_rate = len(adapter.params.get("stage2_learning_rates", ())) == 1
    by_name = {row["name"]: row["figures"] for row in rows}
    if "control" not in by_name:
        found.append("there is no control (train_adapter.control is off): ratios to the untouched teacher flatter")
        return [*found, *(["one learning rate was tried; it was not chosen on validation"] if one_rate else [])]
    if one_rate:
        found.append("one learning rate was tried on each side; none was chosen on validation")
    ratios = (by_name[SPLATS][metric]["ratio"]["to_control"] for metric in headline)
    if any(ratio is not None and ratio["value"] > 1 for ratio in ratios):
        found.append(_more_than_the_control(adapter.metrics.get("stage1_steps", 0) > 0, "control_stage1" in by_name))
    return found


def _fitted_alike(adapter: Manifest, splats: Manifest) -> bool:
    """Whether the adapter was trained on these splats, or on its own pictures' as these parameters fit them."""
    used = adapter.inputs.get("splats", {})
    if used.get("sha256") == splats.sha256:
        return True
    pictures = {"images": adapter.inputs.get("images", {}).get("sha256", "")}
    return used.get("path") == f"{splats.stage}/{output_key(splats.stage, splats.version, splats.params, pictures)}"


def _more_than_the_control(had_stage1: bool, shown: bool) -> str:
    larger = "splats score above the control, but the stem is larger than the control's patch embedding"
    if not had_stage1:
        return larger
    see = "see the control with stage 1's steps"
    return f"{larger} and had stage 1's steps as well; {see}{'' if shown else ' (train_adapter.control_with_stage1)'}"


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.") or "unnamed"


def benchmark_files(rows: Sequence[Row], *, dataset: str, model: str, pretrained: str, task: str) -> dict[str, bytes]:
    """One file a row as CLIP_benchmark writes them, so that its `build` command reads ours.

    Its readers tell rows apart by model and pretrained, so the row's name rides on the latter.
    """
    files = {}
    for row in rows:
        values = {
            "dataset": dataset,
            "model": model,
            "pretrained": pretrained if row.name == "teacher" else f"{pretrained}+{row.name}",
            "task": "zeroshot_retrieval" if task == "retrieval" else "zeroshot_classification",
            "metrics": {name: round(value, 6) for name, value in row.metrics.items()},
            "language": "en",
            "setting": row.setting,
            "zero_shot": is_zero_shot(row.setting),
        }
        files[f"benchmark/{_slug(dataset)}_{_slug(model)}_{row.name}.json"] = canonical(values, indent=1)
    return files


def per_class_csv(rows: Sequence[Row], class_names: Sequence[str], truth: Truth | None) -> bytes:
    """class, pictures, recall of the splats row, then of each other row; empty where a class has no pictures.

    Of a multilabel set average_precision instead of recall. No classes (retrieval): the heading alone.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    others = [row for row in rows if row.name != SPLATS]
    ordered = [row for row in rows if row.name == SPLATS] + others
    several = truth is not None and truth.ndim == 2
    counts = [] if truth is None else truth.sum(0) if several else np.bincount(truth, minlength=len(class_names))
    figure = "average_precision" if several else "recall"
    writer.writerow(["class", "pictures", figure, *(f"{figure}_{row.name}" for row in others)])
    for i, name in enumerate(class_names):
        values = [row.by_class[i] if row.by_class is not None and counts[i] else math.nan for row in ordered]
        shown = ["" if math.isnan(value) else f"{value:.6f}" for value in values]
        writer.writerow([name, int(counts[i]), *shown])
    return text.getvalue().encode()


def _captioned(
    embedded: Embedded, truth: Truth | None, row: Row, class_names: Sequence[str]
) -> dict[str, tuple[str, str, bool | None]]:
    """Key -> what the picture shows (classes or caption), what the row took it for, and whether they agree."""
    if row.predictions is None or truth is None:
        texts = zip(embedded.keys, embedded.captions, strict=True)
        return {key: (captions[0], "", None) for key, captions in texts}
    if truth.ndim == 2:
        marked = zip(embedded.keys, truth, row.predictions.tolist(), strict=True)
        return {key: (classes_of(own, class_names), class_names[guess], bool(own[guess])) for key, own, guess in marked}
    pairs = zip(embedded.keys, truth.tolist(), row.predictions.tolist(), strict=True)
    return {key: (class_names[truth], class_names[guess], truth == guess) for key, truth, guess in pairs}


def contact_sheet(
    images: Artifact,
    splats: Artifact,
    inventory: Inventory,
    embedded: Embedded,
    row: Row,
    *,
    truth: Truth | None,
    class_names: Sequence[str],
    title: tuple[str, str],
    num_sheet: int,
    threads: int,
) -> bytes:
    """PNG of num_sheet pictures from the worst PSNR to the best; row: the splat reader's; title: dataset and split."""
    keys = embedded.keys
    psnr = [inventory.splats[key].psnr_db for key in keys]
    chosen = [keys[i] for i in choose(psnr, num_sheet)]
    photos = fetch(images, {key: inventory.photographs[key].shard for key in chosen}, EXTENSIONS)
    files = fetch(splats, {key: inventory.splats[key].shard for key in chosen}, ["gs2d"])
    captions = _captioned(embedded, truth, row, class_names)
    pictures = []
    for key in chosen:
        one = Splats.unpack(files[key], f"{splats.url}: {key}.gs2d")
        shown, guess, right = captions[key]
        pictures.append(
            SheetPicture(
                photo=decode_rgb(photos[key]),
                render=np.rint(np.clip(one.render(threads=threads), 0, 1) * 255).astype(np.uint8),
                means=one.means,
                cholesky=one.cholesky,
                colors=one.colors,
                psnr_db=inventory.splats[key].psnr_db,
                num_bytes=len(files[key]),
                photo_bytes=len(photos[key]),
                photo_format=inventory.photographs[key].format,
                truth=shown,
                guess=guess,
                right=right,
            )
        )
    spread = f"these {len(chosen)} run from the worst PSNR to the best" if len(chosen) > 2 else f"{len(chosen)} shown"
    sheet = draw_sheet(
        pictures,
        title=f"{title[0]}: pictures and their splats",
        subtitle=f"split {title[1]}, {len(keys):,} pictures, {_mean(psnr):.2f} dB on average; {spread}",
        footer="Renders are of the .gs2d files, clipped to 0..255. "
        "Bytes: of the .gs2d file, then of the picture as stored.",
    )
    return to_png(sheet)
