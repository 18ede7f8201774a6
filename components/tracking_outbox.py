"""The thread that delivers journals: nobody who computes waits for it, or fails by it.

While the server does not answer, what is pending is put into the store, again about every fifteen seconds, so that a
killed process loses nothing either; whoever comes next with the same store delivers it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Collection

from components.errors import PermanentError, SplatClipError, TransientError
from components.tracking_client import failures, fingerprint, reason
from components.tracking_delivery import Delivery
from components.tracking_journal import LIVE_S, Journal, leftovers, read_journal

GATHER_S = 1.0  # how long operations are collected before they are sent together
KEEP_S = 15.0
EARLY_S = 1.0
MAX_PAUSE_S = 5.0
PATIENT_S = 10.0  # of waiting before anybody is told: loading MLflow on a busy machine takes as long


def tell(text: str) -> None:
    """One line for people."""
    print(f"tracking: {text}", file=sys.stderr, flush=True)


class Outbox:
    """Delivers to one server in a thread of its own, which the first journal starts.

    away: why the server could not be told lately; "" while it can.
    """

    def __init__(self, uri: str) -> None:
        self.uri, self.away = uri, ""
        self._journals: list[Journal] = []
        self._stores: set[str] = set()  # whose leftovers are still to be looked at
        self._change = threading.Condition()
        self._hurry = False
        self._kept_at = 0.0
        self._delivery: Delivery | None = None
        self._thread: threading.Thread | None = None

    def add(self, journal: Journal) -> None:
        """Deliver this one, now and whenever it grows."""
        with self._change:
            self._journals.append(journal)
            self._stores.add(journal.store)
            if self._delivery is None:
                early = threading.Timer(EARLY_S, self._keep_early)
                early.daemon = True
                early.start()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
                self._thread.start()

    def _keep_early(self) -> None:
        """Loading MLflow takes seconds: until it is loaded a kill loses nothing either."""
        if self._delivery is None:
            self._keep()

    def _keep(self) -> None:
        for journal in self._pending():
            with contextlib.suppress(SplatClipError):  # tried again, and said at the end
                journal.keep()

    def wait(self, seconds: float) -> bool:
        """Wait until all is delivered, at most so long; whether it is."""
        quiet = min(seconds, PATIENT_S)
        if self._wait_for(self._idle, quiet):
            return True
        if seconds > quiet and self._delivery is not None:
            tell(f"waiting for the MLflow server, {seconds - quiet:.0f} s at most{self._why()}")
        return self._wait_for(self._idle, seconds - quiet)

    def wait_run(self, journal: Journal, name: str, seconds: float) -> str | None:
        """MLflow's id of a journal's run, once it is made; None after so long."""
        self._wait_for(lambda: name in journal.runs, seconds)
        return journal.runs.get(name)

    def leave(self) -> None:
        """Put what is not delivered into the store and say so; what the store raises is said, too."""
        places = []
        with self._change:
            left = [journal for journal in self._journals if journal.pending()]
        for journal in left:
            try:
                journal.keep()
                places += [] if journal.held else [f"{journal.store}/{journal.name}"]
                with self._change:  # if this process goes on, it delivers it as any other would
                    self._journals = [one for one in self._journals if one is not journal]
            except SplatClipError as error:
                tell(f"what was recorded of {journal.id} could be neither delivered{self._why()} nor kept: {error}")
        if places:
            where = places[0] if len(places) == 1 else f"{places[0]} and {len(places) - 1} more beside it"
            why = f"no answer from the MLflow server{self._why()}" if self.away else "not all was delivered in time"
            tell(
                f"{why}; what was recorded is kept in {where}; the next command with this store delivers it, or "
                "`splatclip runs --sync`"
            )

    def _wait_for(self, done: Callable[[], bool], seconds: float) -> bool:
        with self._change:
            self._hurry = True
            self._change.notify_all()
            self._change.wait_for(lambda: done() or self._thread is None, seconds)
            return done()

    def _why(self) -> str:
        return f" ({self.away})" if self.away else ""

    def _pending(self) -> list[Journal]:
        with self._change:
            return [journal for journal in self._journals if journal.pending() and not journal.held]

    def _idle(self) -> bool:
        return not self._pending() and not self._stores

    def _work(self) -> None:
        pause = GATHER_S
        try:
            while True:
                with self._change:
                    self._change.wait_for(lambda: self._hurry, pause)
                    self._hurry = False
                try:
                    self._round()
                    pause = GATHER_S
                except _passing() as error:
                    pause = min(MAX_PAUSE_S, 2 * pause)
                    self._missing(reason(error))
                with self._change:
                    self._change.notify_all()
        finally:  # by an error that nobody thought of: who waits goes on, and what is left is kept
            with self._change:
                self._thread = None
                self._change.notify_all()

    def _round(self) -> None:
        pending = self._pending()
        if not pending and not (self._stores and self._delivery):
            return
        if self._delivery is None:
            self._delivery = Delivery(self.uri)
        stores, left, swept = list(self._stores), "", 0
        for store in stores:  # first: the end of a run counts what all its steps took
            count, why = sweep(self._delivery, store, fingerprint(self.uri), {one.id for one in self._journals})
            swept, left = swept + count, why or left
        if left and not pending:  # nothing of ours shows that the server answers
            raise TransientError(left)
        for journal in pending:
            try:
                deliver(self._delivery, journal)
            except PermanentError as error:
                journal.held = True
                tell(str(error))
        self._stores.difference_update(stores)  # the server answers: what it did not take of theirs is for another day
        if left:
            tell(f"what an earlier run had to leave in the store could not be delivered yet ({left})")
        if self.away and (pending or swept):  # it was asked
            self.away = ""
            tell("the MLflow server answers again; all that was recorded is delivered")
        with self._change:
            self._journals = [one for one in self._journals if one.pending() or not one.closed]

    def _missing(self, why: str) -> None:
        """The server does not answer: say it once, and keep what is pending in the store."""
        if not self.away:
            tell(f"no answer from the MLflow server ({why}); the work goes on, what is recorded is delivered later")
        self.away = why
        if time.monotonic() - self._kept_at < KEEP_S:
            return
        self._kept_at = time.monotonic()
        self._keep()


def _passing() -> tuple[type[Exception], ...]:
    return (*failures(), SplatClipError)


def deliver(delivery: Delivery, journal: Journal) -> None:
    """Deliver a journal and remove it from the store; what MLflow refuses for good is kept there and said."""
    before = len(journal.refused)
    try:
        delivery.deliver(journal)
    finally:
        if len(journal.refused) > before:
            told = "; ".join(dict.fromkeys(why for _, why in journal.refused[before:]))
            try:
                tell(f"MLflow refused some of what was recorded ({told}); it is kept in {journal.put_refused()}")
            except SplatClipError as error:
                tell(f"MLflow refused some of what was recorded ({told}); it could not be kept: {error}")
    with contextlib.suppress(SplatClipError):  # left there, it is delivered once more, which changes nothing
        journal.drop()


def sweep(delivery: Delivery, store: str, target: str | None, mine: Collection[str] = ()) -> tuple[int, str]:
    """Deliver what earlier processes left in the store; how many journals, and why the last that failed did ("": none).

    target: only those for this server (None: all). mine: ids to leave alone, as are those of a process at work.
    """
    count, failed = 0, ""
    for name in leftovers(store):
        try:
            journal, live = read_journal(store, name)
            if journal.id in mine or target not in (None, journal.target):
                continue
            if live:
                if target is None:
                    tell(f"{store}/{name}: its process may be at work; try again in {LIVE_S:.0f} s")
                continue
            deliver(delivery, journal)
            count += 1
        except PermanentError as error:
            tell(str(error))
        except _passing() as error:
            if failed:  # twice: nobody is there
                break
            failed = reason(error)
    if count:
        tell(f"delivered what earlier runs had to leave in {store}: {count} journal{'s' if count > 1 else ''}")
    return count, failed
