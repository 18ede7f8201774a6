"""Score the RGB teacher, its fair control and the splat reader on exactly the same pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.config import ZeroShotEvalParams, semantic
from components.device import pick_device
from components.errors import PermanentError, UsageError
from components.evalsets import ACC1, AVERAGE_PRECISION
from components.figures import FORMAT
from components.loader import ImageSet
from components.manifest import Artifact, Commit, canonical, open_artifact
from components.openclip import load_teacher
from components.prompts import load_kind, load_prompts
from components.report import Report
from components.signals import Stop, stop_on_sigterm
from components.store import Store, open_store
from components.zero_shot_eval import judge, outputs, predictions, rows
from components.zero_shot_eval.embed import build_readers, embed_images
from components.zero_shot_eval.inventory import jpeg_bytes, read_labels, take_inventory

STAGE = "zero_shot_eval"
VERSION = 4
KEPT = "scoring keeps nothing half done; run the same command again"
TRAINED = ("trained", "trained_share", "trained_vision_share", "trained_all_share", "control_trained_share")
MAKERS = {"images": "download", "teacher": "train_teacher", "splats": "splat_fit", "adapter": "train_adapter"}
HEADLINE = {
    "classification": [ACC1],
    "multilabel": [AVERAGE_PRECISION],
    "retrieval": ["image_retrieval_recall@5", "text_retrieval_recall@5"],
}


def run(params: ZeroShotEvalParams, *, images: str, teacher: str, splats: str, adapter: str, store: str) -> Report:
    """Score `adapter` and `teacher` on the split of `images` that `splats` were fitted to.

    Commits scores.json, per_class.csv, predictions.csv, benchmark/*.json and contact_sheet.png under `store`
    (docs/scores.md).
    Classification where the image set has class names (of several classes a picture where it says so), otherwise
    retrieval on its captions.
    Raises UsageError where an input is another stage's output, PermanentError where inputs do not belong together, the
    split is missing or empty, or a class number has no name; Interrupted on SIGTERM or Ctrl-C.
    """
    started = time.monotonic()
    root = open_store(store)
    given = {"images": images, "teacher": teacher, "splats": splats, "adapter": adapter}
    inputs = {name: open_artifact(ref, root) for name, ref in given.items()}
    check_inputs(inputs)
    commit = Commit(root, stage=STAGE, version=VERSION, params=semantic(params), inputs=inputs)
    artifact = commit.finished()
    if artifact is not None:
        return _report(artifact, started, cached=True)
    with stop_on_sigterm() as stop:
        files, metrics = _evaluate(params, inputs, root, stop)
    entries = [commit.put_file(name, data) for name, data in sorted(files.items())]
    return _report(commit.finalise(shards=[], files=entries, metrics=metrics), started, cached=False)


def _report(artifact: Artifact, started: float, *, cached: bool) -> Report:
    seconds = time.monotonic() - started
    metrics = artifact.manifest.metrics
    return Report(
        stage=STAGE,
        url=artifact.url,
        manifest_sha256=artifact.manifest.sha256,
        cached=cached,
        metrics=metrics,
        seconds=seconds,
        speeds={} if cached else {"pictures_per_s": metrics["num_pictures"] / seconds},
        manifest=artifact.manifest,
    )


def check_inputs(inputs: Mapping[str, Artifact]) -> None:
    """Refuse what does not belong together: splats of other photographs, an adapter made for another teacher."""
    for name, artifact in inputs.items():
        if artifact.manifest.stage != MAKERS[name]:
            raise UsageError(
                f"{name}: {artifact.url} was made by {artifact.manifest.stage}; give {MAKERS[name]}'s output"
            )
    for made, source in (("splats", "images"), ("adapter", "teacher")):
        used = inputs[made].manifest.inputs.get(source, {}).get("sha256", "none")
        have = inputs[source].manifest.sha256
        if used != have:
            raise PermanentError(
                f"{made}: {inputs[made].url} was made from {source} {used}, but the {source} given, "
                f"{inputs[source].url}, are {have}; give the {source} it was made from, or make it again"
            )


def _evaluate(
    params: ZeroShotEvalParams, inputs: Mapping[str, Artifact], store: Store, stop: Stop
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files to commit by name, and the manifest's metrics."""
    images, splats, adapter = inputs["images"], inputs["splats"], inputs["adapter"]
    device = pick_device(params.device, params.threads)
    prompts = load_prompts(images)
    class_names = () if prompts is None else prompts.class_names
    inventory = take_inventory(images, splats, params.split)
    teacher = load_teacher(inputs["teacher"], device)
    side = int(images.manifest.metrics["image_size"])
    readers = build_readers(adapter, teacher, side, device, params.threads)
    pictures = ImageSet(images, params.split, splats=splats, image_size=teacher.image_size)
    embedded = embed_images(readers, pictures, params.batch_size, stop)
    kind = load_kind(images)
    labels = read_labels(images, inventory, len(class_names)) if kind == "multilabel" else None
    where = f"{images.url}, split {params.split}"
    embedded, inventory = judge.select(embedded, inventory, class_names, where, labels)
    settings = judge.settings(inputs, teacher, prompts, store)
    if prompts is None:
        judged = judge.retrieve(readers, embedded, teacher, settings, device)
    else:
        judged = judge.classify(readers, embedded, teacher, prompts, settings, labels=labels)
    stop.check(KEPT)
    dataset = str(images.manifest.metrics.get("dataset", "unnamed"))
    model, pretrained = Path(teacher.model_name).stem, Path(teacher.pretrained).stem or "trained-here"
    scores: dict[str, Any] = {
        "format": FORMAT,
        "dataset": dataset,
        "split": params.split,
        "task": judged.task,
        "num_pictures": len(embedded.keys),
        "num_captions": sum(map(len, embedded.captions)) if prompts is None else 0,
        "num_classes": len(class_names),
        "class_names": list(class_names),
        "templates": [] if prompts is None else list(prompts.templates),
        "default_templates": prompts is not None and prompts.default_templates,
        "chance": {name: round(value, 6) for name, value in judged.chance.items()},
        "headline": HEADLINE[judged.task],
        "rows": rows.compare(
            judged.rows, judged.chance, judged.weights, params.num_bootstrap, params.seed, truth=judged.truth
        ),
        "model": {"name": model, "pretrained": pretrained, "trained_here": teacher.trained_here},
        **outputs.size_figures(inventory, jpeg_bytes(images, inventory), splats.manifest.params["num_gaussians"]),
        "trained": {name: adapter.manifest.metrics[name] for name in TRAINED if name in adapter.manifest.metrics},
        "left_out": outputs.left_out(inventory),
        "intervals": outputs.interval_note(params.num_bootstrap, judged.task),
    }
    scores["notes"] = outputs.notes(adapter.manifest, splats.manifest, scores["rows"], scores["headline"])
    sheet = outputs.contact_sheet(
        images,
        splats,
        inventory,
        embedded,
        next(row for row in judged.rows if row.name == outputs.SPLATS),
        truth=judged.truth,
        class_names=class_names,
        title=(dataset, params.split),
        num_sheet=params.num_sheet,
        threads=params.threads,
    )
    names = {"dataset": dataset, "model": model, "pretrained": pretrained, "task": judged.task}
    files = {
        "scores.json": canonical(scores, indent=1),
        "per_class.csv": outputs.per_class_csv(judged.rows, class_names, judged.truth),
        predictions.NAME: predictions.predictions_csv(judged.rows, embedded, inventory, judged.truth),
        "contact_sheet.png": sheet,
        **outputs.benchmark_files(judged.rows, **names),
    }
    return files, _metrics(scores)


def _metrics(scores: Mapping[str, Any]) -> dict[str, Any]:
    sizes, fidelity = scores["bytes_per_picture"], scores["splats"]
    return {
        "num_pictures": scores["num_pictures"],
        **rows.flat_metrics(scores["rows"], scores["headline"]),
        "psnr_db_mean": fidelity["psnr_db_mean"],
        "num_gaussians_mean": fidelity["num_gaussians_mean"],
        **{f"compression_{name}": value for name, value in fidelity["compression"].items()},
        **{f"bytes_{name}": value for name, value in sizes.items()},
        **scores["trained"],
    }
