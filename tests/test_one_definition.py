"""One definition: command, DVC stage, Kubeflow component, pipeline and params agree in names, inputs and parameters."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from components import FLOW, STAGES
from components.__main__ import _parser
from components.cluster_params import Resources
from components.config import SECTIONS, as_dict
from components.errors import UsageError
from components.kfp_base import sections_of
from components.params import load_params, params_from_dict, section_from_dict
from pipelines import client
from pipelines.train_eval import COMPONENTS

STEPS = {step.name: step for step in FLOW}
COMMON = {"step": "String", "run_id": "String", "store": "String", "tracking": "Dict", "params": "Dict"}
OPTIONS = {"help", "set", "store", "no_tracking", "step", "manifest_out", "metrics_out", "files_out"}
SHARED = {"processes", "share", "output", "finalise", "job", "cancel"}  # ways to share splat_fit out
BY_HAND = {"rollback", "set_champion", "model_name"}  # of promote
NOUNS = {source: item for stage in STAGES.values() for item, source in stage.inputs.items()} | {"promote": "package"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("pipeline") / "pipeline.yaml"
    client.compile_pipeline(load_params(ROOT / "params.yaml"), out)
    pipeline: dict[str, Any] = client.documents(out)
    return pipeline


@pytest.mark.parametrize("step", FLOW, ids=lambda step: step.name)
def test_a_step_gives_its_stage_what_the_stage_takes(step: Any) -> None:
    stage = STAGES[step.stage]
    assert {item: STEPS[source].stage for item, source in step.inputs.items()} == stage.inputs
    assert step.section in SECTIONS
    earlier = [known.name for known in FLOW[: FLOW.index(step)]]
    assert {*step.inputs.values(), *step.after} <= {*earlier}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_takes_its_inputs_and_its_section(name: str) -> None:
    run = importlib.import_module(f"components.{name}.stage").run
    assert list(inspect.signature(run).parameters) == ["params", *STAGES[name].inputs, "store"]
    sections = {SECTIONS[step.section] for step in FLOW if step.stage == name}
    assert {typing.get_type_hints(run)["params"]} == sections


@pytest.mark.parametrize("name", STAGES)
def test_the_command_takes_the_same(name: str) -> None:
    (commands,) = (action for action in _parser()._actions if isinstance(action, argparse._SubParsersAction))
    command = commands.choices[STAGES[name].command]
    actions = [action for action in command._actions if action.dest not in OPTIONS | BY_HAND | SHARED]
    assert [action.option_strings for action in actions] == [[f"--{item}"] for item in ["params", *STAGES[name].inputs]]
    assert all(action.required == (name != "promote") for action in actions)  # promote moves a champion without them


@pytest.mark.parametrize("name", STAGES)
def test_the_component_takes_the_same(name: str) -> None:
    spec = COMPONENTS[name].component_spec
    inputs = {item: given.type for item, given in spec.inputs.items()}
    common = COMMON | ({"params_eval": "Dict"} if name == "download" else {})
    made = {stage: COMPONENTS[stage].component_spec.outputs[NOUNS[stage]].type for stage in STAGES}
    assert {item: kind for item, kind in inputs.items() if item not in common} == {
        item: made[source] for item, source in STAGES[name].inputs.items()
    }
    assert {item: kind for item, kind in inputs.items() if item in common} == common
    gate = {"Output", "version"} if name == "promote" else set()  # the version's alias and number
    assert {*spec.outputs} - {"page"} == {NOUNS[name], "metrics"} | gate
    assert ("page" in spec.outputs) == (name == "zero_shot_eval")


def test_the_pipeline_is_the_flow(compiled: dict[str, Any]) -> None:
    tasks = dict(compiled["components"]["comp-exit-handler-1"]["dag"]["tasks"])
    del tasks["condition-2"]  # the champion's announcement, which is no step
    names = {task: spec["taskInfo"]["name"] for task, spec in tasks.items()}
    assert sorted(names.values()) == sorted(STEPS)
    for task, spec in tasks.items():
        step = STEPS[names[task]]
        given = spec["inputs"].get("artifacts", {})
        sources = {item: names[made["taskOutputArtifact"]["producerTask"]] for item, made in given.items()}
        assert sources == step.inputs
        for item, made in given.items():
            assert made["taskOutputArtifact"]["outputArtifactKey"] == item
        assert {names[before] for before in spec.get("dependentTasks", [])} == {*step.inputs.values(), *step.after}
        values = spec["inputs"]["parameters"]
        for argument, section in sections_of(step).items():
            assert values[argument] == {"componentInputParameter": f"pipelinechannel--{section}"}
        assert values["step"] == {"runtimeValue": {"constant": step.name}}
        assert spec["cachingOptions"] == {}


def test_its_arguments_are_the_params_and_ints_come_back_as_ints(compiled: dict[str, Any]) -> None:
    params = load_params(ROOT / "params.yaml")
    given = compiled["root"]["inputDefinitions"]["parameters"]
    assert {*given} == {*SECTIONS} - {*client.NOT_ARGUMENTS} | {"store", "git_sha"}
    assert given["splat_fit"]["defaultValue"]["num_gaussians"] == 128.0
    assert "isOptional" not in given["store"]
    back = {name: spec["defaultValue"] for name, spec in given.items() if name in SECTIONS}
    graph = {name: as_dict(params)[name] for name in client.NOT_ARGUMENTS}
    restored = params_from_dict({**back, **graph})
    assert json.dumps(as_dict(restored)) == json.dumps(as_dict(params))  # 128 and 128.0 are equal, their text is not
    with pytest.raises(UsageError, match="num_gaussians"):
        section_from_dict(SECTIONS["splat_fit"], back["splat_fit"] | {"num_gaussians": 400.5}, "splat_fit")


def test_the_default_profile_spells_out_every_parameter() -> None:
    profile = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert {*profile} == {*SECTIONS}
    for name, section in SECTIONS.items():
        if name != "download_eval" and not any(is_dataclass(getattr(section(), f.name)) for f in fields(section)):
            assert {*profile[name]} == {f.name for f in fields(section)}, name
    for stage in fields(SECTIONS["resources"]):
        assert {*profile["resources"][stage.name]} == {f.name for f in fields(Resources)}, stage.name


def test_dvc_has_the_same_steps() -> None:
    """Names, inputs and parameters of dvc.yaml are the flow's; each input is what that step committed."""
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    assert {*graph} == {*STEPS}
    for name, step in STEPS.items():
        stage = graph[name]
        assert stage["params"] == (["download", "download_eval"] if name == "download_eval" else [step.section])
        program, *words = stage["cmd"].split()
        args = vars(_parser().parse_args(words))
        assert (program, args["stage"], args["step"] or step.stage) == ("splatclip", step.stage, name)
        manifests = {item: f"runs/dvc/{source}.json" for item, source in step.inputs.items()}
        assert {item: args[item] for item in step.inputs} == manifests
        assert {*manifests.values(), *(f"runs/dvc/{source}.json" for source in step.after)} <= {*stage["deps"]}
        outs = [args["manifest_out"], *([args["files_out"]] if args["files_out"] else [])]
        assert [Path(out) for out in stage["outs"]] == outs
        metrics = [args["metrics_out"]] if args["metrics_out"] else []
        assert [Path(path) for path in stage.get("metrics", [{}])[0]] == metrics
        assert all((ROOT / dep).exists() for dep in stage["deps"] if not dep.startswith("runs/"))
