"""The store on an S3 service, through the minio client."""

from __future__ import annotations

import builtins
import hashlib
import mmap
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TypeVar
from xml.etree.ElementTree import ParseError

from minio import Minio
from minio.datatypes import ListMultipartUploadsResult, Object
from minio.error import MinioException, S3Error
from minio.helpers import check_bucket_name
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from components.errors import PermanentError, SplatClipError, UsageError
from components.s3_checks import DamagedError, completed_etag, md5, md5_etag
from components.s3_connection import Connection, open_connection
from components.s3_errors import s3_error
from components.s3_retry import PARTS_AT_ONCE, Call, Reader, current
from components.scratch import in_scratch
from components.store import (
    CHUNK,
    MOST_IN_MEMORY,
    TEMP_PREFIX,
    Store,
    StoreDamaged,
    StoredFile,
    StoreNotFound,
    Upload,
    check_name,
    mismatch,
)

PART_SIZE = 16 << 20  # of a multipart upload; PARTS_AT_ONCE of them are in memory
CACHED_CHUNK = 256 << 10  # stays in the processor's cache between receiving, hashing and copying

_MISSING = {"NoSuchKey", "NoSuchObject", "NotFound"}
T = TypeVar("T")


def connect() -> Minio:
    """The client that the environment describes; UsageError if something is missing."""
    return open_connection().client()


def _plain(etag: str | None) -> str:
    return (etag or "").strip('"')


def _seconds(moment: datetime | None) -> float:
    return time.time() if moment is None else moment.timestamp()


def _room(num_bytes: int) -> mmap.mmap:
    """Memory in huge pages where the system has them: filling small ones takes longer than hashing what they hold."""
    room = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # not Linux, or a kernel without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return room


def _chunks(response: BaseHTTPResponse, *, as_stored: bool = False) -> Iterator[bytes]:
    """A body. as_stored: whatever Content-Encoding says; the bytes then need not pass through urllib3's buffers."""
    try:
        yield from response.stream(CACHED_CHUNK if as_stored else CHUNK, decode_content=not as_stored)
    finally:  # what was read to its end has given its connection back by then
        response.close()
        response.release_conn()


class S3Store(Store):
    """A store under a bucket's prefix. The bucket must exist."""

    def __init__(self, connection: Connection, bucket: str, prefix: str) -> None:
        self._connection, self._bucket, self._prefix = connection, bucket, prefix
        self._client = connection.client()
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{check_name(name)}" if self._prefix else check_name(name)

    def _call(self, work: Callable[[], T], name: str = "", *, call: Call | None = None) -> T:
        """Do `work` within the store's deadline; its failures become errors of ours."""
        where = self._where(name)
        call = call or Call(where)
        token = current.set(call)
        try:
            return work()
        except (MinioException, HTTPError, OSError, ValueError, ParseError) as error:
            if isinstance(error, S3Error) and error.code in _MISSING:
                raise self.not_found(name) from None
            raise s3_error(where, error, self._connection.credentials.source, call.effort()) from error
        finally:
            current.reset(token)

    def _where(self, name: str) -> str:
        return f"{self.url}/{name}" if name else self.url

    def _put(self, name: str, num_bytes: int, work: Callable[[Minio, str], object]) -> None:
        key, call = self._key(name), Call(self._where(name), num_bytes)

        def put() -> None:
            try:
                work(self._connection.client(call), key)
            except (MinioException, HTTPError):
                # The upload may have been completed: by a request whose answer was lost, or whom a gateway answered
                if not call.completing or not self._is_there(name, completed_etag(call.completing), call.left()):
                    raise

        self._call(put, name, call=call)

    def _is_there(self, name: str, etag: str, call: Call) -> bool:
        key = self._key(name)
        try:
            found = self._call(lambda: self._head(key), name, call=call)
        except SplatClipError:
            return False
        return bool(etag) and _plain(found.etag) == etag

    def put_parts(self, name: str, data: bytes, part_size: int) -> None:
        """As put_bytes, in parts of `part_size` bytes."""
        self._put(
            name,
            len(data),
            lambda client, key: client.put_object(
                bucket_name=self._bucket,
                object_name=key,
                data=BytesIO(data),
                length=len(data),
                part_size=part_size,
                num_parallel_uploads=PARTS_AT_ONCE,
            ),
        )

    def put_bytes(self, name: str, data: bytes) -> None:
        """See Store: one PUT (or a completed multipart upload where it is large)."""
        self.put_parts(name, data, PART_SIZE)

    def put_file(self, name: str, path: Path) -> None:
        """See Store: multipart above 16 MiB."""
        try:
            num_bytes = path.stat().st_size
        except OSError as error:
            raise PermanentError(f"{path}: {error.strerror}; it was to be put under {self._where(name)}") from error
        self._put(
            name,
            num_bytes,
            lambda client, key: client.fput_object(
                bucket_name=self._bucket,
                object_name=key,
                file_path=str(path),
                part_size=PART_SIZE,
                num_parallel_uploads=PARTS_AT_ONCE,
            ),
        )

    def _get(self, name: str, reader: Reader) -> None:
        """Get an object; `reader` takes the body, and is called again for another one if that breaks or is damaged."""
        key = self._key(name)
        self._call(
            lambda: self._client.get_object(bucket_name=self._bucket, object_name=key),
            name,
            call=Call(self._where(name), reader=reader),
        )

    def get_bytes(self, name: str) -> bytes:
        """See Store: checked against the ETag where that is the content's MD5."""
        data, wrong = b"", set[str]()

        def read(response: BaseHTTPResponse) -> None:
            nonlocal data
            data = b"".join(_chunks(response))
            self._check_md5(name, response, md5(data).hexdigest(), wrong)

        self._get(name, read)
        return data

    def _check_md5(self, name: str, response: BaseHTTPResponse, found: str, wrong: set[str]) -> None:
        """DamagedError for another sum than the ETag's; StoreDamaged if it was the same wrong one before."""
        expected = "" if "Content-Encoding" in response.headers else md5_etag(response.headers)
        if not expected or found == expected:
            return
        if found in wrong:
            raise StoreDamaged(
                f"{self._where(name)}: MD5 is {found} twice, the service's ETag says {expected}: damaged in the store; "
                "delete it and run the stage again"
            )
        wrong.add(found)
        raise DamagedError(f"MD5 is {found}, the ETag says {expected}")

    def _fetch(self, name: str, path: Path, *, by_etag: bool) -> str:
        """Download to `path`; its sha256. by_etag: check it by its ETag, which nobody need do who knows the sha256."""
        digest, wrong = hashlib.sha256(), set[str]()

        def read(response: BaseHTTPResponse) -> None:
            nonlocal digest
            digest, other = hashlib.sha256(), md5()
            with path.open("wb") as stream:
                for chunk in _chunks(response):
                    digest.update(chunk)
                    if by_etag:
                        other.update(chunk)
                    stream.write(chunk)
            if by_etag:
                self._check_md5(name, response, other.hexdigest(), wrong)

        self._get(name, read)
        return digest.hexdigest()

    @contextmanager
    def local(self, name: str, sha256: str | None = None) -> Iterator[Path]:
        """See Store: streamed to a temporary file, removed at the end."""
        self._key(name)
        with in_scratch():
            temporary = tempfile.TemporaryDirectory(prefix="splatclip-")
        with temporary as folder:
            path = Path(folder) / name.rpartition("/")[2]
            found = self._fetch(name, path, by_etag=sha256 is None)
            if sha256 is not None and found != sha256:  # damaged on the way? a second download tells
                found = self._fetch(name, path, by_etag=False)
                if found != sha256:
                    raise mismatch(self._where(name), sha256, found)
            yield path

    def _fill(self, name: str, room: mmap.mmap) -> tuple[str, int]:
        """Fetch an object into `room`; its sha256 and length. What is longer is read to its end, and not kept."""
        digest, filled = hashlib.sha256(), 0

        def read(response: BaseHTTPResponse) -> None:
            nonlocal digest, filled
            digest, filled = hashlib.sha256(), 0
            for chunk in _chunks(response, as_stored=True):
                digest.update(chunk)
                room[filled : filled + len(chunk)] = chunk[: max(0, len(room) - filled)]
                filled += len(chunk)

        self._get(name, read)
        return digest.hexdigest(), filled

    @contextmanager
    def content(self, name: str, sha256: str, num_bytes: int) -> Iterator[Path | mmap.mmap]:
        """See Store: hashed as it comes."""
        if not 0 < num_bytes <= MOST_IN_MEMORY:
            with self.local(name, sha256) as path:
                yield path
            return
        room = _room(num_bytes)
        try:
            found, length = self._fill(name, room)
            if found != sha256:  # damaged on the way? a second download tells
                found, length = self._fill(name, room)
                if found != sha256:
                    raise mismatch(self._where(name), sha256, found)
            if length != num_bytes:
                raise PermanentError(
                    f"{self._where(name)}: {length} bytes, where its manifest says {num_bytes}; run the stage again"
                )
            yield room
        finally:
            with suppress(BufferError):  # a view is alive; the memory goes with it
                room.close()

    def exists(self, name: str) -> bool:
        """See Store."""
        key = self._key(name)
        try:
            self._call(lambda: self._head(key), name)
        except StoreNotFound:
            return False
        return True

    def _head(self, key: str) -> Object:
        """What a HEAD tells. Its refusal has no body that says why; that of a GET for the first byte has."""
        try:
            return self._client.stat_object(bucket_name=self._bucket, object_name=key)
        except S3Error as error:
            if error.code in _MISSING or getattr(error.response, "status", 0) not in {400, 403}:
                raise
            self._client.get_object(bucket_name=self._bucket, object_name=key, length=1).close()
            raise  # a GET is not refused: another right

    def stat(self, name: str) -> tuple[int, str]:
        """Bytes and ETag of `name`. Raises StoreNotFound."""
        key = self._key(name)
        found = self._call(lambda: self._head(key), name)
        return int(found.size or 0), _plain(found.etag)

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
            found = self._call(lambda: self._head(key), file.name)
        except StoreNotFound:
            return False
        if (found.size or 0, int(_seconds(found.last_modified))) != (file.bytes, int(file.modified)):
            return False
        self._call(lambda: self._client.remove_object(bucket_name=self._bucket, object_name=key), file.name)
        return True

    def uploads(self) -> builtins.list[Upload]:
        """See Store. PermanentError where the client or the service has no list of them."""
        # The client's own method for this is private, and sends an empty delimiter, by which Swift finds none
        ask = getattr(self._client, "_execute", None)
        if ask is None:
            raise PermanentError(f"{self.url}: this version of the minio client cannot list uploads in parts")
        root = f"{self._prefix}/" if self._prefix else ""
        query = {"uploads": "", "prefix": root, "encoding-type": "url"}
        found: builtins.list[Upload] = []
        while True:
            page = ListMultipartUploadsResult(self._call(partial(ask, "GET", self._bucket, query_params=query)))
            found += [
                Upload(one.object_name[len(root) :], one.upload_id or "", _seconds(one.initiated_time))
                for one in page.uploads
            ]
            if not page.is_truncated or not page.next_key_marker or page.next_key_marker == query.get("key-marker"):
                return found
            query["key-marker"] = page.next_key_marker

    def abort(self, upload: Upload) -> None:
        """See Store."""
        key = self._key(upload.name)

        def work() -> None:
            try:
                self._client._abort_multipart_upload(self._bucket, key, upload.id)
            except S3Error as error:
                if error.code != "NoSuchUpload":
                    raise

        self._call(work, upload.name, call=Call(self._where(upload.name), wanted_abort=True))

    def sub(self, path: str) -> Store:
        """See Store."""
        return S3Store(self._connection, self._bucket, self._key(path))


def split_url(url: str) -> tuple[str, str]:
    """Bucket and prefix of s3://bucket/prefix; UsageError if it is not one."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    if len(bucket) < 3 or any(not (char.isascii() and (char.isalnum() or char in "-._")) for char in bucket):
        raise UsageError(f"{url!r}: give s3://bucket/prefix with a bucket's name of three characters or more")
    try:
        check_bucket_name(bucket)
    except ValueError as error:
        raise UsageError(f"{url!r}: {error}; give s3://bucket/prefix") from None
    prefix = prefix.strip("/")
    if prefix:
        check_name(prefix)
    return bucket, prefix


def open_s3(url: str) -> S3Store:
    """Open s3://bucket/prefix with the environment's endpoint and credentials; UsageError if something is wrong."""
    bucket, prefix = split_url(url)
    return S3Store(open_connection(), bucket, prefix)
