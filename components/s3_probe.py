"""What checking an S3 store asks beyond what a store does: first of its endpoint, before anybody signs a request."""

from __future__ import annotations

import socket
import time

import urllib3
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError

from components.errors import AccessError
from components.s3_connection import endpoint_url, trusted_file
from components.s3_deadline import LimitedPool
from components.s3_errors import CLOCK_TOLERANCE_S, clock_difference_s, clock_text, s3_error
from components.s3_retry import CONNECT_TIMEOUT_S
from components.store_s3 import S3Store


def resolves() -> str:
    """The endpoint's name has an address, and something listens there."""
    parts = endpoint_url()
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    begun = time.perf_counter()
    try:
        with socket.create_connection((host, port), CONNECT_TIMEOUT_S) as connected:
            address = connected.getpeername()[0]
    except OSError as error:
        raise s3_error(parts.geturl(), _as_urllib3(host, port, error)) from error
    return f"{host} is {address}; port {port} answers in {(time.perf_counter() - begun) * 1000:.0f} ms"


def _as_urllib3(host: str, port: int, error: OSError) -> HTTPError:
    """The same error as the client would meet it."""
    connection = HTTPConnection(host, port)
    if isinstance(error, socket.gaierror):
        found: HTTPError = urllib3.exceptions.NameResolutionError(host, connection, error)
    elif isinstance(error, TimeoutError):
        found = urllib3.exceptions.ConnectTimeoutError(connection, "timed out")
    else:
        found = urllib3.exceptions.NewConnectionError(connection, str(error))
    found.__cause__ = error
    return found


def _head() -> urllib3.BaseHTTPResponse:
    """Any answer at all; no secret goes out."""
    endpoint = endpoint_url().geturl().rstrip("/")
    with LimitedPool(cert_reqs="CERT_REQUIRED", ca_certs=trusted_file()) as pool:
        try:
            timeout = urllib3.Timeout(CONNECT_TIMEOUT_S)
            return pool.urlopen("GET", f"{endpoint}/", retries=False, redirect=False, timeout=timeout)
        except HTTPError as error:
            raise s3_error(endpoint, error) from error


def tls() -> str:
    """A certificate that is trusted; or no TLS, which is said."""
    if endpoint_url().scheme == "http":
        return "none: what is sent can be read on the way, but for the secret; https:// in AWS_ENDPOINT_URL is better"
    _head()
    return f"the certificate is trusted ({trusted_file() or 'the authorities of the system'})"


def answers() -> str:
    """The endpoint speaks HTTP; whether it is S3 shows with the bucket, as some answer only who has signed."""
    endpoint, response = endpoint_url().geturl(), _head()
    text = response.data[:4000].decode(errors="replace").lower()
    if "https server" in text or "https port" in text:
        raise AccessError(f"{endpoint}: the endpoint speaks https; write https:// in AWS_ENDPOINT_URL")
    return f"HTTP {response.status}{f', {server}' if (server := response.headers.get('Server')) else ''}"


def clock() -> str:
    """The clocks agree as far as S3 asks for."""
    difference = clock_difference_s(_head().headers.get("Date"))
    if difference is None:
        return "the service's answers have no date; not compared"
    if abs(difference) > CLOCK_TOLERANCE_S:
        raise AccessError(f"{endpoint_url().geturl()}: {clock_text(difference)}; set the clock (is NTP on?)")
    return f"{abs(difference):.0f} s of difference"


class ProbedStore(S3Store):
    """An S3 store that also says what only a check wants to know."""

    def credentials(self) -> str:
        """Where they are from; asks for them. Raises AccessError or TransientError."""
        self._call(self._connection.credentials.provider.retrieve)
        return self._connection.credentials.source

    def check_bucket(self) -> str:
        """A word that the bucket is there. Raises what is the matter with it or with the credentials."""
        # A listing, and not HEAD: its errors have a text, which says what is wrong
        self._call(lambda: next(self._client.list_objects(bucket_name=self._bucket, prefix=self._prefix), None))
        return f"{self._bucket} is there"

    def remove_uploads(self, prefix: str) -> int:
        """Abort the unfinished uploads whose names begin with `prefix`; returns how many there were."""
        key, client = self._key(prefix), self._client

        def remove() -> int:
            found = client._list_multipart_uploads(bucket_name=self._bucket, prefix=key).uploads
            for upload in found:
                client._abort_multipart_upload(self._bucket, upload.object_name or "", upload.upload_id or "")
            return len(found)

        return self._call(remove)
