"""What does the page say of one study? Its findings in words, its charts, its best trials, and what limits them.

Playbook: "Extracting insight from experimental results", in its order: is the search space right, did the trials
train well, and only then the scientific question.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from playbook_plugins.analysis import Finding, Parameter, Status, Trials, Verdict
from playbook_plugins.charts.curves import best_evaluation
from playbook_plugins.charts.table import choice_labels, describe_drawn, drawn_rows, trial_rows
from playbook_plugins.report.chapters import list_chapters, place_figures
from playbook_plugins.report.next_round_flags import NEXT_ROUND_FLAGS
from playbook_plugins.report.phrases import config_text, number_text
from playbook_plugins.report.proposal import ProposedRound, describe_proposal
from playbook_plugins.report.sheet import reproduction
from playbook_plugins.report.wording import VERDICTS, word, word_quiet

N_TOP = 10
_MAX_REASONS = 8
# A page of 1,000 trials stays below 3 MB: its curves hold fewer points than those of a small study.
_CURVE_POINTS, _MANY_TRIALS, _FEWER_POINTS = 200, 200, 50
_MAX_CURVES = 2_000


def describe_study(
    trials: Trials,
    findings: Sequence[Finding] | None,
    *,
    proposal: ProposedRound | None = None,
    run: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what every form of the report says of a study, in words and tables.

    Parameters
    ----------
    trials
        The study, with at least one trial.
    findings
        Of this study, in the order in which they are to be read; None where they belong to more than it, as those of a
        procedure do.
    proposal
        What is proposed for the next round.
    run
        The study's row of the sheet.
    """
    return {
        "name": trials.name,
        "goal": trials.goal,
        "objective": trials.objective_name,
        "overview": _overview(trials),
        "findings": None if findings is None else describe_findings(findings),
        "best": _best_table(trials, run),
        "proposal": None if proposal is None else describe_proposal(proposal),
        "reasons": _reasons(trials),
        "fixed": dict(trials.fixed),
        "caveats": trials.caveats,
    }


def draw_study(trials: Trials, findings: Sequence[Finding] | None, key: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the page shows of a study's plots, and the data that its script reads.

    Parameters
    ----------
    trials, findings
        As `describe_study`.
    key
        A short identifier, unique in the page.

    Returns
    -------
    tuple of dict
        More of the template's context, and a dict for JSON: the rows of the trials once, the charts without them.
    """
    chapters = list_chapters(trials, findings or [], is_stage=findings is None)
    charts: list[dict[str, Any]] = []
    for chapter in chapters:
        place_figures(chapter["figures"], key, charts)
    rows = trial_rows(trials)
    context = {
        "key": key,
        "chapters": chapters,
        "picks": [{"trial": row["trial"], "text": _pick_text(row)} for row in _by_rank(rows)],
        "drawn": describe_drawn(trials),
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


def describe_findings(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return findings in words: flags, advice for the next round, and the questions without a flag."""
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


def _best_table(trials: Trials, run: Mapping[str, Any] | None) -> dict[str, Any]:
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
                "values": [config_text(config[name]) if name in config else "–" for name in names],
                "again": reproduction(config, trials.name, run),
            }
            for place, (row, config) in enumerate(zip(chosen.tolist(), configs, strict=True))
        ],
    }


def _steps(best: int, longest: int) -> str:
    if best < 0:
        return "–"
    return f"{best:,}" if longest < 0 else f"{best:,} of {longest:,}"


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
    """Return the curves of the drawn trials by number, as ``[grid, validation, training]``, and the grids of steps."""
    n_points = _CURVE_POINTS if len(trials) <= _MANY_TRIALS else _FEWER_POINTS
    grids: dict[tuple[int, ...], int] = {}
    curves: dict[str, Any] = {}
    for row in _rows_with_curves(trials):
        curve = trials.curves[row]
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


def _rows_with_curves(trials: Trials) -> list[int]:
    """Return the trials whose curves travel with the page: of very many the best half, and an even selection."""
    rows = drawn_rows(trials)
    if len(rows) <= _MAX_CURVES:
        return [int(row) for row in rows]
    best = trials.ranking()[: _MAX_CURVES // 2]
    others = np.setdiff1d(rows, best)
    even = np.linspace(0, len(others) - 1, _MAX_CURVES - len(best)).round().astype(np.intp)
    return [int(row) for row in np.concatenate([best, others[even]])]
