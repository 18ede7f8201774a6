"""The `splatclip` command: every stage by itself, or all of them in order."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from components import FLOW, STAGES
from components.errors import SplatClipError, UsageError

if TYPE_CHECKING:
    from components.config import Params
    from components.tracking import RunInfo

DEFAULT_STORE = "runs/store"
Call = Callable[[argparse.Namespace], int]


def _tracked(args: argparse.Namespace, params: Params) -> RunInfo | None:
    from components.tracking import run_info

    return None if args.no_tracking else run_info(params.tracking)


def _one(args: argparse.Namespace) -> int:
    from dataclasses import replace

    from components.params import load_params
    from components.runner import export, run_step, say, write

    params = load_params(args.params, args.set)
    step = next(step for step in FLOW if step.name == (args.step or args.stage))
    inputs = {name: getattr(args, name) for name in step.inputs}
    info = _tracked(args, params)
    info = info and replace(info, id="")
    report, page = run_step(step, getattr(params, step.section), inputs, args.store, info)
    say(step.name, report)
    export(report, args.store, **{name: getattr(args, name) for name in ("manifest_out", "metrics_out", "files_out")})
    if page is not None and args.files_out:
        write(args.files_out / "report.html", page)
    print(report.url)
    return 0


def _all(args: argparse.Namespace) -> int:
    from components.params import load_params
    from components.runner import run_flow

    params = load_params(args.params, args.set)
    out = Path(args.out or Path("runs") / Path(args.params).stem)
    run_flow(params, args.store, out, _tracked(args, params))
    return _show(out)


def _show(out: Path) -> int:
    from components.zero_shot_eval.report import show

    scores = out / "scores.json"
    try:
        values = json.loads(scores.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{scores}: no scores to show ({error}); `splatclip run` writes them there") from None
    show(values, out / "contact_sheet.png")
    print(f"scores: {scores}")
    if (out / "report.html").is_file():
        print(f"report: {out / 'report.html'}")
    return 0


def _show_again(args: argparse.Namespace) -> int:
    return _show(Path(args.out))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="splatclip",
        description="Photographs -> 2D Gaussian splats -> tokens -> embeddings -> scores.",
        epilog="example: splatclip run --params params.yaml",
    )
    parser.add_argument("--version", action="version", version=f"splatclip {version('splatclip')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, summary: str, example: str, call: Callable[[argparse.Namespace], int]
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(call=call)
        return command

    def add_common(command: argparse.ArgumentParser) -> None:
        command.add_argument("--params", required=True, metavar="FILE", help="YAML file with a section for each stage")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override, e.g. splat_fit.num_gaussians=900"
        )
        command.add_argument(
            "--store",
            default=os.environ.get("SPLATCLIP_STORE", DEFAULT_STORE),
            metavar="PREFIX",
            help=f"folder or s3://bucket/prefix that holds all outputs (default: $SPLATCLIP_STORE or {DEFAULT_STORE})",
        )
        command.add_argument("--no-tracking", action="store_true", help="record nothing in MLflow")

    run = add("run", "all stages in order, then the table of scores", "splatclip run --params params.yaml", _all)
    add_common(run)
    run.add_argument(
        "--out",
        metavar="DIR",
        help="folder for manifests, scores and contact sheet (default: runs/<params name>)",
    )
    for stage in STAGES.values():
        needs = "".join(f" --{item} runs/params/manifests/{source}.json" for item, source in stage.inputs.items())
        command = add(stage.command, stage.summary, f"splatclip {stage.command} --params params.yaml{needs}", _one)
        add_common(command)
        for item, source in stage.inputs.items():
            command.add_argument(
                f"--{item}",
                required=True,
                metavar="REF",
                help=f"what {source} made: folder, s3:// prefix or manifest",
            )
        steps = [step.name for step in FLOW if step.stage == stage.name]
        command.add_argument(
            "--step", choices=steps, help="which step of the flow this is; decides the section of params"
        )
        command.add_argument("--manifest-out", type=Path, metavar="FILE", help="also write the manifest here")
        command.add_argument("--metrics-out", type=Path, metavar="FILE", help="also write the metrics here, as JSON")
        command.add_argument(
            "--files-out", type=Path, metavar="DIR", help="also copy models, tables and the report here"
        )
        command.set_defaults(stage=stage.name)
    show = add(
        "show", "the table of scores of an earlier run", "splatclip show runs/params", lambda a: _show(Path(a.out))
    )
    show.add_argument("out", metavar="DIR", help="the --out folder of an earlier run")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 2 usage, 42 permanent, 75 transient, 143 stopped, 130 cut short."""
    args = _parser().parse_args(argv)
    try:
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
