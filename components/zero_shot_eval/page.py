"""The report: one HTML file, no network."""

from __future__ import annotations

from collections.abc import Mapping


def report_html(ref: str, store: str, *, tags: Mapping[str, str], against: str | None = None) -> bytes:
    """The page of an evaluation."""
    return b""
