"""Image and text features of every row, in one pass over the pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from components.adapter import load_adapter, load_control
from components.errors import PermanentError
from components.images import fit_square
from components.loader import Batch, ImageSet, SplatBatch
from components.manifest import Artifact
from components.openclip import LoadedTeacher, Tokenizer, normalize_images
from components.progress import progress
from components.signals import Stop
from components.splats import PaddedSplats, render_pictures

Features = NDArray[np.float32]
TEXT_BATCH = 256
CONTROLS = ("control", "control_stage1")


@dataclass(frozen=True)
class Reader:
    """One row's model. clip: the open_clip CLIP whose text tower it uses; encode: batch -> L2-normalised [B, D]."""

    name: str
    model: nn.Module
    clip: nn.Module
    encode: Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Embedded:
    """keys [n]; features: row -> [n, D]; classes [n], -1 where there is none; captions [n]."""

    keys: list[str]
    features: dict[str, Features]
    classes: NDArray[np.int64]
    captions: list[list[str]]


def build_readers(
    adapter: Artifact, teacher: LoadedTeacher, side: int, device: torch.device, threads: int = 0
) -> list[Reader]:
    """The rows' models: teacher, the controls that the adapter artifact holds, the teacher on renders, splats.

    side: of the pictures that the splats were fitted to, in pixels; threads: of the renderer, 0: all cores. Raises
    PermanentError where the adapter was trained on splats of pictures of another size: their coordinates would mean
    other places.
    """

    def encode_pixels(clip: Any, pixels: Tensor) -> Tensor:
        images = normalize_images(pixels.to(device), teacher.mean, teacher.std)
        features: Tensor = clip.encode_image(images, normalize=True)
        return features

    def rgb(clip: Any) -> Callable[[Batch], Tensor]:
        return lambda batch: encode_pixels(clip, batch.pixels)

    def rendered(batch: Batch) -> Tensor:
        return encode_pixels(teacher.model, drawn(batch.gaussians, side, teacher.image_size, threads))

    readers = [Reader("teacher", teacher.model, teacher.model, rgb(teacher.model))]
    for which in CONTROLS:
        if adapter.has(f"{which}.safetensors"):
            control = load_control(adapter, teacher, which, device)
            readers.append(Reader(which, control, control, rgb(control)))
    readers.append(Reader("rendered", teacher.model, teacher.model, rendered))
    student = load_adapter(adapter, teacher, device)
    if student.config.picture != (side, side):
        width, height = student.config.picture
        raise PermanentError(
            f"adapter: {adapter.url} reads splats of {width} x {height} pixels, these are of {side} x {side}; "
            f"set download.image_size to {width}"
        )

    def read_splats(batch: Batch) -> Tensor:
        return student.encode_splats(batch.gaussians.trimmed().to(device))

    readers.append(Reader("splats", student, student.clip, read_splats))
    return readers


def drawn(splats: SplatBatch, side: int, wanted: int, threads: int) -> Tensor:
    """Pictures uint8 [B, wanted, wanted, 3] of splats of side x side pixels, resized as photographs are."""
    means, cholesky, colors = (part.numpy() for part in (splats.means, splats.cholesky, splats.colors))
    counts = splats.mask.sum(1).numpy().astype(np.int32)
    pictures = render_pictures(PaddedSplats(means, cholesky, colors, counts), side, side, threads=threads)
    if wanted != side:
        pictures = np.stack([fit_square(picture, wanted) for picture in pictures])
    return torch.from_numpy(pictures)


def check_finite(features: Features, row: str, names: Sequence[str]) -> Features:
    """`features` [n, D] as they are; PermanentError, naming row and first of n `names`, for NaN and infinity."""
    wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(wrong):
        raise PermanentError(
            f"row {row!r}: its model returns values that are not finite, for {names[wrong[0]]!r} first; such a model "
            "cannot be scored: train it again, at a lower learning rate if its loss was not finite either"
        )
    return features


def embed_images(readers: Sequence[Reader], pictures: ImageSet, batch_size: int, stop: Stop) -> Embedded:
    """Features of all pictures under all readers.

    Raises PermanentError for a row whose features are not finite, Interrupted when a stop is asked for.
    """
    keys: list[str] = []
    classes: list[Tensor] = []
    captions: list[list[str]] = []
    parts: dict[str, list[Features]] = {reader.name: [] for reader in readers}
    with torch.inference_mode(), progress("zero-shot-eval", total=len(pictures), unit="pictures") as bar:
        for batch in pictures.batches(batch_size, seed=0, epoch=0, shuffle=False, drop_last=False):
            for reader in readers:
                features = reader.encode(batch).float().cpu().numpy()
                parts[reader.name].append(check_finite(features, reader.name, batch.keys))
            keys += batch.keys
            captions += batch.captions
            classes.append(batch.classes.cpu())
            stop.check("scoring keeps nothing half done; run the same command again")
            bar.advance(len(batch.keys))
    joined = {name: np.concatenate(part) for name, part in parts.items()}
    return Embedded(keys, joined, torch.cat(classes).numpy().astype(np.int64), captions)


def _text_state(clip: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in clip.state_dict().items() if not name.startswith("visual.")}


def _same_text_tower(one: nn.Module, other: nn.Module) -> bool:
    first, second = _text_state(one), _text_state(other)
    same = first.keys() == second.keys()
    return same and all(torch.equal(first[name], second[name]) for name in first if name != "logit_scale")


def text_features(readers: Sequence[Reader], encode: Callable[[Reader], Features]) -> Mapping[str, Features]:
    """Row -> encode(row's reader), worked out once for all rows whose text towers are bit for bit the same."""
    found: dict[str, Features] = {}
    for i, reader in enumerate(readers):
        twin = next((other for other in readers[:i] if _same_text_tower(reader.clip, other.clip)), None)
        found[reader.name] = encode(reader) if twin is None else found[twin.name]
    return found


def encode_texts(reader: Reader, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device) -> Features:
    """L2-normalised features [T, D] of texts; PermanentError where they are not finite."""
    parts = []
    clip: Any = reader.clip
    with torch.inference_mode():
        for start in range(0, len(texts), TEXT_BATCH):
            tokens = tokenizer(list(texts[start : start + TEXT_BATCH])).to(device)
            parts.append(clip.encode_text(tokens, normalize=True).float().cpu().numpy())
    return check_finite(np.concatenate(parts), reader.name, texts)
