"""What a page shows: an evaluation, its files, and all that it was made from, as far as the store still has it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from components.errors import PermanentError, UsageError
from components.evalsets import ACC1
from components.figures import check_format
from components.manifest import Artifact, Manifest, open_artifact, read_manifest
from components.store import Store, StoreNotFound, open_store
from components.zero_shot_eval.predictions import FIRST_GUESS, NAME, Predictions, read_predictions

STAGE = "zero_shot_eval"
CURVE = "curve.csv"
GIVE = f"give an evaluation: {STAGE}'s prefix or manifest, or the folder that `splatclip run` wrote its outcome to"
ROLES = {
    "": "evaluation",
    "images": "pictures scored",
    "splats": "their splats",
    "teacher": "teacher",
    "adapter": "splat reader",
    "adapter.images": "pictures the splat reader trained on",
    "adapter.splats": "splats the splat reader trained on",
    "teacher.images": "pictures the teacher trained on",
}


RIGHT = {"classification": ACC1, "multilabel": FIRST_GUESS, "retrieval": "text_retrieval_recall@5"}


@dataclass(frozen=True)
class Node:
    """Something the evaluation was made from. artifact: None where the store does not have it any more."""

    roles: tuple[str, ...]
    path: str
    sha256: str
    artifact: Artifact | None

    @property
    def title(self) -> str:
        """What it is to the evaluation."""
        known = [ROLES[role] for role in self.roles if role in ROLES] or list(self.roles)
        return ", ".join(known)

    @property
    def manifest(self) -> Manifest | None:
        """Its manifest, where the store has it."""
        return None if self.artifact is None else self.artifact.manifest


@dataclass(frozen=True)
class CurvePoint:
    """A line of a curve.csv: its phase, its step, and its values by name."""

    phase: str
    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Run:
    """An evaluation. nodes: it first, then all that it was made from, by their first role."""

    artifact: Artifact
    scores: dict[str, Any]
    predictions: Predictions
    nodes: list[Node]

    @property
    def name(self) -> str:
        """A short name that tells evaluations apart."""
        return self.artifact.manifest.key[:8]

    def node(self, role: str) -> Node | None:
        """What plays a role."""
        return next((node for node in self.nodes if role in node.roles), None)

    def made_by(self, role: str) -> Artifact | None:
        """The artifact that plays a role, where the store has it."""
        node = self.node(role)
        return None if node is None else node.artifact

    @cached_property
    def row_names(self) -> list[str]:
        """The rows of the scores, in order."""
        return [row["name"] for row in self.scores["rows"]]

    @property
    def right_metric(self) -> str:
        """The figure that says of each picture whether it was answered rightly."""
        return RIGHT[self.scores["task"]]

    def row(self, name: str) -> dict[str, Any] | None:
        """A row of the scores."""
        return next((row for row in self.scores["rows"] if row["name"] == name), None)

    def curve(self, role: str) -> list[CurvePoint]:
        """The training curve of a node; empty where it has none, or the store has it no more."""
        made = self.made_by(role)
        if made is None or not made.has(CURVE):
            return []
        try:
            return list(_points(content(made, CURVE)))
        except StoreNotFound:
            return []


def content(artifact: Artifact, name: str) -> bytes:
    """The bytes of a file of an artifact."""
    with artifact.local(name) as path:
        return path.read_bytes()


def _points(data: bytes) -> Iterator[CurvePoint]:
    for line in csv.DictReader(io.StringIO(data.decode())):
        values = {name: float(value) for name, value in line.items() if value and name not in {"phase", "step"}}
        yield CurvePoint(line["phase"], int(line["step"]), values)


def _find(ref: str, store: Store) -> Artifact:
    if ref and "://" not in ref:
        if not Path(ref).expanduser().exists():
            raise UsageError(f"{ref}: there is no such folder or file; {GIVE}")
        listed = Path(ref) / "manifests" / f"{STAGE}.json"
        ref = str(listed) if listed.is_file() else ref
    found = open_artifact(ref, store)
    if found.manifest.stage != STAGE:
        raise UsageError(f"{ref} was made by {found.manifest.stage}; {GIVE}")
    if not found.has(NAME):
        raise UsageError(
            f"{ref} has no {NAME}: version {found.manifest.version} of the stage made it; run zero-shot-eval again"
        )
    return found


def _node(roles: tuple[str, ...], path: str, sha256: str, stores: list[Store]) -> Node:
    for store in stores:
        there = store.sub(path)
        try:
            manifest = read_manifest(there)
        except PermanentError:
            continue
        if manifest.sha256 == sha256:
            return Node(roles, path, sha256, Artifact(manifest, there, there.url))
    return Node(roles, path, sha256, None)


def _lineage(top: Artifact, stores: list[Store]) -> list[Node]:
    roles: dict[tuple[str, str], list[str]] = {}
    pending: list[tuple[str, Manifest]] = [("", top.manifest)]
    found: dict[tuple[str, str], Node] = {}
    while pending:
        role, manifest = pending.pop(0)
        for name, given in manifest.inputs.items():
            own = f"{role}.{name}".lstrip(".")
            where = (given["path"], given["sha256"])
            roles.setdefault(where, []).append(own)
            if where not in found:
                found[where] = _node((), *where, stores)
                below = found[where].manifest
                if below is not None:
                    pending.append((own, below))
    order = list(ROLES)
    nodes = [Node(tuple(roles[where]), node.path, node.sha256, node.artifact) for where, node in found.items()]
    nodes.sort(key=lambda node: order.index(node.roles[0]) if node.roles[0] in order else len(order))
    return [Node(("",), top.manifest.path, top.manifest.sha256, top), *nodes]


def load_run(ref: str, store: Store) -> Run:
    """Open an evaluation: its prefix, its manifest, or the folder that `splatclip run` wrote its outcome to.

    Its inputs are looked for in its own store, then in `store`. Raises UsageError where it is something else or of a
    version without predictions.csv, PermanentError where it is missing or damaged.
    """
    found = _find(ref, store)
    scores = json.loads(content(found, "scores.json"))
    check_format(scores)
    predictions = read_predictions(content(found, NAME), f"{found.url}/{NAME}")
    stores = [store]
    root = found.url.rstrip("/").removesuffix(f"/{found.manifest.path}")
    if root != found.url.rstrip("/"):
        stores.insert(0, open_store(root))
    return Run(found, scores, predictions, _lineage(found, stores))
