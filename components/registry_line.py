"""Who is champion: worked out from what is registered and nothing else, so that gates in any order agree.

The first version is champion. A later one of the same evaluation takes its place if the low end of its interval is
above the champion's score; versions of other evaluations are not compared. A decision by hand starts this over: the
champion it names stands, and only versions registered after it are compared with that one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from components.errors import PermanentError
from components.json_text import parse, whole

KEPT = 100  # champions that a decision remembers


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered version.

    score [low, high]: of `metric`; evaluation: a hash of all that makes two scores comparable; package: sha256 of the
    package's manifest.
    """

    number: int
    metric: str
    score: float
    low: float
    high: float
    evaluation: str
    package: str

    def beats(self, other: Version) -> bool:
        """Whether it is better than `other` beyond its interval, on the same evaluation."""
        return self.evaluation == other.evaluation and self.low > other.score

    def __str__(self) -> str:
        return f"version {self.number} ({self.figure})"

    @property
    def figure(self) -> str:
        """Its score with the interval."""
        return f"{self.metric} {self.score:.4f} [{self.low:.4f}, {self.high:.4f}]"


@dataclass(frozen=True)
class Decision:
    """The champions up to a decision by hand, the chosen one last, and the newest version there was at that time.

    by: the run that decided, which decides once however often it is started; empty: somebody at a command line.
    """

    champions: tuple[int, ...] = ()
    after: int = 0
    by: str = ""

    def to_json(self) -> str:
        """As it is kept in the registry."""
        by = {"by": self.by} if self.by else {}
        return json.dumps({"champions": self.champions[-KEPT:], "after": self.after, **by})

    @classmethod
    def from_json(cls, text: str | None, where: str) -> Decision:
        """Read it; none: no decision yet. Raises PermanentError naming `where` if it is damaged."""
        if text is None:
            return cls()
        try:
            values = parse(text)
            numbers = tuple(whole(number) for number in values["champions"])
            return cls(numbers, whole(values["after"]), str(values.get("by", "")))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PermanentError(f"{where}: not a decision ({error!r}); delete that tag to start over") from None


def unique(versions: Iterable[Version]) -> list[Version]:
    """By number, without those that repeat the package and evaluation of an earlier one."""
    first: dict[tuple[str, str], Version] = {}
    for version in sorted(versions, key=lambda one: one.number):
        first.setdefault((version.package, version.evaluation), version)
    return list(first.values())


def champions(versions: Iterable[Version], decision: Decision) -> list[Version]:
    """All champions so far, the present one last; those that were deleted from the registry do not count."""
    known = {version.number: version for version in unique(versions)}
    line = [known[number] for number in decision.champions if number in known]
    for number, version in known.items():
        if number > decision.after and (not line or version.beats(line[-1])):
            line.append(version)
    return line


def challenger(versions: Iterable[Version], champion: Version | None) -> Version | None:
    """The newest version that is not the champion."""
    others = [version for version in unique(versions) if champion is None or version.number != champion.number]
    return others[-1] if others else None


def verdict(version: Version, line: Sequence[Version]) -> str:
    """Why a version is champion or is not, in a few words; line: what `champions` returned."""
    if not line:
        return (
            f"{version.figure}; there is no champion: `splatclip promote --set-champion {version.number}` makes it one"
        )
    champion = line[-1]
    if version.number == champion.number:
        former = line[-2] if len(line) > 1 else None
        if former is not None and version.beats(former):
            return f"{version.figure} is better than {former}"
        return f"{version.figure}" if former is None else f"{version.figure}, chosen by hand"
    if version.evaluation != champion.evaluation:
        return (
            f"{version.figure} is not compared: the champion, {champion}, was scored by another evaluation; "
            f"`splatclip promote --set-champion {version.number}` makes this one champion"
        )
    if version.beats(champion):
        return f"{version.figure}: withdrawn, or passed over by hand for {champion}"
    return f"{version.figure} is not better than the champion, {champion}, beyond its interval"
