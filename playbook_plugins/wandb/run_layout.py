"""Where in a W&B run does a trial stand? The keys of one run, written and read; nothing here talks to W&B.

Playbook: "Setting up experiment tracking".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.analysis.records import Curve, Direction, Status, TrialRecord, summary_keys
from playbook_plugins.analysis.trials import Trials

TRIAL_JOB, REPORT_JOB = "trial", "playbook-report"
# Keys of the config, beside the hyperparameters.
STUDY_KEY, NUMBER_KEY, VALUES_KEY = "playbook_study", "playbook_number", "playbook_values"
# The study's name by itself, for filters in W&B.
STUDY_NAME_KEY = "playbook_study_name"
# Keys of the summary that every trial has.
OBJECTIVE_KEY, STATUS_KEY, REASON_KEY = "playbook_objective", "playbook_status", "playbook_reason"
BEST_STEP_KEY, MAX_STEPS_KEY = "playbook_best_step", "playbook_max_steps"
# The first row of the curve in a run whose history holds more than the curve.
FIRST_ROW_KEY = "playbook_first_row"
# Keys of the history.
STEP_KEY, ALL_KEYS = "playbook/step", "playbook/*"
_PREFIX, _METRICS = "playbook/", "metrics/"
_VERSION = 1


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyHeader:
    """What a run says of the study that it belongs to: a copy goes with every run.

    Attributes
    ----------
    name, direction
        As those of `Trials`.
    objective_name
        What the objective measures; "" where the trial ended before it was known.
    parameters
        The search space, as known when the trial was logged; empty where only the study's name is known.
    fixed, goal, caveats
        As those of `Trials`.
    """

    name: str
    direction: Direction
    objective_name: str = ""
    parameters: tuple[Parameter, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    goal: str = ""
    caveats: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the header as the text under ``playbook_study``."""
        return json.dumps(
            {
                "version": _VERSION,
                "name": self.name,
                "direction": self.direction,
                "objective_name": self.objective_name,
                "parameters": [parameter.to_plain() for parameter in self.parameters],
                "fixed": dict(self.fixed),
                "goal": self.goal,
                "caveats": list(self.caveats),
            },
            default=to_plain,
        )

    @classmethod
    def from_json(cls, text: str) -> StudyHeader:
        """Rebuild a header from `to_json`.

        Raises
        ------
        ValueError
            When the text was written by a newer version of this package.
        """
        plain = json.loads(text)
        if plain.get("version") != _VERSION:
            raise ValueError(
                f"`{STUDY_KEY}` of a run is of version {plain.get('version')!r}: this package reads version "
                f"{_VERSION}. Upgrade playbook-plugins to read it."
            )
        return cls(
            name=plain["name"],
            direction=plain["direction"],
            objective_name=plain["objective_name"],
            parameters=tuple(Parameter.from_plain(parameter) for parameter in plain["parameters"]),
            fixed=plain["fixed"],
            goal=plain["goal"],
            caveats=tuple(plain["caveats"]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialEntry:
    """One trial as it is written to a run.

    Attributes
    ----------
    header
        Its study.
    number
        Its number there, or None where it has none.
    config
        The configuration that training got.
    values
        The searched hyperparameters under the names of the study; those that the trial has.
    summary
        The flat keys of its outcome.
    curve
        Its evaluations, or None.
    """

    header: StudyHeader
    number: int | None
    config: Mapping[str, Any]
    values: Mapping[str, Any]
    summary: Mapping[str, float | int | str]
    curve: Curve | None

    @property
    def status(self) -> Status:
        """How the trial ended."""
        return Status(str(self.summary[STATUS_KEY]))

    def write_config(self) -> dict[str, Any]:
        """Return the config of the run."""
        number = {} if self.number is None else {NUMBER_KEY: self.number}
        return {
            **{name: to_plain(value) for name, value in self.config.items()},
            STUDY_NAME_KEY: self.header.name,
            STUDY_KEY: self.header.to_json(),
            **number,
            # A text, because a tracker that knows JSON only cannot tell 1.0 from 1, or NaN from None.
            VALUES_KEY: json.dumps(dict(self.values), default=to_plain),
        }

    def write_history(self) -> list[dict[str, float]]:
        """Return the rows of the history, one an evaluation; what is unknown (NaN) is left out."""
        return [] if self.curve is None else write_curve(self.curve)


def enter_trial(
    outcome: TrialRecord | Trials, config: Mapping[str, Any], study: str | Trials, number: int | None
) -> TrialEntry:
    """Return a trial as it is to be written.

    Parameters
    ----------
    outcome
        The trial's record, or a table in which the trial stands alone or under ``number``.
    config
        The configuration that training got.
    study
        The study's name, or any table of it. Where the table has the trial, its values are those of the table.
    number
        The trial's number.
    """
    if isinstance(outcome, TrialRecord):
        # As a study's storage keeps it: the curve thinned, a long reason cut.
        kept = TrialRecord.from_json(outcome.to_json())
        curve = kept.curve if len(kept.curve) else None
        summary, direction, name = summary_keys(kept), kept.direction, kept.objective_name if curve else ""
    else:
        row = find_row(outcome, number)
        assert row is not None
        curve, direction = outcome.curves[row], outcome.direction
        summary = {
            OBJECTIVE_KEY: float(outcome.objective[row]),
            STATUS_KEY: str(outcome.status[row]),
            REASON_KEY: outcome.reason[row],
            BEST_STEP_KEY: int(outcome.best_step[row]),
            MAX_STEPS_KEY: int(outcome.max_steps[row]),
        }
        name = "" if outcome.objective_name == "objective" else outcome.objective_name
    if isinstance(study, str):
        header = StudyHeader(name=study, direction=direction, objective_name=name)
        return TrialEntry(header=header, number=number, config=config, values={}, summary=summary, curve=curve)
    header = StudyHeader(
        name=study.name,
        direction=direction,
        objective_name=name,
        parameters=study.parameters,
        fixed=study.fixed,
        goal=study.goal,
        caveats=study.caveats,
    )
    place = find_row(study, number)
    values = values_of_config(config, study.parameters) if place is None else study.config(place)
    return TrialEntry(header=header, number=number, config=config, values=values, summary=summary, curve=curve)


def find_row(trials: Trials, number: int | None) -> int | None:
    """Return the row of a trial in a table: the one of its number, or the only one where it has no number."""
    if number is None:
        return 0 if len(trials) == 1 else None
    rows = np.flatnonzero(trials.number == number)
    return int(rows[0]) if len(rows) else None


def values_of_config(config: Mapping[str, Any], parameters: Iterable[Parameter]) -> dict[str, Any]:
    """Return the searched hyperparameters of a configuration, under the names of the study.

    A conditional one stands there under its own name, or without the prefix of its branch: ``adam.learning_rate`` as
    ``learning_rate``, where the condition holds.
    """
    values = {}
    for parameter in parameters:
        if parameter.name in config:
            values[parameter.name] = config[parameter.name]
        elif parameter.condition is not None:
            parent, value = parameter.condition
            if parameter.given_name in config and is_same(config.get(parent), value):
                values[parameter.name] = config[parameter.given_name]
    return values


def is_same(first: Any, second: Any) -> bool:
    """Return whether two values of JSON are one: True is not 1, but 1.0 is, because W&B writes it as 1."""
    return isinstance(first, bool) == isinstance(second, bool) and bool(first == second)


def write_curve(curve: Curve) -> list[dict[str, float]]:
    """Return a curve as the rows of a history."""
    columns = {
        _PREFIX + (_METRICS + name.removeprefix("metrics.") if name.startswith("metrics.") else name): column.tolist()
        for name, column in curve.columns().items()
    }
    rows: list[dict[str, float]] = []
    for place, step in enumerate(curve.step.tolist()):
        row = {name: column[place] for name, column in columns.items()}
        rows.append({STEP_KEY: step, **{name: value for name, value in row.items() if not math.isnan(value)}})
    for name in columns:
        if rows and name.startswith(_PREFIX + _METRICS) and not any(name in row for row in rows):
            # A metric that was never finite would be lost with its name.
            rows[0][name] = math.nan
    return rows


def read_curve(rows: Iterable[Mapping[str, Any]]) -> Curve | None:
    """Return the curve in the rows of a history, as `write_curve` wrote it; None where there is none.

    Rows without ``playbook/step`` belong to others. Of several rows of one step the last one counts.
    """
    by_step: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        step = read_number(row.get(STEP_KEY))
        if math.isfinite(step):
            by_step[int(step)] = row
    if not by_step:
        return None
    steps = sorted(by_step)

    def column(name: str) -> list[float]:
        return [read_number(by_step[step].get(_PREFIX + name)) for step in steps]

    names = {name.removeprefix(_PREFIX) for row in by_step.values() for name in row if name.startswith(_PREFIX)}
    return Curve.from_columns(
        steps,
        column("validation"),
        column("train"),
        column("learning_rate"),
        column("gradient_norm"),
        {name.removeprefix(_METRICS): column(name) for name in sorted(names) if name.startswith(_METRICS)},
        column("gradient_norm_max"),
        column("clip_threshold"),
    )


def read_number(value: Any) -> float:
    """Return a number as W&B hands it over: infinities and NaN are texts there; NaN for anything that is none."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    if isinstance(value, str):
        return {"Infinity": math.inf, "-Infinity": -math.inf}.get(value, math.nan)
    return float(value)


def to_plain(value: Any) -> Any:
    """Return a value of a configuration as JSON has it: numpy's as Python's, tuples as lists, others as text."""
    if isinstance(value, np.generic | np.ndarray):
        return to_plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
