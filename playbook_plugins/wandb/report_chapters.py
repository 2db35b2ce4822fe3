"""Which charts does a W&B report show, and in which order? The playbook's: the search space, training, the question.

Playbook: "Extracting insight from experimental results".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from playbook_plugins.analysis import Parameter, Role
from playbook_plugins.charts.theme import label
from playbook_plugins.wandb.report_panels import (
    RUN_NAME,
    Chapter,
    Condition,
    LinesPanel,
    Panel,
    PanelGroup,
    ParallelPanel,
    PresetPanel,
    ScatterPanel,
    chart_text,
)
from playbook_plugins.wandb.report_study import ChartedStudy, is_bucketed
from playbook_plugins.wandb.report_tables import TRIAL_COLUMNS, is_plain_key
from playbook_plugins.wandb.run_layout import BEST_STEP_KEY, MAX_STEPS_KEY, OBJECTIVE_KEY, STATUS_KEY

# The keys of the tables that the report's run logs.
TRIALS_KEY, CURVES_KEY, BUDGET_KEY, SHEET_KEY = (
    "playbook/trials",
    "playbook/curves",
    "playbook/budget",
    "playbook/sheet",
)

BOUNDARIES = "Identifying bad search space boundaries"
BUDGET = "Not sampling enough points in the search space"
CURVES = "Examining the training curves"
ISOLATION = "Detecting whether a change is useful with isolation plots"

_MAX_AXES = 10


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the charts' rows come from.

    Attributes
    ----------
    conditions
        Of the report's one run, or, where ``is_live``, of the runs of the trials.
    tables
        The keys of the logged tables by their plain keys; without the budget's, there is no budget to draw.
    is_live
        Whether config, summary and history of the trials' runs are read.
    report_run
        The condition of the report's run, for what only tables can tell.
    """

    conditions: tuple[Condition, ...]
    tables: Mapping[str, str]
    is_live: bool
    report_run: tuple[Condition, ...] = ()


def list_chapters(study: ChartedStudy, source: Source) -> list[Chapter]:
    """Return the plots in the playbook's order.

    Parameters
    ----------
    study
        From `playbook_plugins.wandb.report_study.chart_study`.
    source
        Where the rows come from.
    """
    return [
        _search_space(study, source),
        _budget(study, source),
        _training(study, source),
        _isolation(study, source),
    ]


def _search_space(study: ChartedStudy, source: Source) -> Chapter:
    searched = [parameter for parameter in study.parameters if parameter.role is not Role.FIXED]
    shares = [parameter for parameter in searched if parameter.name in study.gathers]
    asked = [*((one, "axis") for one in searched), *((one, "infeasible_share") for one in shares)]
    groups = _by_branch(study, source, asked)
    everywhere = [one for one in searched if one.condition is None]
    if source.is_live and len(everywhere) > 1:
        keys = tuple((study.keys[one.name], one.log) for one in everywhere[:_MAX_AXES])
        panel = ParallelPanel(title="All trials at once", keys=keys, objective_title=chart_text(study.objective_name))
        groups.append(PanelGroup(panels=(panel,), conditions=source.conditions))
    return Chapter(
        title="Is the search space right?",
        section=BOUNDARIES,
        help=(
            "Each mark is a trial: its objective against one hyperparameter, stars are the best three. Dashed lines "
            "are the bounds of the search space; when the best trials crowd against one, better values may lie beyond "
            "it. Red crosses are infeasible trials: they show where training breaks."
        ),
        groups=tuple(groups),
        note="" if searched else "The study has no hyperparameter to plot.",
    )


def _budget(study: ChartedStudy, source: Source) -> Chapter:
    groups: tuple[PanelGroup, ...] = ()
    note = ""
    if BUDGET_KEY not in source.tables:
        note = "A live chart cannot estimate this: publish_report draws it from the finished trials."
    elif not study.has_budget:
        note = "No trial is feasible, so that there is no best of m trials."
    else:
        panel = PresetPanel(
            stem="budget",
            fields={name: name for name in ("n_trials", "median", "lower", "upper")},
            strings=_strings(study, "The best of m trials"),
            table=source.tables[BUDGET_KEY],
        )
        groups = (PanelGroup(panels=(panel,), conditions=source.report_run or source.conditions),)
    return Chapter(
        title="Were enough points sampled?",
        section=BUDGET,
        help=(
            "What the best of m trials of such a search reaches: the median over such searches, and the band that "
            "holds their middle half. Where the curve is flat, more trials of the same search space gain little."
        )
        + (" As it was when this report was published." if source.is_live and groups else ""),
        groups=groups,
        note=note,
    )


def _training(study: ChartedStudy, source: Source) -> Chapter:
    curves = _live_curves(study, source) if source.is_live else _table_curves(study, source)
    steps = PresetPanel(
        stem="best_step",
        fields={
            "best_step": BEST_STEP_KEY,
            "max_steps": MAX_STEPS_KEY,
            "y": OBJECTIVE_KEY,
            "status": STATUS_KEY,
        },
        strings={"title": "Best steps", "direction": study.direction},
        table="" if source.is_live else source.tables[TRIALS_KEY],
        summary=(BEST_STEP_KEY, MAX_STEPS_KEY, OBJECTIVE_KEY, STATUS_KEY) if source.is_live else (),
    )
    groups = curves
    if study.has_steps:
        groups = [*groups, PanelGroup(panels=(steps,), conditions=source.conditions)]
    missing = "No feasible trial has a training curve. Record the evaluations of each trial to see them here."
    return Chapter(
        title="How did the best trials train?",
        section=CURVES,
        help=(
            "Validation that worsens while training still improves hints at overfitting; jumps from step to step at "
            "the end ask for a decaying learning rate or an average over weights. Best steps that gather in the last "
            "quarter of training ask for longer training, in the first tenth for shorter."
        ),
        groups=tuple(groups),
        note="" if study.has_curves else missing,
    )


def _table_curves(study: ChartedStudy, source: Source) -> list[PanelGroup]:
    panels: list[Panel] = []
    if study.has_curves:
        panels.append(
            PresetPanel(
                stem="curves",
                fields={name: name for name in ("step", "validation", "train", "label", "rank")},
                strings=_strings(study, "The best trials") | {"y_scale": _scale(study.are_curves_log)},
                table=source.tables[CURVES_KEY],
            )
        )
    if study.has_norms:
        columns = {"step": "step", "norm": "gradient_norm", "norm_max": "gradient_norm_max"}
        panels.append(
            PresetPanel(
                stem="gradient_norms",
                fields={**columns, "threshold": "clip_threshold", "label": "label"},
                strings={"title": "Gradient norms of the best trials"},
                table=source.tables[CURVES_KEY],
            )
        )
    return [PanelGroup(panels=tuple(panels), conditions=source.conditions)] if panels else []


def _live_curves(study: ChartedStudy, source: Source) -> list[PanelGroup]:
    norms = ("playbook/gradient_norm", "playbook/gradient_norm_max", "playbook/clip_threshold")
    panels = [
        LinesPanel(title=f"{label(study.objective_name, 40)}, validation", y=("playbook/validation",)),
        LinesPanel(title=f"{label(study.objective_name, 40)}, training", y=("playbook/train",)),
        *([LinesPanel(title="Gradient norm and clipping threshold", y=norms)] if study.has_norms else []),
    ]
    if not study.has_curves:
        return []
    complete = Condition(section="summary", name=STATUS_KEY, value="complete")
    return [PanelGroup(panels=tuple(panels), conditions=(*source.conditions, complete), best_first=study.direction)]


def _isolation(study: ChartedStudy, source: Source) -> Chapter:
    scientific = [parameter for parameter in study.parameters if parameter.role is Role.SCIENTIFIC]
    others = [parameter for parameter in study.parameters if parameter.role is Role.NUISANCE]
    title = "The other hyperparameters" if scientific else "The hyperparameters, one by one"
    groups = _by_branch(study, source, [(one, "isolation") for one in scientific])
    groups += [
        replace(group, is_folded=bool(scientific), title=f"{title}: {group.title}" if group.title else title)
        for group in _by_branch(study, source, [(one, "isolation") for one in others])
    ]
    no_question = (
        "No hyperparameter of this study is scientific: the round compares no values. Give one the role SCIENTIFIC to "
        "see it first."
    )
    return Chapter(
        title="What does the scientific hyperparameter change?",
        section=ISOLATION,
        help=(
            "Stars are the best trial at each value, or in each bucket, of one hyperparameter, with everything else "
            "optimized away. A value with more trials had more chances: the bars compare fairly, at the estimated "
            "median of the best of as many trials as the smallest group has."
        ),
        groups=tuple(groups),
        note="" if scientific else no_question,
    )


def _by_branch(study: ChartedStudy, source: Source, asked: Sequence[tuple[Parameter, str]]) -> list[PanelGroup]:
    """Return the panels of hyperparameters, each with its preset: one group, or live one a branch of the space."""
    branches: dict[tuple[str, ...], tuple[tuple[Condition, ...], list[Panel]]] = {}
    for parameter, stem in asked:
        conditions = _branch_of(study, parameter) if source.is_live else ()
        names = tuple(f"{condition.name} = {condition.value}" for condition in conditions)
        branches.setdefault(names, (conditions, []))[1].append(_panel_of(study, source, parameter, stem))
    return [
        PanelGroup(panels=tuple(panels), conditions=(*source.conditions, *conditions), title=", ".join(names))
        for names, (conditions, panels) in branches.items()
    ]


def _branch_of(study: ChartedStudy, parameter: Parameter) -> tuple[Condition, ...]:
    """Return what holds in every run that has a hyperparameter, the outermost first."""
    parents = {one.name: one for one in study.parameters}
    conditions: list[Condition] = []
    while parameter.condition is not None:
        parent, value = parameter.condition
        conditions.insert(0, Condition(section="config", name=study.keys.get(parent, parent), value=value))
        if parent not in parents or len(conditions) > len(parents):
            break
        parameter = parents[parent]
    return tuple(conditions)


def _panel_of(study: ChartedStudy, source: Source, parameter: Parameter, stem: str) -> Panel:
    key = study.keys[parameter.name]
    title = chart_text(parameter.name)
    if source.is_live and not is_plain_key(key):
        return ScatterPanel(title=title, key=key, is_log=parameter.log)
    is_share = stem == "infeasible_share"
    strings = {"title": f"Infeasible trials: {title}"} if is_share else _strings(study, title)
    strings["x_title"] = title
    if parameter.is_numeric:
        strings |= {"scale": _scale(parameter.log), "low": repr(parameter.low), "high": repr(parameter.high)}
        strings["n_buckets"] = str(study.n_buckets.get(parameter.name, "auto"))
    takes_values = not parameter.is_numeric or (stem != "axis" and not is_bucketed(parameter))
    fields = {"x": key, "y": OBJECTIVE_KEY, "status": STATUS_KEY}
    if not is_share:
        fields["trial"] = RUN_NAME if source.is_live else TRIAL_COLUMNS[0]
    return PresetPanel(
        stem=f"{stem}_categories" if takes_values else stem,
        fields=fields,
        strings=strings,
        table="" if source.is_live else source.tables[TRIALS_KEY],
        config=(key,) if source.is_live else (),
        summary=(OBJECTIVE_KEY, STATUS_KEY) if source.is_live else (),
    )


def _strings(study: ChartedStudy, title: str) -> dict[str, str]:
    better = "lower" if study.direction == "minimize" else "higher"
    return {
        "title": title,
        "y_title": f"{chart_text(study.objective_name, 40)} ({better} is better)",
        "direction": study.direction,
        "y_scale": _scale(study.is_log),
    }


def _scale(is_log: bool) -> str:
    return "log" if is_log else "linear"
