"""Teach a frozen CLIP to read splats, and train the fair control that it is measured against."""

from __future__ import annotations

import copy
import functools
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from components.adapter import describe
from components.checkpoints import CHECKPOINTS
from components.config import TrainAdapterParams, semantic
from components.contrastive import prompt_classifier
from components.device import pick_device
from components.distributed import World, joined
from components.errors import PermanentError, UsageError
from components.freeze import check_teacher
from components.loader import ImageSet
from components.manifest import Artifact, Commit, FileEntry, open_artifact
from components.openclip import LoadedTeacher, load_teacher, save_model
from components.prompts import Prompts, load_prompts
from components.report import Report
from components.scratch import scratch_folder
from components.signals import Stop, stop_on_sigterm
from components.store import open_store
from components.texts import TextBank
from components.train_adapter.augment import Augmentation
from components.train_adapter.data import Stream, TextFeatures
from components.train_adapter.phases import Phases, Trained, encode_images
from components.train_adapter.start import fresh_student
from components.train_adapter.targets import EmbeddingsAsGiven, Targets, TeacherEmbeddings
from components.train_adapter.validate import Classifier, Validation
from components.trainer import CurveRow, curve_csv, delete_checkpoints, has_validation

STAGE = "train_adapter"
VERSION = 5


def run(params: TrainAdapterParams, *, images: str, teacher: str, splats: str, store: str) -> Report:
    """Train the adapter and its control on the `train` split; choose learning rates on `val`; never look at `test`.

    images, teacher, splats: outputs of download, train_teacher and splat_fit. Commits adapter.safetensors (the tensors
    that train), adapter.json, control.safetensors and control_stage1.safetensors where asked for, curve.csv.
    A stopped run goes on from its last checkpoint; finished phases are not repeated.
    Raises UsageError for parameters that do not fit the inputs, PermanentError for inputs that do not fit each other,
    Interrupted on SIGTERM or Ctrl-C.
    """
    started = time.monotonic()
    root = open_store(store)
    given = {"images": images, "teacher": teacher, "splats": splats}
    stages = {"images": "download", "teacher": "train_teacher", "splats": "splat_fit"}
    inputs = {name: open_artifact(ref, root) for name, ref in given.items()}
    for name, artifact in inputs.items():
        if artifact.manifest.stage != stages[name]:
            raise UsageError(
                f"{name} is {given[name]}, the output of {artifact.manifest.stage}; give the output of {stages[name]}"
            )
    used, have = inputs["splats"].manifest.inputs.get("images", {}).get("sha256"), inputs["images"].manifest.sha256
    if used != have:
        raise PermanentError(
            f"splats: {inputs['splats'].url} was fitted to images {used}, but those given, {inputs['images'].url}, are "
            f"{have}; give the images it was fitted to, or fit these"
        )
    commit = Commit(root, stage=STAGE, version=VERSION, params=semantic(params), inputs=inputs)
    with stop_on_sigterm() as stop, joined(params.device) as world:
        cached = world.share(lambda: commit.finished() is not None)
        if not cached:
            if world.leads:
                commit.begin(CHECKPOINTS)
            _train(params, inputs, commit, stop, world)
            world.wait()  # for process 0's manifest
        if world.leads:
            delete_checkpoints(commit.store)  # also those that a stop between the manifest and this left
        finished = commit.finished()
    if finished is None:
        raise PermanentError(f"{commit.url} has no manifest after its training; give all processes the same store")
    return _report(finished, started, cached=cached)


def _report(artifact: Artifact, started: float, *, cached: bool) -> Report:
    manifest = artifact.manifest
    return Report(
        stage=STAGE,
        url=artifact.url,
        manifest_sha256=manifest.sha256,
        cached=cached,
        metrics=manifest.metrics,
        seconds=time.monotonic() - started,
        speeds={},
        manifest=manifest,
    )


def _train(
    params: TrainAdapterParams,
    inputs: dict[str, Artifact],
    commit: Commit,
    stop: Stop,
    world: World,
) -> None:
    device = pick_device(params.device, params.threads)
    teacher = load_teacher(inputs["teacher"], device)
    teacher.model.requires_grad_(False)
    check_teacher(teacher.model)
    stream, val = _streams(params, inputs, teacher, device, world)
    world.check_batch("train_adapter", stream.batch_size, params.accumulate_steps)
    without = stream.without_splats
    if without and world.leads:
        told = f"{without:,} of {without + len(stream):,} train pictures have no splats and are left out"
        print(f"train_adapter: {told}; {inputs['splats'].url}/_done names them", file=sys.stderr, flush=True)
    prompts = load_prompts(inputs["images"])
    texts = TextFeatures(teacher.model, _bank(teacher, prompts, params.seed))
    classifier = None
    if prompts is not None:
        names, templates = prompts.class_names, prompts.templates
        classifier = Classifier(lambda model: prompt_classifier(model, teacher.tokenizer, names, templates))
    validation = Validation(val, texts, classifier)

    @functools.cache
    def targets() -> Targets:
        if not params.cache_embeddings or not Augmentation.of(params).keeps_pictures:
            return EmbeddingsAsGiven(teacher)
        return TeacherEmbeddings(
            inputs["images"],
            inputs["teacher"],
            teacher,
            commit.root,
            flips=params.augment,
            stop=stop,
            world=world,
        )

    phases = Phases(
        params=params,
        teacher=teacher,
        stream=stream,
        targets=targets,
        texts=texts,
        validation=validation,
        checkpoints=commit.store,
        stop=stop,
    )
    side = _side(inputs["images"])
    student = fresh_student(params, teacher, stream.alone(), side=side, device=device, stop=stop, world=world)
    after_stage1 = phases.stage1(student)
    share = phases.free(student)
    control_share = phases.free_control(copy.deepcopy(teacher.model))
    if world.leads:
        print(f"train_adapter, {params.freeze_policy}: {share}", file=sys.stderr)
        print(f"its control, {params.freeze_policy}: {control_share}", file=sys.stderr, flush=True)
    results = {"student": phases.stage2(student)}
    if params.control:
        results["control"] = phases.control(with_stage1=False)
    if params.control_with_stage1:
        results["control_stage1"] = phases.control(with_stage1=True)

    metrics: dict[str, Any] = {
        "trained": share.trained,
        "num_train": len(stream),
        "num_train_without_splats": without,
        "stem_parameters": sum(p.numel() for p in student.stem.parameters()),
        "trained_share": share.share,
        "trained_vision_share": share.vision_share,
        "trained_all_share": share.all_share,
        "control_trained": control_share.trained,
        "control_trained_share": control_share.share,
        "stage1_steps": phases.steps(params.stage1_token_epochs) + phases.steps(params.stage1_cls_epochs),
        "stage2_steps": phases.steps(params.stage2_epochs),
        **{f"stage1_{name}": value for name, value in after_stage1.items()},
        **{f"teacher_{name}": value for name, value in validation.of(teacher.model, encode_images).items()},
    }
    for name, trained in results.items():
        metrics[f"{name}_learning_rate"] = trained.learning_rate
        metrics |= {f"{name}_{key}": value for key, value in trained.validation.items()}
    rates = {name: trained.learning_rate for name, trained in results.items()}
    description = describe(
        student.config,
        params.freeze_policy,
        lora_rank=params.lora_rank,
        teacher=teacher.model_name,
        learning_rates=rates,
    )
    if world.leads:
        files = _put(commit, results, phases.rows, description)
        commit.finalise(shards=[], files=files, metrics=metrics)


def _streams(
    params: TrainAdapterParams,
    inputs: dict[str, Artifact],
    teacher: LoadedTeacher,
    device: torch.device,
    world: World,
) -> tuple[Stream, Stream | None]:
    """Training and validation batches; no validation stream where there is nothing to validate on."""
    images = inputs["images"]
    val = has_validation(images.manifest, inputs["splats"].manifest)
    if not val and len(params.stage2_learning_rates) > 1:
        raise UsageError(
            "train_adapter.stage2_learning_rates has several to choose from, but there are no validation pictures "
            "with splats to choose on; set download.num_val, or give one learning rate"
        )
    side = _side(images)

    def stream(split: str, augmentation: Augmentation) -> Stream:
        pictures = ImageSet(images, split, splats=inputs["splats"], image_size=teacher.image_size)
        return Stream(
            pictures,
            teacher,
            device,
            picture=side,
            batch_size=params.batch_size,
            seed=params.seed,
            augmentation=augmentation,
            world=world,
        )

    return stream("train", Augmentation.of(params)), stream("val", Augmentation()) if val else None


def _side(images: Artifact) -> int:
    """Side in pixels of the pictures that the splats were fitted to."""
    side = images.manifest.params.get("image_size")
    if not isinstance(side, int) or side < 1:
        raise PermanentError(f"{images.url}: its manifest does not say image_size; run download again")
    return side


def _bank(teacher: LoadedTeacher, prompts: Prompts | None, seed: int) -> TextBank:
    if prompts is None:
        return TextBank(teacher.tokenizer, seed=seed)
    return TextBank(teacher.tokenizer, prompts.class_names, prompts.templates, seed=seed)


def _put(
    commit: Commit,
    results: dict[str, Trained],
    rows: Sequence[CurveRow],
    description: bytes,
) -> list[FileEntry]:
    """Commit the trained tensors, their description and the curve."""
    files = []
    with scratch_folder() as folder:
        for name, trained in results.items():
            file = f"{'adapter' if name == 'student' else name}.safetensors"
            save_model(trained.state, folder / file)
            files.append(commit.put_file(file, folder / file))
    files.append(commit.put_file("adapter.json", description))
    files.append(commit.put_file("curve.csv", curve_csv(rows)))
    return files
