"""Versions and runs on a cluster, by Kubeflow's own client: uploaded once, submitted, taken up again, shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from kfp_worlds import DIGEST, SHA, STORE, package, params, to
from kubeflow import Fault, Kubeflow

from components.__main__ import main
from components.errors import PermanentError, UsageError
from pipelines import notes, runs, versions
from pipelines.api import Api


def only(kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (one,) = kept.values()
    return one


def test_a_version_is_the_commit_and_its_bytes_know_neither_commit_nor_params(server: Kubeflow, api: Api) -> None:
    first = versions.upload(api, package())
    assert (first.name, first.new) == (SHA, True)
    again = versions.upload(api, package())
    assert (again.version_id, again.new) == (first.version_id, False)
    there = only(server.versions)
    assert there["display_name"] == SHA
    assert SHA not in package().data.decode()
    assert notes.read(there["description"]) == {
        "git.sha": SHA,
        "git.dirty": "false",
        "image.digest": "sha256:" + "0" * 64,
        "bytes.sha256": package().sha256,
    }
    other = versions.make_package(params("splat_fit.num_gaussians=9", "tracking.environment=test"), DIGEST)
    assert other.data == package().data
    assert other.version == SHA


def test_a_version_never_changes(server: Kubeflow, api: Api) -> None:
    versions.upload(api, package())
    for other in (
        package(image=DIGEST.replace("0000", "1111")),
        versions.make_package(params("resources.download={cpu: 7}"), DIGEST),
    ):
        with pytest.raises(PermanentError, match=f"version {SHA} of pipeline train-eval was uploaded with other bytes"):
            versions.upload(api, other)
    only(server.versions)["description"] = "by hand"
    assert not versions.upload(api, package()).new
    spec = only(server.versions)["pipeline_spec"]
    spec.get("pipeline_spec", spec)["root"]["dag"] = {}
    with pytest.raises(PermanentError, match="other bytes"):
        versions.upload(api, package())


@pytest.mark.parametrize("how", ["drop", "lose", 503])
@pytest.mark.parametrize("path", ["/pipelines", "/pipelines/upload_version", "/experiments", "/runs"])
def test_what_is_made_is_made_once(server: Kubeflow, api: Api, path: str, how: int | str) -> None:
    """Whether an answer is lost before or after the server has done it."""
    server.faults = [Fault("POST", f"/apis/v2beta1{path}", how)]
    runs.submit(api, package(), params(), STORE)
    assert [len(kept) for kept in (server.pipelines, server.versions, server.experiments, server.runs)] == [1] * 4


def test_production_takes_images_by_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", SHA)
    prod = params("tracking.environment=prod")
    for image in ("splatclip:1", "registry/splatclip@sha256:abc", f"{DIGEST}0"):
        with pytest.raises(UsageError, match="by its digest alone"):
            versions.make_package(prod, image)
        with pytest.raises(UsageError, match="by its digest alone"):
            versions.make_package(params(), image, production=True)
    assert versions.make_package(prod, DIGEST).image == DIGEST
    with pytest.raises(UsageError, match="write a digest as"):
        versions.make_package(params(), "registry/splatclip@sha256:abc")
    with pytest.raises(UsageError, match="lower-case"):
        versions.make_package(params(), DIGEST, name="Train Eval")
    with pytest.raises(UsageError, match=r"another graph .*pipeline compile --image"):
        versions.make_package(params(), DIGEST, name="rollback")


def test_code_without_a_commit_is_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.versions.git_version", lambda: ("none", "none"))
    with pytest.raises(UsageError, match="SPLATCLIP_GIT_SHA"):
        versions.make_package(params(), DIGEST)
    monkeypatch.setattr("pipelines.versions.git_version", lambda: (SHA, "true"))
    assert versions.make_package(params(), DIGEST).version == f"{SHA}-dirty"


def test_a_run_carries_where_it_comes_from(server: Kubeflow, api: Api) -> None:
    given = params("splat_fit.num_gaussians=9")
    made = runs.submit(api, package(), given, STORE, service_account="fitter")
    run = only(server.runs)
    assert only(server.experiments)["display_name"] == made.experiment == "splatclip/dev/train-eval"
    git, data, when = made.name.split("-")
    assert (git, data) == (SHA[:7], runs.data_asked_for(given)[:7])
    assert when.endswith("Z")
    sent = run["runtime_config"]["parameters"]
    assert sent["store"] == STORE
    assert sent["git_sha"] == SHA
    assert sent["splat_fit"]["num_gaussians"] == 9
    assert "resources" not in sent
    assert run["service_account"] == "fitter"
    told = notes.read(run["description"])
    assert told["params.hash"] == runs.params_hash(given)[:16] != runs.params_hash(params())[:16]
    assert (told["git.sha"], told["image.digest"]) == (SHA, "sha256:" + "0" * 16)
    assert runs.params_hash(params("train_teacher.threads=3")) == runs.params_hash(params()), "it changes no result"


def test_what_pods_cannot_reach_is_refused(server: Kubeflow, api: Api) -> None:
    for store in ("runs/store", "http://host/x"):
        with pytest.raises(UsageError, match="pods read and write it"):
            runs.submit(api, package(), params(), store)
    with pytest.raises(UsageError, match="password"):
        runs.submit(api, package(), params(), "s3://key:word@bucket/x")
    secret = params("download.source=webdataset", "download.path=https://user:word@host/set")
    with pytest.raises(UsageError, match=r"download\.path holds a password"):
        runs.submit(api, package(), secret, STORE)
    assert not server.runs


def test_unchanged_data_start_nothing(
    server: Kubeflow, api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    folder = tmp_path / "pictures" / "red"
    for name in range(9):
        for color in ("red", "blue"):
            (folder.parent / color).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (name * 9, 0, 0)).save(folder.parent / color / f"{name}.png")
    given = params("download.source=folder", f"download.path={folder.parent}")

    def submit(more: Any = given, store: str = STORE) -> runs.Submitted:
        return runs.submit(api, package(), more, store, if_changed=True)

    first = submit()
    assert first.new
    for state in ("PENDING", "RUNNING", "CANCELING"):
        server.runs[first.run_id]["state"] = state
        again = submit()
        assert (again.new, again.run_id) == (False, first.run_id), "it is at work"
        assert again.why.endswith(f"({first.run_id}) of the same data, store, params, commit and image: {state}")
    server.runs[first.run_id]["state"] = "FAILED"
    tried = submit()
    assert tried.new
    assert tried.why.endswith(f"({first.run_id}) of the same data, store, params, commit and image: FAILED")
    words = ["--set", "download.source=folder", "--set", f"download.path={folder.parent}", "--if-changed"]
    words += ["--store", STORE, "--image", DIGEST, "--params", str(ROOT / "params.yaml")]
    assert main(["pipeline", "submit", *words]) == 0
    assert f"none is started: run {tried.name} ({tried.run_id})" in capsys.readouterr().out
    server.runs[tried.run_id]["state"] = "CANCELED"
    server.runs[first.run_id]["state"] = "SUCCEEDED"
    assert (submit().new, submit().run_id) == (False, first.run_id)
    assert not submit(store=f"{STORE}/").new
    elsewhere = submit(store=f"{STORE}-2")
    assert elsewhere.new, "nothing is there"
    assert elsewhere.name.split("-")[1] == first.name.split("-")[1], "of the same data"
    assert submit(params("download.source=folder", f"download.path={folder.parent}", "splat_fit.num_gaussians=9")).new
    Image.new("RGB", (40, 40), "green").save(folder / "9.png")
    second = submit()
    assert second.new
    assert second.name.split("-")[1] != first.name.split("-")[1]
    server.runs[second.run_id]["state"] = "SUCCEEDED"
    assert not submit().new
    assert len(server.runs) == 5
    server.runs[first.run_id]["state"] = "RUNNING"
    server.runs[second.run_id]["state"] = "FAILED"
    assert submit().new, "what is at work is of other data"


def test_a_description_has_room_for_all_of_it() -> None:
    """255 characters, where the database is an old one."""
    sha256 = "f" * 64
    tags = {"git.sha": SHA, "git.dirty": "false", "image.digest": f"sha256:{sha256}", "params.hash": sha256}
    tags |= {"data.version": sha256, "submit.id": "0" * 8, "resumes": "0" * 8}
    brief = notes.brief(tags)
    assert notes.read(notes.written("By splatclip.", brief)) == brief
    with pytest.raises(PermanentError, match="255 at most"):
        notes.written("words", tags)
    assert notes.read("words\nsplatclip:{") == notes.read("splatclip:[]") == notes.read(None) == {}


def test_a_run_is_taken_up_again_with_its_version_and_arguments(server: Kubeflow, api: Api) -> None:
    made = runs.submit(api, package(), params("splat_fit.num_gaussians=9"), STORE)
    with pytest.raises(UsageError, match="is PENDING; cancel it or wait"):
        runs.resume(api, made.run_id)
    server.runs[made.run_id]["state"] = "FAILED"
    server.faults = [Fault("POST", "/runs", "lose")]
    again = runs.resume(api, made.name)
    first, second = server.runs[made.run_id], server.runs[again.run_id]
    assert len(server.runs) == 2
    for key in ("runtime_config", "pipeline_version_reference", "experiment_id"):
        assert first[key] == second[key]
    assert second["display_name"].rpartition("-")[0] == first["display_name"].rpartition("-")[0]
    assert made.run_id.startswith(notes.read(second["description"])["resumes"])
    for missing in ("no-such-run", "00000000-0000-0000-0000-000000000000"):
        with pytest.raises(PermanentError, match="there is no run"):
            runs.resume(api, missing)


def test_status_shows_the_steps_and_none_of_kubeflows_own(
    server: Kubeflow, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    made = runs.submit(api, package(), params(), STORE)
    to("RUNNING", download="SUCCEEDED", download_2="SUCCEEDED", splat_fit="RUNNING")(server.runs[made.run_id])
    assert main(["pipeline", "status", made.run_id]) == 0
    head, columns, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == [made.name, made.run_id, "RUNNING"]
    assert columns.split()[:2] == ["STEP", "STATE"]
    # the graph calls its second download download-2; its name as a step is download_eval
    assert [row.split()[:2] for row in rows] == [
        ["download", "SUCCEEDED"], ["download_eval", "SUCCEEDED"], ["splat_fit", "RUNNING"]
    ]  # fmt: skip
    assert "1:00:05" in rows[0]
    assert main(["pipeline", "status", made.name, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [step["name"] for step in told["steps"]] == ["download", "download_eval", "splat_fit"]
    assert told["steps"][2]["ended"] is None
    assert told["tags"]["git.sha"] == SHA


def test_the_list_is_the_newest_first_over_its_pages(
    server: Kubeflow, api: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    made = runs.submit(api, package(), params(), STORE)
    for n in range(150):
        server.runs[str(n)] = {
            "run_id": str(n),
            "display_name": f"old-{n}",
            "experiment_id": "other",
            "created_at": f"2020-01-01T{n // 60:02d}:{n % 60:02d}:00Z",
            "state": "FAILED" if n < 3 else "SUCCEEDED",
        }
    assert main(["pipeline", "list", "--limit", "120", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found] == [made.name, *(f"old-{n}" for n in range(149, 30, -1))]
    assert main(["pipeline", "list", "--state", "failed"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["RUN", "old-2", "old-1", "old-0"]
    assert main(["pipeline", "list", "--experiment", "splatclip/dev/train-eval"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["RUN", made.name]
    assert main(["pipeline", "list", "--experiment", "nothing"]) == 42


def test_the_command_submits(server: Kubeflow, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["pipeline", "upload", "--image", DIGEST, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["new"] is True
    assert main(["pipeline", "submit", "--image", DIGEST, "--store", STORE, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["run_id"] == only(server.runs)["run_id"]
    assert main(["pipeline", "submit", "--image", "other:tag", "--store", STORE]) == 42
    assert "other bytes" in capsys.readouterr().err
    assert main(["pipeline", "submit", "--image", "other:tag", "--store", STORE, "--production"]) == 2
    server.token = "wanted"
    assert main(["pipeline", "list"]) == 42
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert "wants a token" in error


def test_arguments_of_the_uploaded_graph_have_the_codes_defaults() -> None:
    spec = next(yaml.safe_load_all(package().data))
    given = spec["root"]["inputDefinitions"]["parameters"]
    assert given["git_sha"]["defaultValue"] == ""
    assert given["splat_fit"]["defaultValue"]["num_gaussians"] == 400.0
