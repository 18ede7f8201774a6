"""params.yaml -> dataclasses: what is wrong is named, with the nearest right word."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from components.config import SECTIONS, DownloadParams, Params, SplatFitParams, TrainAdapterParams, as_dict, semantic
from components.errors import UsageError
from components.params import load_params, params_from_dict, section_from_dict

PROFILES = sorted((ROOT / "params").glob("*.yaml"))


def test_the_default_profile_spells_out_every_parameter() -> None:
    """So that `dvc params diff` and a reader see all of them, and -S finds them; download_eval says what differs."""
    written = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    expected = {name: set(section) for name, section in as_dict(Params()).items()}
    assert {name: set(section) for name, section in written.items()} == expected | {"download_eval": set()}


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PROFILES], ids=lambda p: p.name)
def test_profiles_load(path: Path) -> None:
    params = load_params(path)
    assert params_from_dict(as_dict(params)) == params


def test_the_promised_profiles_exist() -> None:
    assert {p.stem for p in PROFILES} >= {"cifar10", "flickr8k", "datacomp-small"}


@pytest.mark.parametrize("path", [ROOT / "params.yaml", ROOT / "tests/tiny.yaml", *PROFILES], ids=lambda p: p.name)
def test_dvc_finds_its_sections_in_every_profile(path: Path) -> None:
    """dvc refuses a params file without a section that a stage names: any profile can stand in for params.yaml."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    named = {section for stage in stages.values() for section in stage["params"]}
    assert named <= set(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"splat_fit": {"num_gausians": 4}}, "did you mean 'num_gaussians'"),
        ({"splatfit": {}}, "did you mean 'splat_fit'"),
        ({"splat_fit": {"num_gaussians": 0}}, "at least 1"),
        ({"splat_fit": {"num_gaussians": 400.5}}, "expected int"),
        ({"splat_fit": {"num_gaussians": True}}, "expected int"),
        ({"splat_fit": {"num_gaussians": "many"}}, "expected int"),
        ({"splat_fit": {"recipe": "papper"}}, "did you mean 'paper'"),
        ({"splat_fit": [1]}, "expected a mapping"),
        ({"splat_fit": {"prune_score": "los"}}, "did you mean 'loss'"),
        (
            {"splat_fit": {"prune_to": 401, "num_gaussians": 400}},
            "prune_to is 401; it must be at most",
        ),
        ({"splat_fit": {"min_gaussians": 401, "num_gaussians": 400}}, "min_gaussians is 401; it must be at most"),
        ({"splat_fit": {"min_gaussians": 50}}, "target_psnr decides how few are enough"),
        (
            {"splat_fit": {"min_gaussians": 50, "target_psnr": 30.0, "prune_to": 60}},
            "leave prune_threshold and",
        ),
        ({"splat_fit": {"target_psnr": -1.0}}, r"target_psnr is -1\.0; it must be at least 0"),
        ({"splat_fit": {"target_psnr": 30.0, "device": "cuda"}}, "set splat_fit.device to cpu or auto"),
        ({"train_adapter": {"stage2_learning_rates": 1e-3}}, "expected a list"),
        ({"train_adapter": {"stage2_learning_rates": []}}, "at least one"),
        ({"train_adapter": {"stage2_learning_rates": [0.1, 0.1]}}, "twice"),
        ({"train_adapter": {"crop_min": 0}}, r"crop_min is 0\.0; it must be from 0\.05 to 1"),
        ({"train_adapter": {"crop_min": 1.2}}, "it must be from"),
        ({"train_adapter": {"rotate_degrees": -5}}, r"rotate_degrees is -5\.0; it must be from 0 to 45"),
        ({"train_adapter": {"color_jitter": 1}}, r"color_jitter is 1\.0; it must be from 0 to 0\.9"),
        ({"train_adapter": {"drop_gaussians": 1}}, r"drop_gaussians is 1\.0; it must be from 0 to 0\.9"),
        ({"splat_fit": {"seed": 1 << 40}}, "it must be from 0 to"),
        ({"splat_fit": {"seed": -1}}, "it must be from 0 to"),
        ({"splat_fit": 0}, "expected a mapping"),
        ({"train_teacher": {"learning_rate": 0}}, "above 0"),
        ({"download": {"source": "folder"}}, "download.path is empty"),
        ([], "expected sections"),
        ({"download": {"num_train": -1}}, "only download_eval may say so"),
        ({"download_eval": {"num_train": -2}}, r"^download_eval\.num_train is -2; it must be at least -1"),
        ({"download_eval": {"num_test": 0}}, "at least 1"),
        ({"download_eval": {"sed": 1}}, "did you mean 'seed'"),
        ({"download_eval": {"image_size": 32}}, "download_eval.image_size is 32, download.image_size 64"),
        ({"download_eval": {"source": "folder", "path": "x"}}, "bears its name 'sample'; give download_eval.dataset"),
        ({"resources": {"splatfit": {}}}, "did you mean 'splat_fit'"),
        ({"resources": {"splat_fit": {"gpu": 1}}}, "did you mean 'gpus'"),
        ({"resources": {"splat_fit": {"gpus": 0.5}}}, "resources.splat_fit.gpus is 0.5; expected int"),
        ({"resources": {"splat_fit": {"gpus": -1}}}, r"resources\.splat_fit\.gpus is -1; it must be at least 0"),
        ({"resources": {"splat_fit": {"cpu": 0}}}, r"resources\.splat_fit\.cpu is 0\.0; it must be at least 0\.001"),
        ({"resources": {"download": {"cpu": 1e-5}}}, r"resources\.download\.cpu is 1e-05"),
        ({"resources": {"download": {"cpu": float("inf")}}}, "is inf; expected a finite number"),
        ({"resources": {"splat_fit": {"memory": "8 GB"}}}, r"resources\.splat_fit\.memory is '8 GB'; .*as in 4Gi"),
        ({"resources": {"splat_fit": {"memory": "500K"}}}, "memory is '500K'"),
        ({"resources": {"splat_fit": {"memory": "1.5Gi"}}}, "a whole number"),
        ({"resources": {"splat_fit": {"memory": "0Gi"}}}, "above 0"),
        ({"resources": {"splat_fit": {"gpus": 1, "accelerator": ""}}}, "accelerator is ''; .*as in nvidia.com/gpu"),
        ({"resources": {"splat_fit": {"accelerator": "gpu"}}}, "accelerator is 'gpu'"),
        ({"splat_fit": {"lambda_color": float("inf")}}, "is inf; expected a finite number"),
        ({"splat_fit": {"lambda_color": "nan"}}, "is 'nan'; expected a finite number"),
        ({"splat_fit": {"lambda_color": 10**400}}, "expected a finite number"),
        ({"splat_fit": {"lambda_color": True}}, "expected a finite number"),
        ({"train_adapter": {"stage2_learning_rates": [float("inf")]}}, "expected a finite number"),
        ({"resources": {"splat_fit": 8}}, "expected a mapping"),
        ({"tracking": {"environment": "My Team"}}, "lower-case letters"),
        ({"tracking": {"gpu_hour_price": -1}}, "at least 0"),
        ({"promote": {"model_name": "a/b"}}, "promote.model_name is 'a/b'"),
        ({"promote": {"model_name": ""}}, "promote.model_name is ''"),
    ],
)
def test_wrong_values_are_refused(values: object, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        params_from_dict(values)


def test_numbers_survive_json_and_yaml() -> None:
    params = params_from_dict({"splat_fit": {"num_gaussians": 400.0}, "train_teacher": {"learning_rate": "1e-3"}})
    assert params.splat_fit.num_gaussians == 400
    assert isinstance(params.splat_fit.num_gaussians, int)
    assert params.train_teacher.learning_rate == 1e-3


def test_overrides(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("splat_fit:\n  num_gaussians: 10\n", encoding="utf-8")
    params = load_params(path, ["splat_fit.num_gaussians=20", "download.path=a=b", "splat_fit.seed=3"])
    assert (params.splat_fit.num_gaussians, params.splat_fit.seed, params.download.path) == (20, 3, "a=b")
    for wrong in ("splat_fit", "splat_fit=3", "=3", "splat_fitt.seed=1", "splat_fit.sed=1", "splat_fit.seed=[1"):
        with pytest.raises(UsageError):
            load_params(path, [wrong])


def test_overrides_reach_into_a_step_s_resources(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("resources: {download: &same {memory: 8Gi}, splat_fit: *same}\nsplat_fit: {seed: 3}\n")
    resources = load_params(path, ["resources.download.cpu=4", "resources.promote.cpu=0.5"]).resources
    assert resources.download == replace(Params().resources.download, cpu=4, memory="8Gi")
    assert (resources.splat_fit.cpu, resources.promote.cpu) == (8, 0.5)
    for wrong, said in [
        ("resources.download.cpus=4", r"resources\.download: unknown key 'cpus' \(did you mean 'cpu'"),
        ("resources.downloads.cpu=4", "did you mean 'download'"),
        ("splat_fit.seed.x=4", "seed is 3, and has no keys"),
        ("resources.cpu=4", "unknown key 'cpu'"),
    ]:
        with pytest.raises(UsageError, match=said):
            load_params(path, [wrong])


@pytest.mark.parametrize("content", ["a: [", "\xff", "- 1"])
def test_broken_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"p\.yaml"):
        load_params(path)
    with pytest.raises(UsageError, match="missing"):
        load_params(tmp_path / "missing.yaml")


def test_where_and_how_fast_never_enter_the_hash() -> None:
    assert semantic(SplatFitParams(threads=1)) == semantic(SplatFitParams(threads=8, device="cuda"))
    assert semantic(SplatFitParams(num_gaussians=7)) != semantic(SplatFitParams())
    assert "cache_embeddings" not in semantic(TrainAdapterParams()), "keys of results from before it was added"
    assert "reader_weight" not in semantic(SplatFitParams())
    assert semantic(TrainAdapterParams(cache_embeddings=False))["cache_embeddings"] is False
    assert semantic(Params().train_adapter)["stage2_learning_rates"] == list(
        Params().train_adapter.stage2_learning_rates
    )


def test_the_evaluation_set_inherits_what_it_leaves_out() -> None:
    same = params_from_dict({"download": {"seed": 5, "num_test": 7}, "download_eval": {}})
    assert same.download_eval == same.download == DownloadParams(seed=5, num_test=7)
    assert params_from_dict({"download": {"seed": 5}}).download_eval.seed == 5, "the section itself may be left out"
    assert params_from_dict({"download": {"seed": 5}, "download_eval": None}).download_eval.seed == 5
    other = params_from_dict(
        {
            "download": {"source": "webdataset", "path": "a", "image_size": 32, "seed": 5},
            "download_eval": {"path": "b", "dataset": "b", "num_train": -1, "num_val": 0},
        }
    )
    train, test = asdict(other.download), asdict(other.download_eval)
    changed = {name for name in train if train[name] != test[name]}
    assert changed == {"path", "dataset", "num_train", "num_val"}
    assert (other.download.trains, other.download_eval.trains) == (True, False)


def test_overrides_reach_the_evaluation_set_through_download(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("download: {seed: 1}\ndownload_eval: {}\n", encoding="utf-8")
    params = load_params(path, ["download.image_size=32", "download_eval.num_test=9"])
    assert (params.download_eval.image_size, params.download_eval.seed) == (32, 1)
    assert (params.download.num_test, params.download_eval.num_test) == (1000, 9)


@pytest.mark.parametrize(
    "deal", [{"seed": 1}, {"num_train": -1}, {"num_train": 10}, {"num_val": 3}, {"num_test": 1001}]
)
def test_the_same_pictures_dealt_otherwise_are_no_evaluation_set(deal: dict[str, int]) -> None:
    """Without splits of its own, such a source would give training pictures to the test."""
    source = {"source": "folder", "path": "photos"}
    with pytest.raises(UsageError, match="training pictures may be scored"):
        params_from_dict({"download": source, "download_eval": deal})
    assert params_from_dict({"download": source, "download_eval": deal | {"path": "others", "dataset": "others"}})
    assert params_from_dict({"download": source, "download_eval": {"num_test": 999}})
    assert params_from_dict({"download_eval": deal}), "'sample' draws its splits from seeds of their own"


def test_resources_are_given_by_stage_and_complete_themselves() -> None:
    params = params_from_dict({"resources": {"splat_fit": {"gpus": 1.0}, "promote": {"accelerator": "amd.com/gpu"}}})
    known = Params().resources
    assert params.resources.splat_fit == replace(known.splat_fit, gpus=1)
    assert isinstance(params.resources.splat_fit.gpus, int)
    assert params.resources.promote == replace(known.promote, accelerator="amd.com/gpu")
    assert params.resources.train_teacher == known.train_teacher


@pytest.mark.parametrize("name", ["promote", "tracking", "notify", "resources", "cluster"])
def test_parameters_of_operation_never_enter_a_key(name: str) -> None:
    assert semantic(getattr(Params(), name)) == {}


def test_sections_come_back_from_json_as_kubeflow_sends_it() -> None:
    """All numbers as floats, lists and mappings as they are."""

    def floats(value: object) -> object:
        if isinstance(value, dict):
            return {key: floats(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [floats(item) for item in value]
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    for name, section in as_dict(load_params(ROOT / "params/datacomp-small.yaml")).items():
        expected = getattr(load_params(ROOT / "params/datacomp-small.yaml"), name)
        assert section_from_dict(SECTIONS[name], floats(section), name) == expected


def test_the_datacomp_profile_is_scored_on_a_set_that_nothing_is_trained_on() -> None:
    params = load_params(ROOT / "params/datacomp-small.yaml")
    assert not params.download_eval.trains
    assert params.download_eval.dataset != params.download.dataset
    gpus = {name: part["gpus"] for name, part in as_dict(params)["resources"].items()}
    assert {name for name, number in gpus.items() if number} == {
        "train_teacher",
        "splat_fit",
        "train_adapter",
        "zero_shot_eval",
    }
