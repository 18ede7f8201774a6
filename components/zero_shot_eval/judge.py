"""Which pictures count, how each row was tested, and its hits: classification or retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from components.contrastive import prompt_classifier
from components.errors import PermanentError
from components.manifest import Artifact, open_artifact
from components.openclip import LoadedTeacher
from components.prompts import Prompts, load_prompts
from components.scores import FloatArray
from components.store import Store
from components.zero_shot_eval import rows, wording
from components.zero_shot_eval.embed import Embedded, Features, Reader, check_finite, encode_texts, text_features
from components.zero_shot_eval.inventory import Inventory


@dataclass(frozen=True)
class Judged:
    """task: one of prompts.KINDS; rows; chance by metric; weights: metric -> what a picture weighs [n].

    truth: class numbers [n], or whether a picture shows a class [n, C]; None in retrieval.
    """

    task: str
    rows: list[rows.Row]
    chance: dict[str, float]
    weights: dict[str, FloatArray]
    truth: NDArray[np.int64] | NDArray[np.bool_] | None = None


def select(
    embedded: Embedded,
    inventory: Inventory,
    class_names: tuple[str, ...],
    where: str,
    labels: Mapping[str, tuple[int, ...]] | None = None,
) -> tuple[Embedded, Inventory]:
    """Leave out pictures without a class (or, without class_names, without a caption) and count them in left_out.

    labels: of a multilabel set, key -> the classes that the picture shows; a picture may show none of them.
    Raises PermanentError for a class number without a name, and where nothing is left.
    """
    if set(embedded.keys) != set(inventory.photographs):
        raise PermanentError(
            f"{where}: {len(embedded.keys)} pictures were read, {len(inventory.keys)} are listed; make the set again"
        )
    captions = [[text for text in given if text.strip()] for given in embedded.captions]
    if labels is not None:
        usable, reason = np.array([key in labels for key in embedded.keys]), "without classes"
    elif class_names:
        beyond = np.flatnonzero(embedded.classes >= len(class_names))
        if len(beyond):
            raise PermanentError(
                f"{where}: picture {embedded.keys[beyond[0]]!r} is of class {embedded.classes[beyond[0]]}, but "
                f"classnames.txt names {len(class_names)} classes (0..{len(class_names) - 1})"
            )
        usable, reason = embedded.classes >= 0, "without a class"
    else:
        usable, reason = np.array([len(given) > 0 for given in captions]), "without a caption"
    kept = np.flatnonzero(usable)
    if not len(kept):
        raise PermanentError(f"{where}: all {len(embedded.keys)} pictures are {reason}; nothing can be scored")
    inventory = inventory.without((embedded.keys[i] for i in np.flatnonzero(~usable)), reason)
    features = {name: values[kept] for name, values in embedded.features.items()}
    keys, given = [embedded.keys[i] for i in kept], [captions[i] for i in kept]
    return Embedded(keys, features, embedded.classes[kept], given), inventory


def _trained_classes(made: Artifact, images: Artifact, own: list[str], store: Store) -> list[str] | None:
    """Class names that the training of `made` has seen; None where its image set cannot be looked up any more."""
    source = made.manifest.inputs.get("images")
    if source is None:
        return own
    if source["sha256"] == images.manifest.sha256:
        found = load_prompts(images)
    else:
        try:
            found = load_prompts(open_artifact(store.sub(source["path"]).url, store))
        except PermanentError:
            return own or None
    return own + (list(found.class_names) if found is not None else [])


def _trained_on(made: Artifact, images: Artifact, store: Store) -> bool:
    """Whether the training of `made` read this image set: the same pictures, or others of the set of that name."""
    source = made.manifest.inputs.get("images")
    if source is None or source["sha256"] == images.manifest.sha256:
        return source is not None
    try:
        trained = open_artifact(store.sub(source["path"]).url, store)
    except PermanentError:
        return False
    return trained.manifest.metrics.get("dataset") == images.manifest.metrics.get("dataset")


def settings(
    inputs: Mapping[str, Artifact], teacher: LoadedTeacher, prompts: Prompts | None, store: Store
) -> dict[str, str]:
    """In which sense the rows of the untouched "teacher" and those of "adapter" were tested."""
    images = inputs["images"]
    own = teacher.class_names_trained if teacher.trained_here else []
    found = {}
    for name, trained_here in (("teacher", teacher.trained_here), ("adapter", True)):
        if prompts is not None:
            seen = _trained_classes(inputs[name], images, own, store) if trained_here else []
            found[name] = wording.classification_setting(prompts.class_names, seen)
        else:
            found[name] = wording.retrieval_setting(trained_here, _trained_on(inputs[name], images, store))
    return found


def _setting(reader: Reader, found: Mapping[str, str]) -> str:
    return found["teacher" if reader.name in {"teacher", "rendered"} else "adapter"]


def classify(
    readers: list[Reader],
    embedded: Embedded,
    teacher: LoadedTeacher,
    prompts: Prompts,
    found: Mapping[str, str],
    *,
    labels: Mapping[str, tuple[int, ...]] | None = None,
) -> Judged:
    """Prompt ensembles over the set's classes; found: what `settings` returned; labels: as `select` takes them."""

    def classifier(reader: Reader) -> Features:
        clip: Any = reader.clip
        made = prompt_classifier(clip, teacher.tokenizer, prompts.class_names, prompts.templates)
        check_finite(made.T.cpu().numpy(), reader.name, prompts.class_names)
        array: Features = made.cpu().numpy()
        return array

    columns = text_features(readers, classifier)

    def logits(reader: Reader) -> Features:  # one row's at a time: with 1,000 classes they are 200 MB
        return embedded.features[reader.name] @ columns[reader.name]

    if labels is None:
        scored = [
            rows.classification_row(one.name, _setting(one, found), logits(one), embedded.classes) for one in readers
        ]
        chance = rows.classification_chance(len(prompts.class_names))
        return Judged("classification", scored, chance, {}, embedded.classes)
    truth = np.zeros((len(embedded.keys), len(prompts.class_names)), dtype=bool)
    for i, key in enumerate(embedded.keys):
        truth[i, list(labels[key])] = True
    scored = [rows.multilabel_row(one.name, _setting(one, found), logits(one), truth) for one in readers]
    return Judged("multilabel", scored, rows.multilabel_chance(truth), {}, truth)


def retrieve(
    readers: list[Reader],
    embedded: Embedded,
    teacher: LoadedTeacher,
    found: Mapping[str, str],
    device: torch.device,
) -> Judged:
    """Captions and pictures searched for one another."""
    texts = [text for captions in embedded.captions for text in captions]
    counts = [len(captions) for captions in embedded.captions]
    owners = np.repeat(np.arange(len(counts)), counts)
    features = text_features(readers, lambda reader: encode_texts(reader, teacher.tokenizer, texts, device))
    scored = [
        rows.retrieval_row(
            reader.name,
            _setting(reader, found),
            features[reader.name] @ embedded.features[reader.name].T,
            owners,
        )
        for reader in readers
    ]
    weights = {f"image_retrieval_recall@{k}": np.asarray(counts, dtype=np.float64) for k in rows.RECALL_AT}
    return Judged("retrieval", scored, rows.retrieval_chance(owners), weights)
