"""Which plots does the page show, and in which order? The playbook's: the search space, training, the question.

Playbook: "Extracting insight from experimental results".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from playbook_plugins.analysis import Finding, Parameter, Role, Trials, interactions
from playbook_plugins.charts import (
    Chart,
    all_training_curves,
    axis_plot,
    best_step_chart,
    gradient_norm_chart,
    infeasible_share_chart,
    interaction_chart,
    isolation_plot,
    training_curves,
    tuning_curve,
)
from playbook_plugins.charts.curves import best_with_curves
from playbook_plugins.charts.palette import MARKS, OFF_SCALE
from playbook_plugins.charts.scales import objective_scale
from playbook_plugins.charts.table import trial_rows
from playbook_plugins.report.interaction import page_spec
from playbook_plugins.report.phrases import config_text
from playbook_plugins.report.wording import section_link

_SHAPE_PATHS = {
    "circle": "M-.7,0A.7,.7 0 1,1 .7,0A.7,.7 0 1,1 -.7,0Z",
    "square": "M-.6,-.6H.6V.6H-.6Z",
    "diamond": "M0,-.9L.9,0L0,.9L-.9,0Z",
    "triangle-up": "M0,-.8L.9,.7H-.9Z",
    "triangle-down": "M0,.8L.9,-.7H-.9Z",
}

_AXES = "Identifying bad search space boundaries"
_BUDGET = "Not sampling enough points in the search space"
_CURVES = "Examining the training curves"
_ROLES = "Identifying scientific, nuisance, and fixed hyperparameters"
_ISOLATION = "Detecting whether a change is useful with isolation plots"


def list_chapters(trials: Trials, findings: Sequence[Finding], *, is_stage: bool = False) -> list[dict[str, Any]]:
    """Return the plots in the playbook's order.

    Parameters
    ----------
    trials
        The study, with at least one trial.
    findings
        Of this study: they say along which hyperparameter the infeasible trials gather.
    is_stage
        Whether it is a stage of a procedure: a list of runs, no search, unless it compares scientific values.
    """
    scientific = [parameter.name for parameter in trials.parameters if parameter.role is Role.SCIENTIFIC]
    no_question = (
        "No hyperparameter of this study is scientific: the round compares no values. Give one the role SCIENTIFIC to "
        "see its isolation plot."
    )
    if is_stage and not scientific:
        searched = any(parameter.role is not Role.FIXED for parameter in trials.parameters)
        return [*([_search_space(trials, findings)] if searched and len(trials) > 1 else []), _training(trials)]
    isolations = [isolation_plot(trials, name) for name in scientific if trials.has(name).any()]
    return [
        _search_space(trials, findings),
        _chapter("Were enough points sampled?", _BUDGET, [tuning_curve(trials)], ""),
        _training(trials),
        _chapter(
            "What does the scientific hyperparameter change?", _ISOLATION, isolations, "" if scientific else no_question
        ),
        *_interactions(trials),
    ]


def _search_space(trials: Trials, findings: Sequence[Finding]) -> dict[str, Any]:
    searched = [parameter for parameter in trials.parameters if parameter.role is not Role.FIXED]
    axes = [axis_plot(trials, parameter.name) for parameter in searched]
    gathers = {finding.numbers.get("explained_by") for finding in findings if finding.check == "feasibility"}
    shares = [infeasible_share_chart(trials, one.name) for one in searched if one.name in gathers]
    chapter = _chapter(
        "Is the search space right?",
        _AXES,
        [*axes, *shares],
        "The study has no hyperparameter to plot." if not axes else "",
        help=(
            "The objective of each trial against one hyperparameter; dashed lines are the bounds of the search space. "
            "When the best trials crowd against one, better values may lie beyond it."
        ),
        legend=_axis_legend(trials),
    )
    # The chapter says once how to read the axis plots, and holds their legend; each says what is its own.
    for parameter, figure in zip(searched, chapter["figures"], strict=False):
        figure |= {"help": _place_of_best(trials, parameter), "legend": False}
    return chapter


def _training(trials: Trials) -> dict[str, Any]:
    missing = "No feasible trial has a training curve. Record the evaluations of each trial to see them here."
    charts = [training_curves(trials), all_training_curves(trials)] if best_with_curves(trials) else []
    note = "" if charts else missing
    if (trials.best_step[trials.is_feasible] >= 0).any():
        charts.append(best_step_chart(trials))
    measured = [
        record
        for row, curve in best_with_curves(trials)
        if np.isfinite(curve.gradient_norm).any() and (record := trials.record(row)) is not None
    ]
    if measured:
        chart = gradient_norm_chart(measured[0])
        charts.append(replace(chart, title="Gradient norm of the best trial"))
    return _chapter("How did the best trials train?", _CURVES, charts, note)


def _interactions(trials: Trials) -> list[dict[str, Any]]:
    """Return the chapter of the interactions, where a pair could be judged."""
    result = interactions(trials)
    if not result.n_pairs:
        return []
    return [_chapter("Which hyperparameters must be tuned together?", _ROLES, [interaction_chart(result)], "")]


def list_figures(charts: Sequence[Chart]) -> list[dict[str, Any]]:
    """Return charts with what the page says beside them."""
    return [
        {"title": chart.title, "help": chart.help, "alt": chart.alt, "chart": chart, "legend": True} for chart in charts
    ]


def _chapter(
    title: str, section: str, charts: list[Chart], note: str, *, help: str = "", legend: Sequence[Any] = ()
) -> dict[str, Any]:
    figures = list_figures(charts)
    return {
        "title": title,
        "section": section,
        "link": section_link(section),
        "figures": figures,
        "note": note,
        "help": help,
        "legend": legend,
        "is_single": len(figures) == 1,
    }


def _place_of_best(trials: Trials, parameter: Parameter) -> str:
    has = trials.has(parameter.name)
    n_infeasible = int((trials.is_infeasible & has).sum())
    count = f"{n_infeasible} of {int(has.sum())} trials infeasible."
    ranking = [int(row) for row in trials.ranking() if has[row]]
    if not ranking:
        return count
    best = trials.values[parameter.name][ranking[0]]
    text = f"Best trial at {config_text(best if parameter.kind == 'categorical' else float(best))}"
    if parameter.is_numeric:
        text += f", {100 * float(parameter.to_unit(best)):.0f}% of the way from the lower to the upper bound"
    return f"{text}; {count}"


def _axis_legend(trials: Trials) -> list[dict[str, str]]:
    kinds = {row["kind"] for row in trial_rows(trials)}
    if objective_scale(trials).n_beyond:
        kinds.add(OFF_SCALE)
    legend = []
    for kind, (colour, shape, _) in MARKS.items():
        if kind in kinds:
            if shape == "triangle-up" and trials.direction == "maximize":
                shape = "triangle-down"
            legend.append({"kind": kind, "colour": colour, "path": _SHAPE_PATHS.get(shape, shape)})
    return legend


def place_figures(figures: Sequence[dict[str, Any]], key: str, charts: list[dict[str, Any]]) -> None:
    """Give each figure its place on the page, and move its chart to those that the page's script draws."""
    for figure in figures:
        figure["id"] = f"{key}-chart-{len(charts)}"
        charts.append(_chart_data(figure.pop("chart"), figure["id"], legend=figure.pop("legend")))


def _chart_data(chart: Chart, name: str, *, legend: bool) -> dict[str, Any]:
    """Return a chart as the page's script draws it, without the rows of trials that the study holds once."""
    # Rows of trials are the study's, stored once; other data, as the points of curves, stay with the chart.
    rows = chart.spec["data"]["values"]
    is_shared = bool(rows) and {"trial", "rank"} <= rows[0].keys()
    return {"id": name, "spec": page_spec(chart.spec, legend=legend), "data": None if is_shared else rows}
