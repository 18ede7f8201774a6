"""The arguments of `splatclip pipeline`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from components import commands, pipeline_commands

Add = Callable[[argparse.ArgumentParser], None]


def whole(text: str) -> int:
    """An argument that is a number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def _add_connection(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "the cluster",
        "A token comes from SPLATCLIP_KFP_TOKEN or from a file, never from an argument (docs/pipeline.md).",
    )
    group.add_argument(
        "--host",
        default="",
        metavar="URL",
        help="of the Kubeflow Pipelines API (default: $SPLATCLIP_KFP_HOST, this pod's cluster, or the kubeconfig's)",
    )
    group.add_argument(
        "--namespace",
        default="",
        metavar="NAME",
        help="your profile's, in an installation for several users (default: $SPLATCLIP_KFP_NAMESPACE)",
    )
    group.add_argument("--token-file", default="", metavar="FILE", help="default: $SPLATCLIP_KFP_TOKEN_FILE")
    group.add_argument("--ca-file", default="", metavar="FILE", help="authority of the API's certificate, as PEM")
    group.add_argument(
        "--context", default="", metavar="NAME", help="of the kubeconfig, for logs (default: the current)"
    )


def _add_package(command: argparse.ArgumentParser) -> None:
    command.add_argument("--params", default="params.yaml", metavar="FILE", help="profile (default: params.yaml)")
    command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override")
    _add_image(command, environment=True)
    command.add_argument(
        "--pipeline", default="train-eval", metavar="NAME", help="its name there (default: train-eval)"
    )


def _add_image(command: argparse.ArgumentParser, *, environment: bool) -> None:
    """environment: of one that is not given a variable has the name; not of what is committed."""
    default = "$SPLATCLIP_IMAGE" if environment else "the development image"
    command.add_argument(
        "--image",
        default=os.environ.get("SPLATCLIP_IMAGE", "") if environment else "",
        metavar="NAME",
        help=f"that the steps run on, in production by its digest: registry/name@sha256:... (default: {default})",
    )
    command.add_argument(
        "--production",
        action="store_true",
        help="refuse an image without a digest (also: tracking.environment is prod)",
    )


def _add_following(command: argparse.ArgumentParser, *, always: bool = False) -> None:
    if not always:
        command.add_argument(
            "--follow", action="store_true", help="show states and logs to the end; the exit code is the run's"
        )
    command.add_argument(
        "--poll", type=_seconds, default=5.0, metavar="S", help="seconds between two looks (default: 5)"
    )


def _json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="as JSON")


def add_pipeline(command: argparse.ArgumentParser, add_run: Add, add_store: Add) -> None:
    """Add the actions. add_run, add_store: the arguments that other commands have as well."""
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    compile_ = actions.add_parser("compile", help="write the pipeline's YAML")
    compile_.add_argument(
        "--check", action="store_true", help="write nothing; fail if the YAML is not what it would be"
    )
    compile_.add_argument("--params", default="params.yaml", metavar="FILE", help="profile (default: params.yaml)")
    compile_.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override")
    _add_image(compile_, environment=False)
    compile_.add_argument(
        "--out", default="pipelines/train_eval.yaml", metavar="FILE", help="the YAML; rollback.yaml beside it"
    )
    compile_.set_defaults(call=commands.pipeline_compile)
    local = actions.add_parser("run-local", help="run it here, without a cluster or containers")
    add_run(local)
    local.add_argument("--run-id", metavar="ID", help="name of this run (default: made up)")
    local.set_defaults(call=commands.pipeline_run_local)

    upload = actions.add_parser("upload", help="upload it to Kubeflow as a version that bears the commit's name")
    _add_package(upload)
    submit = actions.add_parser("submit", help="start a run of it there; upload it first if need be")
    _add_package(submit)
    add_store(submit)
    submit.add_argument(
        "--if-changed",
        action="store_true",
        help="only if data, store, params, commit or image changed since the last good run",
    )
    submit.add_argument("--service-account", default="", metavar="NAME", help="that the steps run as")
    resume = actions.add_parser("resume", help="submit a run's version and arguments again; what is done is found")
    status = actions.add_parser("status", help="what a run's steps are at")
    logs = actions.add_parser("logs", help="what a run's steps say")
    listing = actions.add_parser("list", help="the newest runs")
    for one in (resume, status, logs):
        one.add_argument("run", metavar="RUN", help="a run's id or name")
    for one in (submit, resume, logs):
        _add_following(one)
    logs.add_argument("--step", default="", metavar="STEP", help="of this step alone")
    listing.add_argument("--limit", type=whole, default=20, metavar="N", help="how many (default: 20)")
    listing.add_argument(
        "--experiment", default="", metavar="NAME", help="of this one, such as splatclip/dev/train-eval"
    )
    listing.add_argument("--state", default="", type=str.upper, metavar="STATE", help="such as RUNNING or FAILED")
    for one in (upload, submit, resume, status, listing):
        _json(one)
    for one, call in (
        (upload, pipeline_commands.upload),
        (submit, pipeline_commands.submit),
        (resume, pipeline_commands.resume),
        (status, pipeline_commands.status),
        (logs, pipeline_commands.logs),
        (listing, pipeline_commands.list_runs),
    ):
        _add_connection(one)
        one.set_defaults(call=call)
    _add_schedule(actions.add_parser("schedule", help="runs that start by themselves"))


def _add_schedule(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="schedule_action", required=True, metavar="ACTION")
    apply = actions.add_parser("apply", help="make Kubeflow's schedules what files say")
    apply.add_argument(
        "path", type=Path, metavar="FILE|DIR", help="a schedule, or a folder of them (docs/schedules.md)"
    )
    apply.add_argument("--dry-run", action="store_true", help="change nothing; say what would be done")
    apply.add_argument(
        "--prune", action="store_true", help="also remove schedules that no file of the folder describes"
    )
    _add_image(apply, environment=True)
    apply.set_defaults(call=pipeline_commands.schedule_apply)
    listing = actions.add_parser("list", help="schedules, and what became of their last runs")
    listing.set_defaults(call=pipeline_commands.schedule_list)
    _json(listing)
    for name, summary, call in (
        ("pause", "start no further runs, until the next apply or resume", pipeline_commands.schedule_pause),
        ("resume", "start runs again", pipeline_commands.schedule_resume),
        ("delete", "remove it, once no run of it is at work", pipeline_commands.schedule_delete),
    ):
        one = actions.add_parser(name, help=summary)
        one.add_argument("name", metavar="NAME", help="such as nightly or train-eval/nightly")
        one.set_defaults(call=call)
    for one in actions.choices.values():
        _add_connection(one)
