"""open_clip: imported in one place, its models built, saved and loaded as teachers."""

from __future__ import annotations

import difflib
import functools
import importlib
import json
import sys
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from components.errors import PermanentError, TransientError, UsageError
from components.scratch import save_tensors

if TYPE_CHECKING:
    from open_clip import CLIP

    from components.manifest import Artifact

MODEL_FILE, CONFIG_FILE, CURVE_FILE = "model.safetensors", "config.json", "curve.csv"
ARCHITECTURE_KEYS = ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "init_logit_bias")
Tokenizer = Callable[[list[str]], Tensor]

_TORCHVISION_OPS = {
    "torchvision::nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "torchvision::qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _import_torchvision() -> ModuleType:
    """Import torchvision, mended where its binary part does not fit this torch (0.28.0 on a CPU build of torch).

    Its Python part then fails on registering operators that were never defined. They are defined only after that very
    failure, so that a torchvision that imports by itself is left alone; nothing here calls them.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name, schema in _TORCHVISION_OPS.items():
        torch.library.define(name, schema)
    for name in [name for name in list(sys.modules) if name.partition(".")[0] == "torchvision"]:  # others may import
        del sys.modules[name]
    return importlib.import_module("torchvision")


@functools.cache
def import_open_clip() -> ModuleType:
    """The open_clip package."""
    _import_torchvision()
    return importlib.import_module("open_clip")


def model_config(model: str) -> dict[str, Any]:
    """The open_clip configuration of a model: of its own registry by name, or read from a JSON file.

    A relative path is looked up from the working folder, then from where this package lies. Raises UsageError if there
    is no such model or the file is not an open_clip configuration of a plain CLIP.
    """
    if model.endswith(".json"):
        places = [Path(model), Path(__file__).resolve().parent.parent / model]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise UsageError(f"train_teacher.model: there is no file {model!r} (looked here and beside the package)")
        try:
            config = json.loads(found.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{found}: cannot read the model's configuration: {error}") from None
    else:
        registry = import_open_clip()
        config = registry.get_model_config(model)
        if config is None:
            names = registry.list_models()
            close = difflib.get_close_matches(model, names, n=3, cutoff=0.5)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UsageError(f"train_teacher.model: open_clip has no model {model!r}{hint} (a path ends with .json)")
    return _check_config(config, model)


def _check_config(config: Any, where: str) -> dict[str, Any]:
    if not isinstance(config, dict) or not all(key in config for key in ("embed_dim", "vision_cfg", "text_cfg")):
        raise UsageError(f"{where}: not an open_clip configuration; it needs embed_dim, vision_cfg and text_cfg")
    special = [key for key in ("custom_text", "multimodal_cfg") if config.get(key)]
    special += [key for key in ("timm_model_name", "output_tokens") if config["vision_cfg"].get(key)]
    special += [key for key in ("hf_model_name", "hf_tokenizer_name") if config["text_cfg"].get(key)]
    if special or isinstance(config["vision_cfg"].get("layers"), list):
        raise UsageError(
            f"{where}: only open_clip's plain CLIP with a VisionTransformer can be a teacher, such as ViT-B-32, "
            f"ViT-B-16, ViT-M-16 or ViT-L-14; this one has {', '.join(special) or 'a ResNet'}"
        )
    return {key: config[key] for key in ARCHITECTURE_KEYS if key in config}


def _instantiate(config: Mapping[str, Any], mean: Any = None, std: Any = None) -> CLIP:
    open_clip = import_open_clip()
    try:
        clip = open_clip.CLIP(**deepcopy(dict(config)))
    except (TypeError, AssertionError, ValueError) as error:
        raise UsageError(f"open_clip cannot build a model from this configuration: {error}; {dict(config)}") from error
    stats = {"mean": mean or open_clip.OPENAI_DATASET_MEAN, "std": std or open_clip.OPENAI_DATASET_STD}
    open_clip.model.set_model_preprocess_cfg(clip, {**stats, "size": clip.visual.image_size})
    clip.splatclip_config = dict(config)
    return clip


def built_config(clip: CLIP) -> dict[str, Any]:
    """The open_clip configuration that `build` made the model from, a tag's activation included."""
    return deepcopy(dict(clip.splatclip_config))


def _pretrained(model: str, pretrained: str) -> tuple[Path, dict[str, Any]]:
    """The local checkpoint of a path or tag, fetched where need be, and the tag's own settings."""
    open_clip = import_open_clip()
    if Path(pretrained).is_file():
        return Path(pretrained), {}
    if Path(pretrained).suffix in {".pt", ".pth", ".bin", ".safetensors"} or "/" in pretrained:
        raise PermanentError(
            f"train_teacher.pretrained: there is no file {pretrained!r}; give a path or an open_clip tag"
        )
    settings = open_clip.get_pretrained_cfg(model, pretrained)
    if not settings:
        tags = open_clip.list_pretrained_tags_by_model(model)
        known = f"it has: {', '.join(tags)}" if tags else "it has none; give the path of a checkpoint"
        raise PermanentError(f"train_teacher.pretrained: {pretrained!r} is no tag of {model} in open_clip; {known}")
    try:
        return Path(open_clip.download_pretrained(settings)), settings
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TransientError(
            f"cannot fetch the weights {pretrained!r} of {model}: {reason}; try again with a network, fill the model "
            "hub's cache beforehand (HF_HOME), or give a checkpoint's path in train_teacher.pretrained"
        ) from error


def build(model: str, pretrained: str = "", device: torch.device | str = "cpu") -> CLIP:
    """An open_clip CLIP in float32, in evaluation mode.

    model: an open_clip model's name, or the path of a JSON configuration in open_clip's format. pretrained: an
    open_clip tag, the path of a checkpoint (.safetensors, .pt, .bin), or empty for fresh weights, which torch's global
    seed decides.
    Raises UsageError for an unknown model, PermanentError for an unknown tag or a checkpoint that does not fit, and
    TransientError where weights cannot be fetched.
    """
    config = model_config(model)
    if not pretrained:
        return _instantiate(config).to(device).eval()
    path, settings = _pretrained(model, pretrained)
    if "quick_gelu" in settings:  # a tag says which activation its weights were trained with
        config["quick_gelu"] = settings["quick_gelu"]
    clip = _instantiate(config, settings.get("mean"), settings.get("std"))
    try:
        import_open_clip().load_checkpoint(clip, str(path), strict=True, weights_only=True)
    except (RuntimeError, KeyError, ValueError, AttributeError, OSError, EOFError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise PermanentError(f"{path}: not a checkpoint of {model}: {reason}; give the model's own weights") from error
    return clip.to(device).eval()


def tokenizer(config: Mapping[str, Any]) -> Tokenizer:
    """CLIP's tokenizer for a model's configuration: texts -> int64 tokens [U, L]; longer texts are cut off at L."""
    text = config["text_cfg"]
    context_length = text.get("context_length", 77)
    made: Tokenizer = import_open_clip().SimpleTokenizer(
        context_length=context_length, **text.get("tokenizer_kwargs", {})
    )
    return made


def preprocess_stats(clip: CLIP) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of RGB in [0, 1] that the model's pictures are normalised with."""
    settings = clip.visual.preprocess_cfg
    return tuple(float(v) for v in settings["mean"]), tuple(float(v) for v in settings["std"])


def normalize_images(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 [B, H, W, 3], or float of the same units -> float32 [B, 3, H, W], as the model wants its pictures."""
    shift = torch.tensor(mean, device=images.device) * 255.0
    scale = torch.tensor(std, device=images.device) * 255.0
    return ((images.float() - shift) / scale).permute(0, 3, 1, 2)


def save_model(state: Mapping[str, Tensor], path: Path) -> None:
    """Write weights as safetensors; the same weights give the same bytes."""
    save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}, path)


@dataclass(frozen=True, kw_only=True)
class LoadedTeacher:
    """A teacher and what is needed to use it. config: open_clip's configuration; pretrained: the tag or path asked for.

    mean, std: of RGB in [0, 1]; image_size: side of its pictures in pixels; trained_here: on the image shards, then
    class_names_trained are the classes whose prompts it was trained on: its scores on them are not zero-shot.
    """

    model: CLIP
    model_name: str
    pretrained: str
    config: dict[str, Any]
    tokenizer: Tokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    trained_here: bool
    class_names_trained: list[str]


def load_teacher(artifact: Artifact, device: torch.device | str = "cpu") -> LoadedTeacher:
    """Load what train_teacher committed, in float32 and evaluation mode; PermanentError if it is damaged."""
    with artifact.local(CONFIG_FILE) as path:
        try:
            values = json.loads(path.read_bytes())
            name, pretrained = str(values["model"]), str(values["pretrained"])
            trained_here, class_names = bool(values["trained_here"]), [str(one) for one in values["class_names"]]
            mean, std = tuple(values["mean"]), tuple(values["std"])
        except (ValueError, KeyError, TypeError) as error:
            raise PermanentError(f"{artifact.url}/{CONFIG_FILE}: not a teacher's configuration: {error!r}") from error
    config = _check_config(values, f"{artifact.url}/{CONFIG_FILE}")
    clip = _instantiate(config, mean, std)
    with artifact.local(MODEL_FILE) as path:
        try:
            clip.load_state_dict(load_file(path))
        except (RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise PermanentError(f"{artifact.url}/{MODEL_FILE}: does not fit {CONFIG_FILE}: {reason}") from error
    return LoadedTeacher(
        model=clip.to(device).eval(),
        model_name=name,
        pretrained=pretrained,
        config=config,
        tokenizer=tokenizer(config),
        mean=mean,
        std=std,
        image_size=image_side(clip),
        trained_here=trained_here,
        class_names_trained=class_names,
    )


def image_side(clip: CLIP) -> int:
    """Side in pixels of the square pictures that the model reads; UsageError if they are not square."""
    size = clip.visual.image_size
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    if height != width:
        raise UsageError(f"the model reads pictures of {height} x {width}; only square ones are supported")
    return int(height)
