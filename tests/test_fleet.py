"""A set fitted by an Indexed Job: its life and what fails in it, against a Kubernetes API whose pods are processes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fleet_jobs import FLEET, ONE, SECTION, launch
from fleets import fitted, fitted_at_once, picture_set, profile, run, start
from kube import Kube
from safetensors.numpy import save

from components import progress as bars
from components.cluster_params import Resources
from components.errors import PermanentError, TransientError, UsageError
from components.manifest import Artifact, Commit
from components.splat_fit import cluster, fleet, reader, stage, tally
from components.splat_fit import job as jobs
from components.store import FolderStore


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return picture_set(tmp_path_factory.mktemp("pictures"), shards=4, per_shard=2)


@pytest.fixture(scope="module")
def whole(images: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return fitted_at_once(SECTION, images, tmp_path_factory.mktemp("whole"))


def test_its_life(
    images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube, capfd: pytest.CaptureFixture[str]
) -> None:
    """Created from the cluster's template, watched, finalised, deleted; the same bytes as of one call."""
    template = jobs.built_in(Resources())
    jobs.container(template, "")["image"] = "of-the-cluster:1"
    kube.config_maps["splatclip-fit-job"] = {"job.yaml": yaml.safe_dump(template)}
    kube.cut_watches, kube.gone_watches = 2, 2
    kube.exits = {0: [75], 1: [143]}
    report = launch(images, here, replace(FLEET, template="splatclip-fit-job", queue="fits"))
    assert fitted(here) == whole
    assert not report.cached
    assert report.speeds["images_per_s"] > 0
    (made,) = kube.created
    assert jobs.container(made, "")["image"] == "of-the-cluster:1"
    assert (made["spec"]["completions"], made["spec"]["suspend"]) == (2, True)
    assert kube.jobs == {}, "deleted once it has ended"
    said = capfd.readouterr().err
    assert "2 indexes for 4 of 4 shards" in said
    assert "waits in queue fits" in said
    assert "8/8 pictures" in said
    before = len(kube.requests)
    assert launch(images, here).cached
    assert len(kube.requests) == before, "what is finished asks nobody"


def test_its_progress(
    images: Artifact, here: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A line for every change: pods without an image wait; later one runs beside an index that has failed."""
    monkeypatch.setattr(bars, "PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(bars, "PLAIN_SHARE", 0.0)
    monkeypatch.setattr(fleet, "TALLY_S", 0.0)
    monkeypatch.setattr(tally, "LISTING_SHARE", 1e9)
    kube.hold, kube.exits = True, {0: [42], 1: [42]}
    changes = cluster.Cluster.changes

    def watched(self: cluster.Cluster, job: Any, seconds: float) -> Iterator[dict[str, Any] | None]:
        for changed in changes(self, job, seconds):
            yield changed
            if kube.hold and changed and changed["status"].get("active"):
                stage.fit_group(SECTION, images=images.url, store=str(here), share=stage.Share(4, (0,)))
                kube.hold = False

    monkeypatch.setattr(cluster.Cluster, "changes", watched)
    with pytest.raises(PermanentError, match="MaxFailedIndexesExceeded"):
        launch(images, here, replace(FLEET, parallelism=1))
    said = capfd.readouterr().err
    held, _, begun = said.partition("splat-fit 0/4")
    assert re.search(r"splat-fit: 0/8 pictures, 0/s, 0 s left shards 0 running 0 waiting 1 failed_indexes 0\n", held)
    line = r"splat-fit: 2/8 pictures, [\d.e+]+/s, \d+ s left shards 1 running 1 waiting 0 failed_indexes "
    assert re.search(line + "0\n", begun), said
    assert re.search(line + "1\n", begun), said


def test_a_job_that_kueue_admits_in_part_says_so(
    images: Artifact, here: Path, kube: Kube, capfd: pytest.CaptureFixture[str]
) -> None:
    template = jobs.built_in(Resources())
    template["metadata"] = {"annotations": {jobs.MIN_PARALLELISM: "1"}}
    kube.config_maps["partly"] = {"job.yaml": yaml.safe_dump(template)}
    kube.exits, kube.kueue_quota = {0: [42], 1: [42]}, 1
    with pytest.raises(PermanentError):
        launch(images, here, replace(FLEET, template="partly", queue="fits"))
    assert capfd.readouterr().err.count("the Job runs 1 pod at once, and 2 were asked for: as Kueue admitted it") == 1


@pytest.mark.full
def test_only_what_is_pending_gets_an_index(images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube) -> None:
    stage.fit_group(SECTION, images=images.url, store=str(here), share=stage.Share(4, (1, 3)))
    launch(images, here, replace(FLEET, shards_per_index=1))
    assert fitted(here) == whole
    assert jobs.share_of(jobs.container(kube.created[0], "")["args"]) == stage.Share(4, (0, 2))


def test_where_all_is_fitted_no_job_is_made(images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube) -> None:
    stage.fit_group(SECTION, images=images.url, store=str(here), share=stage.Share(1, (0,)))
    launch(images, here)
    assert fitted(here) == whole
    assert kube.created == []


def test_a_job_that_cannot_be_deleted_does_not_keep_its_work_from_being_finished(
    images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """By a foreign finalizer, or for want of the right; in the way is it only of another one, for what is left."""
    monkeypatch.setattr(cluster, "GONE_S", 0.0)
    kube.finalizer = "example.com/audit"
    launch(images, here, ONE)
    assert fitted(here) == whole
    (manifest,) = (here / "splat_fit").glob("*/manifest.json")
    manifest.unlink()
    kube.forbidden.add("delete jobs")
    launch(images, here, ONE)
    assert fitted(here) == whole
    assert "has done its work and stays for a while: Kubernetes, delete jobs in namespace" in capfd.readouterr().err
    manifest.unlink()
    (manifest.parent / "_done" / "00000.json").unlink()
    with pytest.raises(PermanentError, match=r"delete jobs in namespace splatclip: 403 .*grant the account this right"):
        launch(images, here, ONE)
    kube.forbidden.clear()
    with pytest.raises(TransientError, match=r"is still there, with finalizers \['example\.com/audit'\]; try again"):
        launch(images, here, ONE)
    assert len(kube.created) == 1


def test_an_index_that_fails_for_good(here: Path, kube: Kube) -> None:
    """Its shard and the reason are named, the others are kept; mended, the next call fits it alone."""
    images = picture_set(here / "in", shards=4, per_shard=2)
    broken = Path(images.url, images.manifest.shards[2].name)
    content = broken.read_bytes()
    broken.write_bytes(content[:900] + b"damaged" + content[907:])
    with pytest.raises(PermanentError) as caught:
        launch(images, here / "store")
    text = str(caught.value)
    assert re.search(rf"1 shard of \S+ cannot be fitted: {broken.parent.name}/{broken.name}: \S+ sha256 is", text), text
    assert "3 of 4 shards are fitted and kept" in text
    assert "FailedIndexes" in text
    assert kube.the_job()["status"]["failedIndexes"] == "1"
    assert kube.logs().count("cannot be fitted") == 1, "bad input is not tried again"
    names = {*fitted(here / "store")}
    assert sum(name.endswith(".tar") for name in names) == 3
    broken.write_bytes(content)
    launch(images, here / "store")
    assert jobs.share_of(jobs.container(kube.created[1], "")["args"]) == stage.Share(2, (1,))
    assert kube.jobs == {}
    stage.run(SECTION, images=images.url, store=str(here / "again"))
    assert fitted(here / "store") == fitted(here / "again"), "no note of the failure stays"


def test_what_fails_for_now_too_often(
    images: Artifact, here: Path, kube: Kube, capfd: pytest.CaptureFixture[str]
) -> None:
    kube.exits = {0: [0], 1: [75, 75]}
    with pytest.raises(PermanentError, match=r"2 shards of .*index 1 failed too often.*exit 75"):
        launch(images, here)
    capfd.readouterr()
    launch(images, here, ONE)
    assert len(kube.created) == 2, "the failed one has made room"
    assert "has ended (FailedIndexes); another one does what is left" in capfd.readouterr().err


def test_a_node_without_its_gpu_ends_no_job(images: Artifact, here: Path, kube: Kube) -> None:
    """Nor an index at once; why it failed in the end, its pods' last words tell."""
    kube.env = {"CUDA_VISIBLE_DEVICES": ""}
    with pytest.raises(PermanentError) as caught:
        launch(images, here, ONE, replace(SECTION, device="cuda"))
    assert "index 0 failed too often" in str(caught.value)
    assert "(index 0: exit 75, splat_fit.device is 'cuda', but splat2d sees no CUDA device" in str(caught.value)
    assert kube.logs().count("left to another pod") == 1 + ONE.backoff


def test_too_many_failed_indexes_end_the_job(images: Artifact, here: Path, kube: Kube) -> None:
    kube.exits = {0: [42], 1: [42]}
    with pytest.raises(PermanentError, match="MaxFailedIndexesExceeded"):
        launch(images, here, replace(FLEET, shards_per_index=1, max_failed=0.2, parallelism=1))


def test_wrong_usage_ends_the_job_at_once(images: Artifact, here: Path, kube: Kube) -> None:
    kube.exits = {0: [2]}
    with pytest.raises(PermanentError, match="PodFailurePolicy"):
        launch(images, here)


def test_pods_get_a_reader_that_they_reach(images: Artifact, here: Path, kube: Kube) -> None:
    """Given as a copy of its manifest, which lies on the launcher's machine alone."""
    teacher = Commit(FolderStore(str(here / "store")), stage="train_teacher", version=1, params={}, inputs={})
    made = teacher.finalise(shards=[], files=[teacher.put_file("config.json", b"{}")], metrics={})
    copy = here / "teacher.json"
    copy.write_bytes(made.manifest.to_bytes())
    section = replace(SECTION, reader=str(copy), reader_weight=1.0)
    rows = save({"rows": np.ones((1, 48), np.float32)})
    stage.open_work(section, images.url, str(here / "store")).commit.put_file(reader.FILE, rows)
    kube.exits = {0: [0]}
    with pytest.raises(TransientError, match="not fitted yet"):
        launch(images, here / "store", ONE, section)
    given = jobs.container(kube.created[0], "")["args"]
    assert json.loads(given[given.index("--params") + 1])["splat_fit"]["reader"] == made.url


@pytest.mark.parametrize(
    ("gpus", "section", "device", "said"),
    [
        (1, {"device": "auto"}, "cuda", ""),
        (0, {"device": "auto"}, "auto", ""),
        (0, {"device": "cpu"}, "cpu", ""),
        (1, {"device": "cpu"}, "cpu", "fit on the CPU: splat_fit.device is cpu"),
        (1, {"device": "auto", "target_psnr": 30.0}, "auto", "fit on the CPU: a target or a reader"),
    ],
)
def test_pods_that_get_a_gpu_use_it_or_it_is_said(
    images: Artifact, here: Path, kube: Kube, capfd: pytest.CaptureFixture[str],
    gpus: int, section: dict[str, Any], device: str, said: str,
) -> None:  # fmt: skip
    kube.exits = {0: [0]}
    params = replace(SECTION, **section)
    with pytest.raises(TransientError, match="not fitted yet"):
        fleet.fit(params, images=images.url, store=str(here / "store"), fleet=ONE, resources=Resources(gpus=gpus))
    given = jobs.container(kube.created[-1], "")["args"]
    assert json.loads(given[given.index("--params") + 1])["splat_fit"]["device"] == device
    told = capfd.readouterr().err
    assert said in told
    assert said or "GPU" not in told


@pytest.mark.full
def test_another_version_in_the_image_is_refused(images: Artifact, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    with pytest.raises(PermanentError, match="PodFailurePolicy"):  # the pods run what is on the disk
        launch(images, here, ONE)
    assert fitted(here) == {}


def test_another_launcher_may_be_quicker(images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube) -> None:
    """It finds the Job's end first and deletes it; with all shards done, there is nothing to complain about."""
    kube.vanish = True
    launch(images, here)
    assert fitted(here) == whole


def test_a_job_that_is_deleted_before_its_work_is_done(images: Artifact, here: Path, kube: Kube) -> None:
    kube.vanish = True
    kube.exits = {1: [0]}
    with pytest.raises(PermanentError, match="deleted while it was at work; 2 of 4 shards were fitted"):
        launch(images, here)


def test_a_failed_job_whose_shards_others_did_is_no_failure(
    images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kube.exits = {0: [75, 75]}
    create = cluster.Cluster.create

    def helped(self: cluster.Cluster, body: dict[str, Any]) -> dict[str, Any]:
        made = create(self, body)
        stage.fit_group(SECTION, images=images.url, store=str(here), share=stage.Share(2, (0,)))
        return made

    monkeypatch.setattr(cluster.Cluster, "create", helped)
    launch(images, here)
    assert fitted(here) == whole
    assert kube.jobs == {}
    assert "has failed (FailedIndexes), but all 4 shards are fitted" in capfd.readouterr().err


def test_a_job_whose_time_is_over_as_its_last_shard_is_done_is_no_failure(
    images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.hold = True
    create = cluster.Cluster.create

    def late(self: cluster.Cluster, body: dict[str, Any]) -> dict[str, Any]:
        made = create(self, body)
        stage.fit_group(SECTION, images=images.url, store=str(here), share=stage.Share(1, (0,)))
        with kube.lock:
            (state,) = kube.jobs.values()
            kube._end(state, "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
        return made

    monkeypatch.setattr(cluster.Cluster, "create", late)
    launch(images, here)
    assert fitted(here) == whole


@pytest.mark.full
def test_a_job_of_another_image_is_not_taken_over(images: Artifact, here: Path, kube: Kube) -> None:
    kube.hold = True
    launcher = start(images.url, here, "--job", params=profile({"template": "", "image": "a:1"}))
    until = time.monotonic() + 60
    while not kube.created and time.monotonic() < until:
        time.sleep(0.05)
    with pytest.raises(UsageError, match=r"makes this output already, .*image a:1 there, b:2 wanted; .*--cancel"):
        launch(images, here, replace(FLEET, image="b:2"))
    said = fleet.cancel(SECTION, images=images.url, store=str(here), fleet=FLEET)
    assert re.search(r"Job splat-fit-\S+ in namespace splatclip is deleted; 0 of 4 shards are fitted", said)
    _, err = launcher.communicate(timeout=60)
    assert launcher.returncode == 42
    assert "was deleted while it was at work" in err
    assert "there is no Job" in fleet.cancel(SECTION, images=images.url, store=str(here), fleet=FLEET)


@pytest.mark.full
def test_the_command_says_how_it_ended(images: Artifact, here: Path, kube: Kube) -> None:
    kube.exits = {0: [42]}
    result = run(images.url, here, "--job", params=profile({"template": ""}))
    assert result.returncode == 42, result.stderr
    assert result.stderr.splitlines()[-1].startswith("splatclip splat-fit: ")
