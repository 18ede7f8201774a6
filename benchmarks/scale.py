"""What 12.8 million and 1.28 billion pictures take: workers, hours, requests, bytes; and what failures add to that.

    python benchmarks/scale.py

The work list as docs/fleet.md describes it, as discrete events: pods that start, fit shard after shard, are preempted
or fail, and are started again; indexes and workers as they are free. Beside each figure stands what a closed form says.
Prints the tables of docs/scale.md; the seed is fixed, so that they can be compared.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

HOUR = 3600.0
PART = 16 << 20  # bytes of a part of an upload (components/store_s3.py)
PAGE = 1000  # names a listing gives at a time


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A set, and who fits it.

    rate: pictures a second of one pod; start_s: from a pod's creation to its first picture (a node, the image, Python,
    the manifest); preempted: times an hour that a pod is taken away; fails: chance that a pod fails for now, at any
    moment of its time. image_bytes, splat_bytes: of a shard; entry_bytes: of a shard in the download's manifest.
    """

    pictures: int = 12_800_000
    shard_size: int = 10_000
    shards_per_index: int = 16
    workers: int = 2
    rate: float = 278.0
    start_s: float = 60.0
    preempted: float = 0.0
    fails: float = 0.0
    image_bytes: int = 270_000_000
    splat_bytes: int = 92_000_000
    entry_bytes: int = 900

    @property
    def shards(self) -> int:
        """Of the set."""
        return math.ceil(self.pictures / self.shard_size)

    @property
    def indexes(self) -> int:
        """Of the Job."""
        return math.ceil(self.shards / self.shards_per_index)

    @property
    def shard_s(self) -> float:
        """Seconds of work in a shard."""
        return self.shard_size / self.rate


@dataclass
class Outcome:
    """What a run took. busy_s: of all pods together, starts included; requests: to the store, by the fitting pods."""

    hours: float = 0.0
    busy_s: float = 0.0
    pods: int = 0
    preemptions: int = 0
    failures: int = 0
    refitted: int = 0
    requests: int = 0


def shard_requests(plan: Plan) -> int:
    """GET the pictures; PUT the splats (in parts: begin, each, complete), their index, the entry."""
    parts = math.ceil(plan.splat_bytes / PART)
    return 1 + (1 if parts == 1 else parts + 2) + 2


def start_requests(plan: Plan, done: int) -> int:
    """The manifest, whether there is one of the output already, an entry a shard.

    Where some are done: the mark of a stage at work, their entries once more, and their files' sizes.
    """
    return 1 + 1 + plan.shards_per_index + (1 + 3 * done if done else 0)


def simulate(plan: Plan, seed: int = 0) -> Outcome:
    """Run the work list once. A shard in hand is lost with its pod, a committed one never is."""
    rng = random.Random(seed)
    result = Outcome()
    left = plan.shards - plan.shards_per_index * (plan.indexes - 1)
    waiting = [(left if index == plan.indexes - 1 else plan.shards_per_index, 0) for index in range(plan.indexes)]
    waiting.reverse()
    free = [0.0] * plan.workers
    heapq.heapify(free)
    again: list[tuple[float, int, int]] = []  # moment, shards of the index, how many of them are done
    while waiting or again:
        now = heapq.heappop(free)
        if again and again[0][0] <= now:
            _, total, done = heapq.heappop(again)
        elif waiting:
            total, done = waiting.pop()
        else:
            moment, total, done = heapq.heappop(again)
            now = max(now, moment)
        result.pods += 1
        result.requests += start_requests(plan, done)
        needed = plan.start_s + (total - done) * plan.shard_s
        lives = rng.expovariate(plan.preempted / HOUR) if plan.preempted else math.inf
        breaks = rng.random() * needed if rng.random() < plan.fails else math.inf
        lasted = min(needed, lives, breaks)
        worked = max(0.0, lasted - plan.start_s) / plan.shard_s
        made = total - done if lasted == needed else min(total - done, int(worked))
        result.requests += made * shard_requests(plan)
        if lasted < needed:
            result.preemptions += lives <= breaks
            result.failures += breaks < lives
            begun = lasted > plan.start_s and made < total - done
            result.refitted += begun
            result.requests += begun
            heapq.heappush(again, (now + lasted, total, done + made))
        result.busy_s += lasted
        heapq.heappush(free, now + lasted)
        result.hours = max(result.hours, (now + lasted) / HOUR)
    return result


def expected_busy_s(plan: Plan) -> float:
    """Of all pods together where pods are preempted at random and nothing fails.

    A stretch of t seconds that starts anew whenever it is cut takes (e^(r t) - 1) / r on average at r cuts a second;
    each cut costs a start besides, which is such a stretch itself.
    """
    cuts = plan.preempted / HOUR
    if not cuts:
        return plan.indexes * plan.start_s + plan.shards * plan.shard_s
    start = math.expm1(cuts * plan.start_s) / cuts
    return plan.indexes * start + plan.shards * math.expm1(cuts * plan.shard_s) * (1 / cuts + start)


def expected_hours(plan: Plan) -> float:
    """Of wall time, where all workers are busy to the end; the last indexes add up to one index's time to it."""
    return expected_busy_s(plan) / plan.workers / HOUR


def pages(names: int) -> int:
    """Requests of a listing."""
    return max(1, math.ceil(names / PAGE))


def finalise_requests(plan: Plan) -> int:
    """Every entry; entries listed once, all files twice (before, and that they are there still); a few of its own."""
    return plan.shards + pages(plan.shards) + 2 * pages(3 * plan.shards) + 7


def needs(plan: Plan, hours: float) -> dict[str, str]:
    """What a set needs by a deadline, without failures."""
    rate = plan.pictures / hours / HOUR
    pods = math.ceil(rate / plan.rate)
    objects = 3 * plan.shards + 1
    requests = plan.shards * shard_requests(plan) + plan.indexes * start_requests(plan, 0)
    written = plan.shards * plan.splat_bytes
    return {
        "pictures": f"{plan.pictures / 1e6:,.1f}M",
        "in": f"{hours:g} h",
        "pictures/s": f"{rate:,.0f}",
        "pods": f"{pods:,}",
        "pod-hours": f"{expected_busy_s(plan) / HOUR:,.0f}",
        "shards": f"{plan.shards:,}",
        "indexes": f"{plan.indexes:,}",
        "objects written": f"{objects:,}",
        "read, written": f"{plan.shards * plan.image_bytes / 1e12:.1f}, {written / 1e12:.1f} TB",
        "requests/s": f"{requests / hours / HOUR:.2f}",
        "MB/s": f"{plan.shards * (plan.image_bytes + plan.splat_bytes) / hours / HOUR / 1e6:,.0f}",
        "manifests, read by pods": f"{plan.indexes * plan.shards * plan.entry_bytes / 1e9:,.1f} GB",
        "names listed a look": f"{pages(plan.shards)} requests",
        "requests to finalise": f"{finalise_requests(plan):,}",
    }


GPU = Plan()  # pictures a second of a GPU: results/fit_h200_2026-11-29.md, the whole stage at N = 400
# Eight cores: the whole stage takes 10.1 ms a picture on two, of which 1.4 are one thread's (docs/scale.md).
CPU = replace(GPU, rate=1 / (0.0014 + (0.0101 - 0.0014) * 2 / 8), start_s=30.0)
LARGE = {"pictures": 1_280_000_000}


def need_table() -> Iterator[str]:
    """What the two sets need by their deadlines."""
    columns = {
        "GPU, 24 h": needs(GPU, 24),
        "8 cores, 24 h": needs(CPU, 24),
        "GPU, a week": needs(replace(GPU, **LARGE), 168),
        "8 cores, a week": needs(replace(CPU, **LARGE), 168),
    }
    yield "| | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name in next(iter(columns.values())):
        yield f"| {name} | " + " | ".join(column[name] for column in columns.values()) + " |"


def fault_table(seed: int = 0) -> Iterator[str]:
    """What preemptions and failures add: simulated, and by the closed form where there is one."""
    yield "| set | pods at once | preempted | fail for now | hours | closed form | pods started | refitted | requests |"
    yield "|---|---|---|---|---|---|---|---|---|"
    small, large = replace(GPU, workers=2), replace(GPU, workers=8, **LARGE)
    spot = replace(large, workers=10)
    for plan in (
        small,
        replace(small, preempted=0.2),
        large,
        replace(large, preempted=0.05),
        replace(spot, preempted=0.5),
        replace(spot, preempted=2.0),
        replace(large, fails=0.02),
        replace(spot, preempted=0.5, fails=0.02),
        replace(large, shards_per_index=4),
        replace(large, shards_per_index=64, preempted=0.5),
    ):
        found = simulate(plan, seed)
        closed = f"{expected_hours(plan):.1f}" if not plan.fails else "-"
        row = (
            f"{plan.shards:,} shards, {plan.shards_per_index} an index",
            f"{plan.workers}",
            f"{plan.preempted:g} an hour",
            f"{plan.fails:.0%}",
            f"{found.hours:.1f}",
            closed,
            f"{found.pods:,} for {plan.indexes:,} indexes",
            f"{found.refitted:,}",
            f"{found.requests:,}",
        )
        yield f"| {' | '.join(row)} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the failures")
    args = parser.parse_args()
    print(*need_table(), "", *fault_table(args.seed), sep="\n")


if __name__ == "__main__":
    main()
