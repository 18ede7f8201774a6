"""Running steps of the flow: the stage by name, recorded by the tracker, its outcome said and exported.

The `splatclip` command and the Kubeflow components both come through here.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from components import FLOW, Step, tracking
from components.errors import TransientError, UsageError
from components.manifest import Manifest, open_artifact
from components.store import FULL, open_store, os_error

if TYPE_CHECKING:
    from components.config import Params
    from components.report import Report

EVALUATION = "zero_shot_eval"
REPORT = "report.html"
FIRST_WAIT_S = 10.0
T = TypeVar("T")
Work = Callable[..., "Report"]


class Done(NamedTuple):
    """A finished step: its report, its page where it scores (report.html), and the tags of where it comes from."""

    report: Report
    page: bytes | None
    tags: dict[str, str]


def run_step(
    step: Step,
    section: Any,
    inputs: Mapping[str, str],
    store: str,
    info: tracking.RunInfo | None,
    *,
    tries: int = 1,
    work: Work | None = None,
) -> Done:
    """Run one step and record it.

    section: the dataclass of the step's parameters; inputs: the stage's inputs by name, as prefixes or manifests;
    info: the run that it belongs to, None to record nothing; tries: how often at most, where it fails for now only;
    work: what is called in place of the stage's run, as that is (the same work, done elsewhere).
    Raises what the stage raises.
    """
    run = work or importlib.import_module(f"components.{step.stage}.stage").run
    with tracking.track_step(step, section, inputs, store, info) as tracker:
        report: Report = persist(step.name, tries, lambda: run(section, **inputs, store=store))
        tracker.finish(report)
        page = None
        if step.stage == EVALUATION:
            from components.zero_shot_eval.page import report_html

            page = persist(step.name, tries, lambda: report_html(report.url, store, tags=tracker.tags))
            tracker.artifact(REPORT, page)
    return Done(report, page, dict(tracker.tags))


def persist(name: str, tries: int, call: Callable[[], T]) -> T:
    """call(), again after 10 and 30 seconds where it fails for now, `tries` times at most."""
    for attempt in range(1, tries):
        try:
            return call()
        except TransientError as error:
            wait = FIRST_WAIT_S * 3 ** (attempt - 1)
            print(f"{name}: {error}; try {attempt + 1} of {tries} in {wait:.0f} s", file=sys.stderr, flush=True)
            time.sleep(wait)
    return call()


def run_flow(params: Params, store: str, out: Path, info: tracking.RunInfo | None) -> None:
    """All steps in order; manifests, scores, contact sheet and report.html end up in `out`."""
    params.require_squares()
    urls: dict[str, str] = {}
    status = "FAILED"
    try:
        for step in FLOW:
            inputs = {name: urls[source] for name, source in step.inputs.items()}
            done = run_step(step, getattr(params, step.section), inputs, store, info)
            urls[step.name] = done.report.url
            say(step.name, done.report)
            deliver(step, done, store, out)
        status = "FINISHED"
    except BaseException as error:
        status = tracking.status_of(error)
        raise
    finally:
        tracking.close_run(info, store, status)


def deliver(step: Step, done: Done, store: str, out: Path) -> None:
    """Put a step's manifest into the folder of a run, and what people look at where it scores."""
    manifest = out / "manifests" / f"{step.name}.json"
    export(done.report, store, manifest_out=manifest, files_out=out if done.page is not None else None)
    if done.page is not None:
        write(out / REPORT, done.page)


def say(name: str, report: Report) -> None:
    """One line about a finished step, on stderr."""
    done = "found, nothing to do" if report.cached else f"{report.seconds:.1f} s"
    counts = report.manifest.counts
    tally = ""
    if counts.get("in"):
        tally = f"  in {counts['in']} = ok {counts['ok']} + skipped {counts['skipped']} + failed {counts['failed']}"
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.get("reasons", {}).items()))
        tally += f" ({reasons})" if reasons else ""
    speeds = "".join(f"  {speed} {value:.4g}" for speed, value in report.speeds.items())
    facts = "".join(f"  {fact}: {value}" for fact, value in report.facts.items())
    print(f"{name}: {done}  {report.url}{tally}{speeds}{facts}", file=sys.stderr, flush=True)


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises UsageError where it cannot be written, TransientError on a full disk."""
    with _writing(path) as scratch:
        scratch.write_bytes(data)


@contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` at the end of the block, and is gone where that fails."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield scratch
            scratch.replace(path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno in FULL:
            raise os_error(path, error) from error
        raise UsageError(f"{path}: cannot write this file: {error.strerror or error}; give another place") from None


def export(
    report: Report,
    store: str,
    *,
    manifest_out: Path | None = None,
    metrics_out: Path | None = None,
    files_out: Path | None = None,
) -> None:
    """Write what DVC and people look at: the artifact's own files, flat metrics, the manifest's copy (last)."""
    if files_out:
        _copy_files(report, store, files_out, manifest_out)
    if metrics_out:
        write(metrics_out, (json.dumps(report.metrics, indent=2, sort_keys=True) + "\n").encode())
    if manifest_out:
        write(manifest_out, report.manifest.to_bytes())


def _copy_files(report: Report, store: str, folder: Path, earlier: Path | None) -> None:
    """Copy the artifact's files, and remove those of the earlier manifest that this one does not have."""
    artifact = open_artifact(report.url, open_store(store))
    names = {entry.name for entry in artifact.manifest.files}
    if earlier is not None and earlier.is_file():
        for entry in Manifest.from_bytes(earlier.read_bytes(), str(earlier)).files:
            if entry.name not in names:
                (folder / entry.name).unlink(missing_ok=True)
    for entry in artifact.manifest.files:
        target = folder / entry.name
        with artifact.local(entry) as path, _writing(target) as scratch:
            shutil.copyfile(path, scratch)
