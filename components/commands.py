"""What each subcommand of `splatclip` does with its parsed arguments; returns the exit code."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from components import FLOW
from components.errors import PermanentError, UsageError

if TYPE_CHECKING:
    from components.config import Params
    from components.tracking import RunInfo


def _params(args: argparse.Namespace) -> Params:
    from components.params import load_params

    return load_params(args.params, args.set)


def _info(args: argparse.Namespace, params: Params) -> RunInfo | None:
    from components.tracking import run_info

    if args.no_tracking:
        os.environ["SPLATCLIP_TRACKING"] = "off"  # promote and the pipeline's steps look there
    return run_info(params.tracking)


def _out(args: argparse.Namespace) -> Path:
    return Path(args.out or Path("runs") / Path(args.params).stem)


def one(args: argparse.Namespace) -> int:
    """One stage by itself; under torchrun in several processes, of which the first records and reports."""
    from components.processes import leads
    from components.runner import REPORT, export, run_step, say, write

    params = _params(args)
    step = next(step for step in FLOW if step.name == (args.step or args.stage))
    inputs = {name: getattr(args, name) for name in step.inputs}
    missing = [f"--{name}" for name, ref in inputs.items() if ref is None]
    if missing:
        raise UsageError(f"give {' and '.join(missing)} (`splatclip {args.command} --help` shows an example)")
    work = None
    if step.stage == "splat_fit":
        from components.splat_fit import ways

        if args.share or args.cancel:
            return ways.by_itself(args, params, inputs["images"])
        work = ways.chosen(args, params)
    info = _info(args, params) if leads() else None
    info = info and replace(info, id="")
    report, page, _ = run_step(step, getattr(params, step.section), inputs, args.store, info, work=work)
    if not leads():
        return 0
    say(step.name, report)
    export(report, args.store, **{name: getattr(args, name) for name in ("manifest_out", "metrics_out", "files_out")})
    if page is not None and args.files_out:
        write(args.files_out / REPORT, page)
    print(report.url)
    return 0


def promote(args: argparse.Namespace) -> int:
    """The promote stage; or the champion moved by hand."""
    by_hand = args.rollback or args.set_champion is not None
    if args.model_name is not None and not by_hand:
        raise UsageError("--model-name goes with --rollback or --set-champion; a run's model is promote.model_name")
    if args.params is None and not by_hand:
        raise UsageError("give --params and the stage's inputs, or --rollback, or --set-champion VERSION")
    if not by_hand:
        return one(args)
    from components import registry
    from components.operations import PromoteParams

    section = _params(args).promote if args.params else PromoteParams()
    name = args.model_name or section.model_name
    print(registry.rollback(name) if args.rollback else registry.set_champion(name, args.set_champion))
    return 0


def everything(args: argparse.Namespace) -> int:
    """All steps in order."""
    from components.runner import run_flow

    params, out = _params(args), _out(args)
    run_flow(params, args.store, out, _info(args, params))
    return _show(out)


def evaluate(args: argparse.Namespace) -> int:
    """Evaluation sets by name; the exit code says whether one of them failed."""
    from components.evalsets import find_sets
    from components.evaluate import SUMMARY, Job, exit_code
    from components.evaluate import evaluate as run_sets
    from components.zero_shot_eval.summary_table import show_summary

    sets, params = find_sets(args.sets), _params(args)
    _info(args, params)  # every set becomes a run of its own; this only turns tracking off where that is asked for
    out = Path(args.out or Path("runs") / f"{Path(args.params).stem}-sets")
    job = Job(sets, args.root, args.teacher, args.adapter, args.num_gaussians, args.limit)
    summary = run_sets(params, job, args.store, out)
    show_summary(summary)
    print(f"summary: {out / SUMMARY}")
    return exit_code(summary["failed"])


def show(args: argparse.Namespace) -> int:
    """The table of an earlier run."""
    return _show(Path(args.out))


def _show(out: Path) -> int:
    from components.figures import check_format
    from components.runner import REPORT
    from components.zero_shot_eval.report import show

    scores = out / "scores.json"
    try:
        values = json.loads(scores.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{scores}: no scores to show ({error}); `splatclip run` writes them there") from None
    check_format(values, str(scores))
    show(values, out / "contact_sheet.png")
    print(f"scores: {scores}")
    if (out / REPORT).is_file():
        print(f"report: {out / REPORT}")
    return 0


def report(args: argparse.Namespace) -> int:
    """The report of an evaluation, or of two side by side."""
    from components.provenance import provenance
    from components.runner import REPORT, write
    from components.zero_shot_eval.page import report_html

    out = Path(args.out or REPORT)
    write(out, report_html(args.ref, args.store, tags=provenance(), against=args.against))
    print(f"report: {out}")
    return 0


def store_check(args: argparse.Namespace) -> int:
    """Whether a store works; the exit code is that of the first step that failed."""
    from components.store_check import check_store

    return check_store(args.url)


def runs(args: argparse.Namespace) -> int:
    """Tracked runs as a table, or the difference of two."""
    from components.runs import print_runs

    print_runs(args.run, args.against, as_json=args.json, sync_store=args.store if args.sync else None)
    return 0


def verify(args: argparse.Namespace) -> int:
    """All that outputs hold, read back; the exit code says whether something is damaged."""
    from components.verify import verify as check

    result = check(args.prefix)
    if args.json:
        print(result.to_json())
    else:
        for line in result.lines():
            print(line)
    return PermanentError.exit_code if result.damaged else 0


def gc(args: argparse.Namespace) -> int:
    """Files that no manifest names, removed; the exit code says whether an output was refused."""
    from components.gc import collect

    total = collect(
        args.prefix, dry_run=args.dry_run, unfinished=args.unfinished, older_than_s=args.older_than, tell=print
    )
    return PermanentError.exit_code if total.refused else 0


def pipeline_compile(args: argparse.Namespace) -> int:
    """The pipelines as YAML, or whether the committed ones still are what the source says."""
    from components.kfp_base import IMAGE
    from pipelines import client

    params, out = _params(args), Path(args.out)
    image = client.checked_image(args.image or IMAGE, params, production=args.production)
    written = {out: client.compile_pipeline, out.with_name("rollback.yaml"): client.compile_rollback}
    differing = []
    for path, compiled in written.items():
        compile_ = partial(compiled, image=image)
        if not args.check:
            compile_(params, path)
            print(f"pipeline: {path}")
            continue
        differences = client.check(params, path, compile_)
        differing += [path] if differences else []
        print(*(differences or [f"{path} is up to date"]), sep="\n")
    if differing:
        named = " and ".join(map(str, differing))
        raise UsageError(f"{named}: not what the source compiles to; run `splatclip pipeline compile`")
    return 0


def pipeline_run_local(args: argparse.Namespace) -> int:
    """The pipeline on this machine, through KFP's local runner."""
    from pipelines import client

    params, out = _params(args), _out(args)
    client.run_local(params, args.store, out, run_id=args.run_id or "", tracked=not args.no_tracking)
    return _show(out)
