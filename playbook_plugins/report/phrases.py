"""How is a number written in a sentence? The small words that every wording shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

from playbook_plugins.analysis.findings import Number

Numbers: TypeAlias = Mapping[str, Number]
# Headline, sentence, action.
Words: TypeAlias = tuple[str, str, str]


def number_text(value: Number) -> str:
    """Return a number as people write it: four significant digits, no exponent between 1e-3 and 1e5."""
    if value is None:
        return "unknown"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (math.isfinite(value) and value == int(value) and abs(value) < 1e5):
        return f"{int(value):,}"
    if not math.isfinite(value):
        return "not finite"
    if abs(value) < 1e-3 or abs(value) >= 1e5:
        digits, exponent = f"{value:.3e}".split("e")
        return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def config_text(value: Any) -> str:
    """Return the value of a hyperparameter as people write it."""
    return number_text(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def percent(value: Number) -> str:
    """Return a share in [0, 1] as a percentage of two or more digits."""
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return number_text(value)
    share = 100 * value
    if 99.5 <= share < 100:
        # "100%" would say all.
        return f"{min(share, 99.9):.1f}%"
    return f"{share:.0f}%" if share >= 10 or share == 0 else f"{share:.2g}%"


def count_text(value: Number, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one."""
    return f"{number_text(value)} {noun}" + ("" if value == 1 else "s")


def as_float(value: Number) -> float:
    """Return a number, NaN where it is unknown or a text."""
    return math.nan if value is None or isinstance(value, str) else float(value)


def listed(numbers: Numbers) -> str:
    """Return all numbers of a finding by name, for checks that have no words of their own."""
    parts = []
    for name, value in numbers.items():
        # Which trials it was asked of stands in the headline.
        if name != "value":
            words = name.replace("n_", "number of ", 1) if name.startswith("n_") else name
            parts.append(f"{words.replace('_', ' ')} = {number_text(value)}")
    return capital(", ".join(parts))


def has(numbers: Numbers, *names: str) -> bool:
    """Return whether a finding holds all of these numbers."""
    return all(numbers.get(name) is not None for name in names)


def split_subject(subject: str) -> tuple[str, str]:
    """Split "learning_rate, upper" into the hyperparameter and the side; a name may hold a comma itself."""
    name, comma, side = subject.rpartition(", ")
    return (name, side) if comma and side in ("upper", "lower") else (subject, "")


def where_asked(numbers: Numbers) -> str:
    """Return which trials a question was asked of, for a headline; "" where it was all of them."""
    return f" ({number_text(numbers['value'])})" if numbers.get("value") is not None else ""


def among(numbers: Numbers) -> str:
    """Return the words that name the trials a question was asked of; "" where it was all of them."""
    return f"among the trials with {number_text(numbers['value'])}, " if numbers.get("value") is not None else ""


def capital(text: str) -> str:
    """Return a sentence with its first letter in upper case."""
    return text[:1].upper() + text[1:]
