"""Schedules as files in the project: what runs by itself, when, with which parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components import yaml_text
from components.config import Params
from components.errors import UsageError
from components.fields import nearest
from components.kfp_base import IMAGE
from components.manifest import canonical, sha256_bytes
from components.params import load_params
from pipelines.runs import run_arguments
from pipelines.train_eval import NAME
from pipelines.versions import Package, make_package

KEYS = {
    "name": str, "pipeline": str, "cron": str, "interval": str, "params": str, "set": list, "enabled": bool,
    "store": str, "image": str, "service_account": str,
}  # fmt: skip
SHORTEST_S = 60
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, list[str]], ...] = (
    ("second", 0, 59, []), ("minute", 0, 59, []), ("hour", 0, 23, []),
    ("day of the month", 1, 31, []), ("month", 1, 12, _MONTHS), ("day of the week", 0, 6, _DAYS),
)  # fmt: skip
_DESCRIPTORS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


@dataclass(frozen=True)
class Schedule:
    """One file. cron: with six fields, seconds first, or ""; interval_s: 0 where there is a cron."""

    name: str
    where: str
    package: Package
    params: Params
    store: str
    cron: str
    interval_s: int
    enabled: bool
    service_account: str

    @property
    def full_name(self) -> str:
        """Its name in Kubeflow."""
        return f"{self.package.name}/{self.name}"

    @property
    def arguments(self) -> dict[str, Any]:
        """What each run is given."""
        return run_arguments(self.params, self.store, self.package)

    @property
    def when(self) -> str:
        """For people."""
        return self.cron or f"every {self.interval_s} s"

    @property
    def spec_hash(self) -> str:
        """Of all that makes it what it is (32 digits), but whether it is enabled: that can be changed in place."""
        spec = {
            "name": self.full_name, "cron": self.cron, "interval_s": self.interval_s, "arguments": self.arguments,
            "version": self.package.version, "bytes": self.package.sha256, "service_account": self.service_account,
        }  # fmt: skip
        return sha256_bytes(canonical(spec))[:32]


def read_schedules(path: Path, *, image: str = "", production: bool = False) -> list[Schedule]:
    """The schedule of a file, or those of a folder's *.yaml files.

    image: in place of the one that a file gives; production: refuse one without a digest.
    Raises UsageError for what is no schedule, for a name given twice, and as make_package does.
    """
    files = sorted({*path.glob("*.yaml"), *path.glob("*.yml")}) if path.is_dir() else [path]
    if not files:
        raise UsageError(f"{path}: no *.yaml file in this folder; docs/schedules.md says what one holds")
    found = [_read(file, image, production=production) for file in files]
    seen: dict[str, str] = {}
    for one in found:
        if one.full_name in seen:
            raise UsageError(f"{one.where}: {seen[one.full_name]} has the same name, {one.name!r}; give it another")
        seen[one.full_name] = one.where
    return found


def _read(path: Path, image: str, *, production: bool) -> Schedule:
    try:
        values = yaml_text.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot read the schedule: {error}") from None
    _check(values, str(path))
    if bool(values.get("cron")) == bool(values.get("interval")):
        raise UsageError(f'{path}: give either cron, as in "0 2 * * *", or interval, as in 24h')
    params = load_params(path.parent / values["params"], [str(one) for one in values.get("set", [])])
    params.require_squares()
    package = make_package(
        params,
        image or values.get("image", "") or IMAGE,
        name=values.get("pipeline", NAME),
        production=production,
    )
    schedule = Schedule(
        name=values["name"],
        where=str(path),
        package=package,
        params=params,
        store=values["store"],
        cron=cron(values["cron"], str(path)) if values.get("cron") else "",
        interval_s=_interval_s(values["interval"], str(path)) if values.get("interval") else 0,
        enabled=values.get("enabled", True),
        service_account=values.get("service_account", ""),
    )
    try:
        _ = schedule.arguments
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    return schedule


def _check(values: Any, where: str) -> None:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where}: expected a mapping with name, cron or interval, params and store")
    for key, value in values.items():
        if key not in KEYS:
            hint = nearest(key, sorted(KEYS)) if isinstance(key, str) else ""
            raise UsageError(f"{where}: unknown key {key!r}{hint}; known: {', '.join(sorted(KEYS))}")
        if not isinstance(value, KEYS[key]):
            raise UsageError(f"{where}: {key} is {value!r}; expected {KEYS[key].__name__}")
    for key in ("name", "params", "store"):
        if not values.get(key):
            raise UsageError(f"{where}: {key} is missing")
    if not _NAME.fullmatch(values["name"]):
        raise UsageError(f"{where}: name is {values['name']!r}; use lower-case letters, digits and '-', 63 at most")


def _interval_s(text: str, where: str) -> int:
    number, unit = text[:-1], text[-1:]
    seconds = int(number) * _UNITS_S[unit] if number.isdecimal() and unit in _UNITS_S else 0
    if seconds < SHORTEST_S:
        raise UsageError(f"{where}: interval is {text!r}; write a time of a minute or more, such as 90m, 24h or 7d")
    return seconds


def cron(text: str, where: str) -> str:
    """A cron of six fields, seconds first, as Kubeflow reads it, of one of six or of five, as everybody else writes it.

    Kubeflow would read five fields as seconds, minutes, hours, days and months: "0 2 * * *" would mean every hour.
    """
    fields = text.split()
    if text in _DESCRIPTORS:
        return text
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise UsageError(
            f"{where}: cron {text!r} has {len(fields)} fields; write minute, hour, day of the month, month and day of "
            f"the week, with the second before them if need be, or one of {', '.join(_DESCRIPTORS)}"
        )
    for field, (what, low, high, names) in zip(fields, _FIELDS, strict=True):
        for part in field.split(","):
            if not _part(part.lower(), low, high, names):
                raise UsageError(f"{where}: cron {text!r}: {part!r} is no {what}; it goes from {low} to {high}")
    return " ".join(fields)


def _part(part: str, low: int, high: int, names: list[str]) -> bool:
    span, slash, step = part.partition("/")
    if slash and not (step.isdecimal() and int(step) > 0):
        return False
    if span in ("*", "?"):
        return True
    numbers = [names.index(end) + low if end in names else end for end in span.split("-")]
    if len(numbers) > 2 or not all(isinstance(n, int) or n.isdecimal() for n in numbers):
        return False
    bounds = [int(n) for n in numbers]
    return all(low <= n <= high for n in bounds) and bounds == sorted(bounds)
