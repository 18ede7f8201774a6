"""What a step has to tell MLflow, in order, before anybody is told: operations as JSON lines.

Operations carry their own times, so that delivering a journal twice, or by two processes, changes nothing:

    run       as, find | given | above, nested_in, experiment, name, tags, start   make or find a run
    log       to, metrics [[key, value, ms, step]], params, tags
    inputs    to, datasets [{name, digest, source_type, source, profile, context}]
    artifact  to, name, data (base64)
    name      to, data                    the parent's name, once the data are known
    gather    to, time                    what the parent has from all its steps: params.hash, totals
    end       to, status, time            end a run
    close     to, status, time            end the parent, and what a kill left running below it
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.errors import PermanentError, SplatClipError
from components.json_text import parse, whole
from components.store import open_store

FOLDER = "_tracking"
REFUSED = f"{FOLDER}/refused"
SUFFIX = ".jsonl"
FORMAT = 1
MAX_METRICS, MAX_PARAMS = 400, 90  # of one operation; MLflow takes 1000 and 100 a request
LIVE_S = 60.0  # a journal written to this lately, and not closed, belongs to a process that is at work
Op = dict[str, Any]
Metric = tuple[str, float, int, int]
DELIVERED: Op = {"op": ""}


def now_ms() -> int:
    """Milliseconds since 1970, as MLflow counts them."""
    return time.time_ns() // 1_000_000


@dataclass(eq=False)
class Journal:
    """Operations, and how many of them are delivered.

    store: where it is kept while it cannot be delivered; target: fingerprint of the server it is for; ready: whether
    delivery may begin; closed: nothing more is to come; held: MLflow refuses its runs, it stays in the store; runs:
    MLflow's ids of the runs it names, once known; gone: names of those that somebody deleted.
    """

    store: str
    target: str
    id: str = field(default_factory=lambda: f"{now_ms():013d}-{secrets.token_hex(4)}")  # by name is by time
    ops: list[Op] = field(default_factory=list)
    done: int = 0
    ready: bool = False
    closed: bool = False
    kept: bool = False
    held: bool = False
    gone: set[str] = field(default_factory=set)
    runs: dict[str, str | None] = field(default_factory=dict)
    refused: list[tuple[Op, str]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        """Its name in the store."""
        return f"{FOLDER}/{self.id}{SUFFIX}"

    def add(self, op: str, **values: Any) -> None:
        """Append an operation; never waits."""
        self.ops.append({"op": op, **values})

    def log(
        self,
        to: str,
        *,
        metrics: Sequence[Metric] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Append metrics (key, value, ms, step), params and tags of a run."""
        for start in range(0, len(metrics), MAX_METRICS):
            self.add("log", to=to, metrics=[list(one) for one in metrics[start : start + MAX_METRICS]])
        for kind, given in (("params", params), ("tags", tags)):
            items = list((given or {}).items())
            for start in range(0, len(items), MAX_PARAMS):
                self.add("log", to=to, **{kind: dict(items[start : start + MAX_PARAMS])})

    def pending(self) -> bool:
        """Whether something is still to be delivered."""
        return self.ready and self.done < len(self.ops)

    def delivered(self, count: int) -> None:
        """So many more are; they need no memory any more, but for those that make or find runs."""
        with self.lock:
            for i in range(self.done, self.done + count):
                if self.ops[i]["op"] != "run":
                    self.ops[i] = DELIVERED
            self.done += count

    def to_bytes(self) -> bytes:
        """What is not delivered yet, and what makes or finds its runs."""
        with self.lock:
            ops = [op for i, op in enumerate(self.ops) if i >= self.done or op["op"] == "run"]
            head = {
                "journal": self.id,
                "format": FORMAT,
                "target": self.target,
                "closed": self.closed,
                "written": now_ms(),
            }
        return "".join(json.dumps(line) + "\n" for line in (head, *ops)).encode()

    def keep(self) -> None:
        """Put what is left into the store, if anything is. Raises what the store raises."""
        with self.lock:
            if self.ops and self.done == len(self.ops):
                return
            open_store(self.store).put_bytes(self.name, self.to_bytes())
            self.kept = True

    def drop(self) -> None:
        """Remove it from the store, where it was put there: all of it is delivered."""
        with self.lock:
            if self.kept:
                open_store(self.store).delete(self.name)
                self.kept = False

    def put_refused(self) -> str:
        """Keep what MLflow refused for good, for people; returns where."""
        lines = ({"refused": why, **op} for op, why in self.refused)
        store, name = open_store(self.store), f"{REFUSED}/{self.id}{SUFFIX}"
        store.put_bytes(name, "".join(json.dumps(line) + "\n" for line in lines).encode())
        return f"{store.url}/{name}"


def read_journal(store: str, name: str) -> tuple[Journal, bool]:
    """A journal that lies in the store, and whether its own process may still be at work on it; else its step ends.

    Raises PermanentError if it cannot be read.
    """
    data = open_store(store).get_bytes(name)
    try:
        head, *ops = [parse(line) for line in data.decode().splitlines()]
        if head["format"] != FORMAT or not all(isinstance(op["op"], str) for op in ops):
            raise ValueError(f"format {head['format']!r}")
        # either way: a clock that runs ahead keeps nothing alive for as long
        live = not head["closed"] and abs(now_ms() - whole(head["written"])) < 1000 * LIVE_S
        if not head["closed"] and not live and any(op.get("as") == "step" for op in ops):
            ops.append({"op": "end", "to": "step", "status": "KILLED", "time": min(now_ms(), whole(head["written"]))})
        found = Journal(store, str(head["target"]), str(head["journal"]), ops, ready=True, closed=True, kept=True)
        found.to_bytes()  # what cannot be written again, as it is nested too deeply, cannot be kept
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PermanentError(f"{store}/{name}: not a readable journal ({error}); delete it") from error
    return found, live


def leftovers(store: str) -> list[str]:
    """Names of the journals that lie in the store; none where it cannot be listed."""
    try:
        names = open_store(store).list(f"{FOLDER}/")
    except SplatClipError:
        return []
    return [name for name in names if name.endswith(SUFFIX) and not name.startswith(REFUSED)]
