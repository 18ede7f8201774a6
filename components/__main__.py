"""The `splatclip` command: every stage by itself, or all of them in order."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from components import FLOW, STAGES, Stage, commands
from components.errors import SplatClipError
from components.evalsets import DEFAULT_ROOT
from components.pipeline_arguments import add_pipeline, whole
from components.processes import only_training
from components.signals import interrupted_by_signals

DEFAULT_STORE = "runs/store"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_PREFIX = "an output, a stage's folder or a whole store: a folder or s3://bucket/prefix"


def _add_params(command: argparse.ArgumentParser, *, required: bool = True) -> None:
    command.add_argument(
        "--params", required=required, metavar="FILE", help="YAML file with a section for each stage, or its JSON"
    )
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. splat_fit.num_gaussians=900"
    )


def _add_store(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--store",
        default=os.environ.get("SPLATCLIP_STORE", DEFAULT_STORE),
        metavar="PREFIX",
        help=f"folder or s3://bucket/prefix that holds all outputs (default: $SPLATCLIP_STORE or {DEFAULT_STORE})",
    )


def _add_run(command: argparse.ArgumentParser, out: str = "runs/<params name>") -> None:
    _add_params(command)
    _add_store(command)
    command.add_argument("--no-tracking", action="store_true", help="record nothing in MLflow")
    command.add_argument("--out", metavar="DIR", help=f"folder for manifests, scores and report.html (default: {out})")


def _add_stage(command: argparse.ArgumentParser, stage: Stage) -> None:
    by_hand = stage.name == "promote"
    _add_params(command, required=not by_hand)
    _add_store(command)
    command.add_argument("--no-tracking", action="store_true", help="record nothing in MLflow")
    for item, source in stage.inputs.items():
        command.add_argument(
            f"--{item}",
            required=not by_hand,
            metavar="REF",
            help=f"what {source} made: folder, s3:// prefix or manifest",
        )
    steps = [step.name for step in FLOW if step.stage == stage.name]
    command.add_argument("--step", choices=steps, help="which step of the flow this is; decides the section of params")
    command.add_argument("--manifest-out", type=Path, metavar="FILE", help="also write the manifest here")
    command.add_argument("--metrics-out", type=Path, metavar="FILE", help="also write the metrics here, as JSON")
    command.add_argument("--files-out", type=Path, metavar="DIR", help="also copy models, tables and the report here")
    command.set_defaults(stage=stage.name)
    if stage.name == "splat_fit":
        _add_shares(command)
    if by_hand:
        moved = command.add_mutually_exclusive_group()
        moved.add_argument("--rollback", action="store_true", help="make the former champion the champion again")
        moved.add_argument("--set-champion", metavar="VERSION", help="make this version the champion")
        command.add_argument(
            "--model-name",
            metavar="NAME",
            help="for these two: the model (default: promote.model_name of --params, or splatclip)",
        )


def _add_shares(command: argparse.ArgumentParser) -> None:
    """Ways to share the fitting out (docs/fleet.md)."""
    ways = command.add_mutually_exclusive_group()
    ways.add_argument("--processes", type=whole, metavar="N", help="fit in N processes, which share the threads")
    ways.add_argument(
        "--group",
        dest="share",
        metavar="I/N",
        help="fit only this group of N of the shards (0-3,7/8: several; in an Indexed Job's pod the one at its index), "
        "and write no manifest",
    )
    command.add_argument(
        "--output", default="", metavar="STAGE/KEY", help="with --group: refuse to make another output"
    )
    ways.add_argument("--finalise", action="store_true", help="fit nothing; write the manifest of shards all fitted")
    ways.add_argument("--job", action="store_true", help="fit in an Indexed Job of the cluster, and wait for it")
    ways.add_argument("--cancel", action="store_true", help="delete that Job; what it has fitted is kept")


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    _add_run(command, out="runs/<params name>-sets")
    command.add_argument(
        "--sets",
        nargs="+",
        required=True,
        metavar="NAME",
        help="CLIP_benchmark's names, such as vtab/cifar10 or cifar10; all, classification or retrieval",
    )
    command.add_argument(
        "--root",
        default=DEFAULT_ROOT,
        metavar="PLACE",
        help="where the sets lie: a folder, s3://bucket/prefix or an http(s) address, with {dataset_cleaned} "
        "(vtab-cifar10) or {dataset} (vtab/cifar10) in it, or wds_{dataset_cleaned} below it "
        f"(default: {DEFAULT_ROOT})",
    )
    for item, maker in (("teacher", "train_teacher"), ("adapter", "train_adapter")):
        command.add_argument(
            f"--{item}", required=True, metavar="REF", help=f"what {maker} made: folder, s3:// prefix or manifest"
        )
    command.add_argument(
        "--num-gaussians", nargs="+", type=whole, default=(), metavar="N", help="instead of splat_fit.num_gaussians"
    )
    command.add_argument("--limit", type=whole, default=0, metavar="N", help="pictures a set at most (default: all)")


def _age(text: str) -> float:
    number, unit = text[:-1], text[-1:]
    if not number.isdecimal() or unit not in _UNITS_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90m, 24h or 7d")
    return float(number) * _UNITS_S[unit]


def _add_gc(command: argparse.ArgumentParser) -> None:
    command.add_argument("prefix", metavar="PREFIX", help=_PREFIX)
    command.add_argument("--dry-run", action="store_true", help="delete nothing; say what would go")
    command.add_argument(
        "--older-than",
        type=_age,
        default="24h",
        metavar="TIME",
        help="leave alone what is younger: 90m, 24h, 7d (default: 24h; temporary files: 1h at least)",
    )
    command.add_argument(
        "--unfinished",
        action="store_true",
        help="also whole outputs without a manifest, where no file is younger than that",
    )


def _add_store_actions(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="whether a store works, step by step, and what to do if not")
    check.add_argument("url", metavar="PREFIX", help="folder or s3://bucket/prefix")
    check.set_defaults(call=commands.store_check)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="splatclip",
        description="Photographs -> 2D Gaussian splats -> tokens -> embeddings -> scores.",
        epilog="example: splatclip run --params params.yaml",
    )
    parser.add_argument("--version", action="version", version=f"splatclip {version('splatclip')}")
    known = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, summary: str, example: str, call: Callable[[argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        command = known.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(call=call)
        return command

    _add_run(
        add("run", "all stages in order, then the scores", "splatclip run --params params.yaml", commands.everything)
    )
    for stage in STAGES.values():
        needs = "".join(f" --{item} runs/params/manifests/{source}.json" for item, source in stage.inputs.items())
        call = commands.promote if stage.name == "promote" else commands.one
        _add_stage(
            add(stage.command, stage.summary, f"splatclip {stage.command} --params params.yaml{needs}", call), stage
        )
    _add_evaluate(
        add(
            "evaluate",
            "evaluation sets by name: each downloaded, fitted and scored, then a summary",
            "splatclip evaluate --params params.yaml --sets cifar10 imagenet1k --root /data/clip-benchmark "
            "--teacher runs/params/manifests/train_teacher.json --adapter runs/params/manifests/train_adapter.json",
            commands.evaluate,
        )
    )
    show = add("show", "the table of scores of an earlier run", "splatclip show runs/params", commands.show)
    show.add_argument("out", metavar="DIR", help="the --out folder of an earlier run")
    report = add(
        "report",
        "the page of an evaluation, or of two side by side",
        "splatclip report runs/params --against runs/cifar10 --out both.html",
        commands.report,
    )
    report.add_argument("ref", metavar="RUN", help="an evaluation: its prefix, its manifest, or a run's --out folder")
    report.add_argument("--against", metavar="RUN", help="another one, set beside it")
    report.add_argument("--out", metavar="FILE", help="where to write it (default: report.html)")
    _add_store(report)
    runs = add("runs", "what MLflow recorded: a table, or two runs' difference", "splatclip runs --json", commands.runs)
    runs.add_argument("run", nargs="?", metavar="RUN", help="name or id, or its beginning (default: the newest)")
    runs.add_argument("--against", metavar="RUN", help="show what differs from this one, and by how much")
    runs.add_argument("--json", action="store_true", help="as JSON")
    runs.add_argument("--sync", action="store_true", help="first deliver what a store holds back for MLflow")
    _add_store(runs)
    check = add(
        "verify",
        "outputs read back: every byte, count and input, against the manifests",
        "splatclip verify runs/store",
        commands.verify,
    )
    check.add_argument("prefix", metavar="PREFIX", help=_PREFIX)
    check.add_argument("--json", action="store_true", help="as JSON")
    summary = "remove what no manifest names: orphans, temporary files, uploads in parts"
    _add_gc(add("gc", summary, "splatclip gc runs/store --dry-run --older-than 7d", commands.gc))
    _add_store_actions(
        add("store", "a place for outputs", "splatclip store check s3://bucket/splats", commands.store_check)
    )
    pipeline = add(
        "pipeline",
        "the Kubeflow pipeline: here, and on a cluster",
        "splatclip pipeline submit --params params.yaml --store s3://bucket/splats --follow",
        commands.pipeline_run_local,
    )
    add_pipeline(pipeline, _add_run, _add_store)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 usage, 42 permanent, 75 transient, 143 stopped, 130 cut short."""
    args = _parser().parse_args(argv)
    try:
        only_training(args.command)
        with interrupted_by_signals(signal.SIGTERM):
            code: int = args.call(args)
    except SplatClipError as error:
        print(f"splatclip {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"splatclip {args.command}: interrupted; the same command goes on from what is finished", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        sys.stderr.close()
        return 128 + signal.SIGPIPE
    return code


if __name__ == "__main__":
    sys.exit(main())
