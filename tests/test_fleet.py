"""A set fitted by an Indexed Job: its whole life against a Kubernetes API whose pods are real processes."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from fleets import PARAMS, fitted, picture_set, profile, run, start
from kube import Kube, a_cluster
from safetensors.numpy import save

from components.cluster_params import Resources
from components.config import SplatFitParams
from components.errors import PermanentError, TransientError, UsageError
from components.fleet_params import FleetParams
from components.manifest import Artifact, Commit
from components.splat_fit import cluster, fleet, reader, stage
from components.splat_fit import job as jobs
from components.store import FolderStore

SECTION = SplatFitParams(**PARAMS)
FLEET = FleetParams(shards_per_index=2, parallelism=2, backoff=1, max_failed=0.5, template="")
ONE = replace(FLEET, shards_per_index=4)  # an index for all of it
SLOW = SplatFitParams(**(PARAMS | {"num_iters": 4000}))  # a second or so a shard


@pytest.fixture
def kube() -> Iterator[Kube]:
    with a_cluster() as made:
        yield made


@pytest.fixture
def here(tmp_path: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, with the cluster as what KUBECONFIG names; nothing waits long."""
    monkeypatch.setenv("KUBECONFIG", str(kube.kubeconfig(tmp_path / "kubeconfig")))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(cluster, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(cluster, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(fleet, "PAUSE_S", 0.05)
    return tmp_path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return picture_set(tmp_path_factory.mktemp("pictures"), shards=4, per_shard=2)


@pytest.fixture(scope="module")
def whole(images: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one call leaves that does all of it."""
    store = tmp_path_factory.mktemp("whole")
    stage.run(SECTION, images=images.url, store=str(store))
    return fitted(store)


def launch(images: Artifact, store: Path, params: FleetParams = FLEET, section: SplatFitParams = SECTION) -> Any:
    return fleet.fit(section, images=images.url, store=str(store), fleet=params)


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


def test_pods_that_get_a_gpu_do_not_fall_back_to_the_cpu(images: Artifact, here: Path, kube: Kube) -> None:
    section = replace(SECTION, device="auto")
    for gpus, device in ((1, "cuda"), (0, "auto")):
        kube.exits = {0: [0]}
        with pytest.raises(TransientError, match="not fitted yet"):
            fleet.fit(
                section, images=images.url, store=str(here / device), fleet=ONE, resources=Resources(gpus=gpus)
            )  # fmt: skip
        given = jobs.container(kube.created[-1], "")["args"]
        assert json.loads(given[given.index("--params") + 1])["splat_fit"]["device"] == device


@pytest.mark.full
def test_another_version_in_the_image_is_refused(images: Artifact, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "VERSION", stage.VERSION + 1)
    with pytest.raises(PermanentError, match="PodFailurePolicy"):  # the pods run what is on the disk
        launch(images, here, ONE)
    assert fitted(here) == {}


def test_a_lost_answer_to_create(images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube) -> None:
    kube.lose_created = True
    launch(images, here, ONE)
    assert fitted(here) == whole
    assert len(kube.created) == 1


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


def test_an_api_that_is_away_for_a_while(images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube) -> None:
    kube.fail_next = [500, 503, 0, 429, 500]
    launch(images, here, ONE)
    assert fitted(here) == whole
    kube.fail_next = [503] * cluster.TRIES
    with pytest.raises(TransientError, match="get jobs: 8 tries failed, the last with: 503 for now"):
        launch(images, here / "other")


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ("create jobs", "create jobs in namespace splatclip: 403 .*grant the account this right"),
        ("get jobs", "get jobs"),
        ("watch jobs", "watch jobs"),
        ("get configmaps", "get configmaps"),
    ],
)
def test_a_right_that_is_missing(images: Artifact, here: Path, kube: Kube, right: str, said: str) -> None:
    kube.forbidden.add(right)
    kube.exits = {0: [0]}
    with pytest.raises(PermanentError, match=said):
        launch(images, here, replace(ONE, template="splatclip-fit-job"))


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (
            'jobs.batch "x" is forbidden: exceeded quota: jobs, requested: count/jobs.batch=1, used: '
            "count/jobs.batch=9, limited: count/jobs.batch=9",
            TransientError,
            "limited: count/jobs.batch=9; delete Jobs that have ended there, or have the quota raised",
        ),
        (
            'jobs.batch "x" is forbidden: unable to create new content in namespace splatclip because it is being '
            "terminated",
            PermanentError,
            "this namespace is about to be gone: name another, fleet.namespace",
        ),
    ],
)
def test_what_admission_refuses_is_no_missing_right(
    images: Artifact, here: Path, kube: Kube, answer: str, kind: type[Exception], said: str
) -> None:
    kube.refuse_jobs = answer
    with pytest.raises(kind, match=re.escape(said)) as caught:
        launch(images, here)
    assert "grant" not in str(caught.value)


def test_pods_need_not_be_readable(images: Artifact, here: Path, kube: Kube) -> None:
    kube.forbidden.add("list pods")
    kube.exits = {0: [0], 1: [75, 75]}
    with pytest.raises(PermanentError, match="index 1 failed too often"):
        launch(images, here)


def test_credentials_that_are_refused(images: Artifact, here: Path, kube: Kube) -> None:
    kube.token = "another"
    with pytest.raises(PermanentError, match="401 Unauthorized; the cluster does not accept these credentials"):
        launch(images, here)


def test_no_cluster(images: Artifact, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(here / "none"))
    with pytest.raises(UsageError, match="no way to a cluster: the kubeconfig"):
        launch(images, here)


def test_a_kubeconfig_that_is_named_comes_before_the_pods_own_account(
    images: Artifact, here: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    assert "there is no Job" in fleet.cancel(SECTION, images=images.url, store=str(here), fleet=FLEET)
    monkeypatch.delenv("KUBECONFIG")
    with pytest.raises(
        UsageError, match=r"no way to a cluster: this pod's service account: .*kubeconfig in KUBECONFIG"
    ):
        fleet.cancel(SECTION, images=images.url, store=str(here), fleet=FLEET)


def test_a_template_that_a_cluster_refuses(images: Artifact, here: Path, kube: Kube) -> None:
    template = jobs.built_in(Resources())
    template["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    kube.config_maps["theirs"] = {"job.yaml": yaml.safe_dump(template)}
    with pytest.raises(PermanentError, match=r"422 Job is invalid: podFailurePolicy needs.*look at the template"):
        launch(images, here, replace(FLEET, template="theirs"))
    kube.config_maps["theirs"] = {"other.yaml": ""}
    with pytest.raises(PermanentError, match=r"ConfigMap theirs in namespace splatclip holds no job\.yaml"):
        launch(images, here, replace(FLEET, template="theirs"))


def test_a_store_has_one_job_however_it_is_written(
    images: Artifact, here: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):  # nobody is asked
        monkeypatch.setenv(name, "test")
    said = {
        fleet.cancel(SECTION, images=images.url, store=store, fleet=FLEET)
        for store in ("s3://bucket/p", "s3://bucket/p/", "s3://bucket//p")
    }
    assert len(said) == 1
    assert said.pop().startswith("there is no Job splat-fit-")


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
def test_pods_that_do_not_start_say_why(
    images: Artifact,
    whole: dict[str, bytes],
    here: Path,
    kube: Kube,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(fleet, "SLOW_START_S", 0.1)
    monkeypatch.setattr(fleet, "WATCH_S", 1)
    kube.hold = True
    complaints = cluster.Cluster.complaints
    found: list[list[str]] = []

    def looked(self: cluster.Cluster, job: str, most: int = 3) -> list[str]:
        found.append(complaints(self, job, most))
        kube.hold = False
        return found[-1]

    monkeypatch.setattr(cluster.Cluster, "complaints", looked)
    launch(images, here, ONE)
    assert found[0] == ["a pod waits: ImagePullBackOff: Back-off pulling image"]
    assert "a pod waits: ImagePullBackOff" in capfd.readouterr().err
    assert fitted(here) == whole


@pytest.mark.parametrize(("readable", "after"), [(True, 0), (True, 1), (False, 0)])
def test_pods_that_cannot_be_created_say_why(
    images: Artifact, here: Path, kube: Kube, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    readable: bool, after: int,
) -> None:  # fmt: skip
    """Refused by admission from the first on, or once an index has ended: the Job has no pod that could say so."""
    monkeypatch.setattr(fleet, "SLOW_START_S", 0.1)
    monkeypatch.setattr(fleet, "WATCH_S", 1)
    kube.forbidden |= set() if readable else {"list events"}
    if after:
        kube.exits = {0: [0]}
        reconcile = kube._reconcile

        def refuse_later(state: Any) -> None:
            kube.refuse_pods = kube.refuse_pods or ("no account" if state.running or state.done else "")
            reconcile(state)

        monkeypatch.setattr(kube, "_reconcile", refuse_later)
    else:
        kube.refuse_pods = "no account"
    enough = threading.Timer(
        4, fleet.cancel, [SECTION], {"images": images.url, "store": str(here), "fleet": FLEET}
    )  # fmt: skip
    enough.start()
    with pytest.raises(PermanentError, match="was deleted while it was at work"):
        launch(images, here, replace(FLEET, parallelism=1))
    enough.join()
    said = capfd.readouterr().err
    name = kube.created[0]["metadata"]["name"]
    why = f'no pod could be created: Error creating: pods "{name}-*" is forbidden: no account'
    if not readable:
        why = f"no pod could be created, or none runs; see: kubectl describe job {name} --namespace splatclip"
    assert said.count(why) == 1, "once, however often it is asked"


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
    for index in (0, 0, 1):
        kube.preempt(index, wait_s=60)
        wait_for(lambda: all(one.code is not None for state in kube.jobs.values() for one in state.ended))
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


@pytest.mark.full
def test_the_command_says_how_it_ended(images: Artifact, here: Path, kube: Kube) -> None:
    kube.exits = {0: [42]}
    result = run(images.url, here, "--job", params=profile({"template": ""}))
    assert result.returncode == 42, result.stderr
    assert result.stderr.splitlines()[-1].startswith("splatclip splat-fit: ")
