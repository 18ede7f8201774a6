"""Dataset repositories of the Hugging Face hub: one commit's files, checked by the sums that the hub gives.

HF_ENDPOINT names another hub, HF_TOKEN is sent to it and to nobody else: not to the hosts that it redirects to.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import HTTPError

from components.download.fetch import LONGEST_WAIT_S, Tree
from components.download.hub_records import HubFile, read_record, write_record
from components.download.tls import NoTlsError, Retries, no_tls
from components.errors import PermanentError, TransientError, UsageError
from components.hub_params import check_repository
from components.store import CHUNK, Store, StoreDamaged, StoreNotFound, os_error

ENDPOINT = "https://huggingface.co"
PREFIX = "hf://datasets/"
ATTEMPTS = 5  # at a body that breaks off; each goes on where the last one ended
PAUSE_S = 0.5
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SUM = re.compile(r"(sha256:[0-9a-f]{64}|git:[0-9a-f]{40})")
_AGAIN = (408, 429, 500, 502, 503, 504)


def endpoint() -> str:
    """The hub's address. Raises UsageError if HF_ENDPOINT is none."""
    address = os.environ.get("HF_ENDPOINT", "").rstrip("/") or ENDPOINT
    problem = UsageError("HF_ENDPOINT is no address of a hub; give https:// and a host, without a name or password")
    try:
        parts = urlsplit(address)
        valid = parts.port != 0 and not re.search(r"\s", parts.netloc)  # a port that is no number raises
        urllib3.util.parse_url(address)  # what is stricter with hosts
    except ValueError:
        raise problem from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or not valid:
        raise problem
    return address


def _token() -> dict[str, str]:
    token = os.environ.get("HF_TOKEN", "").strip()
    if any(not 32 < ord(char) < 127 for char in token):  # whoever refuses it later would print it
        raise UsageError("HF_TOKEN holds a blank or a character that a token cannot have; set it anew")
    return {"Authorization": f"Bearer {token}"} if token else {}


def split_address(url: str) -> tuple[str, str, str]:
    """Repository, revision and folder of hf://datasets/owner/name@revision/folder; a slash in a revision is %2F.

    Raises UsageError.
    """
    parts = url.removeprefix(PREFIX).strip("/").split("/")
    repo, _, revision = "/".join(parts[:2]).partition("@")
    if not url.startswith(PREFIX):
        raise UsageError(f"download.path {url!r}: give {PREFIX}owner/name@revision/folder")
    check_repository(repo, f"download.path {url!r}: its repository")
    return repo, unquote(revision) or "main", "/".join(parts[2:])


class HubTree(Tree):
    """The files of a repository at a revision, which is looked up once: a commit's files never change.

    kept: where files stay once they have been fetched, and what a revision was the last time, for when the hub is away.
    Raises PermanentError if there is no such repository or revision, it is closed, or the hub's certificate is not
    trusted; TransientError if the hub is away.
    """

    def __init__(self, repo: str, revision: str = "main", folder: str = "", *, kept: Store | None = None) -> None:
        self._endpoint = endpoint()
        super().__init__(f"{PREFIX}{repo}@{revision}" + (f"/{folder}" if folder else ""))
        self.repo, self._kept_in = repo, kept
        self._folder = f"{folder.strip('/')}/" if folder.strip("/") else ""
        retries = Retries(
            total=None,
            connect=2,
            read=2,
            status=6,
            redirect=10,
            other=2,  # TLS that breaks off
            backoff_factor=PAUSE_S,
            backoff_max=8,
            backoff_jitter=PAUSE_S / 2,
            status_forcelist=_AGAIN,
            retry_after_max=LONGEST_WAIT_S,
            raise_on_status=False,
        )
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=10.0, read=60.0), retries=retries)
        self._headers = {"User-Agent": "splatclip", "Accept-Encoding": "identity", **_token()}
        try:
            self.commit, files = self._resolve(revision)
        except BaseException:
            self._http.clear()
            raise
        self._files = {
            file.path.removeprefix(self._folder): file for file in files if file.path.startswith(self._folder)
        }

    @property
    def origin(self) -> str:
        """The repository and its commit."""
        return f"{self.repo}@{self.commit}"

    def close(self) -> None:
        """See Tree."""
        self._http.clear()
        super().close()

    def names(self) -> list[str]:
        """See Tree."""
        return sorted(name for name in self._files if not any(part.startswith(".") for part in name.split("/")))

    def remote_identity(self, name: str) -> tuple[int, str] | None:
        """See Tree; a large file's sum is that of its content, as of a local one."""
        file = self._file(name)
        return file.size, file.sum

    def _file(self, name: str) -> HubFile:
        if name not in self._files:
            raise StoreNotFound(f"{self.url}: there is no file {name!r} at commit {self.commit}")
        return self._files[name]

    def _resolve(self, revision: str) -> tuple[str, list[HubFile]]:
        """The commit that a revision is, and its files; of a commit that was seen before without asking."""
        if _COMMIT.fullmatch(revision) and (found := self._known(revision)):
            return found
        try:
            about, _ = self._json(f"{self._endpoint}/api/datasets/{self.repo}/revision/{quote(revision, safe='')}")
            if not _COMMIT.fullmatch(commit := str(about["sha"])):
                raise ValueError(f"a commit {commit[:60]!r}")
            files = list(self._list(commit))
        except (TransientError, NoTlsError) as error:
            if (found := self._known(revision)) is None:
                raise
            said = f"{error}; going on with commit {found[0]}, which {revision!r} was the last time"
            print(said, file=sys.stderr, flush=True)
            return found
        except (KeyError, TypeError, ValueError) as error:
            raise PermanentError(
                f"{self._endpoint} does not answer as a hub does ({error!r}); check HF_ENDPOINT"
            ) from None
        if self._kept_in is not None:
            for name in {revision, commit}:
                self._kept_in.put_bytes(self._record(name), write_record(commit, files))
        return commit, files

    def _record(self, revision: str) -> str:
        return f"{self.repo}/{quote(revision, safe='')}.json"

    def _known(self, revision: str) -> tuple[str, list[HubFile]] | None:
        """What a revision was the last time; a damaged record counts as none, so that the next answer replaces it."""
        if self._kept_in is None or not self._kept_in.exists(self._record(revision)):
            return None
        try:
            return read_record(self._kept_in.get_bytes(self._record(revision)))
        except StoreDamaged:
            return None

    def _list(self, commit: str) -> Iterator[HubFile]:
        """All files of a commit, a page at a time."""
        url: str | None = f"{self._endpoint}/api/datasets/{self.repo}/tree/{commit}?recursive=true"
        while url is not None:
            page, url = self._json(url)
            for one in page:
                if one["type"] == "file":
                    sum_ = f"sha256:{one['lfs']['oid']}" if one.get("lfs") else f"git:{one['oid']}"
                    if not _SUM.fullmatch(sum_):  # it becomes a file's name where files are kept
                        raise ValueError(f"a sum {sum_[:80]!r}")
                    yield HubFile(str(one["path"]), int(one["size"]), sum_)

    def _json(self, url: str) -> tuple[Any, str | None]:
        """An answer of the hub, and the address of its next page."""
        for attempt in range(ATTEMPTS):
            try:
                answer = self._http.request("GET", url, headers=self._headers)
                break
            except HTTPError as error:
                if (hopeless := no_tls(error, self._endpoint, "HF_ENDPOINT")) is not None:
                    raise hopeless from error
                if attempt == ATTEMPTS - 1:
                    raise self._away(error) from error
                time.sleep(PAUSE_S * 2**attempt)
        headers = {key.lower(): value for key, value in answer.headers.items()}
        if answer.status != 200:
            raise self._refused(answer.status, headers)
        following = None
        for link in headers.get("link", "").split(", <"):
            address, _, relation = link.strip().lstrip("<").partition(">")
            if 'rel="next"' in relation:
                following = urljoin(url, address)
                if urlsplit(following)[:2] != urlsplit(url)[:2]:  # the token goes with it
                    raise PermanentError(f"{self._endpoint}: the next page lies on another host; check HF_ENDPOINT")
        return json.loads(answer.data), following

    def _away(self, error: HTTPError) -> TransientError:
        return TransientError(
            f"{self._endpoint}: no whole answer ({type(error).__name__}); check HF_ENDPOINT or try again"
        )

    def _refused(self, status: int, headers: dict[str, str], name: str = "") -> PermanentError | TransientError:
        code, where = headers.get("x-error-code", ""), f"{self._endpoint}/datasets/{self.repo}"
        with_token = "Authorization" in self._headers
        if code == "GatedRepo":
            return PermanentError(
                f"dataset {self.repo!r} is gated: ask for access at {where}, then set HF_TOKEN"
                + (" to a token of the account that has it" if with_token else "")
            )
        if code == "RevisionNotFound":
            return PermanentError(f"dataset {self.repo!r} has no revision as in {self.url}; see {where}/tree/main")
        if name and (code == "EntryNotFound" or status == 404):
            return StoreNotFound(f"{self.url}: there is no {name!r} (HTTP {status})")
        if code == "RepoNotFound" or status in {401, 404}:
            return PermanentError(
                f"there is no dataset {self.repo!r} on {self._endpoint}, or it is private: correct the name, or "
                + ("see whether HF_TOKEN is still valid and may read it" if with_token else "set HF_TOKEN")
            )
        if status in _AGAIN:
            advice = "; a token in HF_TOKEN is allowed more" if status == 429 and not with_token else ""
            return TransientError(f"{where}: the hub answers HTTP {status}{advice}; try again later")
        return PermanentError(f"{where}: the hub answers HTTP {status}; check the name and your rights")

    def _fetch(self, name: str, path: Path) -> None:
        file = self._file(name)
        key = file.sum.replace(":", "-")
        try:
            if self._kept_in is not None and self._kept_in.exists(key):
                with suppress(StoreDamaged), self._kept_in.local(key) as there:
                    path.write_bytes(b"")
                    _copy(there, path)
                    if _right(path, file):
                        return
            self._download(file, path)
        except OSError as error:  # of the temporary folder
            raise os_error(path.parent, error) from error
        if self._kept_in is not None:
            self._kept_in.put_file(key, path)

    def _address(self, file: HubFile) -> str:
        return f"{self._endpoint}/datasets/{self.repo}/resolve/{self.commit}/{quote(file.path)}"

    def _download(self, file: HubFile, path: Path) -> None:
        path.write_bytes(b"")
        failure: HTTPError | None = None
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(PAUSE_S * 2**attempt)
            have = path.stat().st_size
            try:
                if have < file.size:
                    self._append(file, path, have)
            except HTTPError as error:
                if (hopeless := no_tls(error, self._endpoint, "HF_ENDPOINT")) is not None:
                    raise hopeless from error
                failure = error
                continue
            if path.stat().st_size == file.size and _right(path, file):
                return
            if path.stat().st_size >= file.size:
                path.write_bytes(b"")
        if failure is not None and path.stat().st_size < file.size:
            raise self._away(failure)
        raise TransientError(
            f"{self.url}: {file.path} came with other bytes than its sum says ({file.sum}), {ATTEMPTS} times; a proxy "
            "may change it: try again, or from another network"
        )

    def _append(self, file: HubFile, path: Path, have: int) -> None:
        """Fetch what is missing of a file, or all of it where the server does not take ranges."""
        headers = {**self._headers, **({"Range": f"bytes={have}-"} if have else {})}
        answer = self._http.request("GET", self._address(file), headers=headers, preload_content=False)
        try:
            if answer.status not in {200, 206}:
                found = {key.lower(): value for key, value in answer.headers.items()}
                raise self._refused(answer.status, found, file.path)
            with path.open("ab" if answer.status == 206 else "wb") as stream:
                while chunk := answer.read1(CHUNK):  # whatever has come is kept when the rest does not
                    stream.write(chunk)
                    if stream.tell() > file.size:
                        break
        finally:
            answer.close()
            answer.release_conn()

    def tail(self, name: str, num_bytes: int) -> bytes:
        """See Tree; of a file that is not here yet by its last bytes alone."""
        file = self._file(name)
        if name in self._kept or num_bytes >= file.size:
            return super().tail(name, num_bytes)
        headers = {**self._headers, "Range": f"bytes={file.size - num_bytes}-"}
        try:
            answer = self._http.request("GET", self._address(file), headers=headers, preload_content=False)
            try:
                if answer.status == 206 and len(data := answer.read()) == num_bytes:
                    return bytes(data)
            finally:
                answer.close()
                answer.release_conn()
        except HTTPError:
            pass  # whole, then, with more patience
        return super().tail(name, num_bytes)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as stream, target.open("wb") as out:
        while chunk := stream.read(CHUNK):
            out.write(chunk)


def _right(path: Path, file: HubFile) -> bool:
    """Whether a file's content is what its sum says."""
    kind, _, expected = file.sum.partition(":")
    digest = (
        hashlib.sha256() if kind == "sha256" else hashlib.sha1(f"blob {file.size}\0".encode(), usedforsecurity=False)
    )
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == expected
