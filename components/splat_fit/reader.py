"""What a teacher sees of a patch, for fits that serve it: worked out once, kept beside the shards."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from components.entries import stored_name
from components.errors import PermanentError, UsageError
from components.manifest import Artifact, Commit, FileEntry, open_artifact, sha256_bytes
from components.store import Store, StoreNotFound, open_store

FILE, TENSOR = "reader/metric.safetensors", "rows"  # in a folder of its own, which is listed before the shards are
NUM_PICTURES = 300  # the estimate's spread over other pictures is then well below what the metric gains
BATCH = 16  # a ViT-B-16 keeps 113 MiB a picture for the gradient

Rows = npt.NDArray[np.float32]


def open_reader(ref: str, root: Store) -> Artifact:
    """The teacher that splat_fit.reader names; UsageError where it is another stage's output."""
    try:
        reader = open_artifact(ref, root)
    except PermanentError as error:
        raise type(error)(f"splat_fit.reader: {error}") from error
    if reader.manifest.stage != "train_teacher":
        raise UsageError(
            f"splat_fit.reader is {ref}, the output of {reader.manifest.stage}; give the output of train_teacher"
        )
    return reader


def reader_metric(reader: Artifact, commit: Commit, side: int) -> tuple[Rows, FileEntry]:
    """Rows [K, 3 P^2] for `splat2d.fit(metric=)` (components/patch_metric.py), and their file's entry.

    side: of the pictures to be fitted, in pixels. Estimated on the first pictures that the teacher was trained on,
    whatever set is fitted. What lies under the prefix is used, whoever put it there (the first by name), and the
    teacher not even loaded: what goes on later, or beside, fits under the same metric. UsageError for a teacher that
    reads other pictures, PermanentError for a damaged file.
    """
    folder = f"{FILE.partition('/')[0]}/"
    if not commit.store.list(folder):
        from safetensors.numpy import save

        commit.put_file(FILE, save({TENSOR: _estimated(reader, commit.root, side)}))
    place = commit.store.list(folder)[0]
    data = commit.store.get_bytes(place)
    entry = FileEntry(name=FILE, sha256=sha256_bytes(data), bytes=len(data), stored=place)
    if place != stored_name(FILE, entry.sha256):
        raise PermanentError(f"{commit.url}/{place}: damaged: its name has another sum; delete it and run again")
    return _rows(data, side, f"{commit.url}/{place}"), entry


def _rows(data: bytes, side: int, where: str) -> Rows:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        rows: Rows = load(data)[TENSOR]
    except (SafetensorError, KeyError) as error:
        raise PermanentError(f"{where}: not a reader's metric ({error!r}); delete it and run again") from error
    patch = math.isqrt(rows.shape[-1] // 3) if rows.ndim == 2 else 0
    tiles = patch > 0 and rows.shape[-1] == 3 * patch**2 and side % patch == 0
    if rows.dtype != np.float32 or not tiles or not 0 < np.square(rows).sum() < math.inf:
        raise PermanentError(
            f"{where}: not a reader's metric: expected float32 [K, 3 P^2], finite and not all zero, of patches that "
            f"tile {side} x {side} pixels, got {rows.dtype} {list(rows.shape)}; delete this prefix and run again"
        )
    return rows


def _estimated(reader: Artifact, root: Store, side: int) -> Rows:
    from components.loader import ImageSet
    from components.openclip import load_teacher, normalize_images
    from components.patch_metric import patch_metric

    teacher = load_teacher(reader)
    patch = int(teacher.model.visual.conv1.kernel_size[0])
    if teacher.image_size != side or side % patch:
        raise UsageError(
            f"splat_fit.reader looks at pictures of {teacher.image_size} x {teacher.image_size} pixels in patches of "
            f"{patch}, but those to be fitted have a side of {side}; set download.image_size to match, or fit without "
            "a reader"
        )
    teacher.model.requires_grad_(False)
    pictures = ImageSet(_pictures(reader, root), "train", limit=NUM_PICTURES, image_size=teacher.image_size)
    (batch,) = pictures.batches(len(pictures), shuffle=False)
    images = normalize_images(batch.pixels, teacher.mean, teacher.std)
    return patch_metric(teacher.model, images, teacher.std, batch_size=BATCH)


def _pictures(reader: Artifact, root: Store) -> Artifact:
    """What the teacher was trained on: in the store where it was made, or in this one."""
    given = reader.manifest.inputs.get("images")
    if given is None:
        raise PermanentError(f"splat_fit.reader: {reader.url}: its manifest names no pictures; train the teacher again")
    own = open_store(reader.url.rstrip("/").removesuffix(f"/{reader.manifest.path}"))
    for store in (own, root):
        try:
            found = open_artifact(store.sub(given["path"]).url, store)
        except (PermanentError, StoreNotFound):
            continue
        if found.manifest.sha256 == given["sha256"]:
            return found
    raise PermanentError(
        f"splat_fit.reader: the pictures that {reader.url} was trained on, {given['path']}, are neither in {own.url} "
        f"nor in {root.url}; name the store that holds them (--store), or train the teacher again"
    )
