"""How does a study become a report in W&B? Published whole or not at all, and updated in place when published again.

Playbook: "Extracting insight from experimental results"; "Automate generically useful plots".

All input is checked and all is rendered first. Then the presets are published, which harms nothing, the report's run is
logged and checked, and last of all the report itself is saved by one request. When a step fails, the run is deleted
again, and an earlier report stays as it was. Once the new version is saved, the run of the former one is deleted: its
tables would only take up storage.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from playbook_plugins import __version__
from playbook_plugins.analysis import Finding, Trials
from playbook_plugins.analysis.records import Direction
from playbook_plugins.charts.theme import label
from playbook_plugins.report.inputs import findings_of, proposals_of
from playbook_plugins.report.page import render_report
from playbook_plugins.report.proposal import ProposedRound
from playbook_plugins.report.sheet import describe_sheet
from playbook_plugins.wandb.clients import import_reports
from playbook_plugins.wandb.presets import PRESETS, publish_presets
from playbook_plugins.wandb.report_blocks import (
    build_report,
    serialize,
    sheet_blocks,
    study_blocks,
    text_blocks,
)
from playbook_plugins.wandb.report_inputs import check_place, check_tables
from playbook_plugins.wandb.report_parts import (
    MAX_NAME,
    describe_studies,
    name_artifact,
    source_of,
    tabulate_studies,
    trial_conditions,
)
from playbook_plugins.wandb.report_plan import PlannedRound, describe_making, plan_blocks
from playbook_plugins.wandb.report_run import MARKER_KEY, ReportRun, delete_report_run, log_report_run
from playbook_plugins.wandb.report_saving import (
    find_report,
    make_marker,
    own_randomness,
    place_address,
    save_report,
    write_description,
)
from playbook_plugins.wandb.retrying import WandbUnavailableError


@own_randomness()
def publish_report(
    trials: Trials | Sequence[Trials],
    *,
    entity: str,
    project: str,
    draft: bool = True,
    title: str | None = None,
    findings: Sequence[Finding] | Sequence[Sequence[Finding]] | None = None,
    next_round: ProposedRound | Sequence[ProposedRound | None] | None = None,
    sheet: Sequence[Mapping[str, Any]] = (),
    live: bool = False,
    page: bool = True,
) -> str:
    """Publish the report of one study, or of the studies of one round, and return its address.

    It says what the page of `playbook_plugins.report.write_report` says, in the same order, with charts that W&B
    draws. Publishing the same studies again updates the same report: what was written into it by hand is lost.

    Parameters
    ----------
    trials
        One table of trials, or several, each with at least one trial.
    entity, project
        Where: a user or a team, and a project, which is made where there is none.
    draft
        Whether only its author can see it. The draft and the published report of a study are two.
    title
        By default the name of the study, or of the studies; W&B shows 128 characters.
    findings, next_round, sheet
        As `playbook_plugins.report.write_report`.
    live
        Whether the charts read the runs of the trials, as `log_trial` has marked them, and follow them, at most 500 of
        each study. By default they read tables of at most 10,000
        trials that one run of the report's own holds: the study as it is now, whoever has logged it.
    page
        Whether the self-contained page goes with it, as an artifact of the report's run.

    Returns
    -------
    str
        The address of the report.

    Raises
    ------
    ValueError
        When there is no table or one has no trial, entity or project are none, W&B is offline, or the findings or
        proposals do not fit the tables. Nothing was sent.
    WandbUnavailableError
        When W&B cannot be reached in the end. An earlier report is as it was, and the new run was deleted if W&B
        answered; the message says so.
    ImportError
        When the extra ``wandb``, or for the page the extra ``report``, is not installed.
    """
    import_reports()
    check_place(entity, project)
    tables = [trials] if isinstance(trials, Trials) else list(trials)
    check_tables(tables)
    is_one = isinstance(trials, Trials)
    found = findings_of(tables, is_one, findings)
    proposals = proposals_of(tables, is_one, next_round)
    names = [table.name for table in tables]
    if live and not all(names):
        raise ValueError(
            f"`trials` are of studies called {names}: live charts find the runs of a study by its name. Name the "
            "study, or publish with live=False."
        )
    shown = title or ", ".join(names) or "Tuning"
    marker = make_marker("report", names, draft=draft)
    run_id = uuid.uuid4().hex[:16]
    sources = [source_of(table, place, run_id, live=live) for place, table in enumerate(tables)]
    logged = ReportRun(
        run_id=run_id,
        name=label(f"report: {shown}", MAX_NAME),
        group=label(", ".join(names), MAX_NAME),
        config={MARKER_KEY: marker, "playbook_studies": names, "playbook_plugins": __version__},
        tables=tabulate_studies(tables, sources, sheet),
        page=render_report(tables, found, shown, proposals, sheet) if page else None,
        page_name=name_artifact(names),
    )
    parts = describe_studies(tables, found, proposals, sheet, sources, live=live)
    charts = {stem: f"{entity}/{preset.name}" for stem, preset in PRESETS.items()}
    blocks = [block for part in parts for block in study_blocks(part, charts, is_one=len(parts) == 1)]
    if len(parts) > 1:
        blocks.insert(0, import_reports().TableOfContents())
    blocks += sheet_blocks(describe_sheet(sheet))
    making = describe_making(place_address(entity, project), logged, is_live=live)
    blocks += text_blocks("How this report was made", making)
    report = build_report(entity, project, shown, write_description(marker, names), blocks)
    # What could not be sent must fail here, where nothing was.
    serialize(report)
    return _publish(report, logged, marker, draft=draft)


@own_randomness()
def report_template(
    round: PlannedRound | Trials,
    *,
    entity: str,
    project: str,
    study_name: str | None = None,
    direction: Direction | None = None,
    objective_name: str | None = None,
    draft: bool = True,
    title: str | None = None,
) -> str:
    """Make the live report of a round before its first trial, and return its address.

    Its charts follow the runs that `log_trial` marks, and its text goes through the playbook's checklist. Making it
    again replaces it, ticks included.

    Parameters
    ----------
    round
        A `playbook_plugins.optuna.Round`, or anything with its goal, parameters, fixed values, caveats and n_trials;
        or the table of a study, with or without trials.
    entity, project, draft, title
        As `publish_report`.
    study_name
        The study whose runs it shows; by default the name of the table, or of the round where it has one.
    direction, objective_name
        In which direction which objective gets better; by default those of the table, else ``"minimize"`` and
        ``"objective"``.

    Returns
    -------
    str
        The address of the report.

    Raises
    ------
    ValueError
        When the study has no name, the direction is none, entity or project are none, or W&B is offline.
    WandbUnavailableError
        When W&B cannot be reached in the end; an earlier report is as it was.
    ImportError
        When the extra ``wandb`` is not installed.
    """
    import_reports()
    check_place(entity, project)
    name = study_name or getattr(round, "name", "") or getattr(round, "study_name", "")
    if not name:
        raise ValueError(
            f"`study_name` is {study_name!r}, and the round has no name of its own: live charts find the runs of a "
            "study by its name. Pass the name of the study that will run the round."
        )
    way = direction or getattr(round, "direction", "minimize")
    if way not in ("minimize", "maximize"):
        raise ValueError(f"`direction` is {way!r}: it must be 'minimize' or 'maximize'. Pass one of them.")
    charts = {stem: f"{entity}/{preset.name}" for stem, preset in PRESETS.items()}
    blocks = plan_blocks(
        round,
        study=name,
        direction=way,
        objective_name=objective_name or str(getattr(round, "objective_name", "objective")),
        conditions=trial_conditions(name),
        charts=charts,
    )
    marker = make_marker("template", [name], draft=draft)
    report = build_report(entity, project, title or name, write_description(marker, [name]), blocks)
    serialize(report)
    return _publish(report, None, marker, draft=draft)


def _publish(report: Any, logged: ReportRun | None, marker: str, *, draft: bool) -> str:
    entity, project = report.entity, report.project
    # A reading request goes first: a wrong key or a dead server shows before anything is written.
    find_report(entity, project, marker, draft=draft)
    publish_presets(entity)
    try:
        if logged is not None:
            log_report_run(entity, project, logged)
        saved, former = save_report(report, marker, draft=draft)
    except BaseException as error:
        left = "" if logged is None else _withdraw(entity, project, logged.run_id)
        state = f"The report {report.title!r} was not published; an earlier version of it is as it was.{left}"
        if isinstance(error, WandbUnavailableError):
            raise WandbUnavailableError(f"{state} The cause: {error}") from error
        error.add_note(state)
        raise
    for run_id in former.run_ids if former is not None else ():
        try:
            delete_report_run(entity, project, run_id, marker)
        except Exception as error:
            warnings.warn(f"The report is published, but its former run {run_id} is still there: {error}", stacklevel=3)
    return saved.url


def _withdraw(entity: str, project: str, run_id: str) -> str:
    """Delete the run that was logged in vain; return a sentence on how that went."""
    try:
        was_there = delete_report_run(entity, project, run_id)
    except Exception:
        return f" The run {run_id}, which holds its tables, could not be deleted: delete it by hand if it is there."
    return f" The run {run_id}, which held its tables, was deleted again." if was_there else ""
