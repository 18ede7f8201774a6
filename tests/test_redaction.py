"""Secrets in addresses: found in every form, and nothing else taken for one."""

from __future__ import annotations

from pathlib import Path

import pytest

from components import FLOW, tracking
from components.config import DownloadParams
from components.errors import PermanentError
from components.operations import TrackingParams
from components.redaction import redacted
from components.runner import run_step

SECRET = "t0p-s3cret"


@pytest.mark.parametrize(
    "address",
    [
        "https://user:{}@host/set",
        "https://{}@host/set",
        "s3://key:{}@bucket/set",
        "s3://key:a/{}@bucket/set",
        "http://user:p@{}@host/set",
        "https://host/set?Signature={}",
        "https://host/set?api_key={}&v=1",
        "https://host/set?apikey={}",
        "https://host/set?v=1&X-Amz-Security-Token={}",
        "https://host/set?X-Amz-Credential={}",
        "https://host/set?sv=2&sig={}",
        "https://host/set?access_token={}",
        "https://host/set?AWSAccessKeyId={}",
        "https://host/set?X-Goog-Signature={}",
        "https://host/set#token={}",
        "https://host/set?client_secret={}",
    ],
)
def test_every_form_is_hidden_wherever_it_stands(address: str) -> None:
    address = address.format(SECRET)
    for text in (address, f"download.path {address!r}: not there", f"{address}/train/0.tar: HTTP 403"):
        assert SECRET not in redacted(text)
        assert "***" in redacted(text)
        assert redacted(redacted(text)) == redacted(text)
    nested = {"a": [1, {"b": address}], "c": (address, 2.5)}
    assert redacted(nested) == {"a": [1, {"b": redacted(address)}], "c": (redacted(address), 2.5)}
    assert SECRET not in str(PermanentError(f"{address}: gone"))


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b",
        "s3://bucket/a:b@c/set",
        "https://host/set?version=2&design=x&page=signatures",
        "photos/me@home",
        "registry/image@sha256:00",
        "models:/splatclip@champion",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted(text) == text


def test_no_secret_is_recorded_or_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.setenv("SPLATCLIP_TRACKING_WAIT", "0.1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody answers: the journal stays
    info = tracking.run_info(TrackingParams(), "a-run")
    section = DownloadParams(source="folder", path=f"{tmp_path}/none?token={SECRET}")
    with pytest.raises(PermanentError, match="there is no such folder") as raised:
        run_step(FLOW[0], section, {}, str(tmp_path), info)
    assert SECRET not in str(raised.value)
    (journal,) = (tmp_path / "_tracking").glob("*.jsonl")
    assert not [path for path in (tmp_path / "_tracking").iterdir() if SECRET in path.read_text()]
    assert journal.read_text().count("none?token=***") == 2  # the step's parameters, and its run's
