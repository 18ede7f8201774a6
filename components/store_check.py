"""`splatclip store check`: does a store work, step by step, and if not, what to do about it.

On S3 the steps go from the address outwards: the first one that fails says where to look. What is written lies under a
name of its own below `_check/` and is removed at the end.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import PermanentError, SplatClipError, TransientError
from components.store import FolderStore, Store, open_store, os_error

if TYPE_CHECKING:
    from components.s3_probe import ProbedStore

LEAST_FREE = 1 << 30  # bytes; a demo's store has a tenth of it
PART = 5 << 20  # the smallest that S3 takes, but for the last


@dataclass
class Check:
    """The steps of one check, printed as they are done."""

    say: Callable[[str], None]
    errors: list[SplatClipError] = field(default_factory=list)

    def step(self, name: str, work: Callable[[], str]) -> bool:
        """Do one: `work` returns what to say, or raises what failed. Returns whether it went well."""
        try:
            try:
                text, mark = work(), "ok"
            except OSError as error:
                raise os_error(Path(str(error.filename or name)), error) from error
        except SplatClipError as error:
            self.errors.append(error)
            text, mark = str(error), "FAILED"
        self.say(f"{mark:<7} {name:<12} {text}".rstrip())
        return mark == "ok"

    @property
    def exit_code(self) -> int:
        """0, or that of the first error."""
        return self.errors[0].exit_code if self.errors else 0


def check_store(url: str, say: Callable[[str], None] = print) -> int:
    """Check the store at `url`, say each step, and return the exit code: 0, or that of the first step that failed."""
    check = Check(say)
    store: list[Store] = []

    def address() -> str:
        if url.startswith("s3://"):
            from components.store_s3 import split_url

            bucket, prefix = split_url(url)
            return f"bucket {bucket}, prefix {prefix or '(none)'}"
        store.append(open_store(url))
        return f"the folder {Path(url).expanduser().absolute()}"

    if check.step("address", address):
        if store and isinstance(store[0], FolderStore):
            _folder(check, store[0])
        else:
            _service(check, url)
    return check.exit_code


def _os_text(where: Path, error: OSError, remedy: str) -> PermanentError:
    return PermanentError(f"{where}: {error.strerror or error}; {remedy}")


def _folder(check: Check, store: FolderStore) -> None:
    name, data = f"_check/{secrets.token_hex(6)}", secrets.token_bytes(100_000)

    def free() -> str:
        there = store.root.absolute()
        while not there.exists():
            there = there.parent
        left = shutil.disk_usage(there).free
        if left < LEAST_FREE:
            raise TransientError(f"{there}: {left >> 20} MiB are free; make room, or choose another folder")
        return f"{left / (1 << 30):.1f} GiB"

    def fsync() -> str:
        try:
            with tempfile.TemporaryFile(dir=store.root / "_check") as stream:
                stream.write(data)
                stream.flush()
                begun = time.perf_counter()
                os.fsync(stream.fileno())
        except OSError as error:
            raise _os_text(store.root, error, "this file system cannot keep what is written; choose another") from error
        return f"{(time.perf_counter() - begun) * 1000:.1f} ms"

    def rename() -> str:
        """A name always has the whole old or the whole new content, and another rename follows the first."""
        place = store.root / f"{name}-rename"
        place.mkdir()
        try:
            for text in (b"old", b"new"):
                (place / "temporary").write_bytes(text)
                (place / "temporary").replace(place / "file")
            found = (place / "file").read_bytes(), sorted(item.name for item in place.iterdir())
            if found != (b"new", ["file"]):
                raise PermanentError(f"{place}: a rename left {found[1]}; choose a folder on another file system")
        except OSError as error:
            raise _os_text(place, error, "files cannot be renamed here; choose another file system") from error
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return "replaces a file"

    def write() -> str:
        store.put_bytes(name, data)
        return f"{len(data)} bytes"

    check.step("free space", free)
    if check.step("write", write):
        check.step("read back", lambda: _same(store, name, data))
        check.step("fsync", fsync)
        check.step("rename", rename)
        check.step("delete", lambda: _deleted(store, [name]))
        with suppress(OSError):  # another check is on, or something else lies there
            (store.root / "_check").rmdir()


def _same(store: Store, name: str, data: bytes) -> str:
    if store.get_bytes(name) != data:
        raise PermanentError(f"{store.url}/{name}: other bytes came back than were written; do not use this store")
    return "the same bytes"


def _deleted(store: Store, names: list[str]) -> str:
    errors = []
    for name in names:
        try:
            store.delete(name)
            if store.exists(name):
                raise PermanentError(f"{store.url}/{name}: still there after it was deleted; see the bucket's rules")
        except SplatClipError as error:  # the others can still go
            errors.append(error)
    if errors:
        raise errors[0]
    return f"{len(names)} removed"


def _service(check: Check, url: str) -> None:
    """The steps on S3; those up to the bucket need each other, the others do not."""
    from components import s3_probe
    from components.s3_connection import open_connection
    from components.store_s3 import split_url

    opened: list[ProbedStore] = []

    def credentials() -> str:
        store = s3_probe.ProbedStore(open_connection(), *split_url(url))
        opened.append(store)
        return f"from {store.credentials()}"

    if not check.step("endpoint", s3_probe.resolves):
        return
    if not check.step("TLS", s3_probe.tls) or not check.step("answer", s3_probe.answers):
        return
    check.step("clock", s3_probe.clock)
    if not check.step("credentials", credentials):
        return
    if not check.step("bucket", opened[0].check_bucket):
        return
    _objects(check, opened[0])


def _objects(check: Check, store: ProbedStore) -> None:
    """Write, read and remove under a name of its own."""
    name, data = f"_check/{socket.gethostname()[:20]}-{secrets.token_hex(6)}", secrets.token_bytes(10_000)
    large = secrets.token_bytes(1 << 10) * (PART >> 10) + b"1"
    written: list[str] = []

    def put() -> str:
        store.put_bytes(f"{name}/small", data)
        written.append(f"{name}/small")
        return f"{len(data)} bytes"

    def parts() -> str:
        store.put_parts(f"{name}/large", large, PART)
        written.append(f"{name}/large")
        return f"{len(large)} bytes in 2 parts, {_same(store, f'{name}/large', large)}"

    def listing() -> str:
        names = store.list(name)
        if sorted(written) != names:
            raise PermanentError(
                f"{store.url}/{name}: {sorted(written)} were written and {names} are listed: the service's listing is "
                "not up to date; use another service"
            )
        return f"{len(names)} found under {name}"

    def leftovers() -> str:
        gone = store.remove_uploads(name)
        rest = store.list(name)
        if rest:
            raise PermanentError(f"{store.url}: {rest} are still there; remove them by hand")
        return f"none{f', but for {gone} unfinished uploads, removed' if gone else ''}"

    check.step("list", lambda: f"{len(store.list('_check/'))} names of earlier checks")
    if check.step("put", put):
        check.step("read back", lambda: _same(store, f"{name}/small", data))
    check.step("multipart", parts)
    if written:
        check.step("list again", listing)
        check.step("delete", lambda: _deleted(store, written))
    check.step("leftovers", leftovers)
