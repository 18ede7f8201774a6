"""The ways to do the stage's work that `splatclip splat-fit` offers: here, in processes, by groups, in a cluster."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from components.errors import AccessError, MachineError, TransientError, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

    from components.config import Params
    from components.runner import Work


def chosen(args: argparse.Namespace, params: Params) -> Work | None:
    """What fits and finalises in the place of the stage's run, as the flags say; None: that itself."""
    if args.processes:
        from components.splat_fit.pool import fit

        size, tries = params.fleet.shards_per_index, params.fleet.backoff + 1
        return partial(fit, processes=args.processes, shards_per_group=size, tries=tries)
    if args.finalise:
        from components.splat_fit.stage import finalise

        return finalise
    if args.job:
        from components.cluster_params import placed
        from components.splat_fit.fleet import fit as fit_in_job

        resources = placed(params.resources.splat_fit, params.cluster)
        return partial(fit_in_job, fleet=params.fleet, resources=resources, pods_have=params.cluster)
    return None


def in_job(fleet: Mapping[str, Any], resources: Mapping[str, Any], cluster: Mapping[str, Any], image: str) -> Work:
    """The Indexed Job as what stands in for the stage's run; all as the pipeline gives it."""
    from components.cluster_params import ClusterParams, Resources
    from components.fleet_params import FleetParams
    from components.params import section_from_dict
    from components.splat_fit.fleet import fit

    return partial(
        fit,
        fleet=section_from_dict(FleetParams, fleet, "fleet"),
        resources=section_from_dict(Resources, resources, "resources"),
        pods_have=section_from_dict(ClusterParams, cluster, "cluster"),
        image=image,
    )


def fit_share(params: Mapping[str, Any], share: str, *, store: str, images: str) -> str:
    """A share as the pipeline gives it; returns what was done of it."""
    from components.config import SplatFitParams
    from components.params import section_from_dict
    from components.splat_fit.stage import fit_group
    from components.splat_fit.work import read_share

    section = section_from_dict(SplatFitParams, params, "splat_fit")
    return str(fit_group(section, images=images, store=store, share=read_share(share)))


@contextmanager
def _pods_trouble_passes() -> Iterator[None]:
    """In a pod of an Indexed Job: what another pod, on another node or with newer credentials, may be spared.

    It fails for now, as the Job takes 42 for the index's end, and 2 for its own.
    """
    from components.splat_fit.work import JOB_INDEX

    try:
        yield
    except (AccessError, MachineError) as error:
        if not os.environ.get(JOB_INDEX):
            raise
        raise TransientError(f"{error} (index {os.environ[JOB_INDEX]}: left to another pod)") from None


def by_itself(args: argparse.Namespace, params: Params, images: str) -> int:
    """A group alone, which leaves no manifest, or the end of a Job; the exit code."""
    given = [
        f"--{name.replace('_', '-')}" for name in ("manifest_out", "metrics_out", "files_out") if getattr(args, name)
    ]
    if given:
        raise UsageError(f"{given[0]} needs a manifest, which only the call that finalises writes; leave it out here")
    if args.cancel:
        from components.splat_fit.fleet import cancel

        print(cancel(params.splat_fit, images=images, store=args.store, fleet=params.fleet), file=sys.stderr)
        return 0
    from components.splat_fit.pool import follow_parent
    from components.splat_fit.stage import fit_group
    from components.splat_fit.work import read_share

    follow_parent()
    share = read_share(args.share)
    with _pods_trouble_passes():
        report = fit_group(params.splat_fit, images=images, store=args.store, share=share, output=args.output)
    print(f"splat_fit: {report}", file=sys.stderr, flush=True)
    print(report.url)
    return 0
