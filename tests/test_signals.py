"""SIGTERM and Ctrl-C become requests; handlers are put back; no request is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path

import pytest

from components.errors import Interrupted, SplatClipError
from components.scratch import scratch_folder
from components.signals import interrupted_by_signals, stop_on_sigterm


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_a_request_and_handlers_return(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    def work() -> None:
        with stop_on_sigterm() as stop:
            assert not stop.requested
            stop.check("nothing happened yet")
            os.kill(os.getpid(), number)
            assert stop.requested
            stop.check("two shards are kept")

    with pytest.raises(Interrupted, match=f"{number.name}: two shards are kept"):
        work()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_request_nobody_looked_at_is_raised_at_the_end() -> None:
    with pytest.raises(Interrupted, match="SIGTERM"), stop_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)


def test_the_second_interrupt_is_immediate() -> None:
    def work() -> None:
        with stop_on_sigterm():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("the second Ctrl-C did not stop at once")

    with pytest.raises(KeyboardInterrupt):
        work()


def test_of_blocks_in_one_another_all_are_asked() -> None:
    """Work inside the inner block may look at the outer one's request only."""

    def work() -> None:
        with stop_on_sigterm() as outer, stop_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            outer.check("two shards are kept")

    with pytest.raises(Interrupted, match="SIGTERM: two shards are kept"):
        work()

    def late() -> None:
        with stop_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            with stop_on_sigterm() as inner:
                inner.check("nothing began")

    with pytest.raises(Interrupted, match="SIGTERM: nothing began"):
        late()
    with stop_on_sigterm() as stop:
        assert not stop.requested, "nothing is left of the blocks before"


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_sigterm() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.requested
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_it_works_in_other_threads_without_handlers() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stop_on_sigterm() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_around_such_blocks_a_signal_stops_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    reached = []

    def work() -> None:
        with interrupted_by_signals():
            with stop_on_sigterm() as stop:
                os.kill(os.getpid(), number)
                reached.append(stop.requested)
                stop.requested = False
            with contextlib.suppress(SplatClipError, Exception):  # no handler of errors keeps it
                os.kill(os.getpid(), number)
            reached.append(False)

    with pytest.raises(Interrupted, match=f"stopped by {number.name}; run the same command again"):
        work()
    assert reached == [True]
    assert signal.getsignal(number) == before


def test_a_second_interrupt_cuts_the_tidying_short() -> None:
    def work() -> None:
        with interrupted_by_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # asked for already
                os.kill(os.getpid(), signal.SIGINT)
                pytest.fail("it went on")

    with pytest.raises(KeyboardInterrupt) as ended:
        work()
    assert ended.type is KeyboardInterrupt


def test_only_the_signals_named_are_taken() -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals(signal.SIGTERM):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", ["mkdir", "unlink", "rmdir"])
def test_a_signal_while_a_temporary_folder_comes_or_goes_leaves_none(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    call, sent = getattr(os, name), []

    def signalled(*args: object, **more: object) -> object:
        done = call(*args, **more)
        if not sent:
            sent.append(name)
            os.kill(os.getpid(), signal.SIGTERM)
        return done

    monkeypatch.setattr(os, name, signalled)
    with pytest.raises(Interrupted, match="SIGTERM"), interrupted_by_signals(), scratch_folder() as folder:
        (folder / "shard.tar").write_bytes(b"1")
    assert sent
    assert list(tmp_path.iterdir()) == []
