"""A set fitted by an Indexed Job of a cluster: created or found again, watched to its end, its work finalised.

The launcher holds no state: what is done lies in the store, what runs in the cluster, and the Job's name follows from
the output. Killed and started anew, it goes on where it was; the Job does not notice.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from components.cluster_params import ClusterParams, Resources
from components.config import SplatFitParams
from components.errors import Interrupted, PermanentError, TransientError, UsageError
from components.fleet_params import FleetParams
from components.progress import progress
from components.report import Report
from components.signals import interrupted_by_signals
from components.splat_fit import job as jobs
from components.splat_fit.stage import Work, cannot_be_fitted, cuda_takes, finalise, open_work
from components.splat_fit.tally import Tally
from components.splat_fit.work import Share, cut, num_groups, pending, read_numbers

if TYPE_CHECKING:
    from components.splat_fit.cluster import Cluster

WATCH_S, TALLY_S = 10.0, 30.0
PAUSE_S = 1.0  # between two reads, however quickly a watch breaks
MOST_RACES = 10  # that other launchers may win
SLOW_START_S = 60.0  # after which it is asked why nothing runs
LATE = ("DeadlineExceeded",)  # reasons of a Job's failure that are not its pods'


def fit(
    params: SplatFitParams,
    *,
    images: str,
    store: str,
    fleet: FleetParams,
    resources: Resources | None = None,
    pods_have: ClusterParams | None = None,
    image: str = "",
) -> Report:
    """As the stage's run, by an Indexed Job.

    resources: of a pod where the cluster has no template, and pods_have what all have in common; image: the
    pipeline's, for the pods.
    A Job that does this work already is waited for, whoever made it; UsageError if it does so with another image or
    other arguments. SIGTERM and Ctrl-C end the waiting (Interrupted) and leave the Job at work. PermanentError where
    indexes failed for good: it names their shards and the reasons; what is done is kept. TransientError where the
    cluster cannot be reached, or the Job's time is over.
    """
    from components.splat_fit.cluster import Cluster

    started = time.monotonic()
    work = open_work(params, images, store)
    finished = work.commit.finished()
    if finished is not None:
        return work.report(finished, started, cached=True)
    cluster = Cluster(fleet.namespace)
    place = _place(work)
    name = jobs.job_name(work.commit.path, place)
    speeds: dict[str, float] = {}
    try:
        with interrupted_by_signals():
            work.metric()  # once, here, and not by each index
            template = _template(cluster, fleet) or jobs.built_in(resources or Resources(), pods_have)
            pods = _for_pods(params, work, template)

            def body(share: Share) -> dict[str, Any]:
                source = _address(work.source.url)
                args = jobs.arguments(pods, share, images=source, store=place, output=work.commit.path)
                return jobs.job_body(template, fleet, share, name=name, args=args, image=image)

            current = _current(cluster, name, work, fleet, body)
            if current is not None:
                ended, speeds = _wait(cluster, current, work, fleet.parallelism)
                if ended is not None:
                    _judge(cluster, ended, work)
            report = finalise(params, images=images, store=store, work=work, speeds=speeds)
            _clear(cluster, name)
    except Interrupted as error:
        raise Interrupted(
            f"{str(error).partition(';')[0]}; Job {name} in namespace {cluster.namespace} goes on by itself: "
            "run the same command again to wait for it, or with --cancel to end it"
        ) from None
    return replace(report, seconds=time.monotonic() - started)


def cancel(params: SplatFitParams, *, images: str, store: str, fleet: FleetParams) -> str:
    """Delete the Job that fits this set; says what it did. What is committed stays."""
    from components.splat_fit.cluster import Cluster

    work = open_work(params, images, store)
    cluster = Cluster(fleet.namespace)
    name = jobs.job_name(work.commit.path, _place(work))
    there = cluster.job(name)
    if there is None:
        return f"there is no Job {name} in namespace {cluster.namespace}"
    cluster.delete(name, there["metadata"]["uid"])
    done = len(work.commit.done_indexes())
    return f"Job {name} in namespace {cluster.namespace} is deleted; {done} of {len(work.shards)} shards are fitted"


def _address(place: str) -> str:
    return place if "://" in place else os.path.abspath(os.path.expanduser(place))


def _place(work: Work) -> str:
    """The store's address as the store itself writes it: however it was typed, one output has one Job."""
    return _address(work.commit.root.url)


def _for_pods(params: SplatFitParams, work: Work, template: Mapping[str, Any]) -> SplatFitParams:
    """The parameters as the pods of the Job take them: a reader that lies where they reach it, and not here alone.

    Pods that ask for a GPU fit there, or fail for now; where the parameters keep them on the CPU, it is said.
    """
    if work.reader is not None:
        params = replace(params, reader=_address(work.reader.url))
    if params.device != "cuda" and jobs.asks_for_gpu(template):
        if params.device == "auto" and cuda_takes(params):
            return replace(params, device="cuda")
        why = "splat_fit.device is cpu, not auto" if params.device == "cpu" else "a target or a reader needs it"
        _say(f"the pods will hold a GPU and fit on the CPU: {why}")
    return params


def _say(text: str) -> None:
    print(f"splat-fit: {text}", file=sys.stderr, flush=True)


def _template(cluster: Cluster, fleet: FleetParams) -> dict[str, Any] | None:
    """The cluster's; None where it has none."""
    if fleet.template:
        text = cluster.template(fleet.template, jobs.TEMPLATE_KEY)
        where = f"ConfigMap {fleet.template} in namespace {cluster.namespace}"
        if text is not None:
            return jobs.read_template(text, f"{where}, {jobs.TEMPLATE_KEY}")
        _say(f"there is no {where}; the built-in template is used")
    return None


def _current(cluster: Cluster, name: str, work: Work, fleet: FleetParams, body: Any) -> dict[str, Any] | None:
    """The Job at work, found or made; None where nothing is left to fit. One that has ended makes room for another."""
    from components.splat_fit.cluster import Exists

    total = num_groups(len(work.shards), fleet.shards_per_index)
    for _ in range(MOST_RACES):
        there = cluster.job(name)
        if there is not None and _end(there) is None:
            wanted = body(jobs.share_of(jobs.container(there, name).get("args", [])) or Share(total, (0,)))
            if found := jobs.differences(there, wanted):
                raise UsageError(
                    f"Job {name} in namespace {cluster.namespace} makes this output already, but with other settings: "
                    f"{'; '.join(found)}; let it end, or end it with --cancel (what it fitted is kept)"
                )
            _say(f"Job {name} in namespace {cluster.namespace} is at work already; waiting for it")
            return there
        done = work.commit.done()
        todo = pending(work.shards, done, total)
        if not todo:
            return None
        if there is not None:
            end = _end(there) or {}
            _say(f"Job {name} has ended ({end.get('reason') or end.get('type')}); another one does what is left")
            cluster.delete(name, there["metadata"]["uid"])
        try:
            made = cluster.create(body(Share(total, tuple(todo))))
        except Exists:  # by another launcher, or by this one's request whose answer was lost
            continue
        _say(
            f"Job {name} in namespace {cluster.namespace}: {len(todo)} indexes for {len(work.shards) - len(done)} of "
            f"{len(work.shards)} shards"
        )
        return made
    raise TransientError(f"Job {name} in namespace {cluster.namespace} is made and ended by others again and again")


def _clear(cluster: Cluster, name: str) -> None:
    """Delete the Job that has ended: its work is finished, so that nothing waits for it to be gone, nor fails by it."""
    try:
        there = cluster.job(name)
        if there is not None and _end(there) is not None:
            cluster.delete(name, there["metadata"]["uid"], wait=False)
    except (PermanentError, TransientError) as error:
        _say(f"Job {name} in namespace {cluster.namespace} has done its work and stays for a while: {error}")


def _end(job: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The condition that a Job has ended with, or None."""
    conditions = (job.get("status") or {}).get("conditions") or []
    ends = (one for one in conditions if one["type"] in {"Complete", "Failed"} and one["status"] == "True")
    return next(ends, None)


@dataclass
class _Start:
    """Says why nothing runs, or less than asked for, once each.

    asked: pods at once; since: when something last ran, an index ended or the Job was suspended.
    """

    cluster: Cluster
    asked: int
    since: float
    said: set[str]
    succeeded: int = 0

    def look(self, job: Mapping[str, Any]) -> None:
        spec, status = job.get("spec") or {}, job.get("status") or {}
        texts: list[str] = []
        succeeded, at_once = status.get("succeeded") or 0, spec.get("parallelism", self.asked)
        if at_once < self.asked and not spec.get("suspend"):  # Kueue's partial admission is for the Job's whole life
            texts.append(
                f"the Job runs {at_once} pod{'s' * (at_once > 1)} at once, and {self.asked} were asked for: as Kueue "
                "admitted it, or as another call made it; it stays so to its end, or till --cancel and the "
                "same command make another"
            )
        if spec.get("suspend"):
            queue = (job["metadata"].get("labels") or {}).get(jobs.QUEUE, "")
            texts += [f"the Job is suspended{f': it waits in queue {queue}' if queue else ''}"]
            self.since = time.monotonic()
        elif status.get("ready") or succeeded != self.succeeded:
            self.since, self.succeeded = time.monotonic(), succeeded
        elif time.monotonic() - self.since > SLOW_START_S:
            self.since = time.monotonic()
            texts += self.cluster.why_idle(job)
        for text in texts:
            if text not in self.said:
                self.said.add(text)
                _say(text)


def _wait(
    cluster: Cluster, job: dict[str, Any], work: Work, parallelism: int
) -> tuple[dict[str, Any] | None, dict[str, float]]:
    """The Job as it ended, and how fast it was while it was watched; None where another launcher has ended it."""
    name = job["metadata"]["name"]
    start = _Start(cluster, min(parallelism, job["spec"]["completions"]), time.monotonic(), set())
    pictures = {entry.index: entry.ok for entry in work.shards}
    first = sum(pictures.get(index, 0) for index in work.commit.done_indexes())
    with progress("splat-fit", total=sum(pictures.values()), unit="pictures", start=first) as bar:
        tally = Tally(work, bar, TALLY_S)

        def show(*, now: bool = False) -> None:
            status = job.get("status") or {}
            running = status.get("ready") or 0
            waiting = max(0, (status.get("active") or 0) - running)  # active are those without a node or image, too
            failed = len(_failed_indexes(job))
            tally.look(now=now, running=running, waiting=waiting, failed_indexes=failed)
            start.look(job)

        while _end(job) is None:
            show()
            begun = time.monotonic()
            for changed in cluster.changes(job, WATCH_S):
                if changed is None:
                    break
                job = changed
                show()
                if _end(job) is not None:
                    break
            if _end(job) is None:
                time.sleep(max(0.0, PAUSE_S - (time.monotonic() - begun)))
                there = cluster.job(name)
                if there is None:
                    show(now=True)
                    if tally.done == len(work.shards) or work.commit.finished() is not None:
                        return None, {"images_per_s": bar.rate()}
                    raise PermanentError(
                        f"Job {name} in namespace {cluster.namespace} was deleted while it was at work; "
                        f"{tally.done} of {len(work.shards)} shards were fitted: run the same command to go on"
                    )
                job = there
        show(now=True)
        return job, {"images_per_s": bar.rate()}


def _failed_indexes(job: Mapping[str, Any]) -> list[int]:
    return read_numbers((job.get("status") or {}).get("failedIndexes") or "")


def _judge(cluster: Cluster, job: Mapping[str, Any], work: Work) -> None:
    """Raise what a failed Job comes to; its shards and reasons are named, and it stays to be looked at.

    Not where every shard is committed: an index's last pod may be killed as it ends, or others do its shards.
    """
    end = _end(job)
    if end is None or end["type"] == "Complete":
        return
    name = job["metadata"]["name"]
    done = work.commit.done_indexes()
    if done >= {entry.index for entry in work.shards}:
        _say(f"Job {name} has failed ({end.get('reason')}), but all {len(work.shards)} shards are fitted")
        return
    share, reasons = jobs.share_of(jobs.container(job, name).get("args", [])), work.commit.failures()
    groups = cut(work.shards, share.total) if share else []
    failed: dict[str, str] = {}
    for index in _failed_indexes(job):
        group = groups[share.chosen[index]] if share and index < len(share.chosen) else []
        for shard in group:
            if shard.index not in done:
                failed[shard.name] = reasons.get(shard.index, f"index {index} failed too often")
    complaints = "; ".join(cluster.complaints(name))
    about = (
        f"Job {name} in namespace {cluster.namespace} failed: {end.get('reason')}: {end.get('message', '')}"
        f"{f' ({complaints})' if complaints else ''}; it stays for a while, to be looked at (kubectl logs)"
    )
    kept = f"{len(done)} of {len(work.shards)} shards are fitted and kept"
    if end.get("reason") in LATE:
        raise TransientError(f"{about}; {kept}: run the same command again to go on")
    if failed:
        raise cannot_be_fitted(failed, work, f"{kept}; {about}")
    raise PermanentError(f"{about}; {kept}")
