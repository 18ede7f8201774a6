"""Who this is to an S3 service: from the environment, a file, or the pod's identity, in this order.

The values stay inside the minio client's own providers; what is said is only where they came from.
"""

from __future__ import annotations

import configparser
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import ParseError

import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import (
    AWSConfigProvider,
    EnvAWSProvider,
    IamAwsProvider,
    MinioClientConfigProvider,
    Provider,
)
from urllib3.exceptions import HTTPError

from components.errors import AccessError, MachineError, TransientError
from components.redaction import redacted
from components.s3_errors import PASSING

_IDENTITY = {
    "AWS_WEB_IDENTITY_TOKEN_FILE": "the pod's identity (a web identity token)",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "the task's identity (the container's credentials)",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI": "the pod's identity (the container's credentials)",
}
METADATA_ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
METADATA_TIMEOUTS_S = (1.0, 1.0, 2.0)  # of each try; it is one hop away, but asked by all pods of a node at once
_FAILURES = (ValueError, KeyError, TypeError, AttributeError, OSError, HTTPError, ParseError, configparser.Error)


class Watched(Provider):
    """A provider whose failures are errors of ours, without what it sent or received."""

    def __init__(self, source: str, provider: Provider) -> None:
        self.source, self._provider = source, provider

    def retrieve(self) -> Credentials:
        """The credentials, renewed where they are about to expire. Raises AccessError or TransientError."""
        try:
            return self._provider.retrieve()
        except _FAILURES as error:  # some of their texts hold the token
            status = re.search(r"HTTP status code (4\d\d)", str(error))
            if status and int(status[1]) not in PASSING:
                raise AccessError(
                    f"credentials from {self.source} are refused (HTTP {status[1]}); check AWS_ROLE_ARN, the role's "
                    "trust in this service account, and AWS_ENDPOINT_URL_STS where the service is not AWS"
                ) from None
            raise TransientError(
                f"credentials from {self.source} cannot be had now ({type(error).__name__}); check that it is still "
                "there, or try again"
            ) from None


class _NoSecrets(logging.Filter):
    """Keeps a token that is part of an address out of urllib3's own log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let everything pass, with *** in the place of secrets."""
        record.args = redacted(record.args)
        return True


_NO_SECRETS = _NoSecrets()  # one, however often it is added


@dataclass(frozen=True)
class Found:
    """Credentials: in words where they are from, and what the minio client asks for them."""

    source: str
    provider: Provider


def _file_of(name: str, default: str) -> str:
    return os.environ.get(name) or str(Path.home() / default)


def _given(provider: Provider, where: str) -> bool:
    """Whether a file has what is looked for; MachineError if it is no such file."""
    try:
        provider.retrieve()
    except ValueError:
        return False
    except (configparser.Error, UnicodeError, AttributeError, TypeError) as error:
        raise MachineError(f"{where}: not a file of credentials ({type(error).__name__}); mend or remove it") from None
    return True


def _metadata(http: urllib3.PoolManager) -> Provider | None:
    """The machine's own role on EC2 and what is like it; None if nobody answers soon, or has none to give."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    endpoint = os.environ.get(METADATA_ENDPOINT, "").rstrip("/") or None
    for seconds in METADATA_TIMEOUTS_S:
        with urllib3.PoolManager(timeout=urllib3.Timeout(total=seconds), retries=False) as once:
            try:
                IamAwsProvider(custom_endpoint=endpoint, http_client=once).retrieve()
            except _FAILURES as error:
                status = re.search(r"HTTP status code (\d+)", str(error))
                if status is None:
                    continue
                if int(status[1]) < 500 and int(status[1]) not in PASSING:
                    return None
            return IamAwsProvider(custom_endpoint=endpoint, http_client=http)  # it is there, if perhaps busy
    return None


def find_credentials(http: urllib3.PoolManager) -> Found:
    """The first of environment, file and pod's identity that is there; MachineError naming all three if none is.

    `http` carries the requests for an identity, which is asked only when it is used. Only a machine that gives no
    hint at all is asked for its role here, for some seconds.
    """
    access = os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_ACCESS_KEY")
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY") or os.environ.get("AWS_SECRET_KEY")
    if bool(access) != bool(secret):
        lacks = "AWS_SECRET_ACCESS_KEY" if access else "AWS_ACCESS_KEY_ID"
        raise MachineError(f"{lacks} is missing from the environment, while its other half is set; set both or none")
    if access:
        return _found("the environment (AWS_ACCESS_KEY_ID)", EnvAWSProvider())
    path = _file_of("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials")
    profile = os.environ.get("AWS_PROFILE") or "default"
    if _given(shared := AWSConfigProvider(path, profile), path):
        return _found(f"profile {profile!r} of {path}", shared)
    client_path, alias = str(Path.home() / ".mc/config.json"), os.environ.get("MINIO_ALIAS") or "s3"
    if _given(client := MinioClientConfigProvider(client_path, alias), client_path):
        return _found(f"alias {alias!r} of {client_path}", client)
    logging.getLogger("urllib3.connectionpool").addFilter(_NO_SECRETS)
    for name, source in _IDENTITY.items():
        if os.environ.get(name):
            sts = os.environ.get("AWS_ENDPOINT_URL_STS") if name == "AWS_WEB_IDENTITY_TOKEN_FILE" else None
            return _found(source, IamAwsProvider(custom_endpoint=sts, http_client=http))
    if role := _metadata(http):
        return _found("the machine's role (its metadata service)", role)
    raise MachineError(
        "no credentials for the s3:// address. Give one of: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the "
        f"environment; profile {profile!r} in {path} (AWS_SHARED_CREDENTIALS_FILE, AWS_PROFILE name others) or alias "
        f"{alias!r} in {client_path}; a pod's identity (AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, or a role of "
        "the container or machine)"
    )


def _found(source: str, provider: Provider) -> Found:
    return Found(source, Watched(source, provider))
