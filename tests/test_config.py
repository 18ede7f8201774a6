"""params.yaml -> dataclasses: what is wrong is named, with the nearest right word."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from components.config import Params, SplatFitParams, as_dict, semantic
from components.errors import UsageError
from components.params import load_params, params_from_dict

PROFILES = sorted((ROOT / "params").glob("*.yaml"))


def test_the_default_profile_spells_out_every_parameter() -> None:
    """So that `dvc params diff` and a reader see all of them, and -S finds them."""
    written = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    expected = {name: set(section) for name, section in as_dict(Params()).items()}
    assert {name: set(section) for name, section in written.items()} == expected


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *PROFILES], ids=lambda p: p.name)
def test_profiles_load(path: Path) -> None:
    params = load_params(path)
    assert params_from_dict(as_dict(params)) == params


def test_the_promised_profiles_exist() -> None:
    assert {p.stem for p in PROFILES} >= {"cifar10", "flickr8k", "datacomp-small"}


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
        ({"train_adapter": {"stage2_learning_rates": 1e-3}}, "expected a list"),
        ({"train_adapter": {"stage2_learning_rates": []}}, "at least one"),
        ({"train_adapter": {"stage2_learning_rates": [0.1, 0.1]}}, "twice"),
        ({"splat_fit": {"seed": 1 << 40}}, "it must be from 0 to"),
        ({"splat_fit": {"seed": -1}}, "it must be from 0 to"),
        ({"splat_fit": 0}, "expected a mapping"),
        ({"train_teacher": {"learning_rate": 0}}, "above 0"),
        ({"download": {"source": "folder"}}, "download.path is empty"),
        ([], "expected sections"),
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
    assert semantic(Params().train_adapter)["stage2_learning_rates"] == list(
        Params().train_adapter.stage2_learning_rates
    )
