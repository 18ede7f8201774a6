"""Reading a params file: YAML -> sections -> dataclasses, with overrides; what is wrong is named."""

from __future__ import annotations

import math
import typing
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from components import yaml_text
from components.config import SECTIONS, Params
from components.errors import UsageError
from components.fields import nearest, shown

T = TypeVar("T")


def _unknown(kind: str, word: Any, known: typing.Iterable[str], where: str) -> UsageError:
    names = sorted(known)
    hint = nearest(word, names) if isinstance(word, str) else ""
    return UsageError(f"{where}: unknown {kind} {shown(word)}{hint}; known: {', '.join(names)}")


def _convert(value: Any, hint: Any, where: str) -> Any:
    """Bring a YAML or JSON value to the field's type; integral floats become ints (KFP sends 400.0), 400.5 does not."""
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"{where} is {shown(value)}; expected a list")
        return tuple(_convert(item, get_args(hint)[0], f"{where}[{i}]") for i, item in enumerate(value))
    if hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if (whole or (isinstance(value, float) and value.is_integer())) and abs(value) < 1 << 63:
            return int(value)
    elif hint is float:
        try:
            number = math.nan if isinstance(value, bool) else float(value)  # YAML reads 1e-3 as a string
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    elif hint is str and isinstance(value, str):
        return value
    expected = "a finite number" if hint is float else getattr(hint, "__name__", hint)
    raise UsageError(f"{where} is {shown(value)}; expected {expected}")


def section_from_dict(cls: type[T], values: Any, where: str) -> T:
    """Build one section's dataclass from a mapping; an unknown key is an error that names the nearest one."""
    if not isinstance(values, dict):
        raise UsageError(f"{where} is {values!r}; expected a mapping of parameters")
    hints = get_type_hints(cls)
    for key in values:
        if key not in hints:
            raise _unknown("key", key, hints, where)
    return cls(**{key: _field(cls, key, hints[key], value, f"{where}.{key}") for key, value in values.items()})


def _field(cls: type, name: str, hint: Any, value: Any, where: str) -> Any:
    """A field's value; what a nested mapping leaves out stays as the field's default has it."""
    if not (isinstance(hint, type) and is_dataclass(hint)):
        return _convert(value, hint, where)
    if not isinstance(value, dict):
        raise UsageError(f"{where} is {shown(value)}; expected a mapping")
    return section_from_dict(hint, {**asdict(getattr(cls, name)), **value}, where)


def params_from_dict(values: Any, where: str = "params") -> Params:
    """Build all sections from a mapping of mappings."""
    if not isinstance(values, dict):
        raise UsageError(f"{where} holds {type(values).__name__}; expected sections such as 'splat_fit:'")
    for key in values:
        if key not in SECTIONS:
            raise _unknown("section", key, SECTIONS, where)
    known = {name: part for name, part in values.items() if part is not None}
    if all(isinstance(part, dict) for part in (known.get("download", {}), known.get("download_eval", {}))):
        known["download_eval"] = _inherited(known.get("download", {}), known.get("download_eval", {}))
    return Params(**{name: _section(name, part, where) for name, part in known.items()})


def _inherited(whole: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """`part`, and what it leaves out as `whole` has it, in mappings within it too."""
    given = {
        name: _inherited(whole[name], value) if isinstance(value, dict) and isinstance(whole.get(name), dict) else value
        for name, value in part.items()
    }
    return {**whole, **given}


def _section(name: str, values: Any, where: str) -> Any:
    try:
        return section_from_dict(SECTIONS[name], values, f"{where}: {name}")
    except UsageError as error:  # one class checks both image sets, and speaks of `download`
        if name == "download_eval" and str(error).startswith("download."):
            raise UsageError(str(error).replace("download.", "download_eval.", 1)) from None
        raise


def _override(values: dict[str, Any], assignment: str) -> None:
    name, equals, text = assignment.partition("=")
    *path, key = name.strip().split(".")
    if not (equals and path and key):
        raise UsageError(
            f"--set {shown(assignment)}: expected section.key=value, for example splat_fit.num_gaussians=400"
        )
    if path[0] not in SECTIONS:
        raise _unknown("section", path[0], SECTIONS, "--set")
    value = yaml_text.parse(text, f"--set {shown(assignment)}")
    for part in path:
        inner = values.get(part)
        if not isinstance(inner, dict | None):
            raise UsageError(f"--set {shown(assignment)}: {part} is {shown(inner)}, and has no keys")
        values[part] = dict(inner or {})  # a copy: YAML's aliases share theirs
        values = values[part]
    values[key] = "" if value is None else value


def load_params(path: str | Path, overrides: typing.Iterable[str] = ()) -> Params:
    """Read a params file and apply `section.key=value` overrides. path: also the sections themselves, as JSON.

    Raises UsageError when the file is missing or not YAML, a key is unknown, or a value is out of range.
    """
    if str(path).startswith("{"):
        text, path = str(path), "--params"
    else:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: cannot read the parameters: {error}") from None
    values = yaml_text.parse(text, str(path))
    values = {} if values is None else values
    if isinstance(values, dict):
        for assignment in overrides:
            _override(values, assignment)
    return params_from_dict(values, str(path))
