"""Is a change worth adopting? The retrains that a study holds, of a candidate and of what it is compared with.

Playbook: "Determining whether to adopt a training pipeline change or hyperparameter configuration". Of its three
sources of variation, the trial variance is in trial_variance.py and what retrains say in the face of it in retrains.py;
what a search adds to it (study variance, the luck of its winner) and what a finite validation set does to the winner
are in selection_bias.py.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.groups import scientific_categories
from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.analysis.points import point_codes
from playbook_plugins.analysis.retrains import ALPHA, ERROR_RATE, compare_retrains, comparison_numbers
from playbook_plugins.analysis.trials import Trials

SECTION = "Determining whether to adopt a training pipeline change or hyperparameter configuration"


def collect_retrains(trials: Trials) -> list[NDArray[np.intp]]:
    """Return the trials of each configuration that was trained more than once.

    Parameters
    ----------
    trials
        The study. Pruned, running and failed trials are left out.

    Returns
    -------
    list of ndarray
        Row indices of the trials of one configuration, in the order of the trial numbers, shape (n_retrains + 1,):
        the first is the trial that the search made, unless the study has no other configuration.
    """
    return [point for point in _points(trials) if len(point) > 1]


def check_adoption(
    trials: Trials,
    *,
    baseline: ArrayLike | None = None,
    known_sd: float | None = None,
    known_freedom: float = math.inf,
) -> list[Finding]:
    """Ask whether the winner's advantage holds when it is retrained.

    The repeated points of a study are retrains. Of each, the first trial was made by the search: it chooses the
    candidate and is left out of the comparison, because the winner of a search is lucky (simulated with 20 equally
    good points: with it, 4 retrains are adopted falsely at a rate of 0.10, without it at 0.05; the winner's own result
    alone, in a z-test, at 0.6). FLAG where `compare_retrains` gives p <= 0.05,
    divided by the number of questions: the candidate is better beyond the noise of retraining. Whether it outweighs
    the complexity that it adds is not a question of numbers; nor is p > 0.05 a reason to keep a simpler baseline.

    Parameters
    ----------
    trials
        The study.
    baseline
        Shape (n,): the retrains of the baseline, in the objective's unit. Then the best of the retrained points is
        compared with it. Without it, for each categorical scientific hyperparameter, the best retrained point of the
        best value with that of the runner-up.
    known_sd, known_freedom
        As in `compare_retrains`.

    Returns
    -------
    list of Finding
        One a question, subject ``"baseline"`` or the scientific hyperparameter's name. Numbers: ``n_questions``,
        ``n_retrained`` (points); ``search_winner`` and ``candidate``, the trial numbers of the best point and of the
        best retrained one; ``search_best``, the objective that the candidate was chosen by; ``winner`` and
        ``runner_up`` (scientific values); the fields of `RetrainComparison`, None for
        NaN or infinite; ``allowed_p``. TOO_LITTLE_DATA where a side lacks retrains: two a side, one with
        ``known_sd``, the search's own trial not counted.
    """
    subjects: list[Parameter | None] = [*scientific_categories(trials)]
    if baseline is not None:
        subjects = [None]
    if not subjects:
        return []
    needed = 2 if known_sd is None else 1
    points = _points(trials)
    # Where nothing was chosen between points, no trial is a lucky one.
    is_search = len(points) > 1
    is_feasible = trials.is_feasible
    retrained = [point for point in points if len(point) - is_search >= needed and is_feasible[point[0]]]
    retrained.sort(key=lambda point: float(trials.cost[point[0]]))
    first = np.array([point[0] for point in points], dtype=np.intp)
    ranking = first[is_feasible[first]]
    ranking = ranking[np.argsort(trials.cost[ranking], kind="stable")]
    findings = []
    for subject in subjects:
        numbers: dict[str, Number] = {"n_questions": len(subjects), "n_retrained": len(retrained)}
        if len(ranking):
            numbers["search_winner"] = int(trials.number[ranking[0]])
        verdict = Verdict.TOO_LITTLE_DATA
        pair = _pair(trials, retrained, subject, baseline, int(is_search), numbers)
        if pair is not None and min(len(side) for side in pair) >= needed:
            result = compare_retrains(*pair, trials.direction, known_sd, known_freedom=known_freedom)
            allowed = ALPHA / len(subjects)
            numbers |= comparison_numbers(result)
            numbers["allowed_p"] = allowed
            verdict = Verdict.FLAG if result.p <= allowed else Verdict.NO_EVIDENCE
        findings.append(
            Finding(
                check="adoption",
                subject="baseline" if subject is None else subject.name,
                verdict=verdict,
                numbers=numbers,
                section=SECTION,
                error_rate=ERROR_RATE,
            )
        )
    return findings


def _pair(
    trials: Trials,
    retrained: list[NDArray[np.intp]],
    subject: Parameter | None,
    baseline: ArrayLike | None,
    n_skipped: int,
    numbers: dict[str, Number],
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return the retrains of the candidate and of what it is compared with, None where one of them has none."""
    best: dict[str, NDArray[np.intp]] = {}
    for point in retrained:
        if subject is None:
            best.setdefault("", point)
        elif subject.rank(trials.values[subject.name][point[0]]) is not None:
            best.setdefault(str(trials.values[subject.name][point[0]]), point)
    if not best:
        return None
    [winner, *others] = best
    candidate = best[winner]
    numbers |= {"candidate": int(trials.number[candidate[0]]), "search_best": float(trials.objective[candidate[0]])}
    if subject is None:
        return trials.objective[candidate[n_skipped:]], np.asarray(baseline, dtype=np.float64).reshape(-1)
    numbers["winner"] = winner
    if not others:
        return None
    numbers["runner_up"] = others[0]
    return trials.objective[candidate[n_skipped:]], trials.objective[best[others[0]][n_skipped:]]


def _points(trials: Trials) -> list[NDArray[np.intp]]:
    """Return the rows of each distinct configuration, all hyperparameters alike, in the order of their numbers."""
    rows = np.flatnonzero(trials.is_judged)
    rows = rows[np.argsort(trials.number[rows], kind="stable")]
    if not len(rows):
        return []
    # The last hyperparameter tells the points apart first, as ever: of equal ones the order decides.
    codes = point_codes([trials.unit(parameter.name)[rows] for parameter in reversed(trials.parameters)], len(rows))
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order])) + 1
    return [rows[members] for members in np.split(order, starts)]
