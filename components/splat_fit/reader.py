"""What a teacher sees of a patch, for fits that serve it: worked out once, kept beside the shards."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from components.errors import PermanentError, UsageError
from components.manifest import Artifact, Commit, FileEntry, open_artifact, sha256_bytes
from components.store import StoreNotFound, open_store

FILE, TENSOR = "reader_metric.safetensors", "rows"
NUM_PICTURES = 300  # the estimate's spread over other pictures is then well below what the metric gains

Rows = npt.NDArray[np.float32]


def check_reader(reader: Artifact, ref: str, side: int) -> None:
    """UsageError unless this is a teacher whose own pictures have the side, in pixels, of those that are fitted."""
    if reader.manifest.stage != "train_teacher":
        raise UsageError(
            f"splat_fit.reader is {ref}, the output of {reader.manifest.stage}; give the output of train_teacher"
        )
    from components.openclip import image_side, load_teacher

    expected = image_side(load_teacher(reader).model)
    if expected != side:
        raise UsageError(
            f"splat_fit.reader looks at pictures of {expected} x {expected} pixels, but those to be fitted have a side "
            f"of {side}; set download.image_size to {expected}, or fit without a reader"
        )


def reader_metric(reader: Artifact, commit: Commit) -> tuple[Rows, FileEntry]:
    """Rows [K, 3 P^2] for `splat2d.fit(metric=)` (components/patch_metric.py), and their file's entry.

    Estimated on the first pictures that the teacher was trained on, whatever set is fitted. A file that an earlier call
    left under the prefix is used: what goes on later fits under the same metric. PermanentError if it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load, save

    try:
        data = commit.store.get_bytes(FILE)
    except StoreNotFound:
        data = save({TENSOR: _estimated(reader)})
        commit.put_file(FILE, data)
    try:
        rows: Rows = load(data)[TENSOR]
    except (SafetensorError, KeyError) as error:
        raise PermanentError(
            f"{commit.url}/{FILE}: not a reader's metric ({error!r}); delete it and run again"
        ) from error
    return rows, FileEntry(name=FILE, sha256=sha256_bytes(data), bytes=len(data))


def _estimated(reader: Artifact) -> Rows:
    from components.loader import ImageSet
    from components.openclip import load_teacher, normalize_images
    from components.patch_metric import patch_metric

    teacher = load_teacher(reader)
    root = open_store(reader.url.rstrip("/").removesuffix(f"/{reader.manifest.path}"))  # where the teacher was made
    images = open_artifact(root.sub(reader.manifest.inputs["images"]["path"]).url, root)
    pictures = ImageSet(images, "train", limit=NUM_PICTURES, image_size=teacher.image_size)
    (batch,) = pictures.batches(len(pictures), shuffle=False)
    return patch_metric(teacher.model, normalize_images(batch.pixels, teacher.mean, teacher.std), teacher.std)
