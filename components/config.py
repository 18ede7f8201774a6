"""Parameters: one YAML file, one section a stage, one frozen dataclass a section.

The section's name is the same everywhere: params.yaml, dataclass, command, DVC, KFP argument.
Fields marked `local` say where or how fast, not what: they never enter a cache key. Fields marked `later` enter it
where they differ from their default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from components.cluster_params import ClusterParams, ResourcesParams, check_spot
from components.fields import at_least, evaluates_apart, later, local, one_of, require, seed_in_range, within
from components.fleet_params import FleetParams
from components.hub_params import DataCompParams, HubParams, check_repository
from components.operations import NotifyParams, PromoteParams, TrackingParams
from components.url_params import UrlParams

SOURCES = ("sample", "folder", "webdataset", "urls", "datacomp", "huggingface", "clip_benchmark")
WITHOUT_PATH = ("sample", "datacomp")  # the others need one
FORMATS = ("jpg", "png", "webp")
SQUARE_MODES = ("center_crop", "border")
RESIZE_MODES = (*SQUARE_MODES, "no", "keep_ratio", "keep_ratio_largest")
RECIPES = ("paper", "default", "quality")  # splat2d.RECIPES, without loading it
PRUNE_SCORES = ("", "luminance", "loss")
STEMS = ("splat", "paper", "render", "grid", "hilbert")
FREEZE_POLICIES = ("stem", "qkv", "paper", "paper+text", "lora")
DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class DownloadParams:
    """Where pictures come from and what they become.

    source: `sample` (made here, no network), `folder` (images and captions.csv or captions.jsonl), `webdataset` (tars),
    `urls` (lists of web addresses: .parquet, .csv, .tsv, .jsonl), `datacomp` (DataComp's, from the hub),
    `huggingface` (a dataset repository of Parquet files), `clip_benchmark` (its sets by name, from the hub).
    path: of the source: a folder; for `webdataset` and `urls` also s3://bucket/prefix, an http(s) address or
    hf://datasets/owner/name@revision/folder; the repository of `huggingface`; the set's name of `clip_benchmark`; of
    `datacomp` where its metadata lies already; unused by `sample`. urls: how lists of addresses are read and fetched;
    hub, datacomp: which part of what lies on the hub.
    What enters a cache key is the content found there, not the path.
    image_size: side in pixels of the square RGB pictures that come out.
    resize_mode: `center_crop`, or `border`: the whole picture with white bars. What reads pictures of several sizes
    alone may have `no` (they stay), `keep_ratio` (the shorter side gets image_size), `keep_ratio_largest` (the longer).
    max_bytes: of an encoded picture; max_pixels: of a whole one; min_side: of the shorter side, in pixels;
    max_aspect_ratio: longer side by shorter, 0: any. What does not keep to these four fails before it is decoded.
    image_format, quality: of pictures that had to be re-encoded.
    shard_size: samples an image shard.
    num_train, num_val, num_test: samples of each split at most; 0 in num_train: all that is left, -1: none, for a set
    that is only evaluated on. Where something is to be left to train on, val and test get at most half of a small set.
    seed: of the generator and of the choice of validation pictures. dataset: the name that results carry.
    """

    source: str = "sample"
    path: str = local("")
    dataset: str = "sample"
    image_size: int = 64
    image_format: str = "png"
    quality: int = 95
    shard_size: int = 500
    num_train: int = 4000
    num_val: int = 500
    num_test: int = 1000
    seed: int = 0
    resize_mode: str = later("center_crop")
    max_bytes: int = later(50 << 20)
    max_pixels: int = later(89_478_485)  # images.MAX_PIXELS
    min_side: int = later(0)
    max_aspect_ratio: float = later(0.0)
    urls: UrlParams = later(UrlParams())
    hub: HubParams = later(HubParams())
    datacomp: DataCompParams = later(DataCompParams())

    def __post_init__(self) -> None:
        one_of("download.source", self.source, SOURCES)
        one_of("download.image_format", self.image_format, FORMATS)
        one_of("download.resize_mode", self.resize_mode, RESIZE_MODES)
        require(self.source in WITHOUT_PATH or bool(self.path), f"download.path is empty; {self.source!r} needs one")
        if self.source == "huggingface":
            check_repository(self.path, "download.path")
        seed_in_range("download", self.seed)
        at_least("download", self, 1, "shard_size", "quality", "num_test")
        at_least("download", self, 8, "image_size")
        at_least("download", self, 1, "max_bytes")
        at_least("download", self, 0, "num_val", "min_side")
        within("download", self, 1, 2 * 89_478_485, "max_pixels")  # beyond, Pillow itself refuses
        ratio = self.max_aspect_ratio
        require(ratio == 0 or ratio >= 1, f"download.max_aspect_ratio is {ratio:g}; give 1 or more, or 0 for any")
        at_least("download", self, -1, "num_train")
        require(self.quality <= 100, f"download.quality is {self.quality}; it must be at most 100")
        require(self.source != "sample" or self.num_train != 0, "download.num_train is 0; 'sample' needs a number")

    @property
    def trains(self) -> bool:
        """Whether there is a train split, or only what is evaluated on."""
        return self.num_train >= 0


@dataclass(frozen=True, kw_only=True)
class TrainTeacherParams:
    """The CLIP model that is taught to read splats.

    model: the name of an open_clip model, or the path of an open_clip JSON config.
    pretrained: an open_clip tag or a checkpoint's path; empty: train `model` contrastively on the image shards.
    epochs, batch_size, learning_rate, weight_decay, warmup_steps, clip_norm: of that training.
    batch_size is what one optimiser step sees, over all processes; accumulate_steps: parts that a process computes its
    share of it in; checkpoint_activations: compute them again in the backward pass. Both save memory and leave the
    result the same but for rounding. augment: random crops and flips. checkpoint_steps: steps between checkpoints.
    """

    model: str = "components/train_teacher/models/vit_64.json"
    pretrained: str = ""
    epochs: float = 12.0
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    clip_norm: float = 1.0
    augment: bool = True
    seed: int = 0
    accumulate_steps: int = local(1)
    checkpoint_activations: bool = local(False)
    checkpoint_steps: int = local(200)
    device: str = local("auto")
    threads: int = local(0)

    def __post_init__(self) -> None:
        require(bool(self.model), "train_teacher.model is empty; name an open_clip model or a JSON config")
        seed_in_range("train_teacher", self.seed)
        at_least("train_teacher", self, 1, "batch_size", "accumulate_steps", "checkpoint_steps")
        at_least("train_teacher", self, 0, "warmup_steps", "threads", "weight_decay")
        for name in ("epochs", "learning_rate", "clip_norm"):
            value = getattr(self, name)
            require(value > 0, f"train_teacher.{name} is {value}; it must be above 0")
        one_of("train_teacher.device", self.device, DEVICES)


@dataclass(frozen=True, kw_only=True)
class SplatFitParams:
    """How pictures become Gaussians.

    num_gaussians: a picture, at most. recipe: one of splat2d.RECIPES. num_iters: 0 takes the recipe's own number.
    lambda_color: weight of the L1 norm of the colours; -1 takes the recipe's own.
    target_psnr: dB at which a picture is done; 0: none. min_gaussians: with target_psnr, each picture gets as few as
    reach it, from this number to num_gaussians; 0: all get num_gaussians.
    prune_score: `luminance`, `loss` or, empty, the recipe's own; prune_threshold: the score under which a Gaussian is
    dropped (0: none is, -1: the recipe's own); prune_to: how many are left, the best; 0: all. reader: a teacher, as its
    manifest or prefix, whose image embedding the fits serve beside the pixels; reader_weight: how much (1: as much as
    the pixels; 0: not at all). threads: 0 takes all cores. docs/fitting.md has the whole story.
    """

    num_gaussians: int = 400
    recipe: str = "default"
    num_iters: int = 0
    lambda_color: float = -1.0
    target_psnr: float = 0.0
    min_gaussians: int = 0
    prune_score: str = ""
    prune_threshold: float = -1.0
    prune_to: int = 0
    reader: str = local("")
    reader_weight: float = later(0.0)
    seed: int = 0
    device: str = local("cpu")
    threads: int = local(0)

    def __post_init__(self) -> None:
        seed_in_range("splat_fit", self.seed)
        at_least("splat_fit", self, 1, "num_gaussians")
        at_least("splat_fit", self, 0, "num_iters", "threads", "target_psnr", "min_gaussians", "prune_to")
        within("splat_fit", self, 0, 1000, "reader_weight")
        one_of("splat_fit.recipe", self.recipe, RECIPES)
        one_of("splat_fit.prune_score", self.prune_score, PRUNE_SCORES)
        one_of("splat_fit.device", self.device, DEVICES)
        for name in ("lambda_color", "prune_threshold"):
            value = getattr(self, name)
            hint = "give 0 or more, or -1 for the recipe's own"
            require(value >= 0 or value == -1, f"splat_fit.{name} is {value}; {hint}")
        for name in ("min_gaussians", "prune_to"):
            value = getattr(self, name)
            most = f"it must be at most num_gaussians, {self.num_gaussians}"
            require(value <= self.num_gaussians, f"splat_fit.{name} is {value}; {most}")
        if self.min_gaussians:
            found = f"splat_fit.min_gaussians is {self.min_gaussians}"
            require(self.target_psnr > 0, f"{found}; target_psnr decides how few are enough: give one, or 0 in both")
            pruning = self.prune_threshold > 0 or self.prune_to > 0
            require(not pruning, f"{found}, which finds the number itself; leave prune_threshold and prune_to at 0")
        require(
            self.device != "cuda" or self.target_psnr == 0,
            "splat_fit.target_psnr ends pictures early, which 'cuda' cannot; set splat_fit.device to cpu or auto",
        )
        require(
            bool(self.reader) == (self.reader_weight > 0),
            f"splat_fit.reader is {self.reader!r} and reader_weight {self.reader_weight:g}; give a teacher and a "
            "weight above 0, or neither",
        )
        require(
            self.device != "cuda" or not self.reader,
            "splat_fit.reader: 'cuda' fits by pixels alone; set splat_fit.device to cpu or auto",
        )


@dataclass(frozen=True, kw_only=True)
class TrainAdapterParams:
    """How the frozen teacher learns to read splats, and its fair control.

    stem: the reader (docs/adapter.md). stem_width: channels a Gaussian. stem_points, stem_channels: of stem `splat`,
    fine sample points a side of a patch, channels at each. stem_top_k: of `splat` and `render`, Gaussians that a patch
    takes at most. resampler_layers, resampler_heads: of `paper`'s Perceiver resampler. num_latents: 0 takes one a patch
    of the teacher; others cannot match patches: stage1_token_epochs must then be 0.
    Stage 1 (only the stem trains): stage1_token_epochs matching the teacher's patch tokens, then stage1_cls_epochs
    matching its image embedding (and, where there is one latent a patch, still the tokens). Stage 2 (freeze_policy;
    lora_rank: of `lora`): stage2_epochs of contrastive loss with anchor_weight times the distance to the teacher's
    embedding; each of stage2_learning_rates is tried and the best on validation kept, for the student and for the
    control alike. Under `paper+text` the text tower's part stays frozen for the first warmup_steps of stage 2.
    control: train the teacher with stage 2's steps, order, texts, loss and freed parts; control_with_stage1: once more
    with stage 1's steps added.
    What each draw of a picture may change, in splat space for the student and alike in the control's pixels: augment:
    mirror it; crop_min: keep a window of at least this share of its area, enlarged (1: all of it); rotate_degrees: turn
    it by so much at most; color_jitter: change brightness and saturation by so large a share at most; drop_gaussians:
    leave out so large a share of the student's Gaussians at most.
    cache_embeddings: compute the teacher's embeddings once and keep them beside the shards (not possible with windows,
    turns or colour jitter); without, the teacher looks at each batch again. Results differ by rounding.
    """

    stem: str = "splat"
    stem_width: int = 96
    stem_points: int = 4
    stem_channels: int = 12
    stem_top_k: int = 256
    resampler_layers: int = 1
    resampler_heads: int = 8
    num_latents: int = 0
    freeze_policy: str = "paper"
    lora_rank: int = 8
    stage1_token_epochs: float = 5.0
    stage1_cls_epochs: float = 1.0
    stage1_token_learning_rate: float = 3e-3
    stage1_cls_learning_rate: float = 1e-3
    stage2_epochs: float = 3.0
    stage2_learning_rates: tuple[float, ...] = (1e-3,)
    anchor_weight: float = 1.0
    batch_size: int = 128
    weight_decay: float = 0.02
    warmup_steps: int = 50
    clip_norm: float = 1.0
    augment: bool = True
    crop_min: float = 1.0
    rotate_degrees: float = 0.0
    color_jitter: float = 0.0
    drop_gaussians: float = 0.0
    cache_embeddings: bool = later(True)
    control: bool = True
    control_with_stage1: bool = False
    seed: int = 0
    accumulate_steps: int = local(1)
    checkpoint_activations: bool = local(False)
    checkpoint_steps: int = local(200)
    device: str = local("auto")
    threads: int = local(0)

    def __post_init__(self) -> None:
        one_of("train_adapter.stem", self.stem, STEMS)
        one_of("train_adapter.freeze_policy", self.freeze_policy, FREEZE_POLICIES)
        one_of("train_adapter.device", self.device, DEVICES)
        seed_in_range("train_adapter", self.seed)
        at_least("train_adapter", self, 1, "stem_width", "resampler_layers", "resampler_heads", "batch_size")
        at_least("train_adapter", self, 1, "stem_points", "stem_top_k", "lora_rank")
        at_least("train_adapter", self, 4, "stem_channels")
        at_least("train_adapter", self, 0, "num_latents", "stage1_token_epochs", "stage1_cls_epochs", "stage2_epochs")
        at_least("train_adapter", self, 0, "anchor_weight", "weight_decay", "warmup_steps", "threads")
        at_least("train_adapter", self, 1, "checkpoint_steps", "accumulate_steps")
        within("train_adapter", self, 0.05, 1, "crop_min")
        within("train_adapter", self, 0, 45, "rotate_degrees")
        within("train_adapter", self, 0, 0.9, "color_jitter", "drop_gaussians")
        tried = self.stage2_learning_rates
        require(len(tried) > 0, "train_adapter.stage2_learning_rates is empty; give at least one")
        require(len(set(tried)) == len(tried), f"train_adapter.stage2_learning_rates names one twice: {list(tried)}")
        rates = (self.stage1_token_learning_rate, self.stage1_cls_learning_rate, *self.stage2_learning_rates)
        require(min(*rates, self.clip_norm) > 0, "train_adapter: learning rates and clip_norm must be above 0")
        require(
            self.stem_width % self.resampler_heads == 0,
            f"train_adapter.stem_width {self.stem_width} is not a multiple of resampler_heads {self.resampler_heads}",
        )


@dataclass(frozen=True, kw_only=True)
class ZeroShotEvalParams:
    """How the models are scored.

    split: the split of the image shards that is scored. num_bootstrap: resamplings behind each 95 % interval.
    num_sheet: pictures on the contact sheet.
    """

    split: str = "test"
    batch_size: int = 256
    num_bootstrap: int = 2000
    num_sheet: int = 12
    seed: int = 0
    device: str = local("auto")
    threads: int = local(0)

    def __post_init__(self) -> None:
        one_of("zero_shot_eval.split", self.split, ("train", "val", "test"))
        one_of("zero_shot_eval.device", self.device, DEVICES)
        seed_in_range("zero_shot_eval", self.seed)
        at_least("zero_shot_eval", self, 1, "batch_size", "num_bootstrap", "num_sheet")
        at_least("zero_shot_eval", self, 0, "threads")


@dataclass(frozen=True, kw_only=True)
class Params:
    """All sections of a params file. download_eval: the evaluation set; what it leaves out is as in download."""

    download: DownloadParams = DownloadParams()
    download_eval: DownloadParams = DownloadParams()
    train_teacher: TrainTeacherParams = TrainTeacherParams()
    splat_fit: SplatFitParams = SplatFitParams()
    train_adapter: TrainAdapterParams = TrainAdapterParams()
    zero_shot_eval: ZeroShotEvalParams = ZeroShotEvalParams()
    promote: PromoteParams = PromoteParams()
    tracking: TrackingParams = TrackingParams()
    notify: NotifyParams = NotifyParams()
    resources: ResourcesParams = ResourcesParams()
    fleet: FleetParams = FleetParams()
    cluster: ClusterParams = ClusterParams()

    def __post_init__(self) -> None:
        train, test = self.download, self.download_eval
        require(
            train.trains, "download.num_train is -1, which leaves nothing to train on; only download_eval may say so"
        )
        evaluates_apart(train, test)
        check_spot(self.resources, self.cluster)

    def require_squares(self) -> None:
        """Raise UsageError unless pictures come out as squares of one size, which all that trains and scores needs."""
        for name in ("download", "download_eval"):
            mode = getattr(self, name).resize_mode
            remedy = f"choose {' or '.join(SQUARE_MODES)}, or run `splatclip download` and `splat-fit` alone"
            found = f"{name}.resize_mode is {mode!r}, which leaves pictures of several sizes"
            require(mode in SQUARE_MODES, f"{found}, where training and scoring need squares of one; {remedy}")


SECTIONS: dict[str, type[Any]] = dict(get_type_hints(Params))


def semantic(section: Any) -> dict[str, Any]:
    """The fields that decide the output, as JSON values: what a cache key is made of."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            return semantic(value)
        return list(value) if isinstance(value, tuple) else value

    def decides(one: dataclasses.Field[Any]) -> bool:
        given = plain(getattr(section, one.name))
        return one.metadata.get("hash", True) and not (one.metadata.get("later") and given == plain(one.default))

    return {one.name: plain(getattr(section, one.name)) for one in fields(section) if decides(one)}


def as_dict(params: Params) -> dict[str, dict[str, Any]]:
    """All sections and fields, as YAML values."""
    return {name: dataclasses.asdict(getattr(params, name)) for name in SECTIONS}
