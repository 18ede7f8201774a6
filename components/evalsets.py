"""CLIP_benchmark's evaluation sets by name: 38 of classes, 3 of captions; where they lie, and what they are scored by.

The list is that of CLIP_benchmark's benchmark/webdatasets.txt with voc2007_multilabel. Each set is scored by the metric
that is reported for it since CLIP (Radford et al., arXiv 2103.00020, table 9): mean per-class recall where classes are
of very different size, mean average precision where a picture has several classes, else top-1 accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from components.errors import UsageError
from components.fields import nearest

ACC1, CLASS_RECALL, AVERAGE_PRECISION = "acc1", "mean_per_class_recall", "mean_average_precision"
RECALLS = tuple(f"{way}_retrieval_recall@{k}" for way in ("image", "text") for k in (1, 5))
DEFAULT_ROOT = "https://huggingface.co/datasets/clip-benchmark"
HUB = "https://huggingface.co/datasets/"
PLACEHOLDERS = ("{dataset}", "{dataset_cleaned}")
GROUPS = ("all", "classification", "retrieval")


@dataclass(frozen=True)
class EvalSet:
    """A set by CLIP_benchmark's name, such as vtab/cifar10.

    task: classification, multilabel or retrieval; metrics: the figures it is reported by, of classes one.
    """

    name: str
    task: str
    metrics: tuple[str, ...]

    @property
    def cleaned(self) -> str:
        """Its name as a part of a path: vtab-cifar10."""
        return self.name.replace("/", "-")

    @property
    def short(self) -> str:
        """Its name without a collection's: cifar10."""
        return self.name.rpartition("/")[2]


_OF_CLASSES = (
    *("imagenet1k", "imagenetv2", "imagenet_sketch", "imagenet-a", "imagenet-r", "imagenet-o", "objectnet"),
    *("fer2013", "voc2007", "voc2007_multilabel", "sun397", "cars", "fgvc_aircraft", "mnist", "stl10", "gtsrb"),
    *("country211", "renderedsst2", "vtab/caltech101", "vtab/cifar10", "vtab/cifar100", "vtab/clevr_count_all"),
    *("vtab/clevr_closest_object_distance", "vtab/diabetic_retinopathy", "vtab/dmlab"),
    *("vtab/dsprites_label_orientation", "vtab/dsprites_label_x_position", "vtab/dsprites_label_y_position"),
    *("vtab/dtd", "vtab/eurosat", "vtab/kitti_closest_vehicle_distance", "vtab/flowers", "vtab/pets", "vtab/pcam"),
    *("vtab/resisc45", "vtab/smallnorb_label_azimuth", "vtab/smallnorb_label_elevation", "vtab/svhn"),
)
_OF_CAPTIONS = ("mscoco_captions", "flickr8k", "flickr30k")
_BY_CLASS = {"fgvc_aircraft", "vtab/caltech101", "vtab/flowers", "vtab/pets"}
_MULTILABEL = {"voc2007_multilabel"}
_IMAGENET = {"imagenet1k", "imagenetv2", "imagenet_sketch"}  # those of all 1,000 classes, in ImageNet-1K's order


def _of_classes(name: str) -> EvalSet:
    if name in _MULTILABEL:
        return EvalSet(name, "multilabel", (AVERAGE_PRECISION,))
    return EvalSet(name, "classification", (CLASS_RECALL if name in _BY_CLASS else ACC1,))


SETS = {
    one.name: one
    for one in (
        *(_of_classes(name) for name in _OF_CLASSES),
        *(EvalSet(name, "retrieval", RECALLS) for name in _OF_CAPTIONS),
    )
}


def find_sets(words: Iterable[str]) -> list[EvalSet]:
    """The sets that words name, each once, in the order given.

    A word is a name (vtab/cifar10, cifar10, vtab-cifar10; wds/ before it does not matter) or one of GROUPS. Raises
    UsageError for an unknown name, with the nearest.
    """
    known = {alias: one for one in SETS.values() for alias in (one.name, one.short, one.cleaned)}
    found: dict[str, EvalSet] = {}
    for word in words:
        if word in GROUPS:
            found |= {one.name: one for one in SETS.values() if word in ("all", _group(one))}
            continue
        one = known.get(word.removeprefix("wds/").removeprefix("wds_"))
        if one is None:
            names = sorted({*known, *GROUPS})
            listed = f"known: {', '.join(GROUPS)}, or of {', '.join(SETS)}"
            raise UsageError(f"no evaluation set is called {word!r}{nearest(word, names)}; {listed}")
        found[one.name] = one
    if not found:
        raise UsageError(f"name at least one evaluation set, or one of: {', '.join(GROUPS)}")
    return list(found.values())


def _group(one: EvalSet) -> str:
    return "retrieval" if one.task == "retrieval" else "classification"


def location(one: EvalSet, root: str) -> str:
    """Where a set lies under `root`, as download.path.

    root: a folder, s3://bucket/prefix or an http(s) address. CLIP_benchmark's placeholders {dataset} (vtab/cifar10) and
    {dataset_cleaned} (vtab-cifar10) are filled in; without them wds_{dataset_cleaned} is appended or, in a folder,
    whichever of the usual names is there. A page of the Hugging Face hub, .../tree/main, becomes the address of its
    files.
    """
    filled = root.replace(PLACEHOLDERS[0], one.name).replace(PLACEHOLDERS[1], one.cleaned)
    if filled == root:
        filled = _under(one, root.rstrip("/"))
    if not filled.startswith(HUB):
        return filled
    parts = filled.removeprefix(HUB).rstrip("/").split("/")  # owner, set, then tree or resolve and a branch
    return f"{HUB}{'/'.join(parts[:2])}/resolve/{'/'.join(parts[3:]) or 'main'}"


def repository(name: str) -> str:
    """The repository of a set's name on the hub. Raises UsageError for an unknown name, with the nearest."""
    if name in GROUPS:
        raise UsageError(f"{name!r} are several evaluation sets; name one of: {', '.join(SETS)}")
    return f"{DEFAULT_ROOT.removeprefix(HUB)}/wds_{find_sets([name])[0].cleaned}"


def _under(one: EvalSet, root: str) -> str:
    first, *others = (f"wds_{one.cleaned}", one.cleaned, one.name, one.short)
    if "://" not in root:
        there = (f"{root}/{name}" for name in (first, *others) if (Path(root) / name).is_dir())
        return next(there, f"{root}/{first}")
    return f"{root}/{first}"


def shipped_prompts(dataset: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Class names and templates that open_clip ships for a set: those of ImageNet-1K; None for any other.

    They are for sets that bring none; CLIP_benchmark's copy of the set brings the same ones.
    """
    if dataset.removeprefix("wds/") not in _IMAGENET:
        return None
    from components.openclip import import_open_clip

    open_clip = import_open_clip()
    templates = tuple(template("{c}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
    return tuple(open_clip.IMAGENET_CLASSNAMES), templates
