"""Photographs beside what their .gs2d files hold: which ones, how they are read from the shards, how they are drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.errors import PermanentError
from components.images import EXTENSIONS, decode_rgb, encode
from components.manifest import Artifact, ShardEntry
from components.shards import read_index
from components.splats import Splats
from components.store import StoreNotFound
from components.zero_shot_eval.inventory import JPEG_QUALITY, opened
from components.zero_shot_eval.page_data import Run
from components.zero_shot_eval.page_markup import Html, data_uri, el
from components.zero_shot_eval.predictions import classes_of
from components.zero_shot_eval.sheet import SheetPicture, choose, line_colors, outlines

Pixels = NDArray[np.uint8]
EACH = 4  # pictures of a kind
SMALL = 96  # pictures up to this side stay as they are, pixel by pixel; larger ones are compressed
LARGEST = 256  # pixels of a side on the page
WEBP_QUALITY = 82
MANY = 700  # Gaussians: more are drawn as a picture, which then is smaller than as many ellipses
CANVAS = 800  # units of an outline's drawing, about
LEGEND = "Under each photograph: what it shows, what was read from its splats, and what the control read from it."


@dataclass(frozen=True)
class Picture:
    """A photograph, its raw and stored forms' sizes, and what a run's .gs2d file holds, by the run's place."""

    key: str
    photo: Pixels
    stored_bytes: int
    stored_format: str
    jpeg_bytes: int
    files: tuple[tuple[int, Splats], ...]  # bytes of the file, its content


def groups_of(run: Run) -> list[tuple[str, list[int]]]:
    """Pictures by their place in the predictions: the worst by PSNR, some of all between, the best; none twice."""
    psnr = run.predictions.psnr_db
    order = np.argsort(psnr, kind="stable").tolist()
    if len(order) <= 3 * EACH:
        return [("All of them, the worst PSNR first", order)]
    worst, best = order[:EACH], order[-EACH:]
    between = order[EACH:-EACH]
    spread = [between[i] for i in choose(psnr[between], EACH + 2)[1:-1]]
    return [("The worst by PSNR", worst), ("In between, evenly spread", spread), ("The best by PSNR", best)]


def _shards_with(splats: Artifact, split: str, keys: Iterable[str]) -> list[ShardEntry]:
    """The splat shards that hold the keys; looked up in the small index files where there are some."""
    wanted, found = set(keys), []
    for entry in splats.manifest.split(split):
        index = next((file for file in entry.files if file.name.endswith(".idx")), None)
        if index is None:
            found.append(entry)
            continue
        with splats.local(index) as path:
            if wanted & set(read_index(path).keys):
                found.append(entry)
    return found


def _fields(
    artifact: Artifact, shards: Iterable[ShardEntry], keys: Sequence[str], extensions: Sequence[str]
) -> dict[str, tuple[str, bytes]]:
    """Key -> extension and bytes of the first field there is of `extensions`."""
    wanted, found = set(keys), {}
    for _, shard, _ in opened(artifact, shards):
        for i, key in enumerate(shard.keys):
            if key in wanted:
                ext = next((ext for ext in extensions if shard.has(i, ext)), None)
                if ext is not None:
                    found[key] = (ext, bytes(shard.field(i, ext)))
        if len(found) == len(wanted):
            break
    missing = sorted(wanted - found.keys())
    if missing:
        raise PermanentError(f"{artifact.url}: no {'/'.join(extensions)} of the picture {missing[0]!r}; make it again")
    return found


def read_pictures(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, Picture]:
    """The pictures of these keys, photographs from the first run's image shards, splats of each run.

    Empty where the store has no pictures or splats any more, or lacks a file of them that is needed.
    """
    try:
        return _read_pictures(runs, keys)
    except StoreNotFound:
        return {}


def _read_pictures(runs: Sequence[Run], keys: Sequence[str]) -> dict[str, Picture]:
    images = runs[0].made_by("images")
    made = [run.made_by("splats") for run in runs]
    if images is None or any(one is None for one in made) or not keys:
        return {}
    found: list[dict[str, tuple[str, bytes]]] = []
    sources: set[str] = set()
    for run, splats in zip(runs, made, strict=True):
        if splats is not None:
            shards = _shards_with(splats, run.scores["split"], keys)
            found.append(_fields(splats, shards, keys, ["gs2d"]))
            sources |= {entry.source or "" for entry in shards}
    listed = images.manifest.split(runs[0].scores["split"])
    near = [entry for entry in listed if entry.name in sources]
    photos = _fields(images, [*near, *(entry for entry in listed if entry not in near)], keys, EXTENSIONS)
    pictures = {}
    for key in keys:
        extension, data = photos[key]
        pixels = decode_rgb(data)
        files = tuple((len(one[key][1]), Splats.unpack(one[key][1], f"{key}.gs2d")) for one in found)
        jpeg = len(encode(pixels, "jpg", JPEG_QUALITY))
        pictures[key] = Picture(key, pixels, len(data), extension, jpeg, files)
    return pictures


def _image(pixels: Pixels, alt: str) -> Html:
    height, width = pixels.shape[:2]
    if max(height, width) <= SMALL:
        data, style = encode(pixels, "webp", 100), "pixels"
    else:
        step = -(-max(height, width) // LARGEST)
        data, style = encode(np.ascontiguousarray(pixels[::step, ::step]), "webp", WEBP_QUALITY), None
    return el("img", src=data_uri(data, "webp"), alt=alt, width=width, height=height, class_=style)


def _ellipses(splats: Splats, alt: str) -> Html:
    """The 1-sigma ellipses as a drawing that stays sharp; large ones first."""
    scale = max(1, round(CANVAS / max(splats.width, splats.height)))
    lower = np.zeros((len(splats), 2, 2))
    lower[:, 0, 0], lower[:, 1, 0], lower[:, 1, 1] = splats.cholesky.astype(np.float64).T
    axes, radii, _ = np.linalg.svd(lower)
    angle = np.degrees(np.arctan2(axes[:, 1, 0], axes[:, 0, 0])) % 180
    inks = line_colors(splats.colors)
    centres = np.rint((splats.means.astype(np.float64) + 0.5) * scale).astype(int)  # pixel centres are at integers
    sizes = np.maximum(1, np.rint(radii * scale)).astype(int)
    shapes = []
    for i in np.argsort(-sizes[:, 0] * sizes[:, 1], kind="stable").tolist():
        ink = "#" + "".join(f"{min(15, round(part / 17)):x}" for part in inks[i])
        (x, y), (rx, ry), turn = centres[i].tolist(), sizes[i].tolist(), round(float(angle[i]))
        move = f"translate({x} {y})rotate({turn})" if turn and rx != ry else f"translate({x} {y})"
        shapes.append(el("ellipse", rx=rx, ry=ry, transform=move, stroke=ink))
    box = f"0 0 {splats.width * scale} {splats.height * scale}"
    return el("svg", *shapes, view_box=box, role="img", aria_label=alt, class_="gaussians")


def _drawn(picture: Picture, splats: Splats, alt: str) -> Html:
    """The same for very many Gaussians, as pixels."""
    blank = SheetPicture(
        picture.photo, picture.photo, splats.means, splats.cholesky, splats.colors, 0.0, 0, 0, "", truth=""
    )
    side = 2 * min(LARGEST, max(splats.width, splats.height))
    canvas = outlines(blank, (side, max(1, round(side * splats.height / splats.width))))
    data = encode(np.asarray(canvas), "webp", WEBP_QUALITY)
    return el("img", src=data_uri(data, "webp"), alt=alt, width=canvas.width, height=canvas.height)


def photograph(picture: Picture, what: str) -> Html:
    """The photograph."""
    return _panel(_image(picture.photo, f"Photograph: {what}"), "photograph")


def render(splats: Splats, psnr_db: float, whose: str = "") -> Html:
    """What the file looks like."""
    pixels = np.rint(np.clip(splats.render(), 0, 1) * 255).astype(np.uint8)
    return _panel(
        _image(pixels, f"Render of {count(splats)}, {psnr_db:.1f} dB"),
        f"{whose}: its splats" if whose else "its splats",
    )


def gaussians(picture: Picture, splats: Splats, whose: str = "") -> Html:
    """The Gaussians' outlines."""
    alt = f"Outlines of {count(splats)} at one sigma"
    drawing = _ellipses(splats, alt) if len(splats) <= MANY else _drawn(picture, splats, alt)
    return _panel(drawing, f"{whose}: Gaussians" if whose else "Gaussians, 1 σ")


def _panel(inner: Html, name: str) -> Html:
    return el("div", inner, el("small", name), class_="panel")


def count(splats: Splats) -> str:
    """How many there are."""
    return f"{len(splats):,} Gaussian{'s' if len(splats) != 1 else ''}"


def other_sizes(picture: Picture) -> str:
    """Bytes as JPEG of quality 90, as stored and raw."""
    forms = {
        "JPEG 90": picture.jpeg_bytes,
        f"stored {picture.stored_format}": picture.stored_bytes,
        "raw": picture.photo.size,
    }
    return ", ".join(f"{name} {size:,}" for name, size in forms.items())


def shown(run: Run, i: int) -> str:
    """What a picture shows: its class or classes, or its first caption."""
    seen = run.predictions
    if seen.truth is not None:
        return classes_of(seen.truth[i], run.scores["class_names"])
    return run.scores["class_names"][int(seen.classes[i])] if len(seen.classes) else seen.captions[i]


def verdict(run: Run, i: int, row: str = "splats") -> Html:
    """What a row made of the picture: the class it took it for, or where its own caption came."""
    seen = run.predictions
    if seen.guesses:
        guess, right = int(seen.guesses[row][i]), bool(seen.hits[run.right_metric][row][i])
        words = f"{'✓' if right else '✗'} {run.scores['class_names'][guess]}"
        return el("span", words, class_="good" if right else "bad")
    first, five = (bool(seen.hits[f"text_retrieval_recall@{k}"][row][i]) for k in (1, 5))
    place = "own caption first" if first else "own caption in first 5" if five else "own caption not in first 5"
    return el("span", f"{'✓' if five else '✗'} {place}", class_="good" if five else "bad")


def answers(run: Run, i: int) -> list[str]:
    """What was read from the splats, and what the control read from the photograph."""
    given = [(row, verdict(run, i, row)) for row in ("splats", "control") if row in run.row_names]
    return [part for row, told in given for part in (f" · {row} ", told)]


def card(run: Run, i: int, picture: Picture) -> Html:
    """A picture of one run."""
    splats, psnr = picture.files[0][1], float(run.predictions.psnr_db[i])
    what = shown(run, i)
    return el(
        "figure",
        el(
            "div",
            photograph(picture, what),
            render(splats, psnr),
            gaussians(picture, splats),
            class_="panels",
        ),
        el(
            "figcaption",
            el("p", what),
            el("p", el("b", f"{psnr:.1f} dB"), *answers(run, i)),
            el("small", f"{count(splats)}; bytes .gs2d {picture.files[0][0]:,}, {other_sizes(picture)}"),
        ),
        class_="card",
    )


def gallery(run: Run) -> list[Html]:
    """All groups of one run's pictures."""
    groups = groups_of(run)
    keys = run.predictions.keys
    pictures = read_pictures([run], [keys[i] for _, places in groups for i in places])
    if not pictures:
        return [el("p", "The store has the pictures or their splats no more, so none is shown.", class_="note")]
    found = [el("p", LEGEND, class_="note")]
    for title, places in groups:
        cards = [card(run, i, pictures[keys[i]]) for i in places]
        found += [el("h3", title), el("div", *cards, class_="cards")]
    return found
