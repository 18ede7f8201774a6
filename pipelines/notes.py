"""What a version, a run and a schedule carry in their description: words for people, then one line for this program.

The API's own tags take no more than 20 characters (kubeflow/pipelines #12999), too few for a commit, and runs have
none. A description may have 255 in a database that an older backend has made; a version's takes more.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from components.errors import PermanentError

MARK = "splatclip:"
LONGEST = 255
DIGITS = 16  # of a sha256, which tell as much as is needed to see that two differ
_SHA256 = re.compile(r"((?:sha256:)?[0-9a-f]{16})[0-9a-f]{48}")


def brief(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags with each sha256 cut to its first digits."""
    return {name: _SHA256.sub(r"\1", value) for name, value in tags.items()}


def written(words: str, tags: Mapping[str, str], longest: int = LONGEST) -> str:
    """A description of these words and tags."""
    text = f"{words}\n{MARK}{json.dumps(dict(sorted(tags.items())), separators=(',', ':'))}"
    if len(text) > longest:
        raise PermanentError(f"a description of {len(text)} characters; {longest} at most are kept everywhere")
    return text


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
