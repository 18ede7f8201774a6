"""The gate: a scored package becomes a version in MLflow's model registry, and the best one its champion.

MLflow's aliases have no compare-and-set, so many gates at once may overwrite each other's. Each therefore writes its
version first, with all its tags in one call, then works out from all versions which aliases are right, sets them, and
reads again until what it reads is right. Whoever comes last has seen everybody's version; what a killed one
left undone the next one does. Who is champion: registry_line.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from components.errors import UsageError
from components.manifest import Artifact
from components.registry_calls import ANNOUNCED, CHALLENGER, CHAMPION, EVALUATION, PACKAGE, Registry, State
from components.registry_line import Decision, Version, challenger, champions, unique, verdict
from components.registry_source import package_source
from components.signals import Stop


@dataclass(frozen=True)
class Outcome:
    """What became of a package. alias: champion, challenger or none; verdict: why."""

    model: str
    version: int
    alias: str
    verdict: str


def register(
    model_name: str,
    package: Artifact,
    tags: Mapping[str, str],
    description: str,
    *,
    run_id: Callable[[], str | None] = lambda: None,
    stop: Stop | None = None,
) -> Outcome:
    """Register a package, once however often it is called, and see that the aliases are right.

    tags: all of the version's, with its score, evaluation and package (registry_calls.py names them); run_id: says
    which MLflow run promotes it, asked where there is something to register.
    Raises as Registry does.
    """
    registry = Registry(model_name, stop)
    key = (tags[PACKAGE], tags[EVALUATION])
    if not registry.has(*key):
        source, at = package_source(registry, package, run_id())

        def create() -> None:
            # looked up at every try: an answer that was lost may have been a yes
            if not registry.has(*key):
                registry.create(source, at, tags, description)

        registry.call("register the version", create)
    state, line = _settle(registry)
    own = next((one for one in unique(state.versions) if (one.package, one.evaluation) == key), None)
    if own is None:
        raise UsageError(f"model {model_name!r}: the version was deleted while it was registered; run it again")
    aliases = {number: alias for alias, number in state.aliases.items()}
    return Outcome(model_name, own.number, aliases.get(own.number, "none"), verdict(own, line))


def _settle(registry: Registry) -> tuple[State, list[Version]]:
    """Set the aliases that are wrong and read again, until none is; returns what was read last, and the champions."""
    while True:
        state = registry.state()
        kept = {version.number for version in unique(state.versions)}
        repeated = [version.number for version in state.versions if version.number not in kept]
        line = champions(state.versions, state.decision)
        champion = line[-1] if line else None
        other = challenger(state.versions, champion)
        right = {CHAMPION: champion.number if champion else None, CHALLENGER: other.number if other else None}
        wrong = {alias: number for alias, number in right.items() if state.aliases.get(alias) != number}
        if not wrong and not repeated:
            return state, line
        for alias, number in wrong.items():
            registry.set_alias(alias, number)
        for number in repeated:  # two calls for one package met
            registry.delete(number)


def rollback(model_name: str, by: str = "") -> str:
    """Make the former champion champion again and keep it; returns a line that says so.

    Only versions registered from now on may take its place: not the one that is withdrawn. Again: one further back,
    but not by the same run: by, where given, is a run whose pod may be started again after it has done its work.
    Raises UsageError where there is no former champion.
    """
    registry = Registry(model_name)
    state = registry.state()
    line = champions(state.versions, state.decision)
    if by and state.decision.by == by:
        _settle(registry)
        return (
            f"{model_name}: rolled back by this run already; {line[-1]} is champion" if line else f"{model_name}: done"
        )
    if len(line) < 2:
        now = f"only {line[-1]} has been" if line else "none has been"
        raise UsageError(f"model {model_name!r}: nothing to roll back to: {now} champion")
    withdrawn, former = line[-1], line[-2]
    _decide(registry, line[:-1], state, by)
    return (
        f"{model_name}: {former} is champion again; {withdrawn} is withdrawn. Versions from "
        f"{_newest(state) + 1} on are compared with version {former.number}"
    )


def set_champion(model_name: str, version: int | str) -> str:
    """Make a version champion by hand, also one of another evaluation, which then is the one that counts.

    Returns a line that says so. Raises UsageError for a version that is not there or has no score.
    """
    text = str(version).removeprefix("v")
    if not text.isdecimal():
        raise UsageError(f"version {version!r}: give its number")
    registry = Registry(model_name)
    state = registry.state()
    known = {one.number: one for one in unique(state.versions)}
    chosen = known.get(int(text))
    if chosen is None:
        numbers = ", ".join(map(str, list(known)[-10:])) or "none"
        raise UsageError(f"model {model_name!r} has no version {text} that promote registered; the last are: {numbers}")
    line = champions(state.versions, state.decision)
    if line and line[-1] == chosen:
        _settle(registry)
        return f"{model_name}: {chosen} is champion already"
    _decide(registry, [*line, chosen], state)
    former = f" in place of {line[-1]}" if line else ""
    return (
        f"{model_name}: {chosen} is champion{former}. Versions from {_newest(state) + 1} on, scored by the same "
        "evaluation, are compared with it"
    )


def announced(model_name: str, version: int) -> str:
    """The run that announced a version as champion; empty: none has. Raises as Registry does."""
    found = Registry(model_name).find(number=str(version))
    return str(found.tags.get(ANNOUNCED, "")) if found is not None else ""


def mark_announced(model_name: str, version: int, run_id: str) -> None:
    """Leave word at a version that a run announced it. Raises as Registry does."""
    Registry(model_name).set_tag(version, ANNOUNCED, run_id or "unknown")


def _decide(registry: Registry, line: list[Version], state: State, by: str = "") -> None:
    registry.decide(Decision(tuple(version.number for version in line), _newest(state), by))
    _settle(registry)


def _newest(state: State) -> int:
    return max(version.number for version in state.versions)
