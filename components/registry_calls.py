"""MLflow's model registry as this project uses it: few calls, each tried again while the server is away or busy.

A server works on a request also when its client has given up: many clients that give up early and ask again would keep
a busy one busy with what nobody waits for. So a request may take long, and what has succeeded is not asked again.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from components.errors import PermanentError, TransientError, UsageError
from components.registry_line import Decision, Version
from components.signals import Stop
from components.tracking_client import (
    connect,
    failures,
    may_pass,
    own_request_timeout,
    reason,
    request_timeout,
    tracking_uri,
)

CHAMPION, CHALLENGER = "champion", "challenger"
ALIASES = (CHAMPION, CHALLENGER)
DECISION_TAG = "splatclip.champions"
ANNOUNCED = "splatclip.announced"
WAIT_ENV, WAIT_S = "SPLATCLIP_REGISTRY_WAIT", 600.0
REQUEST_S = 120.0  # for one request: MLflow stands still for 30 s at a time when many make runs at once
FIRST_PAUSE_S, LONGEST_PAUSE_S, STEP_S = 1.0, 15.0, 0.2
PAGE = 1000
KEPT = "the model package is committed; run the same command again to register it"
# of a version, written with it in one call
SCORE, LOW, HIGH, METRIC = "eval.score", "eval.low", "eval.high", "eval.metric"
EVALUATION, PACKAGE = "eval.hash", "package.sha256"
T = TypeVar("T")


@dataclass(frozen=True)
class State:
    """What the registry holds of a model. aliases: champion and challenger, where set."""

    versions: list[Version]
    decision: Decision
    aliases: dict[str, int]


class Registry:
    """The versions of one registered model.

    Its methods raise TransientError when the server does not answer for SPLATCLIP_REGISTRY_WAIT seconds (600),
    PermanentError when it refuses, Interrupted once a stop is asked for.
    """

    def __init__(self, name: str, stop: Stop | None = None) -> None:
        self.name = name
        self.uri = tracking_uri()
        self.stop = stop or Stop()
        self._wait_s = _wait_s()
        self._request_s = own_request_timeout() or str(max(1, int(min(REQUEST_S, self._wait_s))))
        self.client = self.call("connect", lambda: connect(self.uri))

    def call(self, what: str, function: Callable[[], T]) -> T:
        """function(), tried again with growing pauses. It may run twice although the first one took effect."""
        deadline, pause = time.monotonic() + self._wait_s, FIRST_PAUSE_S
        while True:
            self.stop.check(KEPT)
            try:
                with request_timeout(self._request_s):
                    return function()
            except failures() as error:
                why = reason(error)
                if not may_pass(error):
                    raise PermanentError(f"MLflow refuses ({what}, model {self.name!r}): {why}") from error
                if time.monotonic() + pause > deadline:
                    raise TransientError(
                        f"MLflow does not answer ({what}, model {self.name!r}): {why}; try again when it is back"
                    ) from error
            self._pause(random.uniform(0.0, pause))  # apart, where many wait for one server
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _pause(self, seconds: float) -> None:
        """No longer than to the next stop: a signal's handler may set it in the midst of a sleep."""
        until = time.monotonic() + seconds
        while not self.stop.requested and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, STEP_S))

    def _model(self) -> Any:
        def get() -> Any:
            try:
                return self.client.get_registered_model(self.name)
            except failures() as error:
                if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

        return self.call("look up the model", get)

    def state(self) -> State:
        """All of it, read now; UsageError if there is no such model."""
        versions = self._versions()
        model = self._model()
        if model is None:
            raise UsageError(f"the registry has no model {self.name!r}; `splatclip promote` registers one")
        return State(
            versions=versions,
            decision=Decision.from_json(
                model.tags.get(DECISION_TAG), f"registered model {self.name!r}, tag {DECISION_TAG}"
            ),
            aliases={name: int(model.aliases[name]) for name in ALIASES if name in model.aliases},
        )

    def find(self, *, alias: str | None = None, number: str | None = None) -> Any:
        """MLflow's record of a version by alias or number; None where there is no such version."""

        def get() -> Any:
            try:
                if alias is not None:
                    return self.client.get_model_version_by_alias(self.name, alias)
                return self.client.get_model_version(self.name, str(number))
            except failures() as error:
                # an alias that is not set is an invalid parameter to MLflow
                if getattr(error, "error_code", "") not in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
                    raise
                return None

        return self.call("look up a version", get)

    def _versions(self) -> list[Version]:
        """Those that the gate registered; others lack its tags."""
        found, token = [], None
        while True:
            page = self.call(
                "list versions",
                lambda token=token: self.client.search_model_versions(  # type: ignore[misc]
                    self._named(), max_results=PAGE, order_by=["version_number ASC"], page_token=token
                ),
            )
            found += [version for version in map(_version, page) if version is not None]
            token = page.token
            if not token:
                return found

    def _named(self) -> str:
        quoted = self.name.replace("'", "\\'")
        return f"name='{quoted}'"

    def has(self, package: str, evaluation: str) -> bool:
        """Whether a package under an evaluation is a version already."""
        wanted = f"{self._named()} and tags.`{PACKAGE}`='{package}' and tags.`{EVALUATION}`='{evaluation}'"
        found = self.call("look for the version", lambda: self.client.search_model_versions(wanted, max_results=PAGE))
        return any(_version(version) is not None for version in found)

    def create(self, source: str, run_id: str | None, tags: Mapping[str, str], description: str) -> None:
        """A version with all its tags in one call; makes the model where there is none. Tried once.

        MLflow numbers versions upwards and never a number twice.
        """

        def create() -> None:
            self.client.create_model_version(
                self.name, source, run_id=run_id, tags=dict(tags), description=description, await_creation_for=0
            )

        try:
            create()
        except failures() as error:
            if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._make_model()
            create()

    def _make_model(self) -> None:
        try:
            self.client.create_registered_model(self.name)
        except failures() as error:
            if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                raise

    def delete(self, number: int) -> None:
        """Remove a version; nothing happens if it is gone."""

        def delete() -> None:
            try:
                self.client.delete_model_version(self.name, str(number))
            except failures() as error:
                if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    raise

        self.call(f"delete version {number}", delete)

    def set_alias(self, alias: str, number: int | None) -> None:
        """Point an alias at a version, or at none."""

        def point() -> None:
            if number is None:
                self.client.delete_registered_model_alias(self.name, alias)
                return
            try:
                self.client.set_registered_model_alias(self.name, alias, str(number))
            except failures() as error:
                # deleted since it was read: the next reading shows it
                if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
                    raise

        self.call(f"set alias {alias}", point)

    def set_tag(self, number: int, tag: str, value: str) -> None:
        """Give a version a tag."""
        self.call(
            f"tag version {number}", lambda: self.client.set_model_version_tag(self.name, str(number), tag, value)
        )

    def decide(self, decision: Decision) -> None:
        """Record a decision by hand."""
        text = decision.to_json()
        self.call("record the decision", lambda: self.client.set_registered_model_tag(self.name, DECISION_TAG, text))


def _wait_s() -> float:
    text = os.environ.get(WAIT_ENV, str(WAIT_S))
    try:
        seconds = float(text)
    except ValueError:
        raise UsageError(f"{WAIT_ENV} is {text!r}; give seconds") from None
    return seconds


def _version(found: Any) -> Version | None:
    tags = found.tags
    try:
        return Version(
            number=int(found.version),
            metric=tags[METRIC],
            score=float(tags[SCORE]),
            low=float(tags[LOW]),
            high=float(tags[HIGH]),
            evaluation=tags[EVALUATION],
            package=tags[PACKAGE],
        )
    except (KeyError, ValueError):
        return None
