"""Rows that are left out by what their list says of them, before anything is fetched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from components.url_params import UrlParams

NSFW_COLUMNS = ("punsafe", "nsfw")
SIMILARITY_COLUMNS = ("clip_l14_similarity_score", "clip_b32_similarity_score", "similarity")
NSFW, SIMILARITY = "#nsfw", "#similarity"  # what a table's columns are called while it is read
FILTERED = "#filtered"  # the column that comes of both: why a row is left out, empty: it is not
_WORDS = {"unlikely": 0.0, "unsure": 0.5, "nsfw": 1.0, "false": 0.0, "true": 1.0}


def _number(text: str) -> float:
    """A value as a number, LAION's words too; NaN for what is none."""
    try:
        return _WORDS.get(text.strip().lower(), math.nan) if text.strip()[:1].isalpha() else float(text)
    except ValueError:
        return math.nan


def _reasons(reason: str, values: Sequence[str], good: Callable[[float], bool], limit: str) -> list[str]:
    return [
        "" if good(_number(value)) else f"{reason}: {value[:40]!r}; {limit}" for value in values
    ]  # nothing compares with NaN: a row without a value is left out


def filtered(block: dict[str, list[str]], params: UrlParams) -> dict[str, list[str]]:
    """A block of rows with the column FILTERED in place of NSFW and SIMILARITY; one that has neither stays as it is."""
    found: list[list[str]] = []
    rest = {name: values for name, values in block.items() if name not in {NSFW, SIMILARITY}}
    if NSFW in block:
        limit = f"max_nsfw is {params.max_nsfw:g}"
        found.append(_reasons("filtered_nsfw", block[NSFW], lambda value: value <= params.max_nsfw, limit))
    if SIMILARITY in block:
        limit = f"min_similarity is {params.min_similarity:g}"
        found.append(
            _reasons("filtered_similarity", block[SIMILARITY], lambda value: value >= params.min_similarity, limit)
        )
    return rest if not found else {**rest, FILTERED: [next(filter(None, why), "") for why in zip(*found, strict=True)]}
