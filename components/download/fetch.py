"""Where a source's files lie: a folder, an S3 prefix or an http(s) address, read alike."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from components.download.tls import Retries, no_tls
from components.errors import PermanentError, TransientError, UsageError
from components.scratch import in_scratch
from components.store import CHUNK, FolderStore, StoreNotFound, open_store, sha256_file
from components.store_s3 import S3Store

TABLES = (".parquet", ".csv", ".tsv", ".jsonl")  # lists of URLs
SPOOL_BYTES = 20 << 30  # of downloaded files kept on disk at a time
MAX_NAMES = 100_000  # that ranges of numbers in an address, or nshards.txt, may stand for
MAX_CHARACTERS = 1 << 25  # of all these names
LONGEST_WAIT_S = 60  # that a Retry-After is waited for
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_HTTP_NAMES = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")
_HTTP_SPLITS = ("train", "val", "test")
_OPTIONAL = {*_HTTP_NAMES, *(f"{split}/nshards.txt" for split in _HTTP_SPLITS)}


def expand(pattern: str) -> list[str]:
    """`{00000..00003}.tar` -> the four names; a name without braces -> itself.

    Raises UsageError on an empty range, and where there are more than MAX_NAMES names.
    """
    names = [""]
    last = 0
    for match in _BRACES.finditer(pattern):
        low, high = int(match[1][:10]), int(match[2][:10])
        if high < low:
            raise UsageError(f"download.path: the range {match[0][:40]} is empty; write the lower number first")
        count = len(names) * (high - low + 1)
        if max(len(match[1]), len(match[2])) > 9 or count > MAX_NAMES or count * len(pattern) > MAX_CHARACTERS:
            raise UsageError(f"download.path: {match[0][:40]}: more than {MAX_NAMES} names; use several folders")
        numbers = [f"{pattern[last : match.start()]}{number:0{len(match[1])}d}" for number in range(low, high + 1)]
        names = [name + number for name in names for number in numbers]
        last = match.end()
    return [name + pattern[last:] for name in names]


class Tree(ABC):
    """The files of a source by relative name; remote ones are kept in a temporary folder while the tree is open."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._spool: tempfile.TemporaryDirectory[str] | None = None
        self._kept: OrderedDict[str, tuple[Path, int]] = OrderedDict()
        self._sums: dict[str, str] = {}

    @abstractmethod
    def names(self) -> list[str]:
        """All names, sorted; hidden files are left out."""

    @abstractmethod
    def remote_identity(self, name: str) -> tuple[int, str] | None:
        """Size and ETag of `name` where they can be had without reading it."""

    @abstractmethod
    def _fetch(self, name: str, path: Path) -> None:
        """Write `name`'s content to `path`; StoreNotFound if there is none."""

    def identity(self, name: str) -> tuple[int, str]:
        """Size, and `etag:...` or `sha256:...`: what changes when the content does."""
        found = self.remote_identity(name)
        if found is not None:
            return found
        path = self.path(name)
        return path.stat().st_size, f"sha256:{sha256_file(path)}"

    def path(self, name: str) -> Path:
        """A local copy of `name`, valid until the next call of `path` for another name."""
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name][0]
        with in_scratch():
            if self._spool is None:
                self._spool = tempfile.TemporaryDirectory(prefix="splatclip-download-", ignore_cleanup_errors=True)
            path = Path(self._spool.name) / hashlib.sha256(name.encode()).hexdigest()[:32]
            self._fetch(name, path)
        digest = sha256_file(path)
        if self._sums.setdefault(name, digest) != digest:
            raise PermanentError(f"{self.url}: {name} changed while it was being read; run the command again")
        self._kept[name] = (path, path.stat().st_size)
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > SPOOL_BYTES:
            _, (oldest, _) = self._kept.popitem(last=False)
            oldest.unlink()
        return path

    def read(self, name: str) -> bytes:
        """The content of `name`; StoreNotFound if there is none."""
        return self.path(name).read_bytes()

    def tail(self, name: str, num_bytes: int) -> bytes:
        """The last bytes of `name`, all of a shorter one."""
        path = self.path(name)
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - num_bytes))
            return stream.read()

    @property
    def origin(self) -> str:
        """What a manifest may say of where the files are from; empty where it is a place that others cannot know."""
        return ""

    def close(self) -> None:
        """Remove the temporary copies."""
        if self._spool is not None:
            self._spool.cleanup()
            self._spool = None
            self._kept.clear()

    def fingerprint(self, names: list[str]) -> str:
        """Of the files' names and contents, not of where they lie: sha256 as hex digits."""
        digest = hashlib.sha256()
        for name in sorted(names):
            size, mark = self.identity(name)
            digest.update(f"{name}\0{size}\0{mark}\n".encode(errors="surrogateescape"))  # names may not be UTF-8
        return digest.hexdigest()


class FolderTree(Tree):
    """Files in a folder, read in place."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._store = FolderStore(url)
        if not self._store.root.is_dir():
            raise PermanentError(f"download.path {url!r}: there is no such folder; correct the path")

    def names(self) -> list[str]:
        """See Tree."""
        return [name for name in self._store.list() if not any(part.startswith(".") for part in name.split("/"))]

    def remote_identity(self, name: str) -> tuple[int, str] | None:
        """See Tree."""
        return None

    def _fetch(self, name: str, path: Path) -> None:
        with self._store.local(name) as source:
            shutil.copyfile(source, path)

    def path(self, name: str) -> Path:
        """See Tree: the file itself, under any name that the file system takes."""
        path = self._store.root / name
        if not path.is_file():
            raise self._store.not_found(name)
        return path


class S3Tree(Tree):
    """Files under an S3 prefix."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        store = open_store(url)
        if not isinstance(store, S3Store):
            raise UsageError(f"download.path {url!r}: expected s3://bucket/prefix")
        self._store = store

    def names(self) -> list[str]:
        """See Tree."""
        return [name for name in self._store.list() if not any(part.startswith(".") for part in name.split("/"))]

    def remote_identity(self, name: str) -> tuple[int, str] | None:
        """See Tree."""
        size, etag = self._store.stat(name)
        return (size, f"etag:{etag}") if etag else None

    def _fetch(self, name: str, path: Path) -> None:
        with self._store.local(name) as source:
            shutil.move(source, path)
            source.touch()  # the store removes it


class HttpTree(Tree):
    """Files under an http(s) address: those that nshards.txt announces, or the names given."""

    def __init__(self, url: str, names: list[str] | None = None) -> None:
        super().__init__(url)
        self._names = names
        self._forbidden = False  # an optional file was answered with 403: missing, or all of it is closed
        retries = Retries(
            total=5,
            redirect=5,
            backoff_factor=0.2,
            status_forcelist=[429, 500, 502, 503, 504],
            retry_after_max=LONGEST_WAIT_S,
        )
        timeout = urllib3.Timeout(connect=10.0, read=60.0)
        self._http = urllib3.PoolManager(timeout=timeout, retries=retries)

    def close(self) -> None:
        """See Tree."""
        self._http.clear()
        super().close()

    def _request(self, method: str, name: str, path: Path | None = None) -> tuple[int, dict[str, str]]:
        url = f"{self.url.rstrip('/')}/{name}"
        try:
            answer = self._http.request(method, url, preload_content=False, headers={"Accept-Encoding": "identity"})
            try:
                if answer.status == 200 and path is not None:
                    with path.open("wb") as stream:
                        for chunk in answer.stream(CHUNK):
                            stream.write(chunk)
            finally:
                answer.close()
                answer.release_conn()
        except HTTPError as error:
            raise no_tls(error, url, "download.path") or TransientError(
                f"{url}: no whole answer ({type(error).__name__}); check the address or try again"
            ) from error
        return answer.status, {key.lower(): value for key, value in answer.headers.items()}

    def _fetch(self, name: str, path: Path) -> None:
        status, _ = self._request("GET", name, path)
        if status == 403 and name in _OPTIONAL:  # what buckets say of a missing file to those who may not list them
            self._forbidden = True
            status = 404
        if status in {404, 410}:
            raise StoreNotFound(f"{self.url}: there is no {name!r} (HTTP {status}); correct download.path")
        if status != 200:
            raise PermanentError(
                f"{self.url}/{name}: the server answered HTTP {status}; check the address and your rights"
            )

    def remote_identity(self, name: str) -> tuple[int, str] | None:
        """See Tree."""
        status, headers = self._request("HEAD", name)
        etag = headers.get("etag", "").removeprefix("W/").strip('"')
        length = headers.get("content-length", "")
        return (int(length), f"etag:{etag}") if status == 200 and etag and length.isdigit() else None

    def names(self) -> list[str]:
        """See Tree."""
        if self._names is not None:
            return sorted(self._names)
        found = [name for name in _HTTP_NAMES if self._has(name)]
        for split in _HTTP_SPLITS:
            name = f"{split}/nshards.txt"
            if not self._has(name):
                continue
            text = self.read(name).decode("ascii", "replace").strip()
            if not text.isdigit() or len(text) > 9 or int(text) > MAX_NAMES:
                raise PermanentError(
                    f"{self.url}/{name} holds {text[:40]!r}; expected the number of tars, {MAX_NAMES} at most"
                )
            found += [name, *(f"{split}/{number}.tar" for number in range(int(text)))]
        if not found and self._forbidden:
            raise PermanentError(f"{self.url}: the server answers HTTP 403 to all; check the address and your rights")
        return sorted(found)

    def _has(self, name: str) -> bool:
        try:
            self.path(name)
        except StoreNotFound:
            return False
        return True


def open_tree(url: str, single: tuple[str, ...] = (".tar", *TABLES)) -> Tree:
    """Open a folder, s3://bucket/prefix, http(s) base or hf://datasets/owner/name@revision/folder of the hub, or in any
    of them one .tar, list of URLs or {00000..00009}.tar.

    single: endings of what is one file. Raises UsageError or PermanentError if the address makes no sense.
    """
    scheme = urlsplit(url).scheme if "://" in url else ""
    if scheme not in {"", "s3", "http", "https", "hf"}:
        raise UsageError(
            f"download.path {url!r}: give a folder, s3://bucket/prefix, an http(s) address or hf://datasets/"
        )
    base, names = url, None
    if url.endswith(single) and not (scheme == "" and Path(url).is_dir()):
        base, _, last = url.rpartition("/")
        base, names = base or ".", expand(last)
    if scheme in {"http", "https"}:
        return HttpTree(base, names)
    tree: Tree
    if scheme == "hf":
        from components.download.hub import HubTree, split_address

        repo, revision, folder = split_address(base)
        tree = HubTree(repo, revision, folder)
    else:
        tree = S3Tree(base) if scheme == "s3" else FolderTree(base)
    return tree if names is None else _Only(tree, names)


class _Only(Tree):
    """Some files of a tree."""

    def __init__(self, tree: Tree, names: list[str]) -> None:
        super().__init__(tree.url)
        self._tree, self._names = tree, names

    def names(self) -> list[str]:
        """See Tree."""
        return sorted(self._names)

    @property
    def origin(self) -> str:
        """See Tree."""
        return self._tree.origin

    def remote_identity(self, name: str) -> tuple[int, str] | None:
        """See Tree."""
        return self._tree.remote_identity(name)

    def tail(self, name: str, num_bytes: int) -> bytes:
        """See Tree."""
        return self._tree.tail(name, num_bytes)

    def _fetch(self, name: str, path: Path) -> None:
        shutil.copyfile(self._tree.path(name), path)

    def path(self, name: str) -> Path:
        """See Tree."""
        return self._tree.path(name)

    def close(self) -> None:
        """See Tree."""
        self._tree.close()
