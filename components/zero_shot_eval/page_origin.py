"""Where the figures come from: every stage's output by its manifest, parameters, versions, and the run's tags."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from components.manifest import Manifest
from components.zero_shot_eval.page_data import Node, Run
from components.zero_shot_eval.page_markup import Html, details, el, pairs

PACKAGES = ("splatclip", "torch", "open_clip_torch", "numpy", "pillow", "safetensors", "mlflow", "kfp")


def written(value: Any) -> str:
    """A parameter's value."""
    if isinstance(value, list):
        return ", ".join(written(one) for one in value)
    return str(value).lower() if isinstance(value, bool) else '""' if value == "" else str(value)


def backends(manifest: Manifest) -> str:
    """What computed it, where that was recorded."""
    found = {shard.backend for shard in manifest.shards if shard.backend}
    found |= {str(manifest.metrics[name]) for name in ("backend", "precision") if manifest.metrics.get(name)}
    return ", ".join(sorted(found))


def _amount(manifest: Manifest) -> str:
    counts = manifest.counts
    if not counts.get("in"):
        return ""
    return f"{counts['ok']:,} ok, {counts['skipped']:,} skipped, {counts['failed']:,} failed of {counts['in']:,}"


def _card(node: Node, titles: Mapping[str, str]) -> Html:
    manifest = node.manifest
    items: list[tuple[str, str]] = [("output", el("code", node.path)), ("manifest", el("code", node.sha256))]
    if manifest is None:
        items.append(("", "the store has it no more"))
        return el("li", el("h3", node.title), pairs(items))
    items.append(("stage", f"{manifest.stage}, version {manifest.version}"))
    if manifest.inputs:
        sources = (f"{name}: {titles.get(given['sha256'], given['path'])}" for name, given in manifest.inputs.items())
        items.append(("made from", "; ".join(sources)))
    for name, value in (("computed by", backends(manifest)), ("samples", _amount(manifest))):
        if value:
            items.append((name, value))
    params = [(name, written(value)) for name, value in sorted(manifest.params.items())]
    folded = details(f"{len(params)} parameters", pairs(params, "facts params")) if params else ""
    return el("li", el("h3", node.title), pairs(items), folded)


def lineage(run: Run) -> Html:
    """Everything that the evaluation was made from."""
    titles = {node.sha256: node.path for node in run.nodes}
    return el("ol", *(_card(node, titles) for node in run.nodes), class_="lineage")


def versions() -> list[tuple[str, str]]:
    """Python and the packages that made this page."""
    found = [("python", platform.python_version())]
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


def origin_parts(run: Run, tags: Mapping[str, str]) -> list[Html]:
    """Tags, versions, lineage."""
    return [origin_blocks(tags, "Tags when this page was made"), el("h3", "Lineage"), lineage(run)]


def origin_blocks(tags: Mapping[str, str], title: str) -> Html:
    """Tags under `title`, and what made the page."""
    blocks = [el("div", el("h3", "This page was made with"), pairs(versions(), "facts params"))]
    if tags:
        given = pairs((name, el("code", value)) for name, value in sorted(tags.items()))
        blocks.insert(0, el("div", el("h3", title), given))
    return el("div", *blocks, class_="two")
