"""img2dataset as the engine that fetches addresses: a program of its own, started batch by batch.

It hands out the bytes as they came; what becomes of them, limits, sums and doubles are decided here, as with the
builtin engine. What it does not do itself (robots.txt, addresses that are not public) is told in docs/sources.md.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from math import ceil
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from components.download.http import Job, Outcome
from components.download.request import PAGE, Fetched, check_url
from components.download.sources import Skip
from components.errors import PermanentError, TransientError, UsageError
from components.images import ImageError
from components.shards import IndexedShard
from components.store import os_error
from components.url_params import UrlParams

P = TypeVar("P")
BATCH = 8192  # addresses a call: its pictures lie in a temporary folder, whole, until they are taken
SHARD = 1024  # addresses a process takes at a time
PICTURE = "jpg"  # what it calls every picture that it does not touch
_POLL_S = 0.25
_SECRETS = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY|API_KEY", re.IGNORECASE)
# What its error messages say, in the order in which they are looked for; first what is this machine's own fault.
_REASONS = (
    (r"Errno -3\b|Temporary failure in name resolution", "no_name_server"),
    (
        rf"Errno ({errno.ENETUNREACH}|{errno.ENETDOWN}|{errno.EADDRNOTAVAIL})\b|Network is (unreachable|down)",
        "no_network",
    ),
    (rf"Errno ({errno.EMFILE}|{errno.ENFILE}|{errno.ENOBUFS})\b|Too many open files", "too_many_files"),
    (r"timed out", "timeout"),
    (r"Name or service not known|nodename nor servname|No address associated|Errno -[245]\b", "no_such_host"),
    (r"CERTIFICATE|SSL|TLS", "tls"),
    (r"IncompleteRead", "truncated"),
    (r"redirect", "redirects"),
    (r"refused|reset|unreachable|No route to host|Remote end closed|RemoteDisconnected", "no_connection"),
    (r"unknown url type|InvalidURL|URL can't contain|no host given", "bad_url"),
)


def outcome_of(message: str) -> Skip | ImageError:
    """What one of its error messages means, by the reasons of the builtin engine; `img2dataset` for any other."""
    first = message.partition("\n")[0][:200]
    if "X-Robots-Tag" in message:
        return Skip("noai", first)
    if status := re.search(r"HTTP Error (\d{3})", message):
        found = "redirects" if "redirect" in message and status[1].startswith("3") else f"http_{status[1]}"
        return ImageError(found, first)
    return ImageError(next((reason for sign, reason in _REASONS if re.search(sign, message)), "img2dataset"), first)


def program() -> str:
    """The executable. Raises UsageError, with how to install it, if there is none."""
    beside = Path(sys.executable).with_name("img2dataset")
    found = shutil.which("img2dataset") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise UsageError(
            "download.urls.engine is 'img2dataset', and there is no such program on PATH; install it in an environment "
            "of its own (python -m venv i2d && i2d/bin/pip install img2dataset) and put its bin folder on PATH, or set "
            "engine: builtin"
        )
    return str(Path(found).absolute())  # it is started in another folder


class Img2dataset:
    """Fetches jobs as http.Fetcher does, with img2dataset. A context manager; leaving it ends what is under way."""

    def __init__(self, params: UrlParams, *, max_bytes: int) -> None:
        self._params, self._max_bytes = params, max_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Img2dataset:
        self._program = program()
        self._folder = tempfile.TemporaryDirectory(prefix="splatclip-img2dataset-", ignore_cleanup_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # it has processes of its own
            self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()

    def fetch(self, jobs: Iterator[Job[P] | None]) -> Iterator[tuple[Job[P], Outcome] | None]:
        """Each job once with what came of it; None where a moment passed without one, also from `jobs`: not now."""
        ended = False
        while not ended:
            batch: list[Job[P]] = []
            while len(batch) < BATCH:
                try:
                    job = next(jobs)
                except StopIteration:
                    ended = True
                    break
                if job is None:
                    break
                outcome = job.outcome or _bad(job.url)
                if outcome is None:
                    batch.append(job)
                else:
                    yield job, outcome
            if batch:
                yield from self._batch(batch)
            elif not ended:
                time.sleep(_POLL_S / 10)
                yield None

    def _batch(self, batch: list[Job[P]]) -> Iterator[tuple[Job[P], Outcome] | None]:
        import pyarrow as pa
        from pyarrow import parquet

        with tempfile.TemporaryDirectory(dir=self._folder.name if self._folder else None) as name:
            folder = Path(name)
            listed = pa.table({"url": [job.url for job in batch], "row": pa.array(range(len(batch)), pa.int64())})
            parquet.write_table(listed, folder / "list.parquet")
            for _ in self._run(folder):
                yield None
            missing = set(range(len(batch)))
            for table in sorted(folder.glob("out/*.parquet")):
                for row, outcome in self._shard(table, batch):
                    missing.discard(row)
                    yield batch[row], outcome
            if missing:  # of rows whose process died there is nothing to be known: they are not failed pictures
                raise TransientError(
                    f"img2dataset says nothing of {len(missing)} of {len(batch)} addresses, the first "
                    f"{batch[min(missing)].url}{_end(folder)}; run the same command again"
                )

    def _run(self, folder: Path) -> Iterator[None]:
        params = self._params
        processes = max(1, min(os.cpu_count() or 1, params.concurrency, 16))
        options = {
            "url_list": folder / "list.parquet",
            "input_format": "parquet",
            "url_col": "url",
            "save_additional_columns": '["row"]',
            "output_folder": folder / "out",
            "output_format": "webdataset",
            "disable_all_reencoding": True,
            "encode_format": PICTURE,
            "extract_exif": False,
            "compute_hash": None,
            "number_sample_per_shard": SHARD,
            "processes_count": processes,
            "thread_count": max(1, params.concurrency // processes),
            "timeout": max(1, ceil(params.timeout_s)),
            "retries": params.retries,
            "enable_wandb": False,
            "user_agent_token": params.agent,
            "disallowed_header_directives": '["noai","noimageai","noindex","noimageindex"]' if params.robots else "[]",
        }
        kept = {name: value for name, value in os.environ.items() if not _SECRETS.search(name)}
        with (folder / "log").open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    [self._program, *(f"--{name}={value}" for name, value in options.items())],
                    env={**kept, "NO_ALBUMENTATIONS_UPDATE": "1"}, cwd=folder, stdin=subprocess.DEVNULL, stdout=log,
                    stderr=log, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                if error.errno not in {errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR}:
                    raise os_error(Path(self._program), error) from error
                raise UsageError(
                    f"{self._program} cannot be started ({error.strerror}); its first line may name a Python that is "
                    "gone: install img2dataset anew, or set download.urls.engine: builtin"
                ) from error
        while True:
            try:
                code = self._process.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                yield
        if code:
            raise TransientError(
                f"img2dataset ended with exit code {code}{_end(folder)}; see whether `{self._program} --help` works, "
                "and run the same command again"
            )

    def _shard(self, table: Path, batch: list[Job[P]]) -> Iterator[tuple[int, Outcome]]:
        """The rows of one of its shards, and what came of each."""
        import pyarrow as pa
        from pyarrow import parquet

        def broken(error: Exception) -> TransientError:
            reason = str(error).partition("\n")[0]
            return TransientError(
                f"img2dataset left a shard that cannot be read ({reason[:200]}){_end(table.parents[1])}; run the same "
                "command again"
            )

        with ExitStack() as stack:
            try:
                found = parquet.read_table(table, columns=["row", "key", "status", "error_message"]).to_pylist()
                places: dict[str, int] = {}
                if any(row["status"] == "success" for row in found):  # its tar is empty otherwise
                    shard = stack.enter_context(IndexedShard(table.with_suffix(".tar")))
                    places = {key: position for position, key in enumerate(shard.keys)}
            except (pa.ArrowException, OSError, PermanentError) as error:
                raise broken(error) from error
            for row in found:
                if row["status"] != "success":
                    yield row["row"], outcome_of(row["error_message"] or "")
                    continue
                try:
                    data = shard.field(places[row["key"]], PICTURE)
                except KeyError as error:
                    raise broken(error) from error
                yield row["row"], self._checked(data, batch[row["row"]].url)

    def _checked(self, data: memoryview, url: str) -> Outcome:
        if len(data) > self._max_bytes:
            return ImageError("too_large", f"{len(data)} bytes; the limit is {self._max_bytes}")
        if PAGE.match(bytes(data[:512])):
            return ImageError("not_a_picture", "a page")
        return Fetched(bytes(data), url)


def _end(folder: Path) -> str:
    """The last lines of its log, where it has some, for a message."""
    said = (folder / "log").read_text(errors="replace").strip().splitlines()
    return f": {' | '.join(said[-3:])[-500:]}" if said else ""


def _bad(url: str) -> ImageError | None:
    try:
        check_url(url)
    except ImageError as error:
        return error
    return None
