"""The pipeline as YAML, checked against the source, or run on this machine through Kubeflow's local runner."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import secrets
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler, local

from components import FLOW, tracking
from components.config import Params, as_dict
from components.errors import Interrupted, SplatClipError, UsageError
from components.kfp_base import FINISH, IMAGE
from components.local_run import GO_ON, VARIABLE, LocalRun, stopping_with
from components.redaction import redacted
from components.runner import write
from pipelines import rollback
from pipelines.quiet import only_the_steps_own
from pipelines.train_eval import build

HEAD = "# Made by `splatclip pipeline compile` from pipelines/{}.py and a params file; do not edit.\n"
MAX_BYTES = 256 << 10  # larger ones do not fit into Kubernetes' objects
PRODUCTION = "prod"  # tracking.environment
NOT_ARGUMENTS = ("resources", "fleet", "cluster")  # they are part of the graph

_DIGEST = re.compile(r"[^@\s]+@sha256:[0-9a-f]{64}")


def checked_image(image: str, params: Params, *, production: bool = False) -> str:
    """The image's name. production: also where tracking.environment is prod; then it must be given by its digest.

    Raises UsageError for one without a digest there, and for a digest that is none.
    """
    digest = bool(_DIGEST.fullmatch(image))
    if (production or params.tracking.environment == PRODUCTION) and not digest:
        raise UsageError(
            f"image {image!r}: production takes an image by its digest alone, as in registry/name@sha256:...: what a "
            "tag means may change from one step to the next"
        )
    if "@" in image and not digest:
        raise UsageError(f"image {image!r}: write a digest as registry/name@sha256: and 64 hexadecimal digits")
    return image


def arguments(params: Params) -> dict[str, Any]:
    """The pipeline's arguments, but for the store: the sections of params, as JSON has them.

    download_eval holds what differs from download alone, so that a submission that changes download changes both.
    """
    sections: dict[str, Any] = json.loads(json.dumps(as_dict(params)))
    training = sections["download"]
    sections["download_eval"] = {k: v for k, v in sections["download_eval"].items() if v != training[k]}
    return {name: section for name, section in sections.items() if name not in NOT_ARGUMENTS}


def compile_pipeline(params: Params, out: Path, image: str = IMAGE) -> None:
    """Write the pipeline's YAML, with the params as its arguments' defaults; the same params give the same bytes.

    Raises UsageError where a parameter holds a secret (a password in an address, a signed address), or where the
    YAML is too large for Kubernetes.
    """
    params.require_squares()
    _compile(build(params, image), arguments(params), out, "train_eval")


def compile_rollback(params: Params, out: Path, image: str = IMAGE) -> None:
    """Write the YAML of the pipeline that takes a champion back; otherwise as compile_pipeline."""
    given = {name: section for name, section in arguments(params).items() if name in rollback.SECTIONS}
    _compile(rollback.build(params, image), given, out, "rollback")


def _compile(pipeline: Any, values: dict[str, Any], out: Path, source: str) -> None:
    with tempfile.TemporaryDirectory(prefix="splatclip-compile-") as folder:
        target = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(pipeline, str(target), pipeline_parameters=without_secrets(values))
        lines = target.read_text(encoding="utf-8").splitlines(keepends=True)
    # KFP's own head lists dicts in an order that changes from one process to the next
    data = (HEAD.format(source) + "".join(itertools.dropwhile(lambda line: line.startswith("#"), lines))).encode()
    if len(data) > MAX_BYTES:
        raise UsageError(f"{out}: the pipeline compiles to {len(data)} bytes; Kubernetes takes at most {MAX_BYTES}")
    write(out, data)


def without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """The same sections. Raises UsageError where one holds a password or a signature."""
    for section, fields in values.items():
        for name, value in fields.items():
            if redacted(value) != value:
                raise UsageError(
                    f"{section}.{name} holds a password or a signature, which everyone who sees the pipeline could "
                    "read; give an address without one, and the secret in the step's environment"
                )
    return values


def check(params: Params, path: Path, compile_: Callable[[Params, Path], None] = compile_pipeline) -> list[str]:
    """Where the YAML at `path` is not what the source compiles to, a line each; the SDK's version does not count."""
    try:
        there = documents(path)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: cannot read the pipeline: {error}") from None
    with tempfile.TemporaryDirectory(prefix="splatclip-compile-") as folder:
        compile_(params, Path(folder) / path.name)
        compiled = documents(Path(folder) / path.name)
    for pipeline in (there, compiled):
        if isinstance(pipeline, dict):
            pipeline.pop("sdkVersion", None)
    return list(_differences(there, compiled, ""))


def documents(path: Path) -> Any:
    """A compiled pipeline's YAML: its specification, and under `platforms` what it asks of Kubernetes alone."""
    found = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    if found and all(isinstance(one, dict) for one in found):
        return {name: value for one in found for name, value in one.items()}
    return found


def _differences(there: Any, compiled: Any, where: str) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(compiled, dict):
        for name in sorted({*there, *compiled}, key=str):
            yield from _differences(there.get(name), compiled.get(name), f"{where}.{name}" if where else str(name))
    elif isinstance(there, list) and isinstance(compiled, list) and len(there) == len(compiled):
        for index, (one, other) in enumerate(zip(there, compiled, strict=True)):
            yield from _differences(one, other, f"{where}[{index}]")
    elif there != compiled or type(there) is not type(compiled):
        yield f"{where}: {_short(there)} there, {_short(compiled)} from the source"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:40]}... ({len(text)} characters)"


def run_local(params: Params, store: str, out: Path, run_id: str = "", tracked: bool = True) -> None:
    """Run the pipeline here, each step a process of its own; manifests, scores and report.html end up in `out`.

    run_id: names the run in MLflow (made up if empty); tracked: whether it is recorded there.
    Raises what the failing step raised; Interrupted after SIGTERM or Ctrl-C, when the step has saved its work.
    """
    params.require_squares()
    info = tracking.run_info(params.tracking, run_id) if tracked else None
    info = info and replace(info, given_to="parent")  # of MLFLOW_RUN_ID: also where this runs in a pod
    with tempfile.TemporaryDirectory(prefix="splatclip-run-") as scratch:
        name = info.id if info else run_id or secrets.token_hex(4)
        run = LocalRun.start(Path(scratch), run_id=name, out=out)
        status = "FAILED"
        try:
            with _environment(run, tracked=info is not None):
                _run(run, build(params, one_by_one=True), {"store": store, **arguments(params)})
            status = "FINISHED"
        except BaseException as error:
            status = tracking.status_of(error)
            raise
        finally:
            if not run.is_done(FINISH):  # cut short before the exit handler
                tracking.close_run(info, store, status)


def _run(run: LocalRun, pipeline: Any, values: Mapping[str, Any]) -> None:
    with stopping_with(run), only_the_steps_own(sys.stderr) as log:
        warnings.filterwarnings("ignore", module=r"kfp\.")  # resources and the image mean nothing here
        local.init(
            local.SubprocessRunner(use_venv=False),
            pipeline_root=str(run.folder / "artifacts"),
            workspace_root=str(run.folder / "workspace"),
            raise_on_error=False,
        )
        pipeline(**values)
    error = run.error()
    if run.stopped:
        raise error if isinstance(error, Interrupted) else Interrupted(f"stopped before the next step began; {GO_ON}")
    if error is not None:
        raise error
    undone = [step for step in (*(step.name for step in FLOW), FINISH) if not run.is_done(step)]
    if undone:
        log.show_the_rest()
        raise SplatClipError(
            f"{run.broken() or undone[0]}: its process could not start, or was killed (for want of memory?); "
            "what Kubeflow's runner said stands above"
        )


@contextlib.contextmanager
def _environment(run: LocalRun, *, tracked: bool) -> Iterator[None]:
    """What the steps find in their environment; the pipeline's components leave a folder each where TMPDIR says."""
    scratch = run.folder / "tmp"
    scratch.mkdir()
    values = {VARIABLE: str(run.folder), "TMPDIR": str(scratch), **({} if tracked else {"SPLATCLIP_TRACKING": "off"})}
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
