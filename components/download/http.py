"""Fetching many web addresses at a time, bounded in connections, hosts, bytes and time; each comes back, good or bad.

One asyncio loop in a thread of its own; whoever calls stays synchronous.
"""

from __future__ import annotations

import asyncio
import queue
import resource
import threading
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

from components.download.request import Client, Fetched, host_of
from components.download.sources import Skip
from components.images import ImageError
from components.url_params import UrlParams

__all__ = ["Fetched", "Fetcher", "Job"]

P = TypeVar("P")
BUFFER_BYTES = 128 << 20  # of fetched bodies that nobody has taken yet; no new ones are begun beyond
WINDOW = 64  # jobs that wait for their host, as a multiple of what runs at a time
FEED = 256  # jobs that are taken at a time, where there is room for so many
_PAUSE_S = 0.02  # where nothing runs and nothing may begin
_POLL_S = 0.25  # a consumer that waits is woken so often, to hear signals

PROBE = 50  # of the rows of a host that is down one in so many is tried
_DOWN = {"timeout", "no_connection"}

Outcome = Fetched | Skip | ImageError


@dataclass(frozen=True)
class Job(Generic[P]):
    """One address to fetch; payload: whatever the caller wants to see again with the result; outcome: where it is known
    before anything is fetched.
    """

    url: str
    payload: P
    outcome: Skip | ImageError | None = None


def _down(times: int) -> ImageError:
    return ImageError("host_down", f"the last {times} requests to this host came to nothing")


def more_files(wanted: int) -> None:
    """Raise this process's limit on open files, where it is lower and may be raised."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class Fetcher:
    """Fetches jobs and hands out the results as they come.

    At most `concurrency` requests run at a time, `per_host` of them to one host; a job that waits for its host takes
    no place from others, so that neither a slow host nor a bad address holds up the rest. A host of which the last
    2 x `per_host` requests came to nothing is down: its other jobs fail as `host_down`, but for one in PROBE that is
    still tried, once; when one succeeds it is up again.
    """

    def __init__(self, params: UrlParams, *, max_bytes: int) -> None:
        self._params, self._max_bytes = params, max_bytes
        self._results: queue.SimpleQueue[tuple[Job[Any], Outcome] | BaseException | None] = queue.SimpleQueue()
        self._held = 0  # bytes in self._results; changed by both threads, under the lock
        self._lock = threading.Lock()
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Fetcher:
        more_files(4 * self._params.concurrency + 512)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._stopped = True
        loop, task = self._loop, self._task
        if loop is not None and task is not None:
            with suppress(RuntimeError):  # the loop has ended by itself
                loop.call_soon_threadsafe(task.cancel)
        self._thread.join()

    def fetch(self, jobs: Iterator[Job[P] | None]) -> Iterator[tuple[Job[P], Outcome] | None]:
        """Results in the order in which they are ready, each job once; None where a moment passed without one.

        `jobs` is advanced in a thread of its own, so that requests go on while it takes its time; None from it: none
        may be begun now. What it raises is raised here.
        """
        started = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(jobs, started), name="splatclip-fetch", daemon=True)
        self._thread.start()
        started.wait()
        while True:
            try:
                result = self._results.get(timeout=_POLL_S)
            except queue.Empty:
                yield None
                continue
            if result is None:
                return
            if isinstance(result, BaseException):
                raise result
            if isinstance(result[1], Fetched):
                self._count(-len(result[1].body))
            yield result

    def _count(self, num_bytes: int) -> None:
        with self._lock:
            self._held += num_bytes

    def _work(self, jobs: Iterator[Job[Any]], started: threading.Event) -> None:
        async def main() -> None:
            self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
            # names are looked up in threads, by default in a few, and dead ones take seconds
            self._loop.set_default_executor(ThreadPoolExecutor(self._params.concurrency))
            started.set()
            async with Client(self._params, max_bytes=self._max_bytes) as client:
                await self._schedule(jobs, client)

        try:
            asyncio.run(main())
            self._results.put(None)
        except asyncio.CancelledError as error:
            self._results.put(None if self._stopped else RuntimeError(f"the requests were cancelled: {error}"))
        except BaseException as error:  # noqa: BLE001  nothing is swallowed: the consumer's thread raises it
            self._results.put(error)
        finally:
            started.set()

    async def _schedule(self, jobs: Iterator[Job[Any] | None], client: Client) -> None:
        params = self._params
        waiting: dict[str, deque[Job[Any]]] = {}  # by host, in the order in which the hosts' turns come
        active: Counter[str] = Counter()
        running: dict[asyncio.Task[Outcome], tuple[Job[Any], str]] = {}
        in_vain: Counter[str] = Counter()  # requests to a host in a row that got no answer
        spared: Counter[str] = Counter()
        exhausted, num_waiting = False, 0
        window = WINDOW * params.concurrency
        feed = min(FEED, -(-window // 2))
        ended = threading.Event()
        feeder = ThreadPoolExecutor(1, "splatclip-rows")  # the loop's own may all be busy with names
        feeding: asyncio.Future[tuple[list[Job[Any]], bool]] | None = None

        def take(most: int) -> tuple[list[Job[Any]], bool]:
            """The next jobs, and whether that were all."""
            found: list[Job[Any]] = []
            while len(found) < most and not ended.is_set():
                try:
                    job = next(jobs)
                except StopIteration:
                    return found, True
                if job is None:
                    if not found:
                        ended.wait(_PAUSE_S)
                    break
                found.append(job)
            return found, False

        def admit(taken: list[Job[Any]]) -> None:
            nonlocal num_waiting
            for job in taken:
                if job.outcome is not None:
                    self._hand_out(job, job.outcome)
                else:
                    waiting.setdefault(host_of(job.url), deque()).append(job)
                    num_waiting += 1

        def down(host: str) -> bool:
            """Whether a job of this host is to fail without a request; asked once of each, when its turn has come."""
            if in_vain[host] < 2 * params.per_host:
                return False
            spared[host] += 1
            return spared[host] % PROBE != 0

        def start() -> None:
            nonlocal num_waiting
            for host in list(waiting):
                queued = waiting.pop(host)
                while queued and active[host] < params.per_host and len(running) < params.concurrency:
                    job = queued.popleft()
                    num_waiting -= 1
                    if down(host):
                        self._hand_out(job, _down(in_vain[host]))
                        continue
                    active[host] += 1
                    retries = params.retries if in_vain[host] < params.per_host else 0
                    running[asyncio.create_task(client.get(job.url, retries=retries))] = (job, host)
                if queued:
                    waiting[host] = queued  # behind the others
                if len(running) >= params.concurrency:
                    return

        try:
            while True:
                if feeding is None and not exhausted and window - num_waiting >= feed:
                    feeding = asyncio.get_running_loop().run_in_executor(feeder, take, feed)
                if self._roomy():
                    start()
                if exhausted and not running and not waiting:
                    return
                awaited: list[asyncio.Future[Any]] = [*running] if feeding is None else [*running, feeding]
                if not awaited:
                    await asyncio.sleep(_PAUSE_S)
                    continue
                limit = _POLL_S if running else _PAUSE_S
                await asyncio.wait(awaited, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
                if feeding is not None and feeding.done():
                    taken, exhausted = feeding.result()
                    feeding = None
                    admit(taken)
                finished = [task for task in running if task.done()]
                for task in finished:
                    job, host = running.pop(task)
                    active[host] -= 1
                    if not active[host]:
                        del active[host]
                    outcome = task.result()
                    if isinstance(outcome, ImageError) and outcome.reason in _DOWN:
                        in_vain[host] += 1
                    else:
                        del in_vain[host]
                    self._hand_out(job, outcome)
        finally:
            ended.set()
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            feeder.shutdown()

    def _roomy(self) -> bool:
        with self._lock:
            return self._held < BUFFER_BYTES

    def _hand_out(self, job: Job[Any], outcome: Outcome) -> None:
        if isinstance(outcome, Fetched):
            self._count(len(outcome.body))
        self._results.put((job, outcome))
