"""The bill of materials says what is locked, and the audit never takes silence for health."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Thread
from types import ModuleType

import pytest
from conftest import ROOT

TOOLS = ROOT / "build" / "tools" / "bin"  # `make test-full` installs them
VALIDATE = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
print(JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read()) or "valid")
"""


def script(name: str) -> ModuleType:
    spec = spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_component_that_is_not_locked_is_named(tmp_path: Path) -> None:
    sbom = script("sbom")
    lock = tmp_path / "requirements.lock"
    lock.write_text("# a remark\nflufl.lock==9.2.0\ntorch==2.13.0\n\nFlask==3.1.3\n")
    parts = [("flufl_lock", "9.2.0"), ("torch", "2.13.0+cpu"), ("flask", "3.1.4"), ("pip", "1"), ("left-pad", "1.0")]
    bill = {"components": [{"name": name, "version": version} for name, version in parts]}
    assert sbom.strangers(bill, sbom.locked(lock)) == [
        "flask 3.1.4 (locked: 3.1.3)",
        "left-pad 1.0 (locked: not at all)",
    ]
    bill["components"][1]["licenses"] = [{"license": {"id": "BSD-3-Clause"}}]
    assert sbom.unlicensed(bill) == ["flask", "flufl-lock", "left-pad", "pip"]


def test_an_images_packages_are_read_and_not_run(tmp_path: Path) -> None:
    with script("sbom").python_of(tmp_path / "it's" / "site-packages") as python:
        asked = [python, "-c", "import json,sys;json.dump(sys.path,sys.stdout)"]  # as cyclonedx-py does
        told = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    assert json.loads(told) == [str(tmp_path / "it's" / "site-packages")]
    assert not python.exists()


def test_every_lock_pins_one_version() -> None:
    sbom = script("sbom")
    for name in ("requirements.lock", "requirements-tools.lock"):
        found = sbom.locked(ROOT / name)
        assert len(found) > 40
        assert all(found.values()), name
    assert "cyclonedx-bom" not in sbom.locked(ROOT / "requirements.lock")


@pytest.mark.full
def test_the_bill_is_valid_and_holds_what_is_locked(tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    command = [sys.executable, ROOT / ".ci" / "sbom.py", "--python", sys.executable, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    bill = json.loads(out.read_text("utf-8"))
    names = {one["name"].lower() for one in bill["components"]}
    assert {"torch", "numpy", "pillow", "kfp", "mlflow"} <= names
    assert bill["metadata"]["component"]["name"] == "splatclip"
    assert bill["metadata"]["component"]["licenses"][0]["license"]["id"] == "Apache-2.0"
    licensed = [one for one in bill["components"] if one.get("licenses")]
    assert len(licensed) > 0.9 * len(bill["components"])
    root = next(one for one in bill["dependencies"] if one["ref"] == "root-component")
    assert len(root["dependsOn"]) > 10
    valid = subprocess.run([TOOLS / "python", "-c", VALIDATE, out], capture_output=True, text=True, check=True)
    assert valid.stdout.strip() == "valid"
    bill["components"][0]["type"] = "no such type"
    out.write_text(json.dumps(bill))
    damaged = subprocess.run([TOOLS / "python", "-c", VALIDATE, out], capture_output=True, text=True, check=True)
    assert "no such type" in damaged.stdout


@contextmanager
def database(bad: str) -> Iterator[str]:
    """An OSV database on this machine that knows of one vulnerable package."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = asked["package"]["name"]
            package = {"name": name, "ecosystem": "PyPI"}
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99"}]}]
            bug = {"id": "TEST-1", "aliases": ["CVE-1"], "affected": [{"package": package, "ranges": ranges}]}
            answer = json.dumps({"vulns": [bug | {"summary": "planted"}]} if name == bad else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def audit(service: str, lock: Path) -> tuple[int, str, str]:
    command = [sys.executable, ROOT / ".ci" / "audit.py", "--lock", lock, "--service", service]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.full
def test_the_audit_says_what_is_known_and_when_nothing_is(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("idna==3.20\nsix==1.17.0\n")
    with database(bad="six") as service:
        code, out, _ = audit(service, lock)
        assert code == 1
        assert "six 1.17.0: CVE-1 (TEST-1); mended in: 99" in out
    with database(bad="none") as service:
        assert audit(service, lock)[:2] == (0, "audit: 2 packages looked up, 0 known vulnerabilities\n")
    code, out, err = audit(service, lock)  # it is gone
    assert code == 75
    assert "NOT AUDITED" in err
    assert service in err
    assert not out
