"""The contract of the Kubeflow Pipelines API, read from the installed client, and what its backend refuses too."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

import kfp_server_api


class Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


@dataclass(frozen=True)
class Route:
    """One method of the API. queries: names that it takes; body: the model that it takes, "" for none."""

    method: str
    path: str
    queries: frozenset[str]
    body: str
    answer: str
    upload: bool

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(re.sub(r"\\\{[^}]+\\\}", r"([^/:]+)", re.escape(self.path)) + "$")


@cache
def contract() -> tuple[Route, ...]:
    """The API's methods, as the installed client has them."""
    found = []
    for name in dir(kfp_server_api):
        if not name.endswith("ServiceApi"):
            continue
        for attribute, function in vars(getattr(kfp_server_api, name)).items():
            if not attribute.endswith("_with_http_info"):
                continue
            source = inspect.getsource(function)
            call = re.search(r"call_api\(\s*'([^']+)', '([A-Z]+)'", source)
            assert call, attribute
            body = re.search(r"body_params = local_var_params\['(\w+)'\]", source)
            kind = re.search(rf":type {body[1]}: (\w+)", source) if body else None
            answer = re.search(r"response_type='(\w+)'", source)
            found.append(
                Route(
                    call[2],
                    call[1],
                    frozenset(re.findall(r"query_params\.append\(\('(\w+)'", source)),
                    kind[1] if kind else "",
                    answer[1] if answer else "",
                    "local_var_files['uploadfile']" in source,
                )
            )
    assert len(found) > 30
    return tuple(found)


def check(value: Any, kind: str, where: str) -> None:
    """Refuse what a field of this type does not take."""
    if kind.startswith("list["):
        if not isinstance(value, list):
            raise Refused(400, f"{where}: expected a list")
        for item in value:
            check(item, kind[5:-1], where)
    elif kind.startswith("dict("):
        if not isinstance(value, dict):
            raise Refused(400, f"{where}: expected an object")
        for name, item in value.items():
            check(item, kind.partition(", ")[2][:-1], f"{where}.{name}")
    elif kind == "datetime":
        datetime.fromisoformat(value)
    elif kind in ("str", "int", "bool"):
        right = {"str": str, "int": int, "bool": bool}[kind]
        if not isinstance(value, right) or (kind == "int" and isinstance(value, bool)):
            raise Refused(400, f"{where}: expected {kind}, got {value!r}")
    elif kind != "object":
        model = getattr(kfp_server_api, kind)
        allowed = getattr(model, "allowable_values", None)
        if not model.openapi_types:
            values = {v for k, v in vars(model).items() if k.isupper() and isinstance(v, str)}
            if value not in (allowed or values):
                raise Refused(400, f"{where}: {value!r} is none of {sorted(values)}")
            return
        if not isinstance(value, dict):
            raise Refused(400, f"{where}: expected a {kind}")
        names = {model.attribute_map[name]: item for name, item in model.openapi_types.items()}
        for name, item in value.items():
            if name not in names:
                raise Refused(400, f"{where}: unknown field {name!r} of {kind}")
            check(item, names[name], f"{where}.{name}")


def cron_fields(text: str) -> list[str]:
    """As robfig/cron's first version reads them: seconds first, and the day of the week may be missing."""
    fields = text.split()
    if text.startswith("@"):
        return fields
    if not 5 <= len(fields) <= 6:
        raise Refused(400, f"Schedule cron is not a supported format: expected 5 to 6 fields, found {len(fields)}")
    bounds = [(0, 59), (0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
    for one, (low, high) in zip(fields, bounds, strict=False):
        for number in re.findall(r"\d+", one.split("/")[0]):
            if not low <= int(number) <= high:
                raise Refused(400, f"Schedule cron is not a supported format: {number} out of range")
    return fields
