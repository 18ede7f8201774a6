"""OpenStack Swift with its S3 interface, from the system's packages, as a real S3 server that checks credentials."""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGES = "swift-proxy swift-account swift-container swift-object memcached"
PROGRAMS = ("swift-proxy-server", "swift-account-server", "swift-container-server", "swift-object-server", "memcached")
ACCESS, SECRET = "gv:minio", "minio123"
_PIPELINE = (
    "catch_errors gatekeeper healthcheck proxy-logging cache s3api tempauth bulk slo dlo "
    "versioned_writes symlink proxy-logging proxy-server"
)


def missing() -> str:
    """Why there can be no Swift here, or an empty text."""
    absent = [program for program in (*PROGRAMS, "swift-ring-builder") if shutil.which(program) is None]
    return f"no {', '.join(absent)}: apt-get install --no-install-recommends {PACKAGES}" if absent else ""


def _ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _default(folder: Path, port: int) -> str:
    return f"""[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
user = {getpass.getuser()}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
log_level = ERROR
"""


def _configure(folder: Path, ports: dict[str, int]) -> None:
    (folder / "devices/d1").mkdir(parents=True)
    for kind in ("account", "container", "object"):
        builder = str(folder / f"{kind}.builder")
        for step in (("create", "2", "1", "1"), ("add", f"r1z1-127.0.0.1:{ports[kind]}/d1", "1"), ("rebalance",)):
            subprocess.run(["swift-ring-builder", builder, *step], check=True, capture_output=True)
        server = f"[pipeline:main]\npipeline = {kind}-server\n[app:{kind}-server]\nuse = egg:swift#{kind}\n"
        (folder / f"{kind}.conf").write_text(_default(folder, ports[kind]) + server)
    filters = {name: name for name in dict.fromkeys(_PIPELINE.split()) if name != "proxy-server"}
    filters |= {"proxy-logging": "proxy_logging", "cache": "memcache"}
    extra = {
        "cache": f"memcache_servers = 127.0.0.1:{ports['memcached']}\n",
        "tempauth": f"user_{ACCESS.replace(':', '_')} = {SECRET} .admin\n",
        "versioned_writes": "allow_object_versioning = true\n",
        "s3api": "location = us-east-1\n",
    }
    text = _default(folder, ports["proxy"]) + f"[pipeline:main]\npipeline = {_PIPELINE}\n"
    text += "[app:proxy-server]\nuse = egg:swift#proxy\naccount_autocreate = true\n"
    for name, egg in filters.items():
        text += f"[filter:{name}]\nuse = egg:swift#{egg}\n{extra.get(name, '')}"
    (folder / "proxy.conf").write_text(text)


@contextmanager
def swift_server() -> Iterator[str]:
    """Start Swift on free ports with data in a temporary folder; yields the S3 endpoint."""
    kinds = ("account", "container", "object", "proxy")
    ports = dict(zip((*kinds, "memcached"), _ports(5), strict=True))
    with tempfile.TemporaryDirectory(prefix="swift-") as name:
        folder = Path(name)
        _configure(folder, ports)
        commands = [
            ["memcached", "-u", getpass.getuser(), "-l", "127.0.0.1", "-p", str(ports["memcached"]), "-m", "16"]
        ]
        commands += [[f"swift-{kind}-server", str(folder / f"{kind}.conf")] for kind in kinds]
        log = (folder / "log").open("wb")
        started = [subprocess.Popen(command, stdout=log, stderr=log) for command in commands]
        url = f"http://127.0.0.1:{ports['proxy']}"
        try:
            _wait(f"{url}/healthcheck", started, folder / "log")
            yield url
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            log.close()


def _wait(url: str, started: list[subprocess.Popen[bytes]], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if any(process.poll() is not None for process in started):
            break
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"Swift did not start: {log.read_text(errors='replace')[-2000:]}")
