"""Pods that are preempted, launchers that are killed, several at work on one output."""

from __future__ import annotations

import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fleet_jobs import FLEET
from fleets import PARAMS, fitted, picture_set, profile, start
from kube import Kube

from components.config import SplatFitParams
from components.manifest import Artifact
from components.splat_fit import fleet, stage

SLOW = SplatFitParams(**(PARAMS | {"num_iters": 4000}))  # a second or so a shard


def slow_set(here: Path) -> tuple[Artifact, dict[str, bytes], str]:
    images = picture_set(here / "in", shards=4, per_shard=8)
    stage.run(SLOW, images=images.url, store=str(here / "whole"))
    fleet_section = {"shards_per_index": 2, "parallelism": 1, "backoff": 0, "template": ""}
    return images, fitted(here / "whole"), profile(fleet_section, num_iters=SLOW.num_iters)


def wait_for(what: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.full
def test_a_preempted_pod_does_not_count(here: Path, kube: Kube) -> None:
    """With no failure allowed at all, two evictions and a kill by the node's end change nothing but the time."""
    images, whole, params = slow_set(here)
    launcher = start(images.url, here / "store", "--job", params=params)
    for index, number in ((0, signal.SIGTERM), (0, signal.SIGTERM), (1, signal.SIGKILL)):
        pod = kube.preempt(index, number, wait_s=60)
        wait_for(lambda pod=pod: pod.code is not None)
        assert pod.code == 128 + number
        time.sleep(0.3)
    out, err = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, out + err
    assert fitted(here / "store") == whole


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_goes_leaves_the_job_and_finds_it_again(here: Path, kube: Kube, number: signal.Signals) -> None:
    images, whole, params = slow_set(here)
    launcher = start(images.url, here / "store", "--job", params=params)
    kube.pod(0, wait_s=60)
    launcher.send_signal(number)
    _, err = launcher.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert launcher.returncode == 143
        assert re.search(rf"stopped by {number.name}; Job splat-fit-\S+ in namespace splatclip goes on by itself", err)
    assert len(kube.jobs) == 1
    report = fleet.fit(
        SLOW, images=images.url, store=str(here / "store"),
        fleet=replace(FLEET, parallelism=1, backoff=0),
    )  # fmt: skip
    assert not report.cached
    assert len(kube.created) == 1, "found again, not made anew"
    assert fitted(here / "store") == whole


@pytest.mark.full
def test_two_launchers_and_eight_workers_on_one_group(here: Path, kube: Kube) -> None:
    images, whole, params = slow_set(here)
    launchers = [start(images.url, here / "store", "--job", params=params) for _ in range(2)]
    workers = [start(images.url, here / "store", "--group", "0/1", params=params) for _ in range(8)]
    for process in (*launchers, *workers):
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, out + err
    assert fitted(here / "store") == whole
    assert len(kube.created) <= 2
