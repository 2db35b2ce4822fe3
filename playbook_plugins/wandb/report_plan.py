"""What does a live report say before the first trial? What is planned, and what to look at once trials come in.

Playbook: "Designing the next round of experiments", "Extracting insight from experimental results".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from playbook_plugins import __version__
from playbook_plugins.analysis import Parameter, Role, Trials
from playbook_plugins.analysis.records import Direction
from playbook_plugins.report.markdown import escape
from playbook_plugins.report.phrases import config_text, count_text
from playbook_plugins.report.wording import PLAYBOOK, section_link
from playbook_plugins.wandb.clients import import_reports
from playbook_plugins.wandb.report_blocks import chapter_blocks, checklist_blocks, text_blocks
from playbook_plugins.wandb.report_chapters import BOUNDARIES, BUDGET, CURVES, ISOLATION, Source, list_chapters
from playbook_plugins.wandb.report_panels import Condition
from playbook_plugins.wandb.report_run import ReportRun
from playbook_plugins.wandb.report_study import ChartedStudy, given_names
from playbook_plugins.wandb.report_text import limit_lines, table_lines

ROLES = "Identifying scientific, nuisance, and fixed hyperparameters"
LENGTH = "Deciding how long to train when training is not compute-bound"
UNSTABLE = "Identifying unstable workloads"
ADOPTION = "Determining whether to adopt a training pipeline change or hyperparameter configuration"
# In the order in which they are asked.
_BEFORE = (
    ("Does every fixed hyperparameter have a value whose caveats are acceptable?", ROLES),
    ("Is every hyperparameter that interacts with a scientific one a nuisance, tuned for each of its values?", ROLES),
)
_AFTER = (
    ("Are most trials feasible, and is it known where the others are infeasible?", BOUNDARIES),
    ("Do the best trials keep away from the bounds of the search space?", BOUNDARIES),
    ("Were enough points sampled?", BUDGET),
    ("Do the best trials not overfit, and is their validation steady at the end?", CURVES),
    ("Is training stable at the learning rates that are best?", UNSTABLE),
    ("Are the best steps neither in the first tenth nor all in the last quarter of training?", LENGTH),
    ("Is the difference between the scientific values larger than that between retrained trials?", ISOLATION),
    ("Has the winner been retrained before it is adopted?", ADOPTION),
)


class PlannedRound(Protocol):
    """A round of experiments as it is planned, as `playbook_plugins.optuna.Round`."""

    @property
    def goal(self) -> str:
        """The question that it answers."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The search space, with roles."""

    @property
    def fixed(self) -> Mapping[str, Any]:
        """The fixed hyperparameters and their values."""

    @property
    def caveats(self) -> Sequence[str]:
        """What the fixed values limit, one sentence each."""

    @property
    def n_trials(self) -> int:
        """How many trials it has in all."""


def plan_blocks(
    round: PlannedRound | Trials,
    *,
    study: str,
    direction: Direction,
    objective_name: str,
    conditions: tuple[Condition, ...],
    charts: Mapping[str, str],
) -> list[Any]:
    """Return the blocks of a live report for a round without trials.

    Parameters
    ----------
    round
        What is planned.
    study, direction, objective_name
        The study whose runs it shows, and what they measure.
    conditions
        Which the runs of its trials meet.
    charts
        The published presets, ``entity/name`` by stem.
    """
    parameters = tuple(round.parameters)
    charted = ChartedStudy(
        direction=direction,
        objective_name=objective_name,
        parameters=parameters,
        keys=given_names(parameters),
        n_buckets={},
    )
    chapters = list_chapters(charted, Source(conditions=conditions, tables={}, is_live=True))
    return [
        *text_blocks("", _overview(round, study, direction, objective_name))[1:],
        import_reports().TableOfContents(),
        *text_blocks("The search space", _space(parameters)),
        *checklist_blocks("Before the first trial", _BEFORE),
        *chapter_blocks(chapters, charts),
        *checklist_blocks("Before a conclusion", _AFTER),
        *text_blocks("What will limit the conclusions", limit_lines(round.caveats, round.fixed)),
        *text_blocks("How this report was made", [_FOLLOWS, "", _written(), "", _REPLACED]),
    ]


def describe_making(place: str, logged: ReportRun, *, is_live: bool) -> list[str]:
    """Return how a report of trials was made, as Markdown.

    Parameters
    ----------
    place
        The address of its project below that of W&B.
    logged
        Its run.
    is_live
        Whether the charts read the runs of the trials.
    """
    run = f"[run {logged.run_id}]({place}/runs/{logged.run_id})"
    feed = f"The charts read the tables of the {run}: they show the trials as they were when it was published."
    if is_live:
        feed = f"{_FOLLOWS} Words and tables are as of publishing; what a live chart cannot tell is in the {run}."
    lines = [feed]
    if logged.page is not None:
        page = f"[{logged.page_name}]({place}/artifacts/playbook-report/{logged.page_name})"
        lines += ["", f"The same as one page that opens without a network: the artifact {page}."]
    return [*lines, "", _written(), "", _REPLACED]


_FOLLOWS = "The charts read the runs of the trials and follow them as they come in, at most 500 at a time."
_REPLACED = (
    "Publishing it again replaces all that is here, also what was added by hand; a copy of this report keeps its text, "
    "but not its charts."
)


def _written() -> str:
    return f"Written by playbook-plugins {__version__} after the [Deep Learning Tuning Playbook]({PLAYBOOK})."


def _overview(round: PlannedRound | Trials, study: str, direction: Direction, objective_name: str) -> list[str]:
    lines = [escape(round.goal), ""] if round.goal else []
    planned = "" if isinstance(round, Trials) else f", {count_text(round.n_trials, 'trial')} planned"
    lines.append(
        f"The study {escape(study)}{planned}; {escape(objective_name)} is {direction}d. The charts fill as its runs "
        "come in: those that log_trial marked as this study's."
    )
    return lines


def _space(parameters: Sequence[Parameter]) -> list[str]:
    if not parameters:
        return ["The round searches no hyperparameter."]
    order = [Role.SCIENTIFIC, Role.NUISANCE, Role.FIXED]
    rows = [
        [parameter.name, str(parameter.role), _range(parameter), _where(parameter)]
        for parameter in sorted(parameters, key=lambda one: order.index(one.role))
    ]
    text = (
        "The scientific hyperparameters are the question; the nuisance ones are tuned for each of their values, so "
        f"that the comparison is fair. [Playbook: {ROLES}]({section_link(ROLES)})"
    )
    return [*table_lines(["hyperparameter", "role", "values", "only with"], rows), "", text]


def _range(parameter: Parameter) -> str:
    if not parameter.is_numeric:
        return ", ".join(config_text(choice) for choice in parameter.choices)
    scale = ", logarithmic" if parameter.log else ""
    return f"{config_text(parameter.low)} to {config_text(parameter.high)}{scale}"


def _where(parameter: Parameter) -> str:
    return "" if parameter.condition is None else f"{parameter.condition[0]} = {parameter.condition[1]}"
