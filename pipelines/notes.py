"""What a version, a run and a schedule carry in their description: words for people, then one line for this program.

The API's own tags take no more than 20 characters (kubeflow/pipelines #12999), too few for a commit, and runs have
none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

MARK = "splatclip:"


def written(words: str, tags: Mapping[str, str]) -> str:
    """A description of these words and tags."""
    return f"{words}\n{MARK}{json.dumps(dict(sorted(tags.items())), separators=(',', ':'))}"


def read(description: str | None) -> dict[str, str]:
    """The tags of a description; none where this program did not write it."""
    for line in reversed((description or "").splitlines()):
        if line.startswith(MARK):
            try:
                tags = json.loads(line.removeprefix(MARK))
            except ValueError:
                return {}
            return {str(name): str(value) for name, value in tags.items()} if isinstance(tags, dict) else {}
    return {}
