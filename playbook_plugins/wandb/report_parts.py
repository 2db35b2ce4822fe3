"""What does each study contribute to a W&B report: which tables, which words, which charts, from which runs?

Playbook: "Extracting insight from experimental results".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from playbook_plugins.analysis import Finding, Trials
from playbook_plugins.charts.table import describe_drawn
from playbook_plugins.report.proposal import ProposedRound
from playbook_plugins.report.study import describe_study
from playbook_plugins.wandb.report_blocks import StudyPart
from playbook_plugins.wandb.report_chapters import (
    BUDGET_KEY,
    CURVES_KEY,
    SHEET_KEY,
    TRIALS_KEY,
    Source,
    list_chapters,
)
from playbook_plugins.wandb.report_panels import Condition
from playbook_plugins.wandb.report_study import chart_study
from playbook_plugins.wandb.report_tables import (
    ReportTable,
    name_columns,
    tabulate_budget,
    tabulate_curves,
    tabulate_sheet,
    tabulate_trials,
)
from playbook_plugins.wandb.run_layout import STUDY_NAME_KEY

# Of a run, a group and an artifact in W&B.
MAX_NAME = 128
# A limit of W&B: more runs are not read for a chart.
_MAX_LIVE = 500


def source_of(trials: Trials, place: int, run_id: str, *, live: bool) -> Source:
    """Return where the charts of a study read: with several studies, the tables of each have keys of their own."""
    keys = (TRIALS_KEY, CURVES_KEY, BUDGET_KEY)
    tables = {key: key if not place else key.replace("/", f"/{place + 1}/") for key in keys}
    own = (Condition(section="run", name="name", value=run_id),)
    return Source(
        conditions=trial_conditions(trials.name) if live else own, tables=tables, is_live=live, report_run=own
    )


def trial_conditions(study: str) -> tuple[Condition, ...]:
    """Return which runs are those of the trials of a study: also runs that training began, whatever their group."""
    return (Condition(section="config", name=STUDY_NAME_KEY, value=study),)


def tabulate_studies(
    tables: Sequence[Trials], sources: Sequence[Source], sheet: Sequence[Mapping[str, Any]]
) -> dict[str, ReportTable]:
    """Return the tables that the report's run logs, by key: those of the trials, and of the others those with a row."""
    rows: dict[str, ReportTable] = {}
    # Charts of the trials are there even while all trials are running.
    kept = {source.tables[TRIALS_KEY] for source in sources}
    for table, source in zip(tables, sources, strict=True):
        if not source.is_live:
            rows[source.tables[TRIALS_KEY]] = tabulate_trials(table, name_columns(table))
            rows[source.tables[CURVES_KEY]] = tabulate_curves(table)
        rows[source.tables[BUDGET_KEY]] = tabulate_budget(table)
    rows[SHEET_KEY] = tabulate_sheet(sheet)
    return {key: table for key, table in rows.items() if table.rows or key in kept}


def describe_studies(
    tables: Sequence[Trials],
    found: Sequence[Sequence[Finding]],
    proposals: Sequence[ProposedRound | None],
    sheet: Sequence[Mapping[str, Any]],
    sources: Sequence[Source],
    *,
    live: bool,
) -> list[StudyPart]:
    """Return what the report says of each study."""
    runs = {row.get("study"): row for row in sheet}
    return [
        StudyPart(
            words=describe_study(table, findings, proposal=proposal, run=runs.get(table.name)),
            chapters=list_chapters(chart_study(table, findings, is_live=live), source),
            limits=_limits(table, live=live),
        )
        for table, findings, proposal, source in zip(tables, found, proposals, sources, strict=True)
    ]


def _limits(trials: Trials, *, live: bool) -> list[str]:
    if not live:
        drawn = describe_drawn(trials)
        return [drawn] if drawn else []
    if len(trials) <= _MAX_LIVE:
        return []
    return [
        f"The charts follow the runs of the study; W&B reads {_MAX_LIVE} of its {len(trials):,} runs for each. "
        "Findings, tables and counts are of all."
    ]


def name_artifact(names: Sequence[str]) -> str:
    """Return the name of the artifact that holds the page."""
    words = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(names)).strip("-.") or "study"
    return f"playbook-report-{words}"[:MAX_NAME]
