"""predictions.csv: what every row answered for every scored picture, and what the picture weighs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from components.errors import PermanentError
from components.evalsets import AVERAGE_PRECISION
from components.scores import FloatArray, IntArray
from components.zero_shot_eval.embed import Embedded
from components.zero_shot_eval.inventory import Inventory
from components.zero_shot_eval.rows import Row, hits_of, resample

NAME = "predictions.csv"
MAX_CAPTION = 500  # characters: enough to know the picture by
SIZES = ("psnr_db", "num_gaussians", "gs2d_bytes", "stored_bytes")
CLASS, GUESS = "class", "class_"  # class numbers count from 0 in the order of classnames.txt
CLASSES, SCORES = "classes", "scores_"  # of a multilabel set
FIRST_GUESS = "first_guess"  # of a multilabel set: whether the best-scored class is one of the picture's
CAPTION, CAPTIONS, TEXT_RANK, IMAGE_RANKS = "caption", "captions", "caption_rank_", "picture_ranks_"


Truth = NDArray[np.int64] | NDArray[np.bool_]


def classes_of(own: NDArray[np.bool_], class_names: Sequence[str]) -> str:
    """The classes that a picture of a multilabel set shows, for people."""
    return ", ".join(class_names[i] for i in np.flatnonzero(own).tolist()) or "none of the classes"


def predictions_csv(rows: Sequence[Row], embedded: Embedded, inventory: Inventory, truth: Truth | None) -> bytes:
    """One line a scored picture, in order.

    Classification: key, class, class_<row> (what the row took it for). Multilabel: key, classes (with blanks between),
    scores_<row> (cosine similarity to each class's prompts, with blanks between). Retrieval: key, caption (the first),
    captions (how many), caption_rank_<row> (of the first of its own captions among all), picture_ranks_<row> (where
    each of its captions finds it, with blanks between); ranks count from 1. Then psnr_db, num_gaussians, gs2d_bytes,
    stored_bytes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if truth is not None and truth.ndim == 2:
        head, answers = [CLASSES, *(f"{SCORES}{row.name}" for row in rows)], _class_scores(rows, truth)
    elif truth is not None:
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


def _class_scores(rows: Sequence[Row], truth: Truth) -> list[list[object]]:
    lines: list[list[object]] = [[" ".join(str(i) for i in np.flatnonzero(own))] for own in truth]
    for row in rows:
        if row.class_scores is not None:
            for line, scores in zip(lines, row.class_scores.tolist(), strict=True):
                line.append(" ".join(f"{value:.7f}" for value in scores))
    return lines


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

    classes: class numbers, of classification alone; guesses (by row): class numbers, empty in retrieval; captions: the
    first of each picture, empty in classification; hits: headline-like metric -> row -> value a picture; weights:
    metric -> what a picture weighs; truth [n, C], class_scores (by row) [n, C]: of a multilabel set alone.
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
    truth: NDArray[np.bool_] | None = None
    class_scores: dict[str, FloatArray] = field(default_factory=dict)

    @property
    def answers(self) -> Truth | None:
        """What is true of the pictures: class numbers [n], or marks [n, C]; None in retrieval."""
        return self.truth if self.truth is not None else self.classes if len(self.classes) else None


def draw(metric: str, of: Sequence[tuple[Predictions, str]], num_bootstrap: int, seed: int) -> FloatArray:
    """A metric's value in resamplings of the pictures, [len(of), num_bootstrap].

    of: predictions of the same pictures and a row of each; every resampling draws the same pictures for all of them.
    """
    values = [
        seen.class_scores[row] if metric == AVERAGE_PRECISION else seen.hits[hits_of(metric)][row] for seen, row in of
    ]
    first = of[0][0]
    weights = first.weights.get(metric)
    return resample(metric, values, num_bootstrap, seed, weights=weights, truth=first.answers)


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
    truth, class_scores = _several(columns, named(SCORES))
    if truth is not None:
        guesses = {row: values.argmax(1).astype(np.int64) for row, values in class_scores.items()}
        places = np.arange(len(truth))
        hits[FIRST_GUESS] = {row: truth[places, guess].astype(np.float64) for row, guess in guesses.items()}
    captions = columns.get(CAPTION, [])
    num_gaussians, gs2d_bytes, stored_bytes = (whole(name) for name in SIZES[1:])
    return Predictions(
        keys=columns["key"],
        classes=classes,
        guesses=guesses,
        captions=captions,
        hits=hits,
        weights=weights,
        psnr_db=psnr,
        num_gaussians=num_gaussians,
        gs2d_bytes=gs2d_bytes,
        stored_bytes=stored_bytes,
        truth=truth,
        class_scores=class_scores,
    )


def _several(
    columns: dict[str, list[str]], named: dict[str, str]
) -> tuple[NDArray[np.bool_] | None, dict[str, FloatArray]]:
    """Marks [n, C] and each row's scores [n, C] of a multilabel set; None and nothing elsewhere."""
    if CLASSES not in columns:
        return None, {}
    scores = {
        row: np.array([[float(value) for value in line.split()] for line in columns[name]])
        for row, name in named.items()
    }
    truth = np.zeros(next(iter(scores.values()), np.zeros((0, 0))).shape, dtype=bool)
    for i, line in enumerate(columns[CLASSES]):
        truth[i, [int(number) for number in line.split()]] = True
    return truth, scores
