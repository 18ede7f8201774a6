"""Where MLflow is, how this process talks to it, and what its refusals mean. Importing this loads no MLflow."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

DEFAULT_DATABASE = Path("runs/mlflow.db")
ARTIFACTS = "mlartifacts"
SQLITE = "sqlite:///"
REQUEST_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
PATIENCE = {  # one attempt and ten seconds a request: whoever calls repeats, and decides for how long
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    REQUEST_TIMEOUT: "10",
}
# SQLAlchemy's mark on what its errors say, but for values that do not fit (9h9h) and that are there already (gkpj)
DATABASE_FAULT = re.compile(r"sqlalche\.me/e/\w+/(?!9h9h|gkpj)|QueuePool limit")
PERMANENT = {
    "ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


def quiet() -> None:
    """Switch off MLflow's telemetry and talk, keep its requests short: before the first import of mlflow."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is what scripts read
    for name, value in PATIENCE.items():
        os.environ.setdefault(name, value)


def own_request_timeout() -> str | None:
    """How long the user lets one request take, in seconds; None: as long as we like."""
    set_to = os.environ.get(REQUEST_TIMEOUT)
    return None if set_to == PATIENCE[REQUEST_TIMEOUT] else set_to


@contextlib.contextmanager
def request_timeout(seconds: str) -> Iterator[None]:
    """So long for one request within the block. MLflow reads it from the environment at each."""
    before = os.environ.get(REQUEST_TIMEOUT)
    os.environ[REQUEST_TIMEOUT] = seconds
    try:
        yield
    finally:
        if before is None:
            del os.environ[REQUEST_TIMEOUT]
        else:
            os.environ[REQUEST_TIMEOUT] = before


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or a sqlite database at runs/mlflow.db in the working directory (its folder is made)."""
    quiet()
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if given:
        return given
    database = DEFAULT_DATABASE.absolute()
    with contextlib.suppress(OSError):  # where nothing can be written, what is recorded waits in the store
        database.parent.mkdir(parents=True, exist_ok=True)
    return _address(database)


def _address(database: Path) -> str:
    return SQLITE + str(database).replace("%", "%25").replace("?", "%3F")  # what SQLAlchemy reads otherwise


def artifact_location(uri: str) -> str | None:
    """Where a new experiment's artifacts go: beside a sqlite database; None leaves it to the server."""
    database = database_of(uri)
    return None if database is None else (database.absolute().parent / ARTIFACTS).as_uri()


def database_of(uri: str) -> Path | None:
    """The file of a sqlite database; None for any other address."""
    from sqlalchemy.engine import make_url

    return Path(make_url(uri).database or "") if uri.startswith(SQLITE) else None


def fingerprint(uri: str) -> str:
    """Tells tracking servers apart without naming them; credentials in the address do not count."""
    parts = urlsplit(uri)
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", parts.fragment))
    return hashlib.sha256(bare.encode()).hexdigest()[:12]


def connect(uri: str) -> MlflowClient:
    """A client of `uri`. Loads MLflow: seconds; a new sqlite database takes seconds more."""
    quiet()
    from mlflow.tracking import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a locked database is tried again here
    database = database_of(uri)
    if database is not None:
        _make_database(database)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _make_database(database: Path) -> None:
    """Make a new database whole or not at all, one process at a time.

    MLflow does it in many steps: two processes at once, or one killed, would leave tables that no later one can mend.
    """
    from mlflow.tracking import MlflowClient

    if database.exists():
        return
    with database.with_name(f"{database.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if database.exists():
            return
        scratch = database.with_name(f".{database.name}.new")
        scratch.unlink(missing_ok=True)
        MlflowClient(tracking_uri=_address(scratch)).search_experiments(max_results=1)
        scratch.rename(database)


def failures() -> tuple[type[Exception], ...]:
    """What a call of MLflow's client can raise. OSError stands for what its HTTP client raises, too."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError, ImportError)


def is_permanent(error: BaseException) -> bool:
    """Whether MLflow refused what it was told, and will refuse it again. Everything else may pass: try again."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, ImportError):  # the client of an artifact store that is not installed
        return True
    if not isinstance(error, MlflowException):
        return False
    # an answer that is no JSON is not MLflow's: a proxy in between, or another server at that address
    return error.error_code in PERMANENT and "failed with error code" not in str(error) and not _of_database(error)


def may_pass(error: BaseException) -> bool:
    """Whether trying again soon may help: for whoever waits for the answer. Permission denied, say, is neither."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    # two writers met: the next try finds what the other wrote
    if "IntegrityError" in str(error) or getattr(error, "error_code", "") == "RESOURCE_ALREADY_EXISTS":
        return True
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
        return status >= 500 or status in {408, 409, 429, 499} or _of_database(error)
    response = getattr(error, "response", None)  # of an upload
    if response is not None:
        return bool(response.status_code >= 500 or response.status_code in {408, 429})
    passing = (OperationalError, ConnectionError, TimeoutError)
    return isinstance(error, passing) or type(error).__module__.startswith("requests")


def _of_database(error: MlflowException) -> bool:
    """Whether the server's database failed: MLflow calls it a bad request when no connection is free or one was cut."""
    return error.error_code == "BAD_REQUEST" and DATABASE_FAULT.search(str(error)) is not None


def reason(error: BaseException) -> str:
    """An error in a few words, without credentials."""
    text = re.sub(r"//[^/@\s]*@", "//", str(error))
    found = re.search(r"\[Errno -?\d+\] ([A-Za-z ]+)", text)
    if found:
        return found[1].strip().lower()
    if "timed out" in text.lower():
        return "timed out"
    return " ".join(text.split())[:200] or type(error).__name__
