"""Where the Kubeflow Pipelines API is and who this is to it: from arguments, the environment, a pod, a kubeconfig.

Nothing is stored on disk, and no secret comes from an argument: the list of processes shows those.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from components.errors import PermanentError, UsageError

HOST = ("SPLATCLIP_KFP_HOST", "KF_PIPELINES_ENDPOINT")
NAMESPACE = "SPLATCLIP_KFP_NAMESPACE"
SYSTEM_NAMESPACE = "SPLATCLIP_KFP_SYSTEM_NAMESPACE"
TOKEN = "SPLATCLIP_KFP_TOKEN"  # noqa: S105 - the variable's name
TOKEN_FILE = ("SPLATCLIP_KFP_TOKEN_FILE", "KF_PIPELINES_SA_TOKEN_PATH")
COOKIE = "SPLATCLIP_KFP_COOKIE"
CA_FILE = "SPLATCLIP_KFP_CA_FILE"
UI = ("SPLATCLIP_KFP_UI", "KF_PIPELINES_UI_ENDPOINT")
CONTEXT = "SPLATCLIP_KUBE_CONTEXT"

INSTALLED_IN = "kubeflow"
IN_CLUSTER = "http://ml-pipeline.{}.svc.cluster.local:8888"
PROXY_PATH = "/api/v1/namespaces/{}/services/ml-pipeline:http/proxy"
MOUNTED_TOKEN = Path("/var/run/secrets/kubeflow/pipelines/token")  # where Kubeflow mounts one for its API
_NEAR = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Connection:
    """One API. secret: gives the bearer token of now, "" for none; a file's token may change while it is followed.

    host: address without a path's slash; namespace: of the user's profile, "" with a single-user installation;
    pods: the namespace that runs' pods are in; ca_file, cert_file, key_file: PEM files, "" for the system's or none;
    ui: address of the pages, "" where unknown; context: of the kubeconfig, for the pods' logs.
    """

    host: str
    namespace: str = ""
    pods: str = INSTALLED_IN
    secret: Callable[[], str] = field(default=str, repr=False)
    cookie: str = field(default="", repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    ui: str = ""
    context: str = ""
    said: str = "its arguments"

    def hidden(self, text: str) -> str:
        """The text without this connection's secrets, should a server have sent them back."""
        for secret in (self.secret(), self.cookie):
            if secret:
                text = text.replace(secret, "***")
        return text

    def page(self, run_id: str) -> str:
        """Address of a run's page, or "" where no pages are known."""
        return f"{self.ui}/#/runs/details/{run_id}" if self.ui else ""


def _first(environ: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    return next(((environ[name].strip(), name) for name in names if environ.get(name, "").strip()), ("", ""))


def connect(
    host: str = "", namespace: str = "", token_file: str = "", ca_file: str = "", context: str = ""
) -> Connection:
    """The connection that the arguments ask for; what they leave out the environment says, a pod, or a kubeconfig.

    Raises UsageError for an address that is none, a token that would cross a network in the clear or that no header can
    hold, a file that cannot be read; PermanentError where nothing says where the API is.
    """
    environ = os.environ
    named, variable = _first(environ, HOST)
    said = "--host" if host else variable
    host = host or named
    namespace = namespace or environ.get(NAMESPACE, "").strip()
    system = environ.get(SYSTEM_NAMESPACE, "").strip() or INSTALLED_IN
    token_file = token_file or _first(environ, TOKEN_FILE)[0]
    ca_file = ca_file or environ.get(CA_FILE, "").strip()
    context = context or environ.get(CONTEXT, "").strip()
    given = {
        "namespace": namespace,
        "pods": namespace or system,
        "cookie": _sendable(environ.get(COOKIE, "").strip(), COOKIE),
        "ui": _first(environ, UI)[0].rstrip("/"),
        "context": context,
    }
    secret = _secret(_sendable(environ.get(TOKEN, "").strip(), TOKEN), token_file)
    if ca_file and not Path(ca_file).is_file():
        raise UsageError(
            f"{ca_file}: no such file; give the PEM file of the authority that signed the API's certificate"
        )
    if host:
        found = Connection(_address(host, said), secret=secret, ca_file=ca_file, said=said, **given)
    elif environ.get("KUBERNETES_SERVICE_HOST") and not context:
        if not secret() and MOUNTED_TOKEN.is_file():
            secret = _secret("", str(MOUNTED_TOKEN))
        found = Connection(
            IN_CLUSTER.format(system), secret=secret, ca_file=ca_file, said="this pod's cluster", **given
        )
    else:
        found = _from_kubeconfig(system, context, ca_file, given)
    parts = urlsplit(found.host)
    inside = parts.hostname in _NEAR or (parts.hostname or "").endswith((".svc", ".svc.cluster.local"))
    if parts.scheme == "http" and not inside and (found.secret() or found.cookie):
        raise UsageError(f"{found.host}: a token would cross the network in the clear; give an https:// address")
    return found


def _sendable(secret: str, where: str) -> str:
    """The secret, if a header can hold it: http.client would name it in its own error."""
    if secret.isascii() and secret.isprintable():
        return secret
    at = next(n for n, char in enumerate(secret) if not (char.isascii() and char.isprintable()))
    what = "a line break" if secret[at] in "\r\n" else "no printable ASCII"
    raise UsageError(f"{where}: character {at + 1} of {len(secret)} is {what}, which no header can hold; copy it anew")


def _secret(token: str, token_file: str) -> Callable[[], str]:
    if token or not token_file:
        return lambda: token

    def read() -> str:
        try:
            text = Path(token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not a text"
            raise UsageError(f"{token_file}: cannot read the token: {reason}") from None
        return _sendable(text, token_file)

    return read


def _address(host: str, said: str) -> str:
    if "://" not in host:
        host = f"https://{host}"
    try:
        parts = urlsplit(host)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or port == 0:
        raise UsageError(
            f"{said}: {host!r} is no address of the Kubeflow Pipelines API; write https://host[:port][/path]"
        )
    if parts.username is not None:
        raise UsageError(f"{said}: an address with a password in it; put a token into {TOKEN} or {TOKEN_FILE[0]}")
    return host.rstrip("/")


def kube_configuration(context: str = "") -> Any:
    """A configuration of the Kubernetes client: of this pod, or of the kubeconfig.

    Raises PermanentError where there is neither, UsageError where the kubeconfig switches checking certificates off.
    """
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    found = client.Configuration()
    try:
        if not context and os.environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=found)
        else:
            config.load_kube_config(context=context or None, client_configuration=found, persist_config=False)
    except (ConfigException, OSError, ValueError) as error:
        raise PermanentError(f"no access to a Kubernetes cluster: {str(error).strip().splitlines()[0]}") from None
    if not found.verify_ssl:
        raise UsageError(
            "the kubeconfig says insecure-skip-tls-verify, so anybody could answer in the cluster's place; give the "
            "cluster's certificate-authority instead"
        )
    return found


def _from_kubeconfig(system: str, context: str, ca_file: str, given: dict[str, str]) -> Connection:
    try:
        found = kube_configuration(context)
    except PermanentError as error:
        raise PermanentError(
            f"nothing says where the Kubeflow Pipelines API is; give --host or {HOST[0]} ({error})"
        ) from None

    def secret() -> str:
        token = str(found.get_api_key_with_prefix("authorization") or "").removeprefix("Bearer ").strip()
        return _sendable(token, "the kubeconfig's token")

    return Connection(
        found.host.rstrip("/") + PROXY_PATH.format(system),
        secret=secret,
        ca_file=ca_file or found.ssl_ca_cert or "",
        cert_file=found.cert_file or "",
        key_file=found.key_file or "",
        said="the kubeconfig",
        **given,
    )
