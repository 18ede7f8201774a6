"""YAML that people write, read within bounds: a short text cannot become a value that fills memory."""

from __future__ import annotations

from typing import Any

import yaml

from components.errors import UsageError

MAX_BYTES = 1 << 20
MAX_DEPTH = 20  # of mappings and lists in each other; parameters have three
MAX_ALIASES = 100


def _check_shape(text: str, where: str) -> None:
    """UsageError on what has no place in parameters: deep nesting, aliases of what holds aliases, types by tag.

    Aliases of aliases grow without bound: nine lines of "lol" would become a billion values.
    """
    depth, anchored, aliases = 0, 0, 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if (tag := getattr(event, "tag", None)) is not None:
            raise UsageError(f"{where}: line {line}: a type by tag, {tag!r}; write the value alone")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            anchored = anchored or (depth if event.anchor else 0)
            if depth > MAX_DEPTH:
                raise UsageError(f"{where}: line {line}: nested more than {MAX_DEPTH} deep")
        elif isinstance(event, yaml.CollectionEndEvent):
            anchored = 0 if depth == anchored else anchored
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if anchored or aliases > MAX_ALIASES:
                what = "an alias within an anchored value" if anchored else f"more than {MAX_ALIASES} aliases"
                raise UsageError(f"{where}: line {line}: {what}; write the values out")


def parse(text: str, where: str) -> Any:
    """The value of one YAML document. UsageError, naming `where` and the line, on anything else."""
    if len(text) > MAX_BYTES:
        raise UsageError(f"{where}: {len(text)} characters; {MAX_BYTES} at most are read")
    try:
        _check_shape(text, where)
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: not valid YAML: {error}") from None
    except (ValueError, OverflowError) as error:  # a date that no calendar has, a number of thousands of digits
        raise UsageError(f"{where}: not valid YAML: a value cannot be read: {error}") from None
