"""The package, its card, and the way into MLflow and back: sqlite and HTTP."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import gates
import pytest
import torch
import yaml
from mlflow_server import MlflowServer
from s3 import moto_server, new_bucket
from worlds import World, by_name, content, make_world, scores_of

from components import FLOW
from components.__main__ import main
from components.errors import PermanentError, UsageError
from components.manifest import Artifact, open_artifact
from components.operations import PromoteParams, TrackingParams
from components.package import load_package
from components.promote.evaluation import evaluation_hash
from components.promote.stage import run
from components.registry_calls import Registry
from components.runner import run_step
from components.shards import read_shard
from components.store import open_store
from components.tracking import RunInfo, run_info

# SQLAlchemy 2.1 on what MLflow 3.17 asks of it; seen where a test's own process opens the database
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
FILES = ["README.md", "adapter.json", "adapter.safetensors", "config.json", "model.safetensors", "scores.json"]


def inputs(world: World, scored: Artifact) -> dict[str, str]:
    return {"teacher": world.teacher.url, "adapter": world.adapter.url, "scores": scored.url}


@pytest.fixture(scope="module")
def package(world: World, scored: Artifact) -> Artifact:
    report = run(PromoteParams(), **inputs(world, scored), store=str(world.store))
    return open_artifact(report.url, open_store(str(world.store)))


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """MLflow's default: sqlite in the working directory."""
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    gates.default_database(tmp_path)
    return gates.MODEL


def splat_files(world: World) -> dict[str, bytes]:
    found = {}
    for shard in world.splats.manifest.shards:
        with world.splats.local(shard) as path:
            found |= {sample.key: sample.fields["gs2d"] for sample in read_shard(path)}
    return found


def card_of(package: Artifact) -> tuple[dict, str]:
    _, front, text = content(package, "README.md").decode().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_package_holds_all_that_the_model_needs(world: World, package: Artifact) -> None:
    assert [entry.name for entry in package.manifest.files] == FILES
    assert package.manifest.params == {}
    assert package.manifest.metrics["package_bytes"] == sum(entry.bytes for entry in package.manifest.files)
    assert content(package, "model.safetensors") == content(world.teacher, "model.safetensors")
    assert content(package, "adapter.safetensors") == content(world.adapter, "adapter.safetensors")


def test_a_package_alone_classifies_as_the_evaluation_did(world: World, package: Artifact, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere"
    for name in [*FILES, "manifest.json"]:
        alone.mkdir(exist_ok=True)
        (alone / name).write_bytes(content(package, name) if name in FILES else package.manifest.to_bytes())
    model = load_package(str(alone))
    files = splat_files(world)
    files.pop("p05")  # of no class
    guesses = model.classify(list(files.values()))
    hits = [guess == model.class_names[world.classes[key]] for key, guess in zip(files, guesses, strict=True)]
    assert sum(hits) / len(hits) == pytest.approx(by_name(model.scores)["splats"]["metrics"]["acc1"], abs=1e-6)
    features = model.embed(list(files.values())[:3])
    assert features.shape == (3, 16)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(3))
    assert model.embed_texts(["a ball"]).shape == (1, 16)
    assert model.embed([]).shape == model.embed_texts([]).shape == (0, 16)
    assert model.classify([]) == []


def test_splats_of_another_size_are_refused(package: Artifact) -> None:
    from components.splats import Splats

    small = Splats([[1.0, 1.0]], [[1.0, 0.0, 1.0]], [[1.0, 1.0, 1.0]], 16, 16).pack()[0]
    with pytest.raises(PermanentError, match=r"16 x 16; this model reads splats of pictures of 32 x 32"):
        load_package(package.url).embed([small])


def test_the_card_says_what_scores_json_says(world: World, scored: Artifact, package: Artifact) -> None:
    front, text = card_of(package)
    scores = scores_of(scored)
    row = by_name(scores)["splats"]
    figure = row["figures"]["acc1"]
    assert front["model-index"][0]["results"][0]["metrics"][0]["value"] == figure["value"]
    assert front["datasets"] == ["balls"]
    low, high = figure["interval"]
    assert f"| {100 * figure['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}] |" in text
    assert row["setting"] in text
    for made in (world.images, world.teacher, world.splats, world.adapter, scored):
        assert made.manifest.sha256 in text
    assert all(note in text for note in scores["notes"])
    for part in ("Intended use", "Data", "Figures", "Limits", "Parameters", "Lineage"):
        assert f"\n## {part}\n" in text
    assert str(world.store) not in text


def test_the_same_work_gives_the_same_bytes_in_another_store(
    world: World, scored: Artifact, package: Artifact, tmp_path: Path
) -> None:
    report = run(PromoteParams(model_name="other"), **inputs(world, scored), store=str(tmp_path))
    assert report.manifest_sha256 == package.manifest.sha256
    again = run(PromoteParams(), **inputs(world, scored), store=str(tmp_path))
    assert not report.cached
    assert again.cached
    assert again.facts["alias"] == "none"  # tracking is off here


def test_retrieval(tmp_path: Path) -> None:
    world = make_world(tmp_path, captions=True)
    scored = world.run()
    report = run(PromoteParams(), **inputs(world, scored), store=str(world.store))
    package = open_artifact(report.url, open_store(str(world.store)))
    front, text = card_of(package)
    assert front["metrics"] == ["image_retrieval_recall@5", "text_retrieval_recall@5"]
    assert "caption to picture, recall@5" in text
    model = load_package(package.url)
    assert model.embed(list(splat_files(world).values())[:2]).shape == (2, 16)
    with pytest.raises(UsageError, match="names no classes"):
        model.classify([])


def test_inputs_that_do_not_belong_together(world: World, scored: Artifact, tmp_path: Path) -> None:
    store, given = str(tmp_path), inputs(world, scored)
    with pytest.raises(UsageError, match=r"teacher: .* was made by train_adapter; give train_teacher's output"):
        run(PromoteParams(), **{**given, "teacher": world.adapter.url}, store=store)
    other = gates.scored(store, 0.5)
    with pytest.raises(PermanentError, match=r"scores: .* was made from adapter"):
        run(PromoteParams(), **{**given, "adapter": other["adapter"]}, store=store)
    assert not (tmp_path / "promote").exists()


def test_no_package(world: World) -> None:
    with pytest.raises(UsageError, match="made by train_teacher"):
        load_package(world.teacher.url)


def test_sqlite_and_back(world: World, scored: Artifact, package: Artifact, tracked: str) -> None:
    report = run(PromoteParams(model_name=tracked), **inputs(world, scored), store=str(world.store))
    assert report.cached
    assert report.facts == report.facts | {"model": tracked, "version": "1", "alias": "champion"}
    assert Path("runs/mlflow.db").is_file()
    again = run(PromoteParams(model_name=tracked), **inputs(world, scored), store=str(world.store))
    assert again.facts["version"] == "1", "a scheduled run that finds nothing new registers nothing"
    version = Registry(tracked).find(alias="champion")
    assert version.source == str(Path(package.url).resolve())
    assert version.tags["package.sha256"] == package.manifest.sha256
    assert version.tags["data.hash"] == world.images.manifest.sha256
    assert {"git.sha", "git.dirty", "dvc.hash", "params.hash", "image.digest", "kfp.run_id"} <= set(version.tags)
    figure = by_name(scores_of(scored))["splats"]["figures"]["acc1"]
    assert [float(version.tags[f"eval.{name}"]) for name in ("score", "low", "high")] == [
        figure["value"],
        *figure["interval"],
    ]
    assert load_package("models:/splatclip@champion").class_names == ("red ball", "green ball", "blue ball")
    assert load_package("models:/splatclip/1").scores == scores_of(scored)
    for ref in ("models:/splatclip@other", "models:/splatclip/7", "models:/none@champion"):
        with pytest.raises(UsageError, match="has no"):
            load_package(ref)


def test_only_equal_evaluations_are_compared(tmp_path: Path) -> None:
    def scored(pictures: str) -> Artifact:
        images = gates.put(str(tmp_path), "download", {}, {}, set=pictures)
        return gates.put(str(tmp_path), "zero_shot_eval", {}, {"images": images})

    balls, cubes, scores = scored("balls"), scored("cubes"), gates.scores(0.5, 0.1)
    same = evaluation_hash(balls, scores, "acc1")
    assert same == evaluation_hash(scored("balls"), gates.scores(0.9, 0.2, dataset="balls again"), "acc1")
    others = {evaluation_hash(cubes, scores, "acc1"), evaluation_hash(balls, scores, "acc5")}
    changes = {"split": "val", "task": "retrieval", "class_names": ["red"], "templates": ["{c}"], "num_pictures": 99}
    others |= {evaluation_hash(balls, {**scores, name: value}, "acc1") for name, value in changes.items()}
    assert len(others - {same}) == 7


def test_a_version_comes_from_the_code_that_the_run_began_with(
    tmp_path: Path, tracked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", "1" * 40)
    info = run_info(TrackingParams(), "run-of-kfp")
    monkeypatch.setenv("SPLATCLIP_GIT_SHA", "2" * 40)
    step = next(step for step in FLOW if step.name == "promote")
    given = gates.scored(str(tmp_path / "store"), 0.5)
    run_step(step, PromoteParams(model_name=tracked), given, given.pop("store"), info)
    version = Registry(tracked).find(alias="champion")
    assert version.tags["git.sha"] == "1" * 40
    assert version.tags["kfp.run_id"] == "run-of-kfp"


def test_what_is_no_longer_what_was_registered_is_refused(tmp_path: Path, tracked: str) -> None:
    report = gates.promote(str(tmp_path / "store"), 0.5)
    manifest = Path(report.url, "manifest.json")
    data = manifest.read_bytes()
    other = report.manifest.metrics | {"package_bytes": 1}
    for changed, says in (
        (data.replace(b'"package_bytes": ', b'"package_bytes": 1'), "its sum is not that of its content"),
        (replace(report.manifest, metrics=other).to_bytes(), "was registered"),
    ):
        manifest.write_bytes(changed)
        with pytest.raises(PermanentError, match=says):
            load_package("models:/splatclip@champion")


def test_the_command_moves_the_champion(tmp_path: Path, tracked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "--rollback", "--model-name", tracked]) == 2
    assert "has no model" in capsys.readouterr().err
    gates.promote(str(tmp_path / "store"), 0.5)
    gates.promote(str(tmp_path / "store"), 0.6)
    assert main(["promote", "--rollback", "--model-name", tracked]) == 0
    assert "version 1 (acc1 0.5000" in capsys.readouterr().out
    assert main(["promote", "--set-champion", "2", "--model-name", tracked]) == 0
    assert Registry(tracked).state().aliases == {"champion": 2, "challenger": 1}
    params = tmp_path / "params.yaml"
    params.write_text("promote: {model_name: another}")
    assert main(["promote", "--rollback", "--params", str(params)]) == 2
    assert "'another'" in capsys.readouterr().err  # the model that the params name, not another one's champion
    assert main(["promote", "--model-name", tracked, "--params", str(params)]) == 2
    with pytest.raises(SystemExit):
        main(["promote", "--rollback", "--set-champion", "2", "--model-name", tracked])


@pytest.mark.full
def test_a_package_in_a_bucket_stays_there(world: World, scored: Artifact, tracked: str) -> None:
    with moto_server():
        store = new_bucket()
        report = run(PromoteParams(), **inputs(world, scored), store=store)
        assert Registry(tracked).find(alias="champion").source == report.url
        assert report.url.startswith(store)
        assert load_package("models:/splatclip@champion").scores == scores_of(scored)


@pytest.mark.full
def test_http_and_back(
    world: World, scored: Artifact, package: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLATCLIP_TRACKING", "on")
    with MlflowServer(tmp_path / "mlflow") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        step = next(step for step in FLOW if step.name == "promote")
        info = RunInfo(id="run-of-kfp", params=TrackingParams(), kubeflow=True)
        params = PromoteParams(model_name="tracked")
        done = run_step(step, params, inputs(world, scored), str(world.store), info)
        assert done.report.facts["alias"] == "champion"
        registry = Registry("tracked")
        version = registry.find(alias="champion")
        made = registry.client.get_run(version.run_id)
        assert made.info.run_name == "promote"
        assert version.source == f"runs:/{version.run_id}/package"
        assert version.tags["kfp.run_id"] == "run-of-kfp"
        run(PromoteParams(model_name="untracked"), **inputs(world, scored), store=str(world.store))
        for name in ("tracked", "untracked"):
            model = load_package(f"models:/{name}@champion")
            assert model.scores == scores_of(scored)
        alone = Registry("untracked").find(number="1")
        assert registry.client.get_run(alone.run_id).info.status == "FINISHED"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] != "600"
