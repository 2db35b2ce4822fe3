"""Which runs does a Mongo-style filter of the W&B client keep, and in which order does it want them?"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

_MISSING = object()
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
# Each attribute of a run under every name that the client's documentation and its report filters use for it.
_ATTRIBUTES = {
    "name": "name",
    "display_name": "display_name",
    "displayName": "display_name",
    "group": "group",
    "jobType": "job_type",
    "job_type": "job_type",
    "tags": "tags",
    "state": "state",
    "sweep": "sweep_name",
    "notes": "notes",
    "created_at": "created_at",
    "createdAt": "created_at",
    "heartbeat_at": "heartbeat_at",
    "heartbeatAt": "heartbeat_at",
    "updated_at": "heartbeat_at",
    "username": "username",
}


class Filterable(Protocol):
    """What a filter looks at beside the attributes: a run's config, as {key: {"value": ...}}, and its summary."""

    config: dict[str, Any]
    summary: dict[str, Any]


def matches(run: Filterable, condition: Mapping[str, Any]) -> bool:
    """Say whether a run meets a condition; one that W&B does not document is a ValueError."""
    return all(_matches_entry(run, key, wanted) for key, wanted in condition.items())


def _matches_entry(run: Filterable, key: str, wanted: Any) -> bool:
    if key == "$and":
        return all(matches(run, part) for part in wanted)
    if key == "$or":
        return any(matches(run, part) for part in wanted)
    if key == "$nor":
        return not any(matches(run, part) for part in wanted)
    if key == "$not":
        return not matches(run, wanted)
    if key.startswith("$"):
        raise ValueError(f"unknown operator {key} in a filter")
    found = _find(run, key)
    if isinstance(wanted, Mapping) and any(name.startswith("$") for name in wanted):
        return all(_compare(found, name, operand) for name, operand in wanted.items())
    return _equals(found, wanted)


def _compare(found: Any, name: str, operand: Any) -> bool:
    if name == "$eq":
        return _equals(found, operand)
    if name == "$ne":
        return not _equals(found, operand)
    if name == "$in":
        return any(_equals(found, one) for one in operand)
    if name == "$nin":
        return not any(_equals(found, one) for one in operand)
    if name == "$exists":
        return (found is not _MISSING) == operand
    if name == "$not":
        return not all(_compare(found, inner, wanted) for inner, wanted in operand.items())
    if name == "$regex":
        return isinstance(found, str) and re.search(operand, found) is not None
    if name not in _COMPARISONS:
        raise ValueError(f"unknown operator {name} in a filter")
    return _comparable(found, operand) and _COMPARISONS[name](found, operand)


def _equals(found: Any, wanted: Any) -> bool:
    if isinstance(found, list) and not isinstance(wanted, list):
        return wanted in found
    if wanted is None:
        # Mongo's null also stands for an absent key.
        return found is None or found is _MISSING
    # In JSON true is not 1.
    return isinstance(found, bool) == isinstance(wanted, bool) and found == wanted


def _comparable(found: Any, operand: Any) -> bool:
    numbers = (int, float)
    return (isinstance(found, numbers) and isinstance(operand, numbers)) or (
        isinstance(found, str) and isinstance(operand, str)
    )


def _find(run: Filterable, key: str) -> Any:
    section, _, rest = key.partition(".")
    if section == "config" and rest:
        name = rest.removesuffix(".value")
        values = {one: entry["value"] for one, entry in run.config.items() if "value" in entry}
        return _descend(values, name)
    if section in ("summary_metrics", "summaryMetrics") and rest:
        return _descend(run.summary, rest)
    if key not in _ATTRIBUTES:
        raise ValueError(f"unknown key {key!r} in a filter or an order")
    return getattr(run, _ATTRIBUTES[key])


def _descend(values: Any, path: str) -> Any:
    if not isinstance(values, Mapping):
        return _MISSING
    # A metric may itself be called "val.loss": the whole path goes before its parts.
    if path in values:
        return values[path]
    for stop in (found.start() for found in re.finditer(r"\.", path)):
        if path[:stop] in values:
            return _descend(values[path[:stop]], path[stop + 1 :])
    return _MISSING


def sort_runs(runs: Sequence[Any], order: str | None) -> list[Any]:
    """Sort runs by the client's order ("+created_at", "-summary_metrics.loss"); those without the value come last."""
    order = order or "+created_at"
    descending, key = order.startswith("-"), order.lstrip("+-")
    found = [(run, _find(run, key)) for run in runs]
    present = [(run, value) for run, value in found if value is not _MISSING and value is not None]
    absent = [run for run, value in found if value is _MISSING or value is None]
    # Values of several types cannot be compared with each other, so that the type's name goes first.
    present.sort(key=lambda pair: (_kind(pair[1]), pair[1]), reverse=descending)
    return [run for run, _ in present] + absent


def _kind(value: Any) -> str:
    return "number" if isinstance(value, (int, float)) else type(value).__name__
