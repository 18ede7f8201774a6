"""The store on an S3 service, through the minio client."""

from __future__ import annotations

import builtins
import hashlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import urllib3
from minio import Minio
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from urllib3.exceptions import HTTPError

from components.errors import PermanentError, SplatClipError, TransientError, UsageError
from components.store import (
    CHUNK,
    MOST_IN_MEMORY,
    TEMP_PREFIX,
    Store,
    StoredFile,
    StoreNotFound,
    Upload,
    check_name,
    mismatch,
)

PART_SIZE = 16 << 20  # of a multipart upload; three parts are in memory at a time
CACHED_CHUNK = 256 << 10  # stays in the processor's cache between receiving, hashing and copying
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10.0, 60.0
RETRIES, BACKOFF_S = 5, 0.2
STREAM_ATTEMPTS = 3  # of a body that broke off half-way, which the client itself does not repeat

_DENIED = {"AccessDenied", "AllAccessDisabled", "AccountProblem"}
_BAD_KEYS = {
    "SignatureDoesNotMatch",
    "InvalidAccessKeyId",
    "InvalidToken",
    "ExpiredToken",
    "AuthorizationHeaderMalformed",
}
_TRANSIENT = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "OperationAborted",
    "XMinioServerNotInitialized",
}
_ENV = "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION"
T = TypeVar("T")


def s3_error(url: str, error: Exception) -> SplatClipError:
    """What a failure of the client means, without any credential in it."""
    if isinstance(error, S3Error):
        code, status = error.code or "unknown", getattr(error.response, "status", 0)
        if code == "NoSuchBucket":
            return PermanentError(f"{url}: there is no such bucket; create it, or correct the address")
        if code in _BAD_KEYS:
            return PermanentError(f"{url}: the service refuses the credentials ({code}); check {_ENV}")
        if code in _DENIED:
            return PermanentError(f"{url}: access denied; give this access key the right to list, read and write there")
        if code in _TRANSIENT or status >= 500 or status == 429:
            return TransientError(f"{url}: the S3 service is not able to answer now ({code}); try again later")
        return PermanentError(f"{url}: the S3 service answered {code} (HTTP {status}): {error.message}")
    if isinstance(error, ServerError):
        return TransientError(f"{url}: the S3 service failed (HTTP {error.status_code}); try again later")
    if isinstance(error, InvalidResponseError):
        status = int(getattr(error, "_code", 0) or 0)
        if status >= 500 or status == 429:
            return TransientError(f"{url}: the S3 service failed (HTTP {status}); try again later")
        return PermanentError(f"{url}: the endpoint's answer (HTTP {status}) is not S3's; check AWS_ENDPOINT_URL")
    if isinstance(error, (HTTPError, OSError)):
        return TransientError(
            f"{url}: no answer from the S3 endpoint ({type(error).__name__}); check AWS_ENDPOINT_URL or try again"
        )
    return PermanentError(f"{url}: the S3 client failed ({type(error).__name__}): {error}")


def connect() -> Minio:
    """The client that the environment describes; UsageError if something is missing."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.path.strip("/") or "@" in parts.netloc:
        raise UsageError("AWS_ENDPOINT_URL: give the S3 endpoint as http://host:port or https://host, nothing more")
    access, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not access or not secret:
        raise UsageError("an s3:// address needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment")
    retries = urllib3.Retry(
        total=RETRIES, backoff_factor=BACKOFF_S, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None
    )
    return Minio(
        endpoint=parts.netloc,
        access_key=access,
        secret_key=secret,
        session_token=os.environ.get("AWS_SESSION_TOKEN") or None,
        secure=parts.scheme == "https",
        region=os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_S, read=READ_TIMEOUT_S),
            maxsize=32,
            retries=retries,
            cert_reqs="CERT_REQUIRED",
            ca_certs=os.environ.get("SSL_CERT_FILE") or os.environ.get("AWS_CA_BUNDLE"),
        ),
    )


def _seconds(moment: datetime | None) -> float:
    return time.time() if moment is None else moment.timestamp()


def _room(num_bytes: int) -> mmap.mmap:
    """Memory in huge pages where the system has them: filling small ones takes longer than hashing what they hold."""
    room = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not Linux, or a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return room


class S3Store(Store):
    """A store under a bucket's prefix. The bucket must exist."""

    def __init__(self, client: Minio, bucket: str, prefix: str) -> None:
        self._client, self._bucket, self._prefix = client, bucket, prefix
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{check_name(name)}" if self._prefix else check_name(name)

    def _call(self, work: Callable[[], T], name: str = "") -> T:
        where = f"{self.url}/{name}" if name else self.url
        try:
            return work()
        except S3Error as error:
            if error.code in {"NoSuchKey", "NoSuchObject", "NotFound"}:
                raise self.not_found(name) from None
            raise s3_error(where, error) from error
        except (MinioException, HTTPError, OSError) as error:
            raise s3_error(where, error) from error

    def put_bytes(self, name: str, data: bytes) -> None:
        """See Store: one PUT (or a completed multipart upload where it is large)."""
        key = self._key(name)
        self._call(
            lambda: self._client.put_object(
                bucket_name=self._bucket, object_name=key, data=BytesIO(data), length=len(data), part_size=PART_SIZE
            ),
            name,
        )

    def put_file(self, name: str, path: Path) -> None:
        """See Store: multipart above 16 MiB."""
        key = self._key(name)
        self._call(
            lambda: self._client.fput_object(
                bucket_name=self._bucket, object_name=key, file_path=str(path), part_size=PART_SIZE
            ),
            name,
        )

    def _stream(self, key: str, *, as_stored: bool = False) -> Iterator[bytes]:
        """as_stored: whatever Content-Encoding says; the bytes then need not pass through urllib3's buffers."""
        response = self._client.get_object(bucket_name=self._bucket, object_name=key)
        try:
            yield from response.stream(CACHED_CHUNK if as_stored else CHUNK, decode_content=not as_stored)
        finally:  # what was read to its end has given its connection back by then
            response.close()
            response.release_conn()

    def _again(self, work: Callable[[], T], name: str) -> T:
        """Repeat a download whose connection broke half-way."""
        for attempt in range(1, STREAM_ATTEMPTS):
            try:
                return self._call(work, name)
            except TransientError:
                time.sleep(BACKOFF_S * 2**attempt)
        return self._call(work, name)

    def get_bytes(self, name: str) -> bytes:
        """See Store."""
        key = self._key(name)
        return self._again(lambda: b"".join(self._stream(key)), name)

    def _fetch(self, key: str, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("wb") as stream:
            for chunk in self._stream(key):
                digest.update(chunk)
                stream.write(chunk)
        return digest.hexdigest()

    @contextmanager
    def local(self, name: str, sha256: str | None = None) -> Iterator[Path]:
        """See Store: streamed to a temporary file, removed at the end."""
        key = self._key(name)
        with tempfile.TemporaryDirectory(prefix="splatclip-") as folder:
            path = Path(folder) / name.rpartition("/")[2]
            found = self._again(lambda: self._fetch(key, path), name)
            if sha256 is not None and found != sha256:  # damaged on the way? a second download tells
                found = self._again(lambda: self._fetch(key, path), name)
                if found != sha256:
                    raise mismatch(f"{self.url}/{name}", sha256, found)
            yield path

    def _fill(self, key: str, room: mmap.mmap) -> tuple[str, int]:
        """Fetch an object into `room`; its sha256 and length. What is longer is read to its end, and not kept."""
        digest, filled = hashlib.sha256(), 0
        for chunk in self._stream(key, as_stored=True):
            digest.update(chunk)
            room[filled : filled + len(chunk)] = chunk[: max(0, len(room) - filled)]
            filled += len(chunk)
        return digest.hexdigest(), filled

    @contextmanager
    def content(self, name: str, sha256: str, num_bytes: int) -> Iterator[Path | mmap.mmap]:
        """See Store: hashed as it comes."""
        if not 0 < num_bytes <= MOST_IN_MEMORY:
            with self.local(name, sha256) as path:
                yield path
            return
        key, room = self._key(name), _room(num_bytes)
        try:
            found, length = self._again(lambda: self._fill(key, room), name)
            if found != sha256:  # damaged on the way? a second download tells
                found, length = self._again(lambda: self._fill(key, room), name)
                if found != sha256:
                    raise mismatch(f"{self.url}/{name}", sha256, found)
            if length != num_bytes:
                raise PermanentError(
                    f"{self.url}/{name}: {length} bytes, where its manifest says {num_bytes}; run the stage again"
                )
            yield room
        finally:
            with suppress(BufferError):  # a view is alive; the memory goes with it
                room.close()

    def exists(self, name: str) -> bool:
        """See Store."""
        key = self._key(name)
        try:
            self._call(lambda: self._client.stat_object(bucket_name=self._bucket, object_name=key), name)
        except PermanentError as error:
            if type(error) is type(self.not_found(name)):
                return False
            raise
        return True

    def stat(self, name: str) -> tuple[int, str]:
        """Bytes and ETag of `name`. Raises StoreNotFound."""
        key = self._key(name)
        found = self._call(lambda: self._client.stat_object(bucket_name=self._bucket, object_name=key), name)
        return int(found.size or 0), (found.etag or "").strip('"')

    def size(self, name: str) -> int:
        """See Store."""
        return self.stat(name)[0]

    def list(self, prefix: str = "") -> builtins.list[str]:
        """See Store."""
        root = f"{self._prefix}/" if self._prefix else ""
        keys = self._call(
            lambda: [
                item.object_name or ""
                for item in self._client.list_objects(bucket_name=self._bucket, prefix=root + prefix, recursive=True)
            ]
        )
        names = [key[len(root) :] for key in keys if not key.endswith("/")]
        return sorted(name for name in names if not name.rpartition("/")[2].startswith(TEMP_PREFIX))

    def delete(self, name: str) -> None:
        """See Store."""
        key = self._key(name)
        self._call(lambda: self._client.remove_object(bucket_name=self._bucket, object_name=key), name)

    def entries(self) -> Iterator[StoredFile]:
        """See Store."""
        root = f"{self._prefix}/" if self._prefix else ""
        objects = iter(self._client.list_objects(bucket_name=self._bucket, prefix=root, recursive=True))
        while (item := self._call(lambda: next(objects, None))) is not None:
            key = item.object_name or ""
            if not key.endswith("/"):
                yield StoredFile(key[len(root) :], item.size or 0, _seconds(item.last_modified))

    def remove(self, file: StoredFile) -> bool:
        """See Store; a HEAD, which tells whole seconds, and a DELETE."""
        key = f"{self._prefix}/{file.name}" if self._prefix else file.name
        try:
            found = self._call(lambda: self._client.stat_object(bucket_name=self._bucket, object_name=key), file.name)
        except StoreNotFound:
            return False
        if (found.size or 0, int(_seconds(found.last_modified))) != (file.bytes, int(file.modified)):
            return False
        self._call(lambda: self._client.remove_object(bucket_name=self._bucket, object_name=key), file.name)
        return True

    def uploads(self) -> builtins.list[Upload]:
        """See Store. PermanentError where the client or the service has no list of them."""
        work = getattr(self._client, "_list_multipart_uploads", None)  # the client has no public one
        if work is None:
            raise PermanentError(f"{self.url}: this version of the minio client cannot list uploads in parts")
        root, marker = f"{self._prefix}/" if self._prefix else "", ""
        found: builtins.list[Upload] = []
        while True:
            page = self._call(partial(work, self._bucket, prefix=root, key_marker=marker))
            found += [
                Upload(one.object_name[len(root) :], one.upload_id, _seconds(one.initiated_time))
                for one in page.uploads
            ]
            if not page.is_truncated or not page.next_key_marker or page.next_key_marker == marker:
                return found
            marker = page.next_key_marker

    def abort(self, upload: Upload) -> None:
        """See Store."""
        key = self._key(upload.name)

        def work() -> None:
            try:
                self._client._abort_multipart_upload(self._bucket, key, upload.id)
            except S3Error as error:
                if error.code != "NoSuchUpload":
                    raise

        self._call(work, upload.name)

    def sub(self, path: str) -> Store:
        """See Store."""
        return S3Store(self._client, self._bucket, self._key(path))


def open_s3(url: str) -> S3Store:
    """Open s3://bucket/prefix with the environment's endpoint and credentials; UsageError if the address is not one."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if len(bucket) < 3 or any(not (char.isascii() and (char.isalnum() or char in "-._")) for char in bucket):
        raise UsageError(f"{url!r}: give s3://bucket/prefix with a bucket's name of three characters or more")
    prefix = prefix.strip("/")
    if prefix:
        check_name(prefix)
    return S3Store(connect(), bucket, prefix)
