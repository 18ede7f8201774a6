"""The `splatclip` command: every stage by itself, or all of them in order."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from components.errors import SplatClipError, UsageError

if TYPE_CHECKING:
    from components.report import Report

DEFAULT_STORE = "runs/store"
Call = Callable[[argparse.Namespace], int]


class StageSpec(NamedTuple):
    """One stage as the command sees it: its section in params and the inputs it takes, by the stage they come from."""

    section: str
    inputs: dict[str, str]
    summary: str


STAGES: dict[str, StageSpec] = {
    "download": StageSpec("download", {}, "fetch photographs with captions into image shards"),
    "train-teacher": StageSpec(
        "train_teacher", {"images": "download"}, "import a pretrained CLIP, or train a small one"
    ),
    "splat-fit": StageSpec("splat_fit", {"images": "download"}, "fit 2D Gaussians to every photograph"),
    "train-adapter": StageSpec(
        "train_adapter",
        {"images": "download", "teacher": "train_teacher", "splats": "splat_fit"},
        "teach the frozen CLIP to read splats",
    ),
    "zero-shot-eval": StageSpec(
        "zero_shot_eval",
        {"images": "download", "teacher": "train_teacher", "splats": "splat_fit", "adapter": "train_adapter"},
        "score teacher, fair control and splats on the same photographs",
    ),
}


def run_stage(name: str, params: Any, inputs: dict[str, str], store: str) -> Report:
    """Run one stage by the name of its section; `params` is that section's dataclass."""
    if name == "download":
        from components.download import stage as download

        return download.run(params, store=store)
    if name == "train_teacher":
        from components.train_teacher import stage as train_teacher

        return train_teacher.run(params, store=store, **inputs)
    if name == "splat_fit":
        from components.splat_fit import stage as splat_fit

        return splat_fit.run(params, store=store, **inputs)
    if name == "train_adapter":
        from components.train_adapter import stage as train_adapter

        return train_adapter.run(params, store=store, **inputs)
    from components.zero_shot_eval import stage as zero_shot_eval

    return zero_shot_eval.run(params, store=store, **inputs)


def _say(report: Report) -> None:
    done = "found, nothing to do" if report.cached else f"{report.seconds:.1f} s"
    counts = report.manifest.counts
    tally = ""
    if counts.get("in"):
        tally = f"  in {counts['in']} = ok {counts['ok']} + skipped {counts['skipped']} + failed {counts['failed']}"
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.get("reasons", {}).items()))
        tally += f" ({reasons})" if reasons else ""
    speeds = "".join(f"  {name} {value:.4g}" for name, value in report.speeds.items())
    print(f"{report.stage}: {done}  {report.url}{tally}{speeds}", file=sys.stderr, flush=True)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_bytes(data)
    scratch.replace(path)


def _export(report: Report, store: str, manifest_out: Path | None, metrics_out: str, files_out: Path | None) -> None:
    """Write what DVC and people look at: the artifact's own files, flat metrics, the manifest's copy (last)."""
    if files_out:
        _copy_files(report, store, files_out, manifest_out)
    if metrics_out:
        _write(Path(metrics_out), (json.dumps(report.metrics, indent=2, sort_keys=True) + "\n").encode())
    if manifest_out:
        _write(manifest_out, report.manifest.to_bytes())


def _copy_files(report: Report, store: str, folder: Path, earlier: Path | None) -> None:
    """Copy the artifact's files, and remove those of the earlier manifest that this one does not have."""
    from components.manifest import Manifest, open_artifact
    from components.store import open_store

    artifact = open_artifact(report.url, open_store(store))
    names = {entry.name for entry in artifact.manifest.files}
    if earlier is not None and earlier.is_file():
        for entry in Manifest.from_bytes(earlier.read_bytes(), str(earlier)).files:
            if entry.name not in names:
                (folder / entry.name).unlink(missing_ok=True)
    for entry in artifact.manifest.files:
        target = folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        with artifact.local(entry) as path:
            shutil.copyfile(path, target)


def _one(args: argparse.Namespace) -> int:
    from components.params import load_params

    spec = STAGES[args.command]
    params = load_params(args.params, args.set)
    inputs = {name: getattr(args, name) for name in spec.inputs}
    report = run_stage(spec.section, getattr(params, spec.section), inputs, args.store)
    _say(report)
    manifest_out, files_out = (Path(name) if name else None for name in (args.manifest_out, args.files_out))
    _export(report, args.store, manifest_out, args.metrics_out, files_out)
    print(report.url)
    return 0


def _all(args: argparse.Namespace) -> int:
    from components.params import load_params

    params = load_params(args.params, args.set)
    out = Path(args.out or Path("runs") / Path(args.params).stem)
    urls: dict[str, str] = {}
    for spec in STAGES.values():
        inputs = {name: urls[source] for name, source in spec.inputs.items()}
        report = run_stage(spec.section, getattr(params, spec.section), inputs, args.store)
        urls[spec.section] = report.url
        _say(report)
        last = spec.section == "zero_shot_eval"
        _export(report, args.store, out / "manifests" / f"{spec.section}.json", "", out if last else None)
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

    run = add("run", "all stages in order, then the table of scores", "splatclip run --params params.yaml", _all)
    add_common(run)
    run.add_argument(
        "--out",
        metavar="DIR",
        help="folder for manifests, scores and contact sheet (default: runs/<params name>)",
    )
    for name, spec in STAGES.items():
        needs = "".join(f" --{item} runs/params/manifests/{source}.json" for item, source in spec.inputs.items())
        command = add(name, spec.summary, f"splatclip {name} --params params.yaml{needs}", _one)
        add_common(command)
        for item, source in spec.inputs.items():
            command.add_argument(
                f"--{item}",
                required=True,
                metavar="REF",
                help=f"what {source} made: folder, s3:// prefix or manifest",
            )
        command.add_argument("--manifest-out", metavar="FILE", help="also write the manifest here")
        command.add_argument("--metrics-out", metavar="FILE", help="also write the metrics here, as JSON")
        command.add_argument("--files-out", metavar="DIR", help="also copy models and tables here")
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
