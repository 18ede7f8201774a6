"""predictions.csv: what every row answered for every scored picture, and what the picture weighs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from components.errors import PermanentError
from components.scores import FloatArray, IntArray
from components.zero_shot_eval.embed import Embedded
from components.zero_shot_eval.inventory import Inventory
from components.zero_shot_eval.rows import Row

NAME = "predictions.csv"
MAX_CAPTION = 500  # characters: enough to know the picture by
SIZES = ("psnr_db", "num_gaussians", "gs2d_bytes", "stored_bytes")
CLASS, GUESS = "class", "class_"  # class numbers count from 0 in the order of classnames.txt
CAPTION, CAPTIONS, TEXT_RANK, IMAGE_RANKS = "caption", "captions", "caption_rank_", "picture_ranks_"


def predictions_csv(rows: Sequence[Row], embedded: Embedded, inventory: Inventory) -> bytes:
    """One line a scored picture, in order.

    Classification: key, class, class_<row> (what the row took it for). Retrieval: key, caption (the first), captions
    (how many), caption_rank_<row> (of the first of its own captions among all), picture_ranks_<row> (where each of its
    captions finds it, with blanks between); ranks count from 1. Then psnr_db, num_gaussians, gs2d_bytes, stored_bytes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    classes = all(row.predictions is not None for row in rows)
    if classes:
        head, answers = [CLASS, *(f"{GUESS}{row.name}" for row in rows)], _classes(rows, embedded)
    else:
        ranks = (f"{kind}{row.name}" for row in rows for kind in (TEXT_RANK, IMAGE_RANKS))
        head, answers = [CAPTION, CAPTIONS, *ranks], _ranks(rows, embedded)
    writer.writerow(["key", *head, *SIZES])
    for key, answer in zip(embedded.keys, answers, strict=True):
        file = inventory.splats[key]
        sizes = (f"{file.psnr_db:.4f}", file.num_gaussians, file.num_bytes, inventory.photographs[key].stored_bytes)
        writer.writerow([key, *answer, *sizes])
    return text.getvalue().encode()


def _classes(rows: Sequence[Row], embedded: Embedded) -> list[list[object]]:
    columns = [embedded.classes, *(row.predictions for row in rows if row.predictions is not None)]
    return np.stack(columns, axis=1).tolist()  # type: ignore[no-any-return]


def _ranks(rows: Sequence[Row], embedded: Embedded) -> list[list[object]]:
    counts = [len(captions) for captions in embedded.captions]
    ends = np.cumsum(counts)
    lines = []
    for i, captions in enumerate(embedded.captions):
        line: list[object] = [captions[0][:MAX_CAPTION], counts[i]]
        for row in rows:
            if row.text_ranks is not None and row.image_ranks is not None:
                own = row.image_ranks[ends[i] - counts[i] : ends[i]]
                line += [int(row.text_ranks[i]) + 1, " ".join(str(rank + 1) for rank in own.tolist())]
        lines.append(line)
    return lines


@dataclass(frozen=True)
class Predictions:
    """predictions.csv as columns over the n scored pictures.

    classes, guesses (by row): class numbers, empty in retrieval; captions: the first of each picture, empty in
    classification; hits: headline-like metric -> row -> value a picture; weights: metric -> what a picture weighs.
    """

    keys: list[str]
    classes: IntArray
    guesses: dict[str, IntArray]
    captions: list[str]
    hits: dict[str, dict[str, FloatArray]]
    weights: dict[str, FloatArray]
    psnr_db: FloatArray
    num_gaussians: IntArray
    gs2d_bytes: IntArray
    stored_bytes: IntArray


def read_predictions(data: bytes, where: str) -> Predictions:
    """Read predictions.csv; PermanentError, naming `where`, where it is damaged."""
    try:
        lines = list(csv.reader(io.StringIO(data.decode(), newline="")))
        head, body = lines[0], lines[1:]
        if not body:
            raise ValueError("no pictures")
        columns = {name: [line[i] for line in body] for i, name in enumerate(head)}
        return _predictions(columns)
    except (csv.Error, IndexError, KeyError, ValueError) as error:
        raise PermanentError(f"{where}: not a valid {NAME} ({error!r}); run zero-shot-eval again") from error


def _predictions(columns: dict[str, list[str]]) -> Predictions:
    def whole(name: str) -> IntArray:
        return np.array([int(value) for value in columns[name]], dtype=np.int64)

    def named(prefix: str) -> dict[str, str]:
        return {name.removeprefix(prefix): name for name in columns if name.startswith(prefix)}

    classes = whole(CLASS) if CLASS in columns else np.zeros(0, np.int64)
    guesses = {row: whole(name) for row, name in named(GUESS).items()}
    hits: dict[str, dict[str, FloatArray]] = {}
    weights: dict[str, FloatArray] = {}
    if guesses:
        hits["acc1"] = {row: (guess == classes).astype(np.float64) for row, guess in guesses.items()}
    for k in (1, 5) if TEXT_RANK + "splats" in columns else ():
        hits[f"text_retrieval_recall@{k}"] = {
            row: (whole(name) <= k).astype(np.float64) for row, name in named(TEXT_RANK).items()
        }
        hits[f"image_retrieval_recall@{k}"] = {
            row: np.array([sum(int(rank) <= k for rank in ranks.split()) for ranks in columns[name]], np.float64)
            for row, name in named(IMAGE_RANKS).items()
        }
        weights[f"image_retrieval_recall@{k}"] = whole(CAPTIONS).astype(np.float64)
    psnr: NDArray[np.float64] = np.array([float(value) for value in columns["psnr_db"]])
    sizes = (whole(name) for name in SIZES[1:])
    return Predictions(columns["key"], classes, guesses, columns.get(CAPTION, []), hits, weights, psnr, *sizes)
