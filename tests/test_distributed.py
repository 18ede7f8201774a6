"""Training in two processes (gloo) is training in one: the same losses and weights, stops, failures."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import distributed_work as work
import pytest
import torch
from conftest import ROOT
from flows import PARAMS, make_flow
from forks import Forked
from safetensors.torch import load_file
from test_train_teacher import TINY, commit_images, sample
from torch import Tensor

from components import launch
from components.__main__ import main
from components.config import TrainTeacherParams
from components.distributed import World
from components.errors import UsageError
from components.manifest import read_manifest
from components.processes import only_training
from components.store import open_store

ADAPTER = replace(
    PARAMS, stage1_token_epochs=1, stage2_epochs=2, stage2_learning_rates=(1e-3,), control_with_stage1=False
)
# Sums over two slices are rounded otherwise, and AdamW scales the smallest gradients up most.
LOSSES, WEIGHTS = 1e-5, 5e-5  # relative to each figure of the curve, to each tensor's norm


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A flow for train_adapter, and images and a model for train_teacher."""
    folder = tmp_path_factory.mktemp("flow")
    flow = make_flow(folder)
    samples = {"train": [sample(i) for i in range(48)], "val": [sample(i) for i in range(1000, 1019)]}
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], "patch_dropout": 0.0}}  # type: ignore[dict-item]
    (folder / "tiny.json").write_text(json.dumps(config))
    teacher = TrainTeacherParams(
        model=str(folder / "tiny.json"), epochs=2, batch_size=15, warmup_steps=2, device="cpu", threads=1
    )
    return {"flow": flow, "images": commit_images(folder / "pictures", samples).url, "teacher": teacher}


def adapter_call(inputs: dict[str, Any], store: Path, **changes: Any) -> list[Any]:
    return ["train_adapter", asdict(replace(ADAPTER, **changes)), {**inputs["flow"], "store": str(store)}]


def teacher_call(inputs: dict[str, Any], store: Path, **changes: Any) -> list[Any]:
    params = asdict(replace(inputs["teacher"], **changes))
    return ["train_teacher", params, {"images": inputs["images"], "store": str(store)}]


@pytest.fixture(scope="module")
def trained(inputs: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Stores of the same training: alone, in two processes, in parts, with activations computed again."""
    folder = tmp_path_factory.mktemp("stores")
    stores = {name: folder / name for name in ("alone", "two", "parts", "again", "two_parts")}

    def calls(name: str, **changes: Any) -> list[Any]:
        return [call(inputs, stores[name], **changes) for call in (adapter_call, teacher_call)]

    again = calls("again", checkpoint_activations=True)
    work.run("stages", {"calls": [*calls("alone"), *calls("parts", accumulate_steps=3), *again]}, 1)
    two_parts = calls("two_parts", accumulate_steps=2, checkpoint_activations=True)
    work.run("stages", {"calls": [*calls("two"), *two_parts]}, 2)
    return stores


def output(store: Path, stage: str) -> Path:
    (manifest,) = store.glob(f"{stage}/*/manifest.json")
    return manifest.parent


def without_key_bias(name: str, tensor: Tensor) -> Tensor:
    """Attention does not feel a bias of its keys: that gradient is nothing but rounding, and AdamW scales it up."""
    if not name.endswith("attn.in_proj_bias"):
        return tensor
    width = len(tensor) // 3
    return torch.cat([tensor[:width], tensor[2 * width :]])


def files(output: Path) -> dict[str, Path]:
    """The paths of its files, by the names that they are asked for by."""
    return {entry.name: output / entry.place for entry in read_manifest(open_store(str(output))).files}


def check_same(one: Path, other: Path) -> None:
    mine, others = files(one), files(other)
    assert mine.keys() == others.keys()
    tensors_in = [name for name in mine if name.endswith(".safetensors")]
    assert tensors_in
    for file in tensors_in:
        expected, found = load_file(mine[file]), load_file(others[file])
        assert expected.keys() == found.keys()
        for name in expected:
            a, b = (without_key_bias(name, tensors[name]) for tensors in (expected, found))
            assert torch.linalg.vector_norm(a - b) <= WEIGHTS * torch.linalg.vector_norm(a), (file, name)
    rows = [list(csv.DictReader(each["curve.csv"].read_text().splitlines())) for each in (mine, others)]
    assert len(rows[0]) == len(rows[1]) > 0
    for expected_row, found_row in zip(*rows, strict=True):
        assert expected_row.keys() == found_row.keys()
        for name, value in expected_row.items():
            if name == "phase" or not value:
                assert value == found_row[name]
            else:
                assert float(found_row[name]) == pytest.approx(float(value), rel=LOSSES), name


@pytest.mark.parametrize("stage", ["train_adapter", "train_teacher"])
@pytest.mark.parametrize("how", ["two", "parts", "again", "two_parts"])
def test_however_it_is_computed_it_is_the_same_training(trained: dict[str, Path], stage: str, how: str) -> None:
    check_same(output(trained["alone"], stage), output(trained[how], stage))


def test_activations_computed_again_change_nothing_at_all(trained: dict[str, Path]) -> None:
    for stage in ("train_adapter", "train_teacher"):
        mine, again = (files(output(trained[how], stage)) for how in ("alone", "again"))
        assert mine.keys() == again.keys()
        for name, path in mine.items():
            assert path.read_bytes() == again[name].read_bytes()


def test_the_loss_across_processes_is_the_whole_batchs(tmp_path: Path) -> None:
    """Its gradients too, also of slices of unlike sizes (7 pictures, 5 texts)."""
    work.loss(str(tmp_path / "one.safetensors"))
    work.run("loss", {"out": str(tmp_path / "two.safetensors")}, 2)
    expected, found = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert len(expected) == 6
    assert expected.keys() == found.keys()
    for name, part in expected.items():
        torch.testing.assert_close(found[name], part, rtol=1e-5, atol=1e-7)


def test_one_that_fails_ends_the_others_with_its_code(inputs: dict[str, Any], tmp_path: Path) -> None:
    calls = [adapter_call(inputs, tmp_path)]
    (code, err), (other_code, other) = work.ended(work.start("stages", {"calls": calls, "fails": 1}, 2))
    assert (code, other_code) == (42, 42)
    assert "PermanentError: process 1 of this training ended first: this batch is damaged" in err
    assert "PermanentError: this batch is damaged" in other
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_that_is_not_finite_in_one_process_ends_all_and_names_the_step(parts: int) -> None:
    for code, err in work.ended(work.start("lossless", {"at": 3, "parts": parts}, 2)):
        assert code == 42, err
        assert "PermanentError: phase: the loss is nan at step 3; try a lower learning rate" in err


@pytest.mark.parametrize("most", [100_000, 9])
def test_captions_of_validation_do_not_mix_with_those_drawn_together(most: int, tmp_path: Path) -> None:
    """Nor where so few are kept that they are dropped at other times; unlike batches are refused by all."""
    for code, err in work.ended(work.start("texts", {"folder": str(tmp_path), "most": most}, 2)):
        assert code == 42, err
        assert "PermanentError: the processes do not lack the same texts' features" in err


def saved(store: Path, pattern: str, started: list[Forked]) -> None:
    """Wait until a checkpoint is there."""
    deadline = time.monotonic() + work.LONGEST_S
    while not list(store.rglob(f"_checkpoint/{pattern}.safetensors")):
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.005)


def test_a_signal_to_one_stops_both_and_one_alone_can_go_on(
    inputs: dict[str, Any], trained: dict[str, Path], tmp_path: Path
) -> None:
    started = work.start("stages", {"calls": [adapter_call(inputs, tmp_path)]}, 2)
    saved(tmp_path, "stage1_cls", started)
    started[1].send_signal(signal.SIGTERM)
    for code, err in work.ended(started):
        assert code == 143, err
        assert "run the same command again" in err
    assert not list(tmp_path.rglob("train_adapter/*/manifest.json"))
    work.run("stages", {"calls": [adapter_call(inputs, tmp_path)]}, 1)
    check_same(output(trained["alone"], "train_adapter"), output(tmp_path, "train_adapter"))


@pytest.mark.full
def test_killed_in_mid_epoch_two_go_on_to_the_same_bytes(inputs: dict[str, Any], tmp_path: Path) -> None:
    """Of a streamed set too: the one that is killed without a word ends the other with 75, try again."""
    stages = ("train_adapter", "train_teacher")
    for streamed in (False, True):
        stores = {name: tmp_path / f"{name}{streamed}" for name in ("whole", "killed", "alone")}
        calls = {
            name: {"calls": [call(inputs, store) for call in (adapter_call, teacher_call)], "streamed": streamed}
            for name, store in stores.items()
        }
        work.run("stages", calls["whole"], 2)
        for phase, victim in (("stage1_tokens", 1), ("stage2*", 0)):
            started = work.start("stages", calls["killed"], 2)
            saved(stores["killed"], phase, started)
            started[victim].kill()
            codes = [code for code, _ in work.ended(started)]
            assert codes[victim] == -signal.SIGKILL
            assert codes[1 - victim] == 75
        work.run("stages", calls["killed"], 2)
        work.run("stages", calls["alone"], 1)
        for stage in stages:
            one, other = output(stores["whole"], stage), output(stores["killed"], stage)
            for path in one.iterdir():
                if path.is_file():
                    assert path.read_bytes() == (other / path.name).read_bytes(), path.name
            check_same(output(stores["alone"], stage), one)


def command(inputs: dict[str, Any], folder: Path, *changes: str) -> list[str]:
    """The arguments of train-adapter for the command line."""
    params = folder / "params.yaml"
    params.write_text(json.dumps({"train_adapter": asdict(ADAPTER)}))
    given = [f"--{name}={inputs['flow'][name]}" for name in ("images", "teacher", "splats")]
    return ["train-adapter", f"--params={params}", f"--store={folder}/store", *given, *changes]


@pytest.mark.full
def test_torchrun_and_its_exit_codes(inputs: dict[str, Any], tmp_path: Path) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    how: dict[str, Any] = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "timeout": work.LONGEST_S}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "components"]
    done = subprocess.run([*torchrun, *command(inputs, tmp_path)], check=False, **how)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(output(tmp_path / "store", "train_adapter")), "one process speaks for all"
    assert done.stderr.count("train_adapter: ") == 1

    ours = [sys.executable, "-m", "components.launch", "--nproc-per-node=2"]
    wrong = command(inputs, tmp_path, "--set", "train_adapter.batch_size=1")
    refused = subprocess.run([*ours, *wrong], check=False, **how)
    assert refused.returncode == 2
    assert "a batch of 1 cannot be dealt to 2 processes" in refused.stderr

    long = command(inputs, tmp_path, "--set", "train_adapter.stage1_cls_epochs=500")
    process = subprocess.Popen([*ours, *long], cwd=ROOT, env=env, text=True, stderr=subprocess.PIPE)
    saved(tmp_path / "store", "stage1_cls", [])
    process.terminate()
    _, err = process.communicate(timeout=work.LONGEST_S)
    assert process.returncode == 143, err
    assert "run the same command again to go on" in err


def test_the_launcher_finds_the_command_among_torchruns_options() -> None:
    assert launch.split(["--nproc-per-node=2", "train-teacher", "--params", "p"]) == (
        ["--nproc-per-node=2"],
        ["train-teacher", "--params", "p"],
    )
    assert launch.main(["--nproc-per-node=2"]) == 2


def test_batches_are_dealt_whole() -> None:
    worlds = [World(rank, 3) for rank in range(3)]
    for count in range(12):
        dealt = [i for world in worlds for i in range(count)[world.part(count)]]
        assert dealt == list(range(count))
    worlds[0].check_batch("train_adapter", 6, 2)
    with pytest.raises(UsageError, match="a batch of 5 cannot be dealt to 3 processes in 2 parts each"):
        worlds[0].check_batch("train_adapter", 5, 2)


@pytest.mark.parametrize(
    "command", ["run --params p", "show runs/x", "evaluate --params p --sets all --teacher t --adapter a", "promote"]
)
def test_all_other_commands_refuse_several_processes(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(command.split()) == 2
    name = command.partition(" ")[0]
    assert f"splatclip {name}: torchrun started 2 processes of {name}, which runs in one" in capsys.readouterr().err


def test_only_training_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    only_training("splat_fit")
    monkeypatch.setenv("WORLD_SIZE", "2")
    only_training("train_teacher")
    only_training("train-adapter")
    with pytest.raises(UsageError, match="2 processes of splat-fit, which runs in one"):
        only_training("splat_fit")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE is 'two'"):
        only_training("splat_fit")
