"""The S3 service that the environment names: endpoint, region, credentials."""

from __future__ import annotations

import os
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from minio import Minio

from components.errors import UsageError
from components.s3_credentials import Found, find_credentials
from components.s3_deadline import LimitedPool, deadline_s
from components.s3_retry import Call, Requests

MOST_CONNECTIONS = 32  # kept open


def endpoint_url() -> SplitResult:
    """The endpoint that the environment names; UsageError if it is not one."""
    url = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "https://s3.amazonaws.com"
    problem = UsageError("AWS_ENDPOINT_URL: give the S3 endpoint as http://host:port or https://host, nothing more")
    try:
        parts = urlsplit(url)
        valid = parts.port != 0  # a port that is no number raises
        (parts.hostname or "").encode("idna")  # a name with an empty or too long part raises
    except ValueError:
        raise problem from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or "@" in parts.netloc or not valid:
        raise problem
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise problem
    return parts


def region() -> str:
    """The region to sign for."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def trusted_file() -> str | None:
    """The file with the certificates that are trusted; None for the system's."""
    return os.environ.get("SSL_CERT_FILE") or os.environ.get("AWS_CA_BUNDLE") or None


@dataclass(frozen=True)
class Connection:
    """A service, who this is to it, and the connections that all calls share."""

    endpoint: SplitResult
    credentials: Found
    pool: LimitedPool

    def client(self, call: Call | None = None) -> Minio:
        """The minio client whose requests belong to `call`, or to the call of their thread (see Requests).

        Raises UsageError for an endpoint or a region that it refuses.
        """
        try:
            return Minio(
                endpoint=self.endpoint.netloc,
                secure=self.endpoint.scheme == "https",
                region=region(),
                credentials=self.credentials.provider,
                http_client=Requests(self.pool, call),
            )
        except ValueError as error:
            raise UsageError(
                f"AWS_ENDPOINT_URL {self.endpoint.geturl()} with AWS_REGION {region()!r}: {error}; give the service's "
                "own host, without a bucket (https://s3.eu-west-1.amazonaws.com; of a VPC endpoint "
                "https://bucket.vpce-...), and the region's name (eu-west-1)"
            ) from None


def open_connection() -> Connection:
    """What the environment describes; UsageError if something is missing or makes no sense."""
    endpoint = endpoint_url()
    deadline_s()
    pool = LimitedPool(maxsize=MOST_CONNECTIONS, cert_reqs="CERT_REQUIRED", ca_certs=trusted_file())
    return Connection(endpoint, find_credentials(Requests(pool)), pool)
