"""Who is champion, as a function of what is registered."""

from __future__ import annotations

import random

import pytest

from components.errors import PermanentError
from components.registry_line import Decision, Version, challenger, champions, unique, verdict


def version(number: int, score: float, half: float = 0.01, *, evaluation: str = "e", package: str = "") -> Version:
    return Version(
        number=number,
        metric="acc1",
        score=score,
        low=score - half,
        high=score + half,
        evaluation=evaluation,
        package=package or f"p{number}",
    )


def numbers(versions: list[Version]) -> list[int]:
    return [one.number for one in versions]


def test_the_first_is_champion_and_a_later_one_only_beyond_its_interval() -> None:
    first, within, equal, beyond = version(1, 0.5), version(2, 0.509), version(3, 0.51), version(4, 0.52)
    assert numbers(champions([first], Decision())) == [1]
    assert numbers(champions([first, within], Decision())) == [1]
    assert numbers(champions([first, within, equal], Decision())) == [1]  # its low end is the score, not above it
    assert numbers(champions([first, within, equal, beyond], Decision())) == [1, 4]
    assert "not better" in verdict(within, champions([first, within], Decision()))


def test_the_order_of_reading_does_not_matter() -> None:
    rng = random.Random(0)
    versions = [version(number, rng.random(), rng.random() / 50) for number in range(1, 60)]
    line = champions(versions, Decision())
    for _ in range(20):
        rng.shuffle(versions)
        assert champions(versions, Decision()) == line
    assert len(line) > 1


def test_narrow_intervals_make_the_best_champion() -> None:
    rng = random.Random(1)
    values = [number / 1000 for number in range(1, 101)]
    rng.shuffle(values)
    versions = [version(number, value, 0.0004) for number, value in enumerate(values, start=1)]
    assert champions(versions, Decision())[-1].score == 0.1


def test_other_evaluations_are_not_compared() -> None:
    versions = [version(1, 0.5), version(2, 0.9, evaluation="other"), version(3, 0.6)]
    line = champions(versions, Decision())
    assert numbers(line) == [1, 3]
    assert "not compared" in verdict(versions[1], line)
    assert "--set-champion 2" in verdict(versions[1], line)
    assert numbers(champions(versions, Decision((1, 2), 3))) == [1, 2]


def test_a_withdrawn_champion_stays_away_and_a_new_one_is_compared_with_its_predecessor() -> None:
    versions = [version(1, 0.5), version(2, 0.6)]
    decision = Decision((1,), 2)
    assert numbers(champions(versions, decision)) == [1]
    assert "withdrawn" in verdict(versions[1], champions(versions, decision))
    versions.append(version(3, 0.55))
    assert numbers(champions(versions, decision)) == [1, 3]


def test_repeats_of_a_version_count_for_nothing() -> None:
    versions = [version(1, 0.5, package="a"), version(2, 0.5, package="a"), version(3, 0.4)]
    assert numbers(unique(versions)) == [1, 3]
    champion = champions(versions, Decision())[-1]
    assert challenger(versions, champion) == versions[2]


def test_deleted_champions_do_not_count() -> None:
    assert numbers(champions([version(1, 0.5)], Decision((1, 2), 2))) == [1]
    assert champions([version(1, 0.5)], Decision((2,), 2)) == []
    assert "--set-champion 1" in verdict(version(1, 0.5), [])
    assert numbers(champions([version(1, 0.5), version(3, 0.1)], Decision((2,), 2))) == [3]
    assert challenger([version(1, 0.5)], None) == version(1, 0.5)


def test_decisions_survive_the_registry_and_damaged_ones_are_named() -> None:
    assert Decision.from_json(Decision((1, 5), 9).to_json(), "tag") == Decision((1, 5), 9)
    assert Decision.from_json(None, "tag") == Decision()
    assert len(Decision.from_json(Decision(tuple(range(1000)), 9).to_json(), "tag").champions) == 100
    with pytest.raises(PermanentError, match="the tag"):
        Decision.from_json("[]", "the tag")
