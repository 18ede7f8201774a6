"""A place for files: a folder, or a bucket and prefix on an S3 service.

Writes are atomic: a reader sees the whole old file or the whole new one, also after kill -9 or a power cut.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import hashlib
import mmap
import os
import re
import secrets
import shutil
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from components.errors import AccessError, PermanentError, TransientError, UsageError

TEMP_PREFIX = ".tmp-"  # of the last part of a name; never listed, never a name of the caller's
CHUNK = 1 << 20
MOST_IN_MEMORY = 64 << 20  # bytes of a file that is fetched: a shuffled epoch has up to 32 shards at a time


@dataclass(frozen=True)
class StoredFile:
    """A file as a store lists it. modified: seconds since 1970 by the store's clock; now where it does not tell."""

    name: str
    bytes: int
    modified: float

    @property
    def temporary(self) -> bool:
        """Whether it is being written, or was when its writer was killed."""
        return self.name.rpartition("/")[2].startswith(TEMP_PREFIX)


@dataclass(frozen=True)
class Upload:
    """An upload in parts that was begun and not completed. begun: seconds since 1970 by the store's clock."""

    name: str
    id: str
    begun: float


class StoreNotFound(PermanentError):
    """There is no file of that name."""


class StoreDamaged(PermanentError):
    """A file's content is not what its sum says."""


_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


def check_name(name: str) -> str:
    """Return `name` if it is a safe posix relative path; UsageError otherwise."""
    parts = name.split("/")
    if not name or name.startswith("/") or "\\" in name or any(part in {"", ".", ".."} for part in parts):
        raise UsageError(
            f"store name {name!r}: give a relative path with forward slashes and no '.', '..' or empty part"
        )
    if _UNPRINTABLE.search(name):
        raise UsageError(f"store name {name!r} holds a control character or half a surrogate pair")
    if parts[-1].startswith(TEMP_PREFIX):
        raise UsageError(f"store name {name!r}: names that begin with {TEMP_PREFIX!r} are kept for files being written")
    return name


def sha256_file(path: Path) -> str:
    """The file's sha256 as hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def mismatch(where: str, expected: str, found: str) -> StoreDamaged:
    """The error of a file whose content is not what a manifest says."""
    return StoreDamaged(
        f"{where}: sha256 is {found}, expected {expected}: changed or damaged; delete it and run the stage again"
    )


class Store(ABC):
    """Files by name; names are posix relative paths (UsageError if not)."""

    url: str

    @abstractmethod
    def put_bytes(self, name: str, data: bytes) -> None:
        """Write `data` under `name`, atomically; an existing file is replaced."""

    @abstractmethod
    def put_file(self, name: str, path: Path) -> None:
        """Copy the local file `path` to `name`, atomically; `path` stays in place."""

    @abstractmethod
    def get_bytes(self, name: str) -> bytes:
        """The content of `name`. Raises StoreNotFound."""

    @abstractmethod
    def local(self, name: str, sha256: str | None = None) -> AbstractContextManager[Path]:
        """A readable local path of `name` for the length of the context.

        With `sha256` the content is checked first; PermanentError naming both sums if it differs. Raises StoreNotFound.
        """

    @contextmanager
    def content(self, name: str, sha256: str, num_bytes: int) -> Iterator[Path | mmap.mmap]:
        """A file of `num_bytes` bytes for the length of the context: its path, or the content itself, in memory.

        In memory is what would have to be fetched into a temporary file and has at most MOST_IN_MEMORY bytes. Views of
        it stay valid after the context. Errors as of `local`.
        """
        with self.local(name, sha256) as path:
            yield path

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is a file `name`."""

    @abstractmethod
    def size(self, name: str) -> int:
        """Bytes of `name`. Raises StoreNotFound."""

    @abstractmethod
    def list(self, prefix: str = "") -> builtins.list[str]:
        """All names that begin with `prefix`, sorted, at any depth; files still being written are not shown."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Remove `name`; nothing happens if it is not there."""

    @abstractmethod
    def entries(self) -> Iterator[StoredFile]:
        """All files with size and age, one after another, those still being written too; a folder's together.

        A name may be one that `check_name` refuses, where others write there as well.
        """

    @abstractmethod
    def remove(self, file: StoredFile) -> bool:
        """Delete what `entries` listed, if its size and time still are the same; whether it did."""

    def uploads(self) -> builtins.list[Upload]:
        """Uploads in parts that nobody has completed; none where there is no such thing."""
        return []

    def abort(self, upload: Upload) -> None:
        """Give up an upload in parts, whose parts go; nothing happens if it is gone or completed."""
        raise UsageError(f"{self.url}: holds no uploads in parts")

    @abstractmethod
    def sub(self, path: str) -> Store:
        """The store of what lies under `path`."""

    def sweep(self, older_than_s: float = 3600.0) -> int:
        """Remove what killed writers left behind, if older than given; returns how many files went."""
        return 0

    def not_found(self, name: str) -> StoreNotFound:
        """The error of a missing file."""
        return StoreNotFound(f"{self.url}: there is no file {name!r}")


FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def os_error(where: Path, error: OSError) -> PermanentError | TransientError:
    """What a failure of the file system means for the caller."""
    reason = error.strerror or str(error)
    if error.errno in FULL:
        return TransientError(f"{where}: {reason}; free some space and run the same command again")
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return AccessError(f"{where}: {reason}; choose a folder that you may read and write, or change its permissions")
    if error.errno in {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}:
        return PermanentError(
            f"{where}: {reason}; a file and a folder are in each other's place or the name is too long"
        )
    return TransientError(f"{where}: {reason}")


@contextmanager
def _as_ours(path: Path) -> Iterator[None]:
    """What the file system says of `path`, raised as an error of ours."""
    try:
        yield
    except OSError as error:
        raise os_error(path, error) from error


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Create `folder` and its parents so that they outlive a power cut."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    _fsync_folder(folder.parent)


def _unreadable(error: OSError) -> None:
    """For os.walk: a folder that is not there holds nothing; one that cannot be read may hold anything."""
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise os_error(Path(error.filename), error) from error


_SETTLED_NS = 2_000_000_000  # a file written to later than this gets another time, on any file system's clock
_verified: dict[str, tuple[tuple[int, ...], str]] = {}


def _verify(path: Path, sha256: str) -> None:
    """Check a file's content, once in a process as long as the file system says that it is the same file.

    A file that was written to a moment ago is not remembered: a second write might leave its time as it is.
    """
    found = path.stat()
    state = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    name = os.path.abspath(path)
    if _verified.get(name) == (state, sha256):
        return
    now = time.time_ns()  # before the content is read
    if (content := sha256_file(path)) != sha256:
        raise mismatch(str(path), sha256, content)
    if now - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS:
        _verified[name] = (state, sha256)


class FolderStore(Store):
    """A store in a folder, made at the first write."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.root = Path(url).expanduser()
        except RuntimeError:
            raise UsageError(f"store {url!r}: there is no such home folder; give a path") from None

    def _path(self, name: str) -> Path:
        return self.root / check_name(name)

    def _stat(self, name: str) -> os.stat_result | None:
        """Of a file, or what a link leads to; None if there is no such file."""
        path = self._path(name)
        with _as_ours(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            found = path.stat()
            return found if stat.S_ISREG(found.st_mode) else None
        return None

    def _write(self, name: str, fill: Callable[[BinaryIO], None]) -> None:
        target = self._path(name)
        # in the target's own folder: a rename is atomic only within one file system
        temp = target.with_name(f"{TEMP_PREFIX}{os.getpid()}-{secrets.token_hex(6)}")
        with _as_ours(target):
            _make_folder(target.parent)
            try:
                with temp.open("xb") as stream:
                    fill(stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                temp.replace(target)
            except BaseException:
                temp.unlink(missing_ok=True)
                raise
            _fsync_folder(target.parent)

    def put_bytes(self, name: str, data: bytes) -> None:
        """See Store."""

        def fill(stream: BinaryIO) -> None:
            stream.write(data)

        self._write(name, fill)

    def put_file(self, name: str, path: Path) -> None:
        """See Store."""

        def fill(stream: BinaryIO) -> None:
            with path.open("rb") as source:
                shutil.copyfileobj(source, stream, CHUNK)

        self._write(name, fill)

    def get_bytes(self, name: str) -> bytes:
        """See Store."""
        if self._stat(name) is None:
            raise self.not_found(name)
        path = self._path(name)
        with _as_ours(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                raise self.not_found(name) from None

    @contextmanager
    def local(self, name: str, sha256: str | None = None) -> Iterator[Path]:
        """See Store; the path is the file itself: do not write to it. What was checked once is not read again."""
        if self._stat(name) is None:
            raise self.not_found(name)
        path = self._path(name)
        if sha256 is not None:
            with _as_ours(path):
                _verify(path, sha256)
        yield path

    def exists(self, name: str) -> bool:
        """See Store."""
        return self._stat(name) is not None

    def size(self, name: str) -> int:
        """See Store."""
        found = self._stat(name)
        if found is None:
            raise self.not_found(name)
        return found.st_size

    def list(self, prefix: str = "") -> builtins.list[str]:
        """See Store."""
        folder = prefix.rpartition("/")[0]
        top = self.root / check_name(folder) if folder else self.root
        names = []
        for where, _, files in os.walk(top, onerror=_unreadable):
            inside = Path(where).relative_to(self.root)
            names += [(inside / file).as_posix() for file in files if not file.startswith(TEMP_PREFIX)]
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """See Store."""
        path = self._path(name)
        with _as_ours(path):
            path.unlink(missing_ok=True)
            if path.parent.is_dir():
                _fsync_folder(path.parent)

    def entries(self) -> Iterator[StoredFile]:
        """See Store; of a link its own size and age."""
        for where, _, files in os.walk(self.root, onerror=_unreadable):
            for file in sorted(files):
                path = Path(where) / file
                with _as_ours(path):
                    try:
                        found = path.lstat()
                    except FileNotFoundError:  # its writer renamed it
                        continue
                yield StoredFile(path.relative_to(self.root).as_posix(), found.st_size, found.st_mtime)

    def remove(self, file: StoredFile) -> bool:
        """See Store."""
        folder, _, last = file.name.rpartition("/")
        path = self._path(file.name) if not file.temporary else (self._path(folder) if folder else self.root) / last
        try:
            found = path.lstat()
            if (found.st_size, found.st_mtime) != (file.bytes, file.modified):
                return False
            path.unlink()
            _fsync_folder(path.parent)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise os_error(path, error) from error
        return True

    def sweep(self, older_than_s: float = 3600.0) -> int:
        """See Store."""
        count, now = 0, time.time()
        temps = (Path(where) / file for where, _, files in os.walk(self.root) for file in files)
        for temp in temps:
            with contextlib.suppress(OSError):  # another worker swept it, or finished it
                if temp.name.startswith(TEMP_PREFIX) and now - temp.stat().st_mtime > older_than_s:
                    temp.unlink()
                    count += 1
        return count

    def sub(self, path: str) -> Store:
        """See Store."""
        return FolderStore(f"{self.url.rstrip('/')}/{check_name(path)}")


def open_store(url: str) -> Store:
    """Open a folder (a path) or an S3 prefix (s3://bucket/prefix). The store is not contacted yet.

    For s3:// the environment says where: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL (http:// or https://), AWS_REGION.
    Credentials come from the environment, a file or the pod's identity (docs/store.md). Raises UsageError.
    """
    if not url:
        raise UsageError("the store's address is empty; give a folder or s3://bucket/prefix")
    if url.startswith("s3://"):
        from components.store_s3 import open_s3

        return open_s3(url)
    if "://" in url:
        raise UsageError(f"store {url!r}: give a folder or s3://bucket/prefix")
    return FolderStore(url)
