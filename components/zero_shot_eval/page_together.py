"""The same photographs in two evaluations: which ones, and both runs' splats of each."""

from __future__ import annotations

import numpy as np

from components.zero_shot_eval.page_data import Run
from components.zero_shot_eval.page_difference import Pair
from components.zero_shot_eval.page_markup import Html, el
from components.zero_shot_eval.page_pictures import (
    EACH,
    Picture,
    count,
    gallery,
    gaussians,
    groups_of,
    other_sizes,
    photograph,
    read_pictures,
    render,
    shown,
    verdict,
)
from components.zero_shot_eval.page_scores import signed
from components.zero_shot_eval.sheet import choose


def _groups(pair: Pair) -> list[tuple[str, list[int]]]:
    """Pictures by their place in the predictions, those first in which the two differ most."""
    one, two = pair.a.predictions, pair.b.predictions
    if len(one.keys) <= 3 * EACH:
        return groups_of(pair.a)
    found: list[tuple[str, list[int]]] = []
    if not pair.same_splats:
        order = np.argsort(one.psnr_db - two.psnr_db, kind="stable").tolist()
        found.append(("Where A gains most PSNR over B", order[: -EACH - 1 : -1]))
        found.append(("Where A gains least or loses", order[:EACH]))
    else:
        left, right = (seen.hits[pair.a.right_metric]["splats"] > 0 for seen in (one, two))
        for title, which in (("Right in A only", left & ~right), ("Right in B only", right & ~left)):
            places = np.flatnonzero(which)
            found.append((title, [int(places[i]) for i in choose(one.psnr_db[places], EACH)] if len(places) else []))
    taken = {i for _, places in found for i in places}
    rest = np.array([i for i in range(len(one.keys)) if i not in taken])
    spread = [int(rest[i]) for i in choose(one.psnr_db[rest], EACH)]
    return [*found, ("From A's worst PSNR to its best", spread)]


def _line(letter: str, run: Run, i: int, picture: Picture, place: int) -> Html:
    splats = picture.files[place][1]
    psnr = float(run.predictions.psnr_db[i])
    return el(
        "p",
        el("b", letter.upper(), class_="letter"),
        el("b", f" {psnr:.1f} dB "),
        verdict(run, i),
        el("small", f" {count(splats)}, .gs2d {picture.files[place][0]:,}"),
        class_=f"k-{letter}",
    )


def _card(pair: Pair, i: int, picture: Picture) -> Html:
    what = shown(pair.a, i)
    psnr = [float(run.predictions.psnr_db[i]) for run in (pair.a, pair.b)]
    (_, one), (_, two) = picture.files
    panels = [photograph(picture, what), render(one, psnr[0], "A"), gaussians(picture, one, "A")]
    if not pair.same_splats:
        change = el("p", el("b", signed(psnr[0] - psnr[1])), el("small", " dB, A − B"), class_="change")
        panels += [change, render(two, psnr[1], "B"), gaussians(picture, two, "B")]
    lines = [
        _line(letter, run, i, picture, place)
        for place, (letter, run) in enumerate(zip("ab", (pair.a, pair.b), strict=True))
    ]
    return el(
        "figure",
        el("div", *panels, class_="panels"),
        el("figcaption", el("p", what), *lines, el("small", f"bytes {other_sizes(picture)}")),
        class_="card",
    )


def pictures_together(pair: Pair) -> list[Html]:
    """The same pictures of both runs, or each run's own where they scored different ones."""
    if not pair.same_pictures:
        parts = []
        for run, name in ((pair.a, "A"), (pair.b, "B")):
            parts += [el("h3", f"{name}: its own pictures"), *gallery(run)]
        return parts
    groups = _groups(pair)
    keys = pair.a.predictions.keys
    pictures = read_pictures([pair.a, pair.b], [keys[i] for _, places in groups for i in places])
    if not pictures:
        return [el("p", "The store has the pictures or their splats no more, so none is shown.", class_="note")]
    found: list[Html] = []
    for title, places in groups:
        cards = [_card(pair, i, pictures[keys[i]]) for i in places]
        found += [el("h3", title), el("div", *cards, class_="cards") if cards else el("p", "None.", class_="note")]
    return found
