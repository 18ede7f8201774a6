"""benchmarks/scale.py: its events against its closed form, and docs/scale.md against both."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import scale

SMALL = scale.Plan(pictures=400_000, workers=4)


def test_without_failures_it_is_a_division() -> None:
    found = scale.simulate(SMALL)
    assert (found.pods, found.preemptions, found.failures, found.refitted) == (3, 0, 0, 0)
    assert found.busy_s == pytest.approx(3 * 60 + 40 * 10_000 / SMALL.rate)
    assert found.hours * 3600 == pytest.approx(60 + 16 * 10_000 / SMALL.rate), "the longest index decides"
    assert found.requests == 3 * 18 + 40 * 11


@pytest.mark.parametrize("preempted", [0.5, 5.0, 40.0])
def test_preemptions_cost_what_the_closed_form_says(preempted: float) -> None:
    plan = replace(scale.GPU, pictures=40_000_000, workers=8, preempted=preempted)
    found = scale.simulate(plan, seed=1)
    assert found.busy_s == pytest.approx(scale.expected_busy_s(plan), rel=0.03)
    assert found.hours == pytest.approx(scale.expected_hours(plan), rel=0.05)
    assert found.preemptions == found.pods - plan.indexes > 0
    assert found.refitted <= found.preemptions


def test_failures_are_started_again_and_counted() -> None:
    plan = replace(scale.GPU, fails=0.1)
    found = scale.simulate(plan, seed=2)
    assert found.pods == plan.indexes + found.failures
    assert 0 < found.failures < 30
    assert scale.simulate(plan, seed=2) == found, "a seed gives the same again"


def test_the_documented_requests_are_those_of_the_store() -> None:
    """Of a shard: the pictures, the splats in six parts, their index, the entry; of a start: see start_requests."""
    assert scale.shard_requests(scale.GPU) == 1 + 8 + 2
    assert scale.shard_requests(replace(scale.GPU, splat_bytes=1000)) == 4
    assert scale.start_requests(scale.GPU, done=3) == 2 + 16 + 1 + 9


def test_the_page_shows_what_the_script_prints() -> None:
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8").splitlines()
    for line in (*scale.need_table(), *scale.fault_table()):
        assert line in page, line
