"""Telling MLflow what a journal holds: each operation so that repeating it, by whomever, changes nothing."""

from __future__ import annotations

import base64
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from components.errors import PermanentError
from components.tracking_client import connect, failures, is_permanent, reason
from components.tracking_journal import Journal, Op
from components.tracking_tree import RunTree

BATCH = 800  # metrics, params and tags in one request; MLflow takes 1000
MAX_TEXT = 90  # params, and tags, in one request; MLflow takes 100
TRIES, PAUSE_S = 3, 0.3  # of what is refused: two writers at once can look like a bad request
GONE = "its run was deleted"
Item = tuple[str, Any]  # ("metrics", [key, value, ms, step]), ("params", (key, value)) or ("tags", (key, value))


class _Moved(Exception):
    """A run of the journal was merged into another one, which it speaks to from now on."""


class Delivery:
    """Delivers journals to one tracking server.

    Raises what components.tracking_client.failures() names where trying again may help; PermanentError where MLflow
    refuses to make or find a run, so that nothing of the journal can be told.
    """

    def __init__(self, uri: str) -> None:
        self.client = connect(uri)
        self._failures = failures()
        self._tree = RunTree(self.client, uri)

    def deliver(self, journal: Journal) -> None:
        """Deliver what is pending; journal.done follows, so that a failure loses nothing and repeats little."""
        while journal.pending():
            ops = _together(journal)
            try:
                self._apply(journal, ops)
            except _Moved:
                continue
            journal.delivered(len(ops))

    def _apply(self, journal: Journal, ops: Sequence[Op]) -> None:
        op, name = ops[0], ops[0].get("to", "")
        if op["op"] != "run" and journal.runs.get(name) is None:
            return  # a run without a parent: nobody to tell
        if name in journal.gone:
            journal.refused += [(one, GONE) for one in ops]
            return
        items = _items(ops) if op["op"] == "log" else []
        try:
            self._firmly(lambda: self._send(journal, name, items) if items else self._one(journal, op))
        except self._failures as error:
            self._look(journal, op, error)
            if items and name not in journal.gone:
                self._halve(journal, name, items, error)
            else:
                journal.refused += [(one, GONE if name in journal.gone else reason(error)) for one in ops]

    def _firmly(self, work: Callable[[], None]) -> None:
        """Do it; what is refused is tried a few times before it counts."""
        for left in reversed(range(TRIES)):
            try:
                return work()
            except self._failures as error:
                if not is_permanent(error) or not left:
                    raise
                time.sleep(PAUSE_S)
        return None

    def _look(self, journal: Journal, op: Op, error: BaseException) -> None:
        """Why it was refused: returns where MLflow means what it says, or the run was deleted (journal.gone).

        Raises the error itself where it may pass, PermanentError where a run cannot be had, _Moved where it was merged.
        """
        if not is_permanent(error):
            raise error
        if op["op"] == "run":
            raise PermanentError(
                f"{journal.store}/{journal.name}: MLflow refuses its run {op['name']!r} ({reason(error)}); once "
                "that is mended `splatclip runs --sync` delivers it; or delete it"
            ) from error
        name, run_id = op["to"], _bound(journal, op["to"])
        deleted, into = self._tree.deleted(run_id)
        if into is not None:
            journal.runs[name] = into
            if name == "parent" and journal.runs.get("step") is not None:
                self._tree.relink(_bound(journal, "step"), run_id, into)
            raise _Moved
        if deleted:
            journal.gone.add(name)

    def _one(self, journal: Journal, op: Op) -> None:
        kind = op["op"]
        if kind == "run":
            journal.runs[op["as"]] = self._tree.run(op, journal.runs)
            return
        to = _bound(journal, op["to"])
        if kind == "inputs":
            self._inputs(to, op["datasets"])
        elif kind == "artifact":
            with tempfile.TemporaryDirectory(prefix="splatclip-") as folder:
                path = Path(folder) / op["name"]
                path.write_bytes(base64.b64decode(op["data"]))
                self.client.log_artifact(to, str(path))
        elif kind == "name":
            self._tree.name(to, op["data"])
        elif kind == "gather":
            self._tree.gather(to, op["time"])
        elif kind == "end":
            self.client.set_terminated(to, status=op["status"], end_time=op["time"])
        elif kind == "close":
            self._tree.close(to, op["status"], op["time"], spare=journal.runs.get("step"))

    def _send(self, journal: Journal, name: str, items: Sequence[Item]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        self.client.log_batch(
            _bound(journal, name),
            metrics=[Metric(key, value, ms, step) for kind, (key, value, ms, step) in _of("metrics", items)],
            params=[Param(*pair) for _, pair in _of("params", items)],
            tags=[RunTag(*pair) for _, pair in _of("tags", items)],
        )

    def _halve(self, journal: Journal, name: str, items: Sequence[Item], error: BaseException) -> None:
        """Of refused items log those that MLflow takes: halve until the others are alone, and set these aside."""
        if len(items) == 1:
            kind, content = items[0]
            value = [content] if kind == "metrics" else dict([content])
            journal.refused.append(({"op": "log", "to": name, kind: value}, reason(error)))
            return
        middle = len(items) // 2
        for half in (items[:middle], items[middle:]):
            try:
                self._send(journal, name, half)
            except self._failures as refusal:
                if not is_permanent(refusal):
                    raise
                self._halve(journal, name, half, refusal)

    def _inputs(self, run_id: str, datasets: Sequence[dict[str, str]]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        given = [
            DatasetInput(
                Dataset(one["name"], one["digest"], one["source_type"], one["source"], profile=one["profile"]),
                [InputTag("mlflow.data.context", one["context"])],
            )
            for one in datasets
        ]
        self.client.log_inputs(run_id, given)


def _bound(journal: Journal, name: str) -> str:
    run_id = journal.runs[name]
    if run_id is None:
        raise RuntimeError(f"journal {journal.id} speaks to run {name!r}, which there is not")
    return run_id


def _of(kind: str, items: Sequence[Item]) -> list[Item]:
    return [item for item in items if item[0] == kind]


def _items(ops: Sequence[Op]) -> list[Item]:
    found: list[Item] = []
    for op in ops:
        found += [("metrics", metric) for metric in op.get("metrics", ())]
        found += [(kind, pair) for kind in ("params", "tags") for pair in op.get(kind, {}).items()]
    return found


def _together(journal: Journal) -> list[Op]:
    """The next operation, and those that fit into the same request."""
    first = journal.ops[journal.done]
    ops = [first]
    total, text = _size(first)
    for op in journal.ops[journal.done + 1 :] if first["op"] == "log" else ():
        more, more_text = _size(op)
        if op["op"] != "log" or op["to"] != first["to"] or total + more > BATCH or text + more_text > MAX_TEXT:
            break
        ops.append(op)
        total, text = total + more, text + more_text
    return ops


def _size(op: Op) -> tuple[int, int]:
    """Items of a log operation, and how many of them are params or tags."""
    text = len(op.get("params", ())) + len(op.get("tags", ()))
    return len(op.get("metrics", ())) + text, text
