"""A cluster that refuses, lacks or delays something: what a set's fitting by a Job says and does then."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from fleet_jobs import FLEET, ONE, SECTION, launch
from fleets import fitted, fitted_at_once, picture_set
from kube import Kube

from components.cluster_params import Resources
from components.errors import PermanentError, TransientError, UsageError
from components.manifest import Artifact
from components.splat_fit import cluster, fleet
from components.splat_fit import job as jobs


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return picture_set(tmp_path_factory.mktemp("pictures"), shards=4, per_shard=2)


@pytest.fixture(scope="module")
def whole(images: Artifact, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return fitted_at_once(SECTION, images, tmp_path_factory.mktemp("whole"))


def cancel(images: Artifact, store: Path) -> str:
    return fleet.cancel(SECTION, images=images.url, store=str(store), fleet=FLEET)


def test_a_lost_answer_to_create(images: Artifact, whole: dict[str, bytes], here: Path, kube: Kube) -> None:
    kube.lose_created = True
    launch(images, here, ONE)
    assert fitted(here) == whole
    assert len(kube.created) == 1


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
    assert "there is no Job" in cancel(images, here)
    monkeypatch.delenv("KUBECONFIG")
    with pytest.raises(
        UsageError, match=r"no way to a cluster: this pod's service account: .*kubeconfig in KUBECONFIG"
    ):
        cancel(images, here)


def test_a_kubeconfig_that_checks_no_certificate_is_refused(images: Artifact, here: Path, kube: Kube) -> None:
    file = here / "kubeconfig"
    settings = yaml.safe_load(file.read_text())
    settings["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
    file.write_text(yaml.safe_dump(settings))
    for call in (launch, cancel):
        with pytest.raises(UsageError, match=r"insecure-skip-tls-verify, .*certificate-authority instead"):
            call(images, here)
    assert kube.requests == []


def test_a_renewed_token_is_not_written_into_the_kubeconfig(images: Artifact, here: Path, kube: Kube) -> None:
    file, program = here / "kubeconfig", here / "renew"
    made = json.dumps({"credential": {"access_token": "right", "token_expiry": "2100-01-01T00:00:00Z"}})
    program.write_text(f"#!/bin/sh\necho '{made}'\n")
    program.chmod(0o700)
    settings = yaml.safe_load(file.read_text())
    known = {"access-token": "old", "expiry": "2001-01-01T00:00:00Z", "cmd-path": str(program)}
    settings["users"][0]["user"] = {"auth-provider": {"name": "gcp", "config": known}}
    file.write_text(yaml.safe_dump(settings))
    before = file.read_bytes()
    assert "there is no Job" in cancel(images, here)
    assert file.read_bytes() == before


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
