"""A real `mlflow server` for tests: a free port, a sqlite database, artifacts in a folder; killed and started at will.

with MlflowServer(folder) as server:
    client = MlflowClient(server.uri)
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path

START_S = 300.0
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # else it spawns nine processes and takes a minute to start
    "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "80",  # two for each of its threads, see docs/promotion.md
}


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class MlflowServer:
    """The server over `folder`/mlflow.db and `folder`/artifacts; its address outlives a kill and another start."""

    _empty = b""
    """A database as the first server of this process has made it: to make one takes as long as to start."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        self.folder, self.port = folder, port or free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Start it and do not wait for it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)],
                cwd=self.folder,
                env={**os.environ, **SETTINGS},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # uvicorn is a child of the command: both go by their group
            )

    def wait(self) -> None:
        """Until /health answers; fails with the server's log."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        log = (self.folder / "server.log").read_text(errors="replace")[-3000:]
        raise AssertionError(f"the MLflow server does not answer at {self.uri}:\n{log}")

    def start(self) -> None:
        """Start it and wait for it."""
        database = self.folder / "mlflow.db"
        new = not database.exists()
        if new and MlflowServer._empty:
            self.folder.mkdir(parents=True, exist_ok=True)
            database.write_bytes(MlflowServer._empty)
        self.spawn()
        self.wait()
        if new and not MlflowServer._empty:
            with closing(sqlite3.connect(database)) as made:
                MlflowServer._empty = made.serialize()

    def kill(self) -> None:
        """SIGKILL, at once; the database stays as it is."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def __enter__(self) -> MlflowServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
