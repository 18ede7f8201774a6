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
from components.tracking_tree import Moved, RunTree

BATCH = 800  # metrics, params and tags in one request; MLflow takes 1000
MAX_TEXT = 90  # params, and tags, in one request; MLflow takes 100
TRIES, PAUSE_S = 3, 0.3  # of what is refused: two writers at once can look like a bad request
Item = tuple[str, Any]  # ("metrics", [key, value, ms, step]), ("params", (key, value)) or ("tags", (key, value))


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
            except Moved:
                journal.runs.clear()
                journal.refused.clear()
                journal.done = 0
                continue
            journal.done += len(ops)

    def _apply(self, journal: Journal, ops: Sequence[Op]) -> None:
        op = ops[0]
        if op["op"] != "run" and journal.runs.get(op["to"]) is None:
            return  # a run without a parent: nobody to tell
        if op["op"] == "log":
            self._log(journal, op["to"], _items(ops))
        else:
            try:
                self._firmly(lambda: self._one(journal, op))
            except self._failures as error:
                self._refuse(journal, op, error)

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

    def _refuse(self, journal: Journal, op: Op, error: BaseException) -> None:
        """Set a refused operation aside. Raises the error itself where it may pass, Moved where the run was merged."""
        if not is_permanent(error):
            raise error
        if op["op"] == "run":
            raise PermanentError(
                f"{journal.store}/{journal.name}: MLflow refuses its run {op['name']!r} ({reason(error)}); once "
                "that is mended `splatclip runs --sync` delivers it; or delete it"
            ) from error
        run_id = journal.runs.get(op.get("to", ""))
        if run_id is not None and self._tree.merged(run_id):
            raise Moved
        journal.refused.append((op, reason(error)))

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

    def _log(self, journal: Journal, name: str, items: Sequence[Item]) -> None:
        """Log items; where MLflow refuses, halve until the refused ones are alone."""
        from mlflow.entities import Metric, Param, RunTag

        run_id = _bound(journal, name)

        def send() -> None:
            self.client.log_batch(
                run_id,
                metrics=[Metric(key, value, ms, step) for kind, (key, value, ms, step) in _of("metrics", items)],
                params=[Param(*pair) for _, pair in _of("params", items)],
                tags=[RunTag(*pair) for _, pair in _of("tags", items)],
            )

        try:
            if len(items) == 1:
                self._firmly(send)
            elif items:
                send()
        except self._failures as error:
            if len(items) > 1 and is_permanent(error):
                self._log(journal, name, items[: len(items) // 2])
                self._log(journal, name, items[len(items) // 2 :])
                return
            kind, content = items[0]
            value = [content] if kind == "metrics" else dict([content])
            self._refuse(journal, {"op": "log", "to": name, kind: value}, error)

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
