"""Evaluation sets by name, one after another: download, splat_fit, zero_shot_eval of each, then a summary."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components import FLOW, tracking
from components.config import DownloadParams, Params, SplatFitParams
from components.errors import Interrupted, PermanentError, SplatClipError, TransientError, UsageError
from components.evalsets import DEFAULT_ROOT, EvalSet, find_sets, location, repository
from components.hub_params import HubParams
from components.manifest import canonical, open_artifact
from components.runner import deliver, run_step, say, write
from components.store import open_store

if TYPE_CHECKING:
    from components.tracking import RunInfo
    from components.zero_shot_eval.summary import Evaluated

SUMMARY = "summary.json"
EVERYTHING = 10**9  # pictures: more than any set has
_STEPS = {step.name: step for step in FLOW}


@dataclass(frozen=True)
class Job:
    """What to evaluate, on what. root: see evalsets.location; limit: pictures of a set at most, 0: all."""

    sets: Sequence[EvalSet]
    root: str
    teacher: str
    adapter: str
    num_gaussians: Sequence[int] = ()
    limit: int = 0


def download_params(one: EvalSet, root: str, params: Params, limit: int, *, refit: bool = False) -> DownloadParams:
    """The evaluation set's section: its own test split alone, in pictures of the training set's size.

    The place that training pictures came from is dealt as it was for training, so that none of those is scored; with
    a limit, or with `refit` (splats that training did not make), without its other pictures where it has a test split.
    """
    from components.download.webdataset import has_split

    path, named = location(one, root), root.rstrip("/") == DEFAULT_ROOT
    for section in (params.download_eval, params.download):
        if (place := _place(section)) and _same_place(place, path):
            if not limit and not refit:
                return section
            there = f"hf://datasets/{repository(one.name)}@{section.hub.revision}" if named else path
            limited = replace(section, num_test=min(limit or section.num_test, section.num_test))
            return replace(limited, num_train=-1, num_val=0) if has_split(there, "test") else limited
    return replace(
        params.download_eval,
        source="clip_benchmark" if named else "webdataset",
        path=one.name if named else path,
        hub=HubParams(),  # that of the training set is another repository's
        dataset=one.name,
        num_train=-1,
        num_val=0,
        num_test=limit or EVERYTHING,
        min_side=0,  # a benchmark is scored whole
        max_aspect_ratio=0.0,
    )


def _place(section: DownloadParams) -> str:
    """Where a section's tars lie; empty where it reads something else."""
    if section.source == "clip_benchmark":
        return location(find_sets([section.path])[0], DEFAULT_ROOT)
    return section.path if section.source == "webdataset" else ""


def _same_place(one: str, other: str) -> bool:
    if "://" in one or "://" in other:
        return one.rstrip("/") == other.rstrip("/")
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()


def _fits(params: Params, job: Job) -> list[SplatFitParams]:
    """splat_fit's section for each number of Gaussians."""
    fit = params.splat_fit
    numbers = job.num_gaussians or [fit.num_gaussians]
    if len(set(numbers)) < len(numbers):
        raise UsageError(f"--num-gaussians names one twice: {', '.join(map(str, numbers))}")
    return [replace(fit, num_gaussians=number) for number in numbers]


def _check(job: Job, store: str) -> None:
    """Refuse a teacher and an adapter that do not belong together before anything is downloaded."""
    root = open_store(store)
    made = {}
    for name, ref, maker in (("teacher", job.teacher, "train_teacher"), ("adapter", job.adapter, "train_adapter")):
        made[name] = open_artifact(ref, root)
        if made[name].manifest.stage != maker:
            raise UsageError(f"--{name} {ref} was made by {made[name].manifest.stage}; give {maker}'s output")
    used = made["adapter"].manifest.inputs["teacher"]["sha256"]
    if used != made["teacher"].manifest.sha256:
        raise PermanentError(
            f"--adapter {job.adapter} was made from teacher {used}, but --teacher {job.teacher} is "
            f"{made['teacher'].manifest.sha256}; give the teacher that it was made from"
        )


def evaluate(params: Params, job: Job, store: str, out: Path) -> dict[str, Any]:
    """Evaluate all sets of `job`, and write summary.json, benchmark/*.json and sets/<set>/ into `out`.

    Each set, with each number of Gaussians, is a run of its own for the tracker. What is finished is found in the
    store. A set that fails is named in the summary's `failed`, with its exit code, and the others go on. The summary is
    written after each set, so that a run that is killed leaves that of the sets before. Raises UsageError or
    PermanentError where nothing can be evaluated, Interrupted on a stop.
    """
    fits = _fits(params, job)
    _check(job, store)
    found: list[Evaluated] = []
    failed: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    summary: dict[str, Any] = {}
    for number, one in enumerate(job.sets, start=1):
        print(f"[{number}/{len(job.sets)}] {one.name}", file=sys.stderr, flush=True)
        try:
            for fit in fits:
                with _tracked(params, store) as info:
                    done, made = _one(params, job, one, fit, store=store, out=out, info=info, several=len(fits) > 1)
                found.append(done)
                files |= made
        except Interrupted:
            raise
        except SplatClipError as error:
            print(f"{one.name}: {error}", file=sys.stderr, flush=True)
            failed.append({"set": one.name, "exit_code": error.exit_code, "message": str(error)})
        summary = _summary(params, job, found, failed, files)
        _remove_earlier(out, files)
        for name, data in files.items():
            write(out / name, data)
        write(out / SUMMARY, canonical(summary, indent=1))
    return summary


def _summary(
    params: Params,
    job: Job,
    found: Sequence[Evaluated],
    failed: Sequence[Mapping[str, Any]],
    files: Mapping[str, bytes],
) -> dict[str, Any]:
    """summary.json of what is evaluated by now; asked: all sets, also those that are still to come."""
    from components.zero_shot_eval.summary import FORMAT, NOTE, summarise

    scoring = params.zero_shot_eval
    return {
        "format": FORMAT,
        "asked": [one.name for one in job.sets],
        "model": found[0].scores["model"] if found else None,
        "budgets": summarise(found, scoring.num_bootstrap, scoring.seed) if found else [],
        "failed": list(failed),
        "intervals": NOTE,
        "benchmark": sorted(files),
    }


@contextmanager
def _tracked(params: Params, store: str) -> Iterator[RunInfo | None]:
    """A run of its own; None where tracking is off."""
    info, status = tracking.run_info(params.tracking), "FAILED"
    try:
        yield info
        status = "FINISHED"
    except BaseException as error:
        status = tracking.status_of(error)
        raise
    finally:
        tracking.close_run(info, store, status)


def _one(
    params: Params,
    job: Job,
    one: EvalSet,
    fit: SplatFitParams,
    *,
    store: str,
    out: Path,
    info: RunInfo | None,
    several: bool,
) -> tuple[Evaluated, dict[str, bytes]]:
    """One set with one number of Gaussians: its evaluation, and its files for CLIP_benchmark by name."""
    from components.zero_shot_eval.summary import read_evaluated

    urls = {"train_teacher": job.teacher, "train_adapter": job.adapter}
    sections = {
        "download_eval": download_params(one, job.root, params, job.limit, refit=fit != params.splat_fit),
        "splat_fit_eval": fit,
        "zero_shot_eval": params.zero_shot_eval,
    }
    for name, section in sections.items():
        step = _STEPS[name]
        done = run_step(step, section, {item: urls[source] for item, source in step.inputs.items()}, store, info)
        urls[name] = done.report.url
        say(name, done.report)
    suffix = f"-{fit.num_gaussians}" if several else ""
    deliver(_STEPS["zero_shot_eval"], done, store, out / "sets" / f"{one.cleaned}{suffix}")
    artifact = open_artifact(urls["zero_shot_eval"], open_store(store))
    evaluated = read_evaluated(one, artifact)
    files = {}
    for row in evaluated.scores["rows"]:
        listed = next(entry for entry in artifact.manifest.files if entry.name.endswith(f"_{row['name']}.json"))
        with artifact.local(listed) as path:
            values = json.loads(path.read_bytes())
        ending = suffix if row["name"] in {"splats", "rendered"} else ""
        values |= {"dataset": one.name, "pretrained": f"{values['pretrained']}{ending}"}
        files[f"benchmark/{one.cleaned}_{row['name']}{ending}.json"] = canonical(values, indent=1)
    return evaluated, files


def _remove_earlier(out: Path, files: Mapping[str, bytes]) -> None:
    """Remove what an earlier summary in this folder listed for CLIP_benchmark and this one does not."""
    try:
        listed = json.loads((out / SUMMARY).read_text(encoding="utf-8"))["benchmark"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in listed:
        if name not in files and Path(name).parent == Path("benchmark"):
            (out / name).unlink(missing_ok=True)


def exit_code(failed: Sequence[Mapping[str, Any]]) -> int:
    """0 where all went well; 75 where trying again may help a set; else the first failure's."""
    codes = [int(one["exit_code"]) for one in failed]
    return TransientError.exit_code if TransientError.exit_code in codes else next(iter(codes), 0)
