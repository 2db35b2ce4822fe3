"""How do many runs become the table of one study? The same for runs from W&B and from files on disk.

Playbook: "Extracting insight from experimental results".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.analysis.records import Curve, Direction, Status, TrialRecord
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.wandb.found_space import FoundSpace, find_choice, find_space, flatten_config
from playbook_plugins.wandb.run_layout import (
    BEST_STEP_KEY,
    MAX_STEPS_KEY,
    NUMBER_KEY,
    OBJECTIVE_KEY,
    REPORT_JOB,
    VALUES_KEY,
    StudyHeader,
    read_number,
    values_of_config,
)
from playbook_plugins.wandb.run_outcomes import ReadRun, is_ended, judge_run, read_summary

_SHOWN = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What is asked of the runs: the arguments of `trials_from_runs` that decide what they mean.

    Attributes
    ----------
    source
        Where the runs come from, for messages and as a name.
    study, objective, direction, parameters
        As there.
    sweep
        The config of the sweep of the runs, or None.
    """

    source: str
    study: str | None = None
    objective: str = OBJECTIVE_KEY
    direction: Direction | None = None
    parameters: Sequence[Parameter] | None = None
    sweep: Mapping[str, Any] | None = None


def tabulate_runs(runs: Sequence[ReadRun], question: Question) -> tuple[list[ReadRun], Trials]:
    """Return the runs that are the trials of a study, and their table without curves.

    Parameters
    ----------
    runs
        In the order of their creation.
    question
        What is asked of them.

    Returns
    -------
    list of ReadRun
        One a trial, in the order of the table.
    Trials
        With None for every curve.

    Raises
    ------
    ValueError
        When there is no run, several studies and none is named, no run has the objective, or its direction is unknown.
    """
    selected = _select(runs, question)
    told = [run.header for run in selected if run.header is not None]
    # The goal and the caveats of a study may change while it runs.
    last = told[-1] if told else None
    numbered = _number(selected)
    chosen = list(numbered.values())
    headers = [run.header for run in chosen if run.header is not None]
    objective = [read_summary(run.summary, question.objective) for run in chosen]
    _check_objective(chosen, [is_known for is_known, _ in objective], question)
    outcomes = [judge_run(run, is_known, value) for run, (is_known, value) in zip(chosen, objective, strict=True)]
    space, values = _space(chosen, headers, last, question)
    names = {header.objective_name for header in headers} - {""}
    own_name = names.pop() if len(names) == 1 else "objective"
    table = Trials.from_columns(
        last.name if last is not None else question.study or question.source,
        space.parameters,
        {parameter.name: _column(parameter, values) for parameter in space.parameters},
        [
            value if status in (Status.COMPLETE, Status.PRUNED) else math.nan
            for (status, _), (_, value) in zip(outcomes, objective, strict=True)
        ],
        direction=_direction(question, last),
        status=[status for status, _ in outcomes],
        reason=[reason for _, reason in outcomes],
        best_step=[_whole(run.summary.get(BEST_STEP_KEY)) for run in chosen],
        max_steps=[_whole(run.summary.get(MAX_STEPS_KEY)) for run in chosen],
        number=list(numbered),
        objective_name=own_name if question.objective == OBJECTIVE_KEY else question.objective,
        fixed=space.fixed,
        goal=last.goal if last is not None else "",
        caveats=last.caveats if last is not None else (),
    )
    return chosen, table


def check_n_curves(n_curves: int | None) -> None:
    """Refuse a number of curves that is none.

    Raises
    ------
    ValueError
        When it is negative or no whole number.
    """
    if n_curves is not None and (isinstance(n_curves, bool) or not isinstance(n_curves, int) or n_curves < 0):
        raise ValueError(
            f"`n_curves` is {n_curves!r}: it must be a whole number from 0. Leave it out to read every curve."
        )


def rows_to_read(trials: Trials, n_curves: int | None) -> list[int]:
    """Return the rows whose curves are to be read: the best ``n_curves`` trials, or all where it is None."""
    if n_curves is None:
        return list(range(len(trials)))
    return [int(row) for row in trials.ranking()[:n_curves]]


def add_curves(trials: Trials, runs: Sequence[ReadRun], curves: Mapping[int, Curve | None]) -> Trials:
    """Return the table with curves by row.

    Parameters
    ----------
    trials, runs
        As `tabulate_runs` returns them. The best step of a run that does not tell it is that of the curve's best
        evaluation.
    curves
        Those that were read; a row without one has None.
    """
    best_step = trials.best_step.copy()
    for row, curve in curves.items():
        if curve is not None and BEST_STEP_KEY not in runs[row].summary:
            best_step[row] = TrialRecord(direction=trials.direction, curve=curve, status=Status.RUNNING).best_step
    return replace(trials, curves=tuple(curves.get(row) for row in range(len(trials))), best_step=best_step)


def _check_objective(runs: Sequence[ReadRun], is_known: Sequence[bool], question: Question) -> None:
    """Refuse an objective that no run has, where runs have anything to tell."""
    if any(is_known) or not any(run.summary for run in runs):
        return
    if question.objective == OBJECTIVE_KEY and any(run.header is not None for run in runs):
        return
    known = sorted({key for run in runs for key in run.summary if not key.startswith("_")})
    raise ValueError(
        f"`objective` is {question.objective!r}: no run in {question.source} has this key in its summary. Pass one of "
        f"{known[:_SHOWN]}{' or others' if len(known) > _SHOWN else ''}, nested keys with dots."
    )


def _select(runs: Sequence[ReadRun], question: Question) -> list[ReadRun]:
    """Return the trials among the runs: where some runs name their study, only those of one study."""
    trials = [run for run in runs if run.job_type != REPORT_JOB]
    if not trials:
        raise ValueError(
            f"there is no run in {question.source}: nothing can be read. Check the name, the filters, and that the "
            "runs have been uploaded."
        )
    named = [run for run in trials if run.header is not None]
    by_study: dict[str, list[ReadRun]] = {}
    if named:
        for run in named:
            assert run.header is not None
            by_study.setdefault(run.header.name, []).append(run)
    elif question.study is not None:
        for run in trials:
            by_study.setdefault(run.group, []).append(run)
    if question.study is not None and question.study not in by_study:
        names = sorted(name for name in by_study if name)
        raise ValueError(
            f"`study` is {question.study!r}: no run in {question.source} belongs to it. "
            + (f"Pass one of {names}." if names else "Log trials with log_trial, or leave `study` out.")
        )
    if not by_study:
        return trials
    if question.study is not None:
        return by_study[question.study]
    if len(by_study) > 1:
        raise ValueError(
            f"`study` is None, but the runs in {question.source} belong to the studies {sorted(by_study)}: a table "
            "holds one. Pass study= one of them, and join tables of one round with Trials.concat."
        )
    return next(iter(by_study.values()))


def _number(runs: Sequence[ReadRun]) -> dict[int, ReadRun]:
    """Return the runs by trial number, ascending; of several runs of one trial, the last finished one.

    Runs without a number are numbered in their order, after the others.
    """
    numbered: dict[int, ReadRun] = {}
    without = []
    for run in runs:
        number = run.config.get(NUMBER_KEY)
        if isinstance(number, bool) or not isinstance(number, int | float):
            without.append(run)
        elif int(number) not in numbered or is_ended(run) or not is_ended(numbered[int(number)]):
            numbered[int(number)] = run
    first = max(numbered, default=-1) + 1
    return dict(sorted(numbered.items())) | dict(enumerate(without, first))


def _direction(question: Question, header: StudyHeader | None) -> Direction:
    told = None if header is None else header.direction
    is_own = question.objective == OBJECTIVE_KEY
    if question.direction is not None:
        if question.direction not in ("minimize", "maximize"):
            raise ValueError(
                f"`direction` is {question.direction!r}: it must be 'minimize' or 'maximize'. Pass the direction in "
                f"which {question.objective} gets better."
            )
        if is_own and told is not None and told != question.direction:
            raise ValueError(
                f"`direction` is {question.direction!r}, but the runs in {question.source} were logged to {told} "
                "their objective: both must agree. Leave `direction` out."
            )
        return question.direction
    if is_own and told is not None:
        return told
    metric = (question.sweep or {}).get("metric") or {}
    goal = metric.get("goal", "minimize")
    if metric.get("name") == question.objective and goal in ("minimize", "maximize"):
        return "minimize" if goal == "minimize" else "maximize"
    raise ValueError(
        f"`direction` is None, and the runs in {question.source} do not tell in which direction "
        f"{question.objective!r} gets better. Pass direction='minimize' or direction='maximize'."
    )


def _space(
    runs: Sequence[ReadRun], headers: Sequence[StudyHeader], last: StudyHeader | None, question: Question
) -> tuple[FoundSpace, list[Mapping[str, Any]]]:
    """Return the search space, and for each run its values under the names of the space."""
    configs = [flatten_config(run.config) for run in runs]
    given = question.parameters
    is_told = any(header.parameters for header in headers)
    if given is None and is_told:
        given = _join_headers(headers)
    if given is None:
        return find_space(configs, question.sweep), list(configs)
    if last is not None and is_told:
        fixed = last.fixed
    else:
        names = {parameter.name for parameter in given}
        found = find_space(configs, question.sweep).fixed
        fixed = {name: value for name, value in found.items() if name not in names}
    own = [_own_values(run) for run in runs]
    return FoundSpace(parameters=tuple(given), fixed=fixed), [
        {**values_of_config(config, given), **values} for config, values in zip(configs, own, strict=True)
    ]


def _own_values(run: ReadRun) -> Mapping[str, Any]:
    text = run.config.get(VALUES_KEY)
    return json.loads(text) if isinstance(text, str) else {}


def _join_headers(headers: Sequence[StudyHeader]) -> list[Parameter]:
    """Return the search space that holds what every header knows, in order of appearance."""
    known: dict[str, Parameter] = {}
    for header in headers:
        for parameter in header.parameters:
            name = parameter.name
            known[name] = known[name].widen(parameter) if name in known else parameter
    return list(known.values())


def _column(parameter: Parameter, values: Sequence[Mapping[str, Any]]) -> list[Any]:
    if parameter.is_numeric:
        return [read_number(entry.get(parameter.name)) for entry in values]
    return [find_choice(parameter, entry[parameter.name]) if parameter.name in entry else None for entry in values]


def _whole(value: Any) -> int:
    number = read_number(value)
    return int(number) if math.isfinite(number) else -1
