"""Did the best trials train stably, and did instability hold the learning rate down? The checks of runs, for a study.

Playbook: "How can optimization failures be debugged and mitigated?": learning rates that break training may keep the
best one from being larger.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from playbook_plugins.analysis.curves import best_rows
from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.learning_rate_limit import check_learning_rate_limit
from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.records import Curve, TrialRecord
from playbook_plugins.analysis.stability import check_stability
from playbook_plugins.analysis.trials import Trials

_RATES = ("learning_rate", "lr")


def check_trial_stability(trials: Trials) -> list[Finding]:
    """Ask of the best trial of each scientific value whether it trained stably, and of a sweep what limits its rate.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    list of Finding
        Those of `check_stability`, but for TOO_LITTLE_DATA, of the best trial of each scientific value, else of the
        study, subject ``"trial <number>"``; numbers also ``trial`` and ``value``, as in `check_curves`. Then, where
        nothing but the learning rate was searched (a float whose name ends in ``learning_rate`` or ``lr``), that of
        `check_learning_rate_limit`, its factors being multiples of the best trial's rate.
    """
    findings = []
    for row, values in best_rows(trials).items():
        curve = trials.curves[row]
        if curve is None:
            continue
        number = int(trials.number[row])
        more: dict[str, Number] = {"trial": number, "value": ", ".join(values) or None}
        for finding in check_stability(trials.record(row) or curve, subject=f"trial {number}"):
            if finding.verdict is not Verdict.TOO_LITTLE_DATA:
                findings.append(replace(finding, numbers={**finding.numbers, **more}))
    rate = _swept_rate(trials)
    return findings if rate is None else [*findings, *_limit(trials, rate)]


def _swept_rate(trials: Trials) -> Parameter | None:
    searched = [parameter for parameter in trials.parameters if parameter.role is not Role.FIXED]
    if len(searched) != 1 or searched[0].kind != "float" or not searched[0].name.lower().endswith(_RATES):
        return None
    return searched[0]


def _limit(trials: Trials, rate: Parameter) -> list[Finding]:
    ranking = trials.ranking()
    if not len(ranking):
        return []
    rates = trials.values[rate.name]
    best = float(rates[ranking[0]])
    runs: dict[float, Curve | TrialRecord] = {}
    # The better of two trials at one rate stands for it; infeasible ones come last.
    for row in np.argsort(trials.cost, kind="stable"):
        curve = trials.curves[row]
        if curve is not None and trials.is_judged[row] and best > 0 and rates[row] > 0:
            runs.setdefault(float(rates[row]) / best, trials.record(int(row)) or curve)
    return check_learning_rate_limit(runs) if runs else []
