"""Is there an earlier version of this report, and how does the new one take its place? Found by a line of our own.

Playbook: "Automate generically useful plots".

W&B gives a report no key of its own choice, so that its description carries one: a marker that follows from the names
of the studies and from whether it is a draft, a published report or a template. What does not carry it is never
touched. Of several that do, for instance after somebody has copied the report, the oldest is the original.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from playbook_plugins.charts.theme import label
from playbook_plugins.wandb.clients import start_wandb
from playbook_plugins.wandb.retrying import with_retries

Kind: TypeAlias = Literal["report", "template"]
_VIEW_TYPES = {True: "runs/draft", False: "runs"}
_MAX_NAMES = 300


@dataclass(frozen=True, kw_only=True)
class SavedReport:
    """A report that W&B keeps: its id, where it is shown, and the runs to which its charts are bound."""

    id: str
    run_ids: frozenset[str]
    url: str = ""


def make_marker(kind: Kind, names: Sequence[str], *, draft: bool) -> str:
    """Return the marker of a report: one word, the same whenever the same studies are published the same way.

    Parameters
    ----------
    kind
        A report of trials, or the template for a round without any.
    names
        Of the studies; their order does not matter.
    draft
        Whether it is a draft: that and the published report are two.
    """
    digest = hashlib.sha256(json.dumps(sorted(names)).encode()).hexdigest()[:12]
    return f"playbook-{kind}/{'draft' if draft else 'published'}/{digest}"


def place_address(entity: str, project: str) -> str:
    """Return the address of a project below that of W&B."""
    return f"/{quote(entity)}/{quote(project)}"


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Let the client draw names that a seed of the caller's does not repeat, and leave that seed's sequence alone.

    A report, its panels and selections of runs get names from Python's random numbers.
    """
    state = random.getstate()
    random.seed()
    try:
        yield
    finally:
        random.setstate(state)


def write_description(marker: str, names: Sequence[str]) -> str:
    """Return the lines below a report's title, with its marker."""
    studies = label(", ".join(names), _MAX_NAMES)
    return (
        f"The Deep Learning Tuning Playbook's questions, asked of: {studies}\n"
        f"Publishing again replaces what is below, and finds this report by: {marker}"
    )


def find_report(entity: str, project: str, marker: str, *, draft: bool) -> SavedReport | None:
    """Return the earlier version of a report, None where there is none, or no such project yet.

    Raises
    ------
    WandbUnavailableError
        When W&B cannot be reached.
    """
    return with_retries(
        f"look for an earlier report in {entity}/{project}", lambda: _find(entity, project, marker, draft)
    )


def save_report(report: Any, marker: str, *, draft: bool) -> tuple[SavedReport, SavedReport | None]:
    """Save a report in the place of its earlier version, or as a new one.

    Parameters
    ----------
    report
        Of wandb-workspaces, with the marker in its description.
    marker, draft
        As `make_marker`.

    Returns
    -------
    tuple
        The saved report, and the version that it replaced, None where there was none.

    Raises
    ------
    WandbUnavailableError
        When W&B cannot be reached in the end.
    """

    def save() -> SavedReport | None:
        # Asked again at each try: one whose answer was lost may have saved it.
        earlier = _find(report.entity, report.project, marker, draft)
        report.id = "" if earlier is None else earlier.id
        report.save(draft=draft)
        return earlier

    earlier = with_retries(f"save the report in {report.entity}/{report.project}", save)
    return SavedReport(id=report.id, run_ids=frozenset(), url=_address(report)), earlier


def _find(entity: str, project: str, marker: str, draft: bool) -> SavedReport | None:
    # An Api keeps the lists that it has read.
    reports = start_wandb().Api().reports(f"{entity}/{project}")
    # Without this, W&B lists published reports only.
    reports.variables["viewType"] = _VIEW_TYPES[draft]
    try:
        found = [report for report in reports if marker in (report.description or "").split()]
    except ValueError:
        # There is no such project yet.
        return None
    if not found:
        return None
    oldest = min(found, key=lambda report: report.created_at)
    return SavedReport(id=oldest.id, run_ids=frozenset(_bound_runs(oldest.spec)))


def _bound_runs(spec: Any) -> Iterator[str]:
    """Yield the ids of the runs by which the charts of a report select their rows."""
    if isinstance(spec, dict):
        if spec.get("key") == {"section": "run", "name": "name"} and isinstance(spec.get("value"), str):
            yield spec["value"]
        for part in spec.values():
            yield from _bound_runs(part)
    elif isinstance(spec, list):
        for part in spec:
            yield from _bound_runs(part)


def _address(report: Any) -> str:
    """Return where a report is shown; the title in the address that W&B's client builds may hold anything."""
    base = report.url.partition(f"/{report.entity}/{report.project}/reports/")[0]
    words = "-".join(re.findall(r"[A-Za-z0-9]+", report.title)) or "report"
    return f"{base}{place_address(report.entity, report.project)}/reports/{words}--{report.id}"
