"""The compiled pipeline: stable, small, without secrets, and the committed one is what the source gives."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from faults import Row

from components.__main__ import main
from components.errors import UsageError
from components.params import load_params
from pipelines import client

# an editable install's finder would put this checkout before the copy that a test alters
IN_FOLDER = """
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "ScikitBuild" not in repr(finder)]
sys.path.insert(0, "")
sys.argv[0] = "splatclip"
runpy.run_module("components", run_name="__main__", alter_sys=True)
"""
COMMITTED = ROOT / "pipelines/train_eval.yaml"


def compile_(*args: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IN_FOLDER, "pipeline", "compile", *args]
    env = {**os.environ, **env}
    return subprocess.run(command, cwd=cwd, env=env, check=False, capture_output=True, text=True, timeout=60)


def executors(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = client.documents(path)["deploymentSpec"]["executors"]
    return {name: executor["container"] for name, executor in found.items()}


@pytest.mark.faults
def test_the_same_params_give_the_same_bytes_and_no_secret(tmp_path: Path, fault_row: Row) -> None:
    secret = "k3ep-th1s-quiet"
    named = {"AWS_SECRET_ACCESS_KEY": secret, "MLFLOW_TRACKING_PASSWORD": secret, "MINIO_SECRET_KEY": secret}
    named["SPLATCLIP_IMAGE"] = "registry.example/mine:1"  # of what is submitted, not of what is committed
    for seed in ("1", "2"):
        result = compile_("--out", str(tmp_path / f"{seed}.yaml"), PYTHONHASHSEED=seed, **named)
        assert result.returncode == 0, result.stderr
    one, other = ((tmp_path / f"{seed}.yaml").read_bytes() for seed in ("1", "2"))
    assert one == other == COMMITTED.read_bytes()
    assert (tmp_path / "rollback.yaml").read_bytes() == COMMITTED.with_name("rollback.yaml").read_bytes()
    assert len(one) < 256 << 10
    text = one.decode()
    assert secret not in text
    assert str(ROOT) not in text
    assert str(Path.home()) not in text
    fault_row("compile", "train_eval", 2, None, f"{len(one)} bytes, both times the same, no secret")


def test_check_sees_the_source_and_not_the_sdk(tmp_path: Path) -> None:
    for folder in ("components", "pipelines"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    copy = tmp_path / "pipelines/train_eval.yaml"
    copy.write_text(re.sub(r"sdkVersion: \S+", "sdkVersion: kfp-2.99.9", copy.read_text()))
    assert "2.99.9" in copy.read_text()
    result = compile_("--check", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    component = tmp_path / "components/splat_fit/component.py"
    component.write_text(component.read_text().replace("log(done, splats", "log( done, splats"))
    result = compile_("--check", cwd=tmp_path)
    assert result.returncode == 2
    assert "exec-splat-fit.container.command" in result.stdout
    assert "splatclip pipeline compile" in result.stderr
    assert "rollback.yaml is up to date" in result.stdout
    ends = tmp_path / "pipelines/ends.py"
    ends.write_text(ends.read_text().replace("return rollback(params", "return  rollback(params"))
    assert "exec-rollback.container.command" in compile_("--check", cwd=tmp_path).stdout


def test_check_names_what_differs(tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml", ["splat_fit.num_gaussians=9"])
    assert client.check(params, COMMITTED) == [
        "root.inputDefinitions.parameters.splat_fit.defaultValue.num_gaussians: 128.0 there, 9.0 from the source"
    ]
    for text in (None, "a: [", "- 1\n"):
        path = tmp_path / "other.yaml"
        if text is not None:
            path.write_text(text)
        if text == "- 1\n":
            assert client.check(params, path)
        else:
            with pytest.raises(UsageError, match="cannot read the pipeline"):
                client.check(params, path)


def test_every_step_asks_for_what_params_say_on_the_image_given(tmp_path: Path) -> None:
    params = load_params(
        ROOT / "params.yaml",
        ["resources.splat_fit={cpu: 7.5, memory: 9Gi, gpus: 2}", "resources.train_adapter={accelerator: a/mig}"],
    )
    image = "registry/splatclip-python@sha256:" + "0" * 64
    client.compile_pipeline(params, tmp_path / "p.yaml", image)
    for name, container in executors(tmp_path / "p.yaml").items():
        asked = container["resources"]
        assert container["image"] == image
        assert container["env"] == [{"name": "SPLATCLIP_IMAGE_DIGEST", "value": "sha256:" + "0" * 64}]
        for kind in ("Cpu", "Memory"):
            assert asked[f"resource{kind}Limit"] == asked[f"resource{kind}Request"]
        fits = name.startswith("exec-splat-fit")
        assert ("accelerator" in asked) == fits
        if fits:
            assert (asked["resourceCpuLimit"], asked["resourceMemoryLimit"]) == ("7500m", "9Gi")
            assert (asked["accelerator"]["resourceType"], asked["accelerator"]["resourceCount"]) == (
                "nvidia.com/gpu",
                "2",
            )


def test_the_command_compiles_both_for_the_image_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = "registry/splatclip-python@sha256:" + "0" * 64
    words = ["pipeline", "compile", "--params", str(ROOT / "params.yaml"), "--out", str(tmp_path / "p.yaml")]
    assert main([*words, "--production", "--image", image]) == 0
    for name in ("p.yaml", "rollback.yaml"):
        assert {container["image"] for container in executors(tmp_path / name).values()} == {image}
    assert main([*words, "--check", "--image", image]) == 0
    assert f"{tmp_path / 'rollback.yaml'} is up to date" in capsys.readouterr().out
    for more in (["--production"], ["--set", "tracking.environment=prod"], ["--image", "registry/x@sha256:0"]):
        assert main([*words, *more]) == 2
        assert "sha256:" in capsys.readouterr().err


def test_the_evaluation_set_is_only_what_differs() -> None:
    """A submission replaces whole arguments: one that changes download alone must not leave the old set to score."""
    assert client.arguments(load_params(ROOT / "params.yaml"))["download_eval"] == {}
    more = ["download_eval.num_test=9", f"download_eval.seed={load_params(ROOT / 'params.yaml').download.seed}"]
    assert client.arguments(load_params(ROOT / "params.yaml", more))["download_eval"] == {"num_test": 9}


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"file/p.yaml: cannot write this file: .*; give another place"):
        client.compile_pipeline(load_params(ROOT / "params.yaml"), tmp_path / "file/p.yaml")


def test_development_compiles_name_no_digest() -> None:
    assert all("env" not in container and "@" not in container["image"] for container in executors(COMMITTED).values())


@pytest.mark.parametrize(
    "path",
    ["https://user:word@host/set", "s3://key:word@bucket/set", "https://host/set?api_key=0f", "https://0f@host/s"],
)
def test_a_secret_in_params_is_refused(path: str, tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml", ["download.source=webdataset", f"download.path={path}"])
    with pytest.raises(UsageError, match=r"download\.path holds a password or a signature"):
        client.compile_pipeline(params, tmp_path / "p.yaml")
    assert not list(tmp_path.iterdir())
