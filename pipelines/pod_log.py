"""One pod's log, followed over dropped connections: every line once, in order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

LONGEST = 1 << 20  # bytes of a line; what is beyond is left out
MARGIN_S = 300  # by how much the node's clock may be ahead of or behind this machine's
_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z (.*)", re.DOTALL)
_EXIT = re.compile(r"exit status (\d{1,3})\b")  # the launcher's last word; its own exit code is 1 whatever happened

Moment = tuple[str, str]


class Seen:
    """Which lines of a log have been told, by their time and their place among those of the same time."""

    def __init__(self) -> None:
        self.last: Moment = ("", "")
        self._count = 0  # lines told of that time
        self._replay = 0  # of these, how many have come again
        self._replaying = False
        self._untimed: set[str] = set()
        self.exit_status: int | None = None

    def again(self) -> None:
        """The log is read once more, from `since_s` ago or from its beginning."""
        self._replaying, self._replay = bool(self.last[0]), 0

    def since_s(self) -> int | None:
        """From how many seconds ago to read, so that nothing is missing; None: all of it."""
        if not self.last[0]:
            return None
        then = datetime.fromisoformat(self.last[0]).replace(tzinfo=UTC)
        return max(0, int((datetime.now(UTC) - then).total_seconds())) + MARGIN_S

    def new(self, line: str) -> str | None:
        """The line without its time; None where it has been told."""
        match = _STAMP.fullmatch(line)
        if match is None:  # the kubelet's own words
            if line in self._untimed:
                return None
            self._untimed.add(line)
            return line
        moment, text = (match[1], (match[2] or "").ljust(9, "0")), match[3]
        if self._replaying:
            if moment < self.last:
                return None
            if moment == self.last:
                self._replay += 1
                if self._replay <= self._count:
                    return None
            self._replaying = False
        if moment == self.last:
            self._count += 1
        else:
            self.last, self._count = moment, 1
        if status := _EXIT.search(text):
            self.exit_status = int(status[1])
        return text


def lines(chunks: Iterator[bytes]) -> Iterator[tuple[str, bool]]:
    """Lines of a stream, and whether each is whole: what follows the last line break may have been cut."""
    rest, skipping = b"", False
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if not skipping:
                yield line[:LONGEST].decode("utf-8", "replace"), True
            skipping = False
        if len(rest) > LONGEST:
            if not skipping:
                yield rest[:LONGEST].decode("utf-8", "replace"), True
            rest, skipping = b"", True
    if rest and not skipping:
        yield rest.decode("utf-8", "replace"), False
