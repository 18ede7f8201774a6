"""What the stand-in of Kubeflow Pipelines keeps: objects by their ids, with names of their own, listed by page."""

from __future__ import annotations

import json
from typing import Any

from kubeflow_contract import Refused, check

FILTERS = {
    "runs": {"run_id", "display_name", "created_at", "state", "recurring_run_id", "storage_state", "experiment_id"},
    "recurringruns": {"recurring_run_id", "display_name", "created_at", "description"},
    "experiments": {"experiment_id", "display_name", "created_at"},
    "pipelines": {"pipeline_id", "display_name", "name", "created_at"},
    "versions": {"pipeline_version_id", "display_name", "name", "created_at"},
}


def there(kept: dict[str, dict[str, Any]], key: str, what: str) -> dict[str, Any]:
    if key not in kept:
        raise Refused(404, f"Failed to get {what}: ResourceNotFoundError: {what} {key} not found")
    return kept[key]


def kept(place: dict[str, dict[str, Any]], one: dict[str, Any]) -> dict[str, Any]:
    place[next(iter(one.values()))] = one
    return one


def unique(kept: dict[str, dict[str, Any]], name: str, what: str, *, upload: bool = False) -> None:
    if not name:
        raise Refused(400, f"{what}'s name cannot be empty")
    if any(one["display_name"] == name for one in kept.values()):
        raise Refused(
            409, "Failed to create a pipeline version" if upload else f"Already exist error: The {what} {name}"
        )


def listed(what: str, items: str, kept: dict[str, dict[str, Any]], queries: dict[str, str]) -> dict[str, Any]:
    found = list(kept.values())
    if text := queries.get("filter"):
        spec = json.loads(text)
        check({"predicates": spec["predicates"]}, "V2beta1Filter", "filter")
        for predicate in spec["predicates"]:
            if predicate["key"] not in FILTERS[what]:
                raise Refused(400, f"Invalid filter key {predicate['key']!r}")
            if predicate["operation"] != "EQUALS":
                raise Refused(400, f"the stand-in knows no {predicate['operation']}")
            found = [one for one in found if one.get(predicate["key"]) == predicate["string_value"]]
    size, token = int(queries.get("page_size", "20")), queries.get("page_token", "")
    if not 0 < size <= 200:
        raise Refused(400, "page size out of range")
    key, _, order = queries.get("sort_by", "created_at").partition(" ")
    if key not in FILTERS[what] or order not in ("", "asc", "desc"):
        raise Refused(400, f"Invalid sorting field {key!r}")
    found.sort(key=lambda one: one.get(key, ""), reverse=order == "desc")
    start = int(bytes.fromhex(token)) if token else 0
    page = {items: found[start : start + size], "total_size": len(found)}
    if start + size < len(found):
        page["next_page_token"] = str(start + size).encode().hex()
    return page
