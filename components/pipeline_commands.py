"""What the subcommands of `splatclip pipeline` do that speak with a cluster; each returns the exit code."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from typing import TYPE_CHECKING, Any

from components.errors import Interrupted, SplatClipError

if TYPE_CHECKING:
    from components.config import Params
    from pipelines.api import Api
    from pipelines.runs import Submitted
    from pipelines.versions import Package


def _api(args: argparse.Namespace) -> Api:
    from pipelines.api import Api
    from pipelines.connection import connect

    return Api(
        connect(args.host, args.namespace, token_file=args.token_file, ca_file=args.ca_file, context=args.context)
    )


def _params(args: argparse.Namespace) -> Params:
    from components.params import load_params

    return load_params(args.params, args.set)


def _package(args: argparse.Namespace, params: Params) -> Package:
    from components.kfp_base import IMAGE
    from pipelines.versions import make_package

    return make_package(params, args.image or IMAGE, name=args.pipeline, production=args.production)


def _print(values: Any) -> None:
    print(json.dumps(values, indent=2))


def upload(args: argparse.Namespace) -> int:
    """A version, named by the commit."""
    from pipelines.versions import upload as upload_version

    package = _package(args, _params(args))
    version = upload_version(_api(args), package)
    if args.json:
        _print({**version.__dict__, "pipeline": package.name, "sha256": package.sha256, "image": package.image})
    else:
        print(f"{package.name} {version.name}: {'uploaded' if version.new else 'there already'}")
    return 0


def submit(args: argparse.Namespace) -> int:
    """A run; with --follow the exit code says how it ended."""
    from pipelines.runs import submit as submit_run

    params = _params(args)
    api, package = _api(args), _package(args, params)
    made = submit_run(
        api, package, params, args.store, service_account=args.service_account, if_changed=args.if_changed
    )
    if not made.new:
        _said(args, made, f"none is started: {made.why}")
        return 0
    if made.why:
        print(f"{made.why}; this one tries again", file=sys.stderr)
    return _go_on(args, api, made)


def resume(args: argparse.Namespace) -> int:
    """A run's version and arguments once more."""
    from pipelines.runs import resume as resume_run

    api = _api(args)
    return _go_on(args, api, resume_run(api, args.run))


def _said(args: argparse.Namespace, made: Submitted, line: str, **more: Any) -> None:
    if args.json:
        _print({**made.__dict__, **more})
    else:
        print(line)


def _go_on(args: argparse.Namespace, api: Api, made: Submitted) -> int:
    line = f"run {made.name}: {made.run_id}{f'  {made.page}' if made.page else ''}"
    if not args.follow:
        _said(args, made, line)
        return 0
    print(line, file=sys.stderr, flush=True)
    run, code = _follow(args, api, made.run_id)
    if args.json:
        _said(args, made, "", state=None if run is None else run.state, exit_code=code)
    return code


def _follow(args: argparse.Namespace, api: Api, run_id: str, step: str = "") -> tuple[Any, int]:
    """The run at its end and its exit code; None and the signal's, or 69, where following ended before it."""
    from components.signals import interrupted_by_signals
    from pipelines.follow import GIVEN_UP, Screen, follow

    screen = Screen(out=sys.stderr if getattr(args, "json", False) else sys.stdout)
    goes_on = f"run {run_id} goes on without being followed; `splatclip pipeline logs {run_id} --follow` takes it up"
    try:
        with interrupted_by_signals(signal.SIGTERM):
            return follow(api, run_id, screen, only=step, poll_s=args.poll)
    except KeyboardInterrupt:
        screen.note(goes_on)
        return None, 128 + signal.SIGINT
    except Interrupted:
        screen.note(goes_on)
        return None, Interrupted.exit_code
    except SplatClipError as error:  # none of the run's own: its code would say that the run had failed
        screen.note(f"splatclip {args.command}: {error}")
        screen.note(goes_on)
        return None, GIVEN_UP


def status(args: argparse.Namespace) -> int:
    """A run's steps: states and times."""
    from pipelines import runs
    from pipelines.steps import UNKNOWN, step_names, step_states
    from pipelines.tables import steps_table

    api = _api(args)
    run = runs.find_run(api, args.run)
    steps = step_states(run, step_names(api, run))
    if args.json:
        _print(runs.as_json(run, steps))
        return 0
    print(f"{run.display_name}  {run.run_id}  {run.state or UNKNOWN}")
    if run.error is not None and run.error.message:
        print(run.error.message)
    print(steps_table(steps))
    return 0


def logs(args: argparse.Namespace) -> int:
    """What a run's steps say: so far, or with --follow to its end."""
    from components.errors import PermanentError, UsageError
    from pipelines import runs
    from pipelines.follow import Screen
    from pipelines.pods import open_logs
    from pipelines.steps import step_names

    api = _api(args)
    run = runs.find_run(api, args.run)
    names = step_names(api, run)
    if args.step and names and args.step not in names.values():
        raise UsageError(
            f"run {run.display_name} has no step {args.step!r}; it has {', '.join(sorted(names.values()))}"
        )
    if args.follow:
        return _follow(args, api, run.run_id, args.step)[1]
    screen = Screen()
    found = open_logs(api.connection, run.run_id, names, screen.tell, screen.note, only=args.step, follow=False)
    if found is None:
        return PermanentError.exit_code
    found.finish()
    return PermanentError.exit_code if found.refused else 0


def list_runs(args: argparse.Namespace) -> int:
    """The newest runs."""
    from pipelines import runs
    from pipelines.tables import runs_table

    found = list(runs.recent(_api(args), args.limit, experiment_named=args.experiment, state=args.state))
    if args.json:
        _print([runs.as_json(run) for run in found])
    else:
        print(runs_table(found))
    return 0


def schedule_apply(args: argparse.Namespace) -> int:
    """Kubeflow's schedules as the files say."""
    from pipelines.schedule_files import read_schedules
    from pipelines.schedules import apply

    schedules = read_schedules(args.path, image=args.image, production=args.production)
    complete = apply(_api(args), schedules, tell=print, dry_run=args.dry_run, prune=args.prune and args.path.is_dir())
    if not complete:
        print("a former schedule stays, paused, until its run has ended; apply once more then", file=sys.stderr)
    return 0


def schedule_list(args: argparse.Namespace) -> int:
    """All schedules of this program."""
    from pipelines.schedules import listed
    from pipelines.tables import schedules_table

    found = listed(_api(args))
    if args.json:
        _print([one.as_json() for one in found])
    else:
        print(schedules_table(found))
    return 0


def schedule_pause(args: argparse.Namespace) -> int:
    """No further runs."""
    from pipelines.schedules import pause

    print(pause(_api(args), args.name))
    return 0


def schedule_resume(args: argparse.Namespace) -> int:
    """Runs again."""
    from pipelines.schedules import resume as resume_schedule

    print(resume_schedule(_api(args), args.name))
    return 0


def schedule_delete(args: argparse.Namespace) -> int:
    """The schedule removed."""
    from pipelines.schedules import delete

    print(delete(_api(args), args.name))
    return 0
