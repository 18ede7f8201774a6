"""What all Kubeflow components share: the decorator that builds them, and the call that runs a step of the flow.

A component is the stage on the project's own image. What flows between components are manifests of a few kilobytes:
Kubeflow copies an artifact's whole prefix into every step that takes it; the stages read the store themselves.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kfp import dsl

from components import FLOW, Step
from components.errors import SplatClipError
from components.kfp_workers import Job, info_of, processes, run_together
from components.local_run import LocalRun
from components.params import params_from_dict
from components.runner import Done, Work
from components.signals import interrupted_by_signals

# Of development; a release compiles with the image's digest. Kubeflow's local runner wants "python" in the name.
IMAGE = "splatclip-python:dev"
FINISH = "finish"
ANNOUNCE = "announce"
TRIES = 3


def component(function: Callable[..., Any]) -> Any:
    """A lightweight component of a function that imports all it needs: on the project's image, nothing installed."""
    return dsl.component(function, base_image=IMAGE, packages_to_install=[], install_kfp_package=False)


def sections_of(step: Step) -> dict[str, str]:
    """A component's arguments that are sections of params, by name: its own; the image sets' both, as one needs both.

    What download_eval leaves out is as in download, and the first step already finds what is wrong between the two.
    """
    if step.stage == "download":
        return {"params": "download", "params_eval": "download_eval"}
    return {"params": step.section}


def run(
    step: str,
    params: dict[str, Any],
    params_eval: dict[str, Any] | None = None,
    *,
    store: str,
    tracking: dict[str, Any],
    run_id: str,
    work: Work | None = None,
    **inputs: dsl.Artifact,
) -> Done:
    """Run a step of the flow: its stage with its section of params on artifacts that hold manifests.

    What fails for now is tried again here: Kubeflow's own retries cost a pod each, and are lost inside loops.
    An error of ours ends the process with its exit code. work: see run_step.
    """
    from components.runner import deliver, run_step, say

    local = LocalRun.current()
    with _as_step(step, local):
        flow_step = next(known for known in FLOW if known.name == step)
        given = {"params": params, "params_eval": params_eval}
        sections = {name: given[argument] for argument, name in sections_of(flow_step).items()}
        section = getattr(params_from_dict(sections, "arguments"), flow_step.section)
        refs = {name: artifact.path for name, artifact in inputs.items()}
        count = 1 if local else processes(flow_step.stage)
        if count > 1:
            job = Job(step=step, sections=sections, tracking=tracking, inputs=refs, store=store, run_id=run_id)
            done = run_together(count, job, tries=TRIES)
        else:
            info = info_of(tracking, local.id if local else run_id)
            done = run_step(flow_step, section, refs, store, info, tries=TRIES, work=work)
        say(step, done.report)
        if local:
            deliver(flow_step, done, store, local.out)
        return done


def run_share(step: str, share: str, work: Callable[[], str]) -> str:
    """Run a share of a step, which leaves no manifest and is not recorded; otherwise as `run`. Returns what work does.

    share: as in "3/8".
    """
    from components.runner import persist

    name = f"{step} {share}".replace("/", " of ")
    with _as_step(name, LocalRun.current()):
        return persist(name, TRIES, work)


@contextmanager
def _as_step(name: str, local: LocalRun | None) -> Iterator[None]:
    """A block that signals stop, and that an error of ours ends with its exit code."""
    try:
        with local.step(name) if local else interrupted_by_signals():
            yield
    except SplatClipError as error:
        if local is None:  # on one machine the command says it
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None


def log(done: Done, output: dsl.Artifact, metrics: dsl.Metrics, page: dsl.HTML | None = None) -> None:
    """Fill a component's outputs: the manifest with its address and tags, the figures, the page."""
    from components.runner import write

    report = done.report
    write(Path(output.path), report.manifest.to_bytes())
    output.metadata |= {"url": report.url, "manifest_sha256": report.manifest_sha256, **done.tags, **report.facts}
    for name, value in numbers(report.metrics):
        metrics.log_metric(name, value)
    metrics.metadata |= done.tags
    if page is not None:
        write(Path(page.path), done.page or b"")
        page.metadata |= done.tags


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of nested figures by dotted name; Kubeflow's metrics hold nothing else."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{name}", float(value)
