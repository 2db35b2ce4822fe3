"""Which hyperparameters must be tuned together?

Playbook: "Identifying scientific, nuisance, and fixed hyperparameters": a nuisance hyperparameter that interacts with
the scientific one must be tuned anew for each of its values; a fixed one that interacts limits the conclusions.

Two hyperparameters interact when the best value of one depends on the other. Where the objective is a rising function
of a sum with one term a hyperparameter, none do, and yet products of hyperparameters explain part of it: of narrow
valleys, most would be flagged. Tukey's column ("One degree of freedom for non-additivity", Biometrics 1949), and for
groups Mandel's ("Non-additivity in two-way analysis of variance", JASA 1961), take that part out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.interaction_model import Floats, interacting_parameters, judge, normal_scores, samples
from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.trials import Trials

SECTION = "Identifying scientific, nuisance, and fixed hyperparameters"
# Shared by all pairs of the study. Where the objective stretches a sum, ranks and Tukey's column leave some of the
# stretch, so that the simulated study-wise rate is higher (tests/test_interactions.py).
_LEVEL = 0.02
_ERROR_RATE = 0.05
# Of the variance of the scores: no valley is exactly a quadratic, and with many trials any misfit is significant.
_NOTICEABLE = 0.02
# Places at which a category's best value of a number is looked for.
_GRID = 101


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """Every pair of hyperparameters: how strongly they interact, and how sure that is.

    The matrices are symmetric, of shape (d, d); NaN where a pair was not asked about (scientific ones among
    themselves, branches that exclude each other, the diagonal) or has too little data.

    Attributes
    ----------
    names
        The d hyperparameters: the numbers that are not fixed, and the categorical scientific ones.
    strength
        Partial correlation of the product of the places in the ranges with the scores, in [-1, 1]. Positive: where
        one is high, high values of the other are better; negative: low ones. With a categorical one the multiple
        partial correlation, in [0, 1].
    statistic
        Student's t of the product; with a categorical one the F statistic.
    p
        Its p-value, of this pair alone, two-sided.
    share
        Of the variance of the scores, what the interaction explains, in [0, 1].
    n_points
        int64: how many trials the pair was judged by, repeated points counted once.
    asked
        bool: whether the pair is a question at all.
    feasible_only
        bool: whether the numbers are of the feasible trials alone; else infeasible ones count as worst.
    n_pairs
        How many pairs have a p-value.
    """

    names: tuple[str, ...]
    strength: Floats
    statistic: Floats
    p: Floats
    share: Floats
    n_points: NDArray[np.int64]
    asked: NDArray[np.bool_]
    feasible_only: NDArray[np.bool_]
    n_pairs: int

    @property
    def allowed_p(self) -> float:
        """The p-value up to which a pair is flagged, shared by all pairs."""
        return _LEVEL / max(1, self.n_pairs)

    @property
    def is_flagged(self) -> NDArray[np.bool_]:
        """Shape (d, d): which pairs `check_interactions` flags."""
        return np.asarray((self.p <= self.allowed_p) & (self.share >= _NOTICEABLE), dtype=np.bool_)


def interactions(trials: Trials) -> Interactions:
    """Measure the interaction of every pair of hyperparameters.

    The objective becomes normal scores of its ranks, best highest (they find more than plain ranks and err less). A
    quadratic in each number, indicators of the categories and the square of this fit itself (Tukey) is fitted. What a
    pair's product explains beyond is its interaction. Heteroscedasticity-consistent standard errors (HC3: MacKinnon
    and White, 1985) allow for noise that differs over the space, as that of other interactions does.

    A categorical scientific hyperparameter is asked whether the linear and the square terms of a number differ
    between its values (F-test), beyond a fit that is merely steeper for one value (Mandel): a steeper valley has the
    same bottom.

    Infeasible trials count as worst, so that an infeasible corner is seen; as their equal ranks hide what goes on
    among the others, these are asked by themselves, too, and the surer answer stands, at twice its p-value.

    Of retrains the best counts. Scientific values that share their points are compared within points; for nuisances,
    the trials of a point become their mean (their best would tie together two nuisances whose best values differ
    between scientific values).

    Parameters
    ----------
    trials
        The study. Pruned, failed and running trials are left out. A pair is judged by the trials that have both, so
        that hyperparameters of one branch are compared within it.

    Returns
    -------
    Interactions
        Of all numbers that are not fixed and all categorical scientific hyperparameters.
    """
    result = _measure(trials)
    if not trials.is_infeasible.any():
        return result
    # A block of equal worst ranks hides what goes on among the others; without it, nobody sees an infeasible corner.
    trained = _measure(trials.select(trials.is_feasible))
    names = ("strength", "statistic", "p", "share", "n_points")
    both = np.isfinite(result.p) & np.isfinite(trained.p)
    first, second = ((~(one.share >= _NOTICEABLE), np.nan_to_num(one.p, nan=2.0)) for one in (trained, result))
    is_trained = (first[0] < second[0]) | ((first[0] == second[0]) & (first[1] < second[1]))
    chosen = {name: np.where(is_trained, getattr(trained, name), getattr(result, name)) for name in names}
    chosen["p"] = np.where(both, np.minimum(1.0, 2.0 * chosen["p"]), chosen["p"])
    return replace(result, **chosen, feasible_only=is_trained, n_pairs=int(np.isfinite(chosen["p"]).sum()) // 2)


def _measure(trials: Trials) -> Interactions:
    """Measure the interactions by all judged trials, infeasible ones as worst."""
    subjects = interacting_parameters(trials)
    names = tuple(parameter.name for parameter in subjects)
    shape = (len(subjects), len(subjects))
    strength, statistic, chance, share = (np.full(shape, math.nan) for _ in range(4))
    n_points = np.zeros(shape, dtype=np.int64)
    asked = np.zeros(shape, dtype=np.bool_)
    for sample, n_rows, pairs in samples(trials, subjects):
        results = {} if sample is None else judge(sample, [(names[one], names[other]) for one, other in pairs])
        for one, other in pairs:
            for pair in ((one, other), (other, one)):
                asked[pair], n_points[pair] = True, n_rows
                numbers = results.get((names[one], names[other]))
                if numbers is not None:
                    strength[pair], statistic[pair], chance[pair], share[pair] = numbers
    return Interactions(
        names=names,
        strength=strength,
        statistic=statistic,
        p=chance,
        share=share,
        n_points=n_points,
        asked=asked,
        feasible_only=np.zeros(shape, dtype=np.bool_),
        n_pairs=int(np.isfinite(chance).sum()) // 2,
    )


def check_interactions(trials: Trials) -> list[Finding]:
    """Ask which hyperparameters must be tuned together.

    A pair is flagged where its interaction (`interactions`) has p <= 0.02 / (number of pairs) and explains at least 2%
    of the variance of the scores. In simulations at most 5% of studies without an interaction get any flag, with 30%
    infeasible or none; up to 9% do where the objective is the exponential of twice a standardized sum, plus noise,
    so that the valley drowns in the noise, and up to 40% where, stretched so, the objective has no valley at all but
    rises all the way in each of two numbers: look at the boundaries first. A rotated valley is found among 64 points
    in 95% of studies, with 2 to 8 numbers.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    list of Finding
        FLAG, one a pair that interacts, the surest first, ``subject`` being ``"<name>, <name>"``, a scientific one
        first. Numbers: ``first`` and ``second`` (the names), ``n_points``, ``share`` (of the variance of the scores),
        ``noticeable`` (0.02), ``p``, ``allowed_p``; of two numbers ``t`` and ``partial_correlation`` (positive: where
        one is high, high values of the other are better; negative: low ones), ``feasible_only`` (1: of the feasible
        trials by themselves); of a category ``f``,
        ``partial_correlation`` (>= 0) and, by a quadratic fitted to each value, the two that differ most:
        ``lower_value`` and ``higher_value`` with ``lower_best`` and ``higher_best`` (in the number's unit).
        Then at most one NO_EVIDENCE and one TOO_LITTLE_DATA, ``subject`` ``"study"``, for all other pairs, so that
        8 hyperparameters do not make 28 findings: ``n_pairs`` (the pairs it stands for), ``n_points`` (the fewest that
        judged one of them) and, where there is evidence to weigh, ``strongest`` (that pair), ``p``, ``share``,
        ``noticeable``, ``allowed_p``. Empty where a study has no pair to ask about.
    """
    result = interactions(trials)
    allowed = result.allowed_p
    pairs = [(int(one), int(other)) for one, other in np.argwhere(np.triu(result.asked))]
    pairs = sorted(pairs, key=lambda pair: (np.nan_to_num(result.p[pair], nan=2.0), -np.nan_to_num(result.share[pair])))
    flagged = [pair for pair in pairs if result.is_flagged[pair]]
    untold = [pair for pair in pairs if math.isnan(result.p[pair])]
    rest = [pair for pair in pairs if pair not in flagged and pair not in untold]
    findings = [_finding(*_describe(trials, result, pair, allowed)) for pair in flagged]
    if rest:
        first, second = _ordered(trials, result, rest[0])
        numbers: dict[str, Number] = {
            "n_pairs": len(rest),
            "n_points": int(min(result.n_points[pair] for pair in rest)),
            "strongest": f"{first}, {second}",
            "p": float(result.p[rest[0]]),
            "share": float(result.share[rest[0]]),
            "noticeable": _NOTICEABLE,
            "allowed_p": allowed,
        }
        findings.append(_finding("study", Verdict.NO_EVIDENCE, numbers))
    if untold:
        fewest = int(min(result.n_points[pair] for pair in untold))
        findings.append(_finding("study", Verdict.TOO_LITTLE_DATA, {"n_pairs": len(untold), "n_points": fewest}))
    return findings


def interacting_names(findings: Sequence[Finding]) -> set[str]:
    """Return the hyperparameters of the pairs that are flagged among some findings, of whatever checks."""
    flagged = [one for one in findings if one.check == "interaction" and one.verdict is Verdict.FLAG]
    return {str(one.numbers[place]) for one in flagged for place in ("first", "second")}


def _finding(subject: str, verdict: Verdict, numbers: dict[str, Number]) -> Finding:
    return Finding(
        check="interaction", subject=subject, verdict=verdict, numbers=numbers, section=SECTION, error_rate=_ERROR_RATE
    )


def _ordered(trials: Trials, result: Interactions, pair: tuple[int, int]) -> tuple[str, str]:
    """Return the names of a pair, a scientific one first."""
    first, second = (result.names[place] for place in pair)
    return (second, first) if trials.parameter(second).role is Role.SCIENTIFIC else (first, second)


def _describe(
    trials: Trials, result: Interactions, pair: tuple[int, int], allowed: float
) -> tuple[str, Verdict, dict[str, Number]]:
    first, second = _ordered(trials, result, pair)
    numbers: dict[str, Number] = {
        "first": first,
        "second": second,
        "n_points": int(result.n_points[pair]),
        "share": float(result.share[pair]),
        "noticeable": _NOTICEABLE,
        "p": float(result.p[pair]),
        "allowed_p": allowed,
        "t" if trials.parameter(first).is_numeric else "f": float(result.statistic[pair]),
        "partial_correlation": float(result.strength[pair]),
        "feasible_only": int(result.feasible_only[pair]),
    }
    if not trials.parameter(first).is_numeric:
        numbers |= _best_places(trials, trials.parameter(first), trials.parameter(second))
    return f"{first}, {second}", Verdict.FLAG, numbers


def _best_places(trials: Trials, category: Parameter, number: Parameter) -> dict[str, Number]:
    """Return the two categories whose best values of a number differ most, by a quadratic fitted to each."""
    judged = trials.is_judged & trials.has(number.name)
    ranks = trials.ranks(category.name)
    grid = np.linspace(0.0, 1.0, _GRID)
    best: dict[str, float] = {}
    for place, choice in enumerate(category.choices):
        rows = np.flatnonzero(judged & (ranks == place))
        unit = trials.unit(number.name)[rows]
        if len(np.unique(unit)) >= 3:
            parabola = np.polyfit(unit, normal_scores(trials, rows), 2)
            best[str(choice)] = float(grid[np.argmax(np.polyval(parabola, grid))])
    if len(best) < 2:
        return {}
    lower, higher = min(best, key=best.__getitem__), max(best, key=best.__getitem__)
    return {
        "lower_value": lower,
        "lower_best": number.from_unit(best[lower]),
        "higher_value": higher,
        "higher_best": number.from_unit(best[higher]),
    }
