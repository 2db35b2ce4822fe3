"""What does the page say of one study? Its findings in words, its charts, its best trials, and what limits them.

Playbook: "Extracting insight from experimental results", in its order: is the search space right, did the trials
train well, and only then the scientific question.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from playbook_plugins.analysis import Finding, Parameter, Role, Status, Trials, Verdict
from playbook_plugins.charts import Chart, axis_plot, isolation_plot, training_curves
from playbook_plugins.charts.curves import best_evaluation, best_with_curves
from playbook_plugins.charts.palette import MARKS, OFF_SCALE
from playbook_plugins.charts.scales import objective_scale
from playbook_plugins.charts.table import choice_labels, trial_rows
from playbook_plugins.report.interaction import page_spec
from playbook_plugins.report.next_round_flags import NEXT_ROUND_FLAGS
from playbook_plugins.report.phrases import number_text
from playbook_plugins.report.wording import VERDICTS, section_link, word, word_quiet

N_TOP = 10
_MAX_REASONS = 8
# A page of 1,000 trials stays below 3 MB: its curves hold fewer points than those of a small study.
_CURVE_POINTS, _MANY_TRIALS, _FEWER_POINTS = 200, 200, 50
_SHAPE_PATHS = {
    "circle": "M-.7,0A.7,.7 0 1,1 .7,0A.7,.7 0 1,1 -.7,0Z",
    "square": "M-.6,-.6H.6V.6H-.6Z",
    "diamond": "M0,-.9L.9,0L0,.9L-.9,0Z",
    "triangle-up": "M0,-.8L.9,.7H-.9Z",
    "triangle-down": "M0,.8L.9,-.7H-.9Z",
}

_AXES = "Identifying bad search space boundaries"
_CURVES = "Examining the training curves"
_ISOLATION = "Detecting whether a change is useful with isolation plots"


def describe_study(trials: Trials, findings: Sequence[Finding], key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the template shows of a study, and the data that its script reads.

    Parameters
    ----------
    trials
        The study, with at least one trial.
    findings
        Of this study, in the order in which they are to be read.
    key
        A short identifier, unique in the page.

    Returns
    -------
    tuple of dict
        The template's context, and a dict for JSON: the rows of the trials once, the charts without them.
    """
    chapters = _chapters(trials)
    charts: list[dict[str, Any]] = []
    for chapter in chapters:
        for figure in chapter["figures"]:
            figure["id"] = f"{key}-chart-{len(charts)}"
            charts.append(_chart_data(figure.pop("chart"), figure["id"], legend=not chapter["legend"]))
    rows = trial_rows(trials)
    context = {
        "key": key,
        "name": trials.name,
        "goal": trials.goal,
        "objective": trials.objective_name,
        "overview": _overview(trials),
        "findings": _findings(findings),
        "chapters": chapters,
        "picks": [{"trial": row["trial"], "text": _pick_text(row)} for row in _by_rank(rows)],
        "best": _best_table(trials),
        "reasons": _reasons(trials),
        "fixed": dict(trials.fixed),
        "caveats": trials.caveats,
    }
    data = {
        "key": key,
        "name": trials.name,
        "direction": trials.direction,
        "objective": trials.objective_name,
        "parameters": [_parameter_data(parameter) for parameter in trials.parameters],
        "rows": rows,
        "charts": charts,
        "curves": _curves(trials),
    }
    return context, data


def _chapters(trials: Trials) -> list[dict[str, Any]]:
    """Return the plots in the playbook's order."""
    searched = [parameter for parameter in trials.parameters if parameter.role is not Role.FIXED]
    axes = [axis_plot(trials, parameter.name) for parameter in searched]
    chapters = [
        _chapter(
            "Is the search space right?",
            _AXES,
            axes,
            "The study has no hyperparameter to plot." if not axes else "",
            help=(
                "The objective of each trial against one hyperparameter; dashed lines are the bounds of the search "
                "space. When the best trials crowd against one, better values may lie beyond it."
            ),
            legend=_axis_legend(trials),
        )
    ]
    # The chapter says once how to read them; each says what is its own.
    for parameter, figure in zip(searched, chapters[0]["figures"], strict=True):
        figure["help"] = _place_of_best(trials, parameter)
    if best_with_curves(trials):
        chapters.append(_chapter("How did the best trials train?", _CURVES, [training_curves(trials)], ""))
    else:
        missing = "No feasible trial has a training curve. Record the evaluations of each trial to see them here."
        chapters.append(_chapter("How did the best trials train?", _CURVES, [], missing))
    scientific = [parameter.name for parameter in trials.parameters if parameter.role is Role.SCIENTIFIC]
    chapters.append(
        _chapter(
            "What does the scientific hyperparameter change?",
            _ISOLATION,
            [isolation_plot(trials, name) for name in scientific if trials.has(name).any()],
            ""
            if scientific
            else "No hyperparameter of this study is scientific: the round compares no values. Give one the role "
            "SCIENTIFIC to see its isolation plot.",
        )
    )
    return chapters


def _chapter(
    title: str, section: str, charts: list[Chart], note: str, *, help: str = "", legend: Sequence[Any] = ()
) -> dict[str, Any]:
    figures = [{"title": chart.title, "help": chart.help, "alt": chart.alt, "chart": chart} for chart in charts]
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
    text = f"Best trial at {_value_text(best if parameter.kind == 'categorical' else float(best))}"
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


def _chart_data(chart: Chart, name: str, *, legend: bool) -> dict[str, Any]:
    # Rows of trials are the study's, stored once; other data, as the points of curves, stay with the chart.
    rows = chart.spec["data"]["values"]
    is_shared = bool(rows) and "kind" in rows[0]
    return {"id": name, "spec": page_spec(chart.spec, legend=legend), "data": None if is_shared else rows}


def _overview(trials: Trials) -> list[dict[str, str]]:
    n_trials, n_infeasible = len(trials), int(trials.is_infeasible.sum())
    entries = [{"term": "trials", "text": f"{n_trials:,}"}]
    if trials.is_judged.any():
        share = 100 * n_infeasible / int(trials.is_judged.sum())
        entries.append({"term": "infeasible", "text": f"{n_infeasible:,} ({share:.0f}%)"})
    for status in (Status.PRUNED, Status.FAILED, Status.RUNNING):
        n_others = int(np.sum(trials.status == status))
        if n_others:
            entries.append({"term": str(status), "text": f"{n_others:,}"})
    ranking = trials.ranking()
    if len(ranking):
        best = ranking[0]
        text = f"{number_text(float(trials.objective[best]))} (trial {trials.number[best]})"
        entries.append({"term": f"best {trials.objective_name}, {trials.direction}d", "text": text})
    else:
        entries.append({"term": f"best {trials.objective_name}", "text": "none: no feasible trial"})
    return entries


def _findings(findings: Sequence[Finding]) -> dict[str, Any]:
    quiet = []
    for verdict in (Verdict.TOO_LITTLE_DATA, Verdict.NO_EVIDENCE):
        words = word_quiet([finding for finding in findings if finding.verdict is verdict])
        if words:
            quiet.append({"title": VERDICTS[verdict], "words": words})
    flags = [finding for finding in findings if finding.verdict is Verdict.FLAG]
    advice = [word(finding) for finding in flags if finding.check in NEXT_ROUND_FLAGS]
    problems = _flags([finding for finding in flags if finding.check not in NEXT_ROUND_FLAGS])
    return {"flags": problems, "advice": advice, "quiet": quiet}


def _flags(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return the words of each flag, with those of the same question asked of single scientific values below it."""
    asked: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        asked.setdefault((finding.check, finding.subject), []).append(finding)
    flags = []
    for same in asked.values():
        # That of the whole study says most.
        first, *others = sorted(same, key=lambda finding: finding.numbers.get("value") is not None)
        values = ", ".join(str(finding.numbers["value"]) for finding in others if finding.numbers.get("value"))
        flags.append({"words": word(first), "also": values, "others": [word(finding) for finding in others]})
    return flags


def _by_rank(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["rank"] is None, row["rank"] or 0, row["trial"]))


def _pick_text(row: dict[str, Any]) -> str:
    place = f"rank {row['rank']}, {number_text(row['objective'])}" if row["rank"] else row["status"]
    return f"trial {row['trial']} ({place})"


def _best_table(trials: Trials) -> dict[str, Any]:
    chosen = trials.ranking()[:N_TOP]
    configs = [trials.config(int(row)) for row in chosen]
    names = [parameter.name for parameter in trials.parameters if any(parameter.name in config for config in configs)]
    has_steps = bool((trials.best_step[chosen] >= 0).any())
    return {
        "names": names,
        "has_steps": has_steps,
        "rows": [
            {
                "rank": place + 1,
                "trial": int(trials.number[row]),
                "objective": number_text(float(trials.objective[row])),
                "step": _steps(int(trials.best_step[row]), int(trials.max_steps[row])),
                "values": [_value_text(config[name]) if name in config else "–" for name in names],
            }
            for place, (row, config) in enumerate(zip(chosen.tolist(), configs, strict=True))
        ],
    }


def _steps(best: int, longest: int) -> str:
    if best < 0:
        return "–"
    return f"{best:,}" if longest < 0 else f"{best:,} of {longest:,}"


def _value_text(value: Any) -> str:
    return number_text(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _reasons(trials: Trials) -> list[dict[str, Any]]:
    """Return why trials were infeasible or failed, equal up to their numbers, the most frequent first."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], tuple[str, int]] = {}
    for row in np.flatnonzero(trials.is_infeasible | (trials.status == Status.FAILED)):
        reason = trials.reason[row] or "no reason recorded"
        kind = (str(trials.status[row]), re.sub(r"\d+(\.\d+)?(e[+-]?\d+)?", "#", reason))
        counts[kind] += 1
        examples.setdefault(kind, (reason, int(trials.number[row])))
    return [
        {"status": kind[0], "n_trials": count, "reason": examples[kind][0], "trial": examples[kind][1]}
        for kind, count in counts.most_common(_MAX_REASONS)
    ]


def _parameter_data(parameter: Parameter) -> dict[str, Any]:
    data: dict[str, Any] = {"name": parameter.name}
    if not parameter.is_numeric:
        # The label under which the rows hold a category, and the category itself.
        data["choices"] = dict(zip(choice_labels(parameter), map(_plain, parameter.choices), strict=True))
    return data


def _plain(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return repr(value)
    return value


def _curves(trials: Trials) -> dict[str, Any]:
    """Return the curves of all trials by number, as ``[grid, validation, training]``, and the grids of steps."""
    n_points = _CURVE_POINTS if len(trials) <= _MANY_TRIALS else _FEWER_POINTS
    grids: dict[tuple[int, ...], int] = {}
    curves: dict[str, Any] = {}
    for row, curve in enumerate(trials.curves):
        if curve is None or not np.isfinite(curve.validation).any():
            continue
        # A study's trials mostly share their steps; keeping each one's best would give each a grid of its own.
        keep = [best_evaluation(trials, curve)] if len(trials) <= _MANY_TRIALS else []
        thin = curve.thin(n_points, keep)
        grid = grids.setdefault(tuple(thin.step.tolist()), len(grids))
        digits = 5 if len(trials) <= _MANY_TRIALS else 4
        columns = [
            [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in column]
            for column in (thin.validation, thin.train)
        ]
        curves[str(trials.number[row])] = [grid, columns[0], columns[1] if np.isfinite(thin.train).any() else []]
    return {"grids": [list(grid) for grid in grids], "trials": curves}
