"""The model card: README.md of a package, with the front matter that model hubs read. No time, no host."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from components.figures import percent, ratio, title_of
from components.manifest import Artifact, FileEntry
from components.package import splats_row

TYPES = {
    "classification": "image-classification",
    "multilabel": "image-classification",
    "retrieval": "image-text-retrieval",
}
USE = """\
The model embeds pictures that are stored as 2D Gaussian splats (`.gs2d` files) in the space of its teacher, a CLIP, and
so compares them with texts without drawing them. It is made for research on such representations: classification by
prompts, retrieval, indexing of splat files.

```python
from components.package import load_package

package = load_package("the folder of this file")  # or models:/NAME@champion
images = package.embed([open("photo.gs2d", "rb").read()])
texts = package.embed_texts(["a photo of a dog.", "a photo of a cat."])
print(images @ texts.T)
```
"""
LIMITS = """\
- It reads splats made as those it was trained on: same side of the pictures, same fitting. Others are not tested.
- Figures hold for the pictures named above. An interval says how far a figure would move with other test pictures of
  the same kind; it covers neither another training run nor another kind of picture.
- Splats lose detail, so small things and text in pictures may not be recognised. Files may be larger than JPEG.
- What the teacher and the training pictures bring along (biases of web data, mislabelled classes, licences) is in the
  model too. It was not checked for fairness, and is not meant for decisions about people, surveillance or safety.
"""


def model_card(
    inputs: Mapping[str, Artifact],
    upstream: Mapping[str, Artifact],
    scores: Mapping[str, Any],
    files: Sequence[FileEntry],
) -> bytes:
    """README.md of a package.

    inputs: teacher, adapter and scores; upstream: what those were made from, by manifest path; files: the package's.
    """
    row = splats_row(scores, inputs["scores"].url)
    train = upstream.get(inputs["adapter"].manifest.inputs.get("images", {}).get("path", ""))
    trained_on = str(train.manifest.metrics.get("dataset", "unnamed")) if train is not None else "unknown"
    parts = [
        "---",
        yaml.safe_dump(_front(scores, row, trained_on), sort_keys=False, allow_unicode=True).rstrip(),
        "---",
        f"# SplatCLIP on {scores['model']['name']}, trained on {trained_on}",
        _summary(inputs, scores, row),
        "## Intended use",
        USE.rstrip(),
        "## Data",
        _data(inputs, scores, upstream),
        "## Figures",
        *_figures(scores),
        "## Limits",
        LIMITS.rstrip(),
        *(f"- {note}" for note in scores["notes"]),
        "## Parameters",
        f"```yaml\n{_params(inputs, upstream)}```",
        "## Lineage",
        _lineage(inputs, upstream),
        "## Files",
        "\n".join(["| file | bytes | sha256 |", "|---|---|---|"] + [_file(entry) for entry in _by_name(files)]),
    ]
    return ("\n\n".join(parts).replace("---\n\n", "---\n", 1).replace("\n\n---\n\n#", "\n---\n\n#", 1) + "\n").encode()


def _front(scores: Mapping[str, Any], row: Mapping[str, Any], trained_on: str) -> dict[str, Any]:
    metrics = [
        {"type": metric, "name": f"{title_of(metric)} (splats, {row['setting']})", "value": figure["value"]}
        for metric, figure in ((name, row["figures"][name]) for name in scores["headline"])
    ]
    result = {
        "task": {"type": TYPES[scores["task"]]},
        "dataset": {"type": scores["dataset"], "name": scores["dataset"], "split": scores["split"]},
        "metrics": metrics,
    }
    return {
        "language": "en",
        "library_name": "splatclip",
        "license": "other",
        "license_name": "as-teacher-and-training-data",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["splatclip", "clip", "gaussian-splatting", "2d-gaussians"],
        "datasets": sorted({trained_on, str(scores["dataset"])} - {"unknown", "unnamed"}),
        "metrics": list(scores["headline"]),
        "model-index": [{"name": f"splatclip-{scores['model']['name']}", "results": [result]}],
    }


def _summary(inputs: Mapping[str, Artifact], scores: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    model = scores["model"]
    origin = "trained here" if model["trained_here"] else f"weights {model['pretrained']}"
    metric = scores["headline"][0]
    figure = row["figures"][metric]
    trained = scores["trained"].get("trained_share")
    share = "" if trained is None else f" {100 * trained:.1f} % of its parameters were trained for it."
    to_control = figure["ratio"].get("to_control")
    against = "" if to_control is None else f", {ratio(to_control)} of the same CLIP on photographs, trained alike"
    return (
        f"A CLIP ({model['name']}, {origin}) that reads pictures as 2D Gaussian splats instead of pixels.{share}\n"
        f"On {scores['num_pictures']:,} pictures of {scores['dataset']} ({scores['split']} split; {row['setting']}): "
        f"{title_of(metric)} {percent(figure)} %{against}."
    )


def _data(inputs: Mapping[str, Artifact], scores: Mapping[str, Any], upstream: Mapping[str, Artifact]) -> str:
    lines = []
    for title, made in (("Teacher", "teacher"), ("Splat reader", "adapter"), ("Scored", "scores")):
        source = inputs[made].manifest.inputs.get("images")
        if source is None:
            lines.append(f"- {title}: made from no pictures here.")
            continue
        images = upstream.get(source["path"])
        if images is None:
            lines.append(f"- {title}: pictures `{source['path']}`, no longer in the store.")
            continue
        about = images.manifest.metrics
        counted: dict[str, int] = {}
        for shard in images.manifest.shards:
            counted[shard.split] = counted.get(shard.split, 0) + shard.ok
        splits = ", ".join(f"{split} {number:,}" for split, number in sorted(counted.items()))
        used = f"scored on split {scores['split']}" if made == "scores" else "trained on its train split"
        if made == "teacher" and not scores["model"]["trained_here"]:
            used = "imported, not trained on it"
        lines.append(
            f"- {title}: {about.get('dataset', 'unnamed')} at {about.get('image_size', '?')} pixels "
            f"({splits} pictures); {used}."
        )
    return "\n".join(lines)


def _figures(scores: Mapping[str, Any]) -> list[str]:
    parts = []
    for metric in scores["headline"]:
        lines = [
            f"{title_of(metric)}, in %; chance {100 * scores['chance'][metric]:.3g} %.\n",
            "| model | setting | value [interval] | ratio to the control [interval] |",
            "|---|---|---|---|",
        ]
        for row in scores["rows"]:
            figure = row["figures"][metric]
            to_control = figure["ratio"].get("to_control")
            beside = "" if to_control is None else ratio(to_control)
            lines.append(f"| {row['label']} | {row['setting']} | {percent(figure)} | {beside} |")
        parts.append("\n".join(lines))
    splats, sizes = scores["splats"], scores["bytes_per_picture"]
    parts.append(f"Intervals: {scores['intervals']['note']}.")
    parts.append(
        f"Splats: {splats['num_gaussians_mean']:,.0f} Gaussians a picture, PSNR {splats['psnr_db_mean']:.2f} dB. "
        f"Bytes a picture: .gs2d {sizes['gs2d']:,.0f}, as stored {sizes['stored']:,.0f}, JPEG of quality 90 "
        f"{sizes['jpeg90']:,.0f}, raw RGB {sizes['raw']:,.0f}."
    )
    return parts


def _all(inputs: Mapping[str, Artifact], upstream: Mapping[str, Artifact]) -> list[Artifact]:
    given = {artifact.manifest.path: artifact for artifact in (*upstream.values(), *inputs.values())}
    return [given[path] for path in sorted(given)]


def _params(inputs: Mapping[str, Artifact], upstream: Mapping[str, Artifact]) -> str:
    values = {artifact.manifest.path: artifact.manifest.params for artifact in _all(inputs, upstream)}
    return yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=True, allow_unicode=True)


def _lineage(inputs: Mapping[str, Artifact], upstream: Mapping[str, Artifact]) -> str:
    lines = ["| output | stage version | made from | sha256 of its manifest |", "|---|---|---|---|"]
    for artifact in _all(inputs, upstream):
        manifest = artifact.manifest
        sources = ", ".join(f"{name} `{given['path']}`" for name, given in sorted(manifest.inputs.items()))
        lines.append(f"| `{manifest.path}` | {manifest.version} | {sources} | `{manifest.sha256}` |")
    return "\n".join(lines)


def _by_name(files: Sequence[FileEntry]) -> list[FileEntry]:
    return sorted(files, key=lambda entry: entry.name)


def _file(entry: FileEntry) -> str:
    return f"| {entry.name} | {entry.bytes:,} | `{entry.sha256}` |"
