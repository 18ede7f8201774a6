"""SplatCLIP's stages, what flows between them, and the flow itself.

The flow is the layout: photographs -> splats -> tokens -> embeddings -> scores.

    download         photographs with captions           -> image shards
    train_teacher    image shards                        -> a CLIP model (imported, or trained small)
    splat_fit        image shards                        -> splat shards (.gs2d)
    train_adapter    image and splat shards, the teacher -> a stem that lets the frozen teacher read splats
    zero_shot_eval   all of them                         -> scores.json, a table, a contact sheet
    promote          the scored adapter, its teacher     -> a model package, registered; champion if it is the best

Stages are folders; the nouns between them are modules. Nouns never import stages, a stage never imports another.
The command, DVC and the Kubeflow pipeline all follow STAGES and FLOW below.
"""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """A stage: what it does in a line, and its inputs by the stage that makes each."""

    name: str
    summary: str
    inputs: dict[str, str]

    @property
    def command(self) -> str:
        """Its name on the command line."""
        return self.name.replace("_", "-")


class Step(NamedTuple):
    """A node of the flow: a stage, the section of params it takes, and the steps that make its inputs.

    after: steps that come first although nothing of theirs is read.
    """

    name: str
    stage: str
    section: str
    inputs: dict[str, str]
    after: tuple[str, ...] = ()


STAGES = {
    stage.name: stage
    for stage in (
        Stage("download", "fetch photographs with captions into image shards", {}),
        Stage("train_teacher", "import a pretrained CLIP, or train a small one", {"images": "download"}),
        Stage("splat_fit", "fit 2D Gaussians to every photograph", {"images": "download"}),
        Stage(
            "train_adapter",
            "teach the frozen CLIP to read splats",
            {"images": "download", "teacher": "train_teacher", "splats": "splat_fit"},
        ),
        Stage(
            "zero_shot_eval",
            "score teacher, fair control and splats on the same photographs",
            {"images": "download", "teacher": "train_teacher", "splats": "splat_fit", "adapter": "train_adapter"},
        ),
        Stage(
            "promote",
            "register the model; make it the champion if it is better",
            {"teacher": "train_teacher", "adapter": "train_adapter", "scores": "zero_shot_eval"},
        ),
    )
}

# Where the evaluation set is the training set's own test split, the two _eval steps find what their twins committed
# moments before: that is why they come after them.
FLOW = (
    Step("download", "download", "download", {}),
    Step("download_eval", "download", "download_eval", {}, after=("download",)),
    Step("train_teacher", "train_teacher", "train_teacher", {"images": "download"}),
    Step("splat_fit", "splat_fit", "splat_fit", {"images": "download"}),
    Step("splat_fit_eval", "splat_fit", "splat_fit", {"images": "download_eval"}, after=("splat_fit",)),
    Step(
        "train_adapter",
        "train_adapter",
        "train_adapter",
        {"images": "download", "teacher": "train_teacher", "splats": "splat_fit"},
    ),
    Step(
        "zero_shot_eval",
        "zero_shot_eval",
        "zero_shot_eval",
        {
            "images": "download_eval",
            "teacher": "train_teacher",
            "splats": "splat_fit_eval",
            "adapter": "train_adapter",
        },
    ),
    Step(
        "promote",
        "promote",
        "promote",
        {"teacher": "train_teacher", "adapter": "train_adapter", "scores": "zero_shot_eval"},
    ),
)
