"""What did a check find? The one result type of analysis/: numbers and a verdict, no display text.

Wording is the report's work (report/wording.py); a finding can be tested, stored and compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

Number: TypeAlias = float | int | str | None


class Verdict(StrEnum):
    """What the data say to a question. NO_EVIDENCE at this many trials is not "fine"."""

    FLAG = "flag"
    NO_EVIDENCE = "no evidence"
    TOO_LITTLE_DATA = "too little data"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The answer of one check about one subject.

    Attributes
    ----------
    check
        Which question was asked, for instance ``"boundary"``, ``"stability edge"``, ``"feasibility"``.
    subject
        What it was asked about, for instance ``"learning_rate, upper"`` or ``"study"``.
    verdict
        FLAG, NO_EVIDENCE or TOO_LITTLE_DATA.
    numbers
        What the verdict rests on, by name; units are in the check's docstring.
    section
        The section of the playbook that asks the question.
    error_rate
        The known rate of false flags, study-wise, of this check; None where it is a plain count or comparison.
    """

    check: str
    subject: str
    verdict: Verdict
    numbers: Mapping[str, Number] = field(default_factory=dict)
    section: str = ""
    error_rate: float | None = None
