"""How did a run of W&B end, seen as a trial? Its own keys say so, or its state and its last objective do.

Playbook: "Identifying bad search space boundaries": an infeasible trial is a result, a broken run is none.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from playbook_plugins.analysis.records import Status
from playbook_plugins.wandb.run_layout import REASON_KEY, STATUS_KEY, STUDY_KEY, StudyHeader, read_number

_LIVE = ("running", "pending")
_ENDS = {"crashed": "crashed", "failed": "failed", "killed": "was killed", "preempted": "was preempted"}


@dataclass(frozen=True, kw_only=True, eq=False)
class ReadRun:
    """One run as it was read, from wherever.

    Attributes
    ----------
    id, name
        As W&B has them.
    state
        W&B's word: "finished", "running", "failed", "crashed", "killed", ...
    config, summary
        As W&B hands them over: NaN and infinities may be texts, NaN may be None.
    job_type, group
        As W&B has them; "" without one.
    reason
        What the reader found wrong with the run, for instance that its file is cut off; "" if nothing.
    """

    id: str
    name: str = ""
    state: str = "finished"
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    job_type: str = ""
    group: str = ""
    reason: str = ""

    @functools.cached_property
    def header(self) -> StudyHeader | None:
        """What the run says of its study; None where it says nothing."""
        text = self.config.get(STUDY_KEY)
        return StudyHeader.from_json(text) if isinstance(text, str) else None


def read_summary(summary: Mapping[str, Any], key: str) -> tuple[bool, float]:
    """Return whether a summary has a key, and the number there.

    Parameters
    ----------
    summary
        As W&B hands it over.
    key
        A key, which may itself hold dots and slashes, or keys of nested parts joined by dots: ``val_loss.min``.
    """
    if key in summary:
        return True, read_number(summary[key])
    for place, char in enumerate(key):
        inner = summary.get(key[:place]) if char == "." else None
        if isinstance(inner, Mapping):
            found = read_summary(inner, key[place + 1 :])
            if found[0]:
                return found
    return False, math.nan


def is_ended(run: ReadRun) -> bool:
    """Return whether a run is done, as its state or its own keys say."""
    return run.state == "finished" or STATUS_KEY in run.summary


def judge_run(run: ReadRun, is_known: bool, value: float) -> tuple[Status, str]:
    """Return how a run ended as a trial, and why; "" where there is nothing to say.

    Parameters
    ----------
    run
        The run.
    is_known, value
        Its objective, as `read_summary` returns it.
    """
    told = run.summary.get(STATUS_KEY)
    if isinstance(told, str) and told in set(Status):
        status, reason = Status(told), str(run.summary.get(REASON_KEY) or "")
        if status is not Status.COMPLETE or (is_known and math.isfinite(value)):
            return status, reason
    if run.state in _LIVE:
        return Status.RUNNING, ""
    if is_known and not math.isfinite(value):
        return Status.INFEASIBLE, f"the objective is {value}" if run.state == "finished" else f"diverged: {value}"
    if run.state == "finished":
        return (Status.COMPLETE, "") if is_known else (Status.FAILED, "the run finished without the objective")
    return Status.FAILED, run.reason or f"the run {_ENDS.get(run.state, f'is {run.state}')}"
