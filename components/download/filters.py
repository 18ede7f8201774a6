"""Rows that are left out by what their list says of them, before anything is fetched."""

from __future__ import annotations

import math
from collections.abc import Callable

from components.url_params import UrlParams

NSFW_COLUMNS = ("punsafe", "nsfw")
SIMILARITY_COLUMNS = ("clip_l14_similarity_score", "clip_b32_similarity_score", "similarity")
NSFW, SIMILARITY = "#nsfw", "#similarity"  # what a table's columns are called while it is read
FILTERED = "#filtered"  # the column that comes of both: the reason why a row is left out, empty: it is kept
_WORDS = {"unlikely": 0.0, "unsure": 0.5, "nsfw": 1.0, "false": 0.0, "true": 1.0}


def _number(text: str) -> float:
    """A value as a number, LAION's words too; NaN for what is none."""
    try:
        return _WORDS.get(text.strip().lower(), math.nan) if text.strip()[:1].isalpha() else float(text)
    except ValueError:
        return math.nan


def filtered(block: dict[str, list[str]], params: UrlParams) -> dict[str, list[str]]:
    """A block of rows with the column FILTERED in place of NSFW and SIMILARITY; one that has neither stays as it is.

    A row without a value that can be read is left out: NaN is neither below nor above.
    """
    rules: list[tuple[str, str, Callable[[float], bool]]] = [
        (NSFW, "filtered_nsfw", lambda value: value <= params.max_nsfw),
        (SIMILARITY, "filtered_similarity", lambda value: value >= params.min_similarity),
    ]
    found = {name: values for name, values in block.items() if name not in {NSFW, SIMILARITY}}
    for name, reason, good in rules:
        if name in block:
            before = found.get(FILTERED) or [""] * len(block[name])
            pairs = zip(before, block[name], strict=True)
            found[FILTERED] = [why or ("" if good(_number(value)) else reason) for why, value in pairs]
    return found
