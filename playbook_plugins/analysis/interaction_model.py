"""How are interactions measured? The trials by which a pair is judged, the model without interactions, and the tests.

`playbook_plugins.analysis.interactions` says what is asked, and cites the sources.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.parameters import Parameter, Role
from playbook_plugins.analysis.points import point_codes
from playbook_plugins.analysis.trials import Trials

Floats: TypeAlias = NDArray[np.float64]
# Partial correlation, statistic, p-value, share.
Statistics: TypeAlias = tuple[float, float, float, float]
# n > 2 d + 8 where all d are numbers: an intercept, 2 d terms, Tukey's column and the product are fitted.
_MIN_FREEDOM = 6
# The p-value at which the strongest difference between categories joins the model.
_JOINS = 0.05
# Share of its square below which a column is no more than rounding.
_ALIKE = 1e-9


def interacting_parameters(trials: Trials) -> list[Parameter]:
    """Return the hyperparameters that are asked about: numbers that are not fixed, and scientific categories."""
    return [
        parameter
        for parameter in trials.parameters
        if (parameter.is_numeric and parameter.role is not Role.FIXED and parameter.low < parameter.high)
        or (not parameter.is_numeric and parameter.role is Role.SCIENTIFIC and len(parameter.choices) > 1)
    ]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The n trials by which some pairs are judged, and what the model without an interaction leaves of their scores."""

    places: dict[str, Floats]
    left: Floats
    total: float
    basis: Floats
    group: NDArray[np.intp] | None
    n_used: int

    def residual(self, columns: Floats) -> Floats:
        """Return what the model cannot explain of columns, shape (n, m)."""
        inner = _within(columns, self.group)
        return inner - self.basis @ (self.basis.T @ inner)

    def beyond(self, columns: Floats) -> Floats:
        """Return an orthonormal basis of what the model cannot explain of columns, shape (n, rank)."""
        rest = self.residual(columns)
        squares, directions = np.linalg.eigh(rest.T @ rest)
        is_new = squares > _ALIKE * np.sum(columns**2)
        return np.asarray(rest @ directions[:, is_new] / np.sqrt(squares[is_new]))

    def joined_by(self, columns: Floats) -> Sample:
        """Return the sample with more columns in its model."""
        new = self.beyond(columns)
        left = self.left - new @ (new.T @ self.left)
        return replace(self, left=left, basis=np.hstack([self.basis, new]), n_used=self.n_used + new.shape[1])


def samples(trials: Trials, subjects: list[Parameter]) -> Iterator[tuple[Sample | None, int, list[tuple[int, int]]]]:
    """Return the trials by which pairs are judged (None: too few), their number, and the pairs, by their places."""
    searched = [parameter for parameter in trials.parameters if parameter.role is not Role.FIXED]
    places = {parameter.name: trials.unit(parameter.name) for parameter in searched}
    judged = trials.is_judged
    has = [judged & ~np.isnan(places[parameter.name]) for parameter in subjects]
    questions: dict[tuple[bytes, bool], list[tuple[int, int]]] = {}
    for other in range(len(subjects)):
        for one in range(other):
            n_scientific = sum(subjects[place].role is Role.SCIENTIFIC for place in (one, other))
            both = has[one] & has[other]
            if n_scientific < 2 and not _exclude(subjects[one], subjects[other]):
                questions.setdefault((both.tobytes(), n_scientific == 1), []).append((one, other))
    for (mask, is_scientific), pairs in questions.items():
        rows = np.flatnonzero(np.frombuffer(mask, dtype=np.bool_))
        if not len(rows):
            yield None, 0, pairs
            continue
        present = [parameter for parameter in searched if not np.isnan(places[parameter.name][rows]).any()]
        rows, point = _witnesses(trials, present, places, rows)
        is_shared = np.bincount(point)[point] > 1
        if not is_scientific:
            sample = _model(trials, present, places, rows, point if is_shared.any() else None, is_within=False)
        elif is_shared.mean() > 0.5:
            # Trials at one point share what is peculiar to it: only differences within points count.
            rows, point = rows[is_shared], np.unique(point[is_shared], return_inverse=True)[1].reshape(-1)
            sample = _model(trials, present, places, rows, point, is_within=True)
        else:
            rows = rows[np.unique(point, return_index=True)[1]]
            sample = _model(trials, present, places, rows, None, is_within=False)
        yield sample, len(rows) if is_scientific else int(point.max()) + 1, pairs


def _exclude(one: Parameter, other: Parameter) -> bool:
    """Return whether two hyperparameters belong to different branches, or one to a branch of the other's."""
    if one.condition is not None and other.condition is not None and one.condition[0] == other.condition[0]:
        return one.condition != other.condition
    return any(
        first.condition is not None and first.condition[0] == second.name
        for first, second in ((one, other), (other, one))
    )


def _witnesses(
    trials: Trials, present: list[Parameter], places: dict[str, Floats], rows: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the best trial of each point for each scientific value, and the number of its point."""
    columns = [column[rows] for column in places.values()]
    best_first = rows[np.argsort(_cost(trials)[rows], kind="stable")]
    order = np.searchsorted(rows, best_first)
    chosen = np.sort(best_first[np.unique(point_codes(columns, len(rows))[order], return_index=True)[1]])
    return chosen, point_codes([places[one.name][chosen] for one in present if one.role is Role.NUISANCE], len(chosen))


def _cost(trials: Trials) -> Floats:
    return np.where(trials.is_infeasible, np.inf, trials.cost)


def normal_scores(trials: Trials, rows: NDArray[np.intp]) -> Floats:
    """Return normal scores of the ranks (Blom), centred at 0, the best highest; infeasible trials all worst."""
    scores = scipy.special.ndtri((scipy.stats.rankdata(-_cost(trials)[rows]) - 0.375) / (len(rows) + 0.25))
    return np.asarray(scores - scores.mean(), dtype=np.float64)


def _model(
    trials: Trials,
    present: list[Parameter],
    places: dict[str, Floats],
    rows: NDArray[np.intp],
    point: NDArray[np.intp] | None,
    *,
    is_within: bool,
) -> Sample | None:
    """Fit the model without interactions; None where all scores are equal.

    Trials that share a point are compared within it, or become their mean: a sum at each scientific value remains a
    sum on average, while the best of two valleys with different bottoms is no sum.
    """
    scores = normal_scores(trials, rows)
    own: dict[str, Floats] = {}
    columns = [np.ones(len(rows))]
    contrasts: list[Floats] = []
    for parameter in present:
        place = places[parameter.name][rows]
        if parameter.is_numeric:
            own[parameter.name] = place - 0.5
            columns += [place - 0.5, (place - 0.5) ** 2]
        else:
            indicators = [np.asarray(place == one, dtype=np.float64) for one in np.unique(place)[1:]]
            columns += indicators
            if parameter.role is Role.SCIENTIFIC:
                contrasts += indicators
                own[parameter.name] = np.reshape(indicators, (-1, len(rows))).T
    group = point
    if point is not None and not is_within:
        columns = [_means(column, point) for column in columns]
        contrasts = [_means(contrast, point) for contrast in contrasts]
        own = {name: _means(place, point) for name, place in own.items()}
        scores, group = _means(scores, point), None
    total = float(np.sum((scores - scores.mean()) ** 2))
    if total <= _ALIKE:
        return None
    basis = _basis(np.column_stack(columns))
    fit = basis @ (basis.T @ scores)
    fit = fit / (fit.std() or 1.0)
    # Tukey's column, and Mandel's.
    columns += [fit**2, *(fit * contrast for contrast in contrasts)]
    basis = _basis(_within(np.column_stack(columns), group))
    inner = _within(scores, group)
    return Sample(
        places=own,
        left=inner - basis @ (basis.T @ inner),
        total=total,
        basis=basis,
        group=group,
        n_used=basis.shape[1] + (0 if group is None else int(group.max()) + 1),
    )


def _basis(columns: Floats) -> Floats:
    """Return an orthonormal basis of what columns span, shape (n, rank)."""
    vectors, sizes, _ = np.linalg.svd(columns, full_matrices=False)
    return np.asarray(vectors[:, sizes > 1e-9 * max(sizes[0], 1e-300)])


def _within(columns: Floats, group: NDArray[np.intp] | None) -> Floats:
    """Return columns, shape (n,) or (n, m), less their means over each group."""
    return columns if group is None else columns - _means(columns, group)[group]


def _means(columns: Floats, group: NDArray[np.intp]) -> Floats:
    sums = _sums(columns, group)
    return np.asarray((sums.T / np.bincount(group)).T, dtype=np.float64)


def _sums(columns: Floats, group: NDArray[np.intp]) -> Floats:
    sums = np.zeros((int(group.max()) + 1, *columns.shape[1:]))
    np.add.at(sums, group, columns)
    return sums


def judge(sample: Sample, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], Statistics]:
    """Return the numbers of each pair, by its names; without those that the trials cannot tell from the model."""
    numeric = [pair for pair in pairs if all(sample.places[name].ndim == 1 for name in pair)]
    results = _judge_products(sample, numeric) if numeric else {}
    others = [pair for pair in pairs if pair not in numeric]
    # The strongest joins the model before the others are judged: a bottom that moves with one number makes a valley
    # look less steep in that number, and so, beyond Mandel's column, steeper in all others.
    while others:
        judged = {pair: _judge_category(sample, *pair) for pair in others}
        known = {pair: numbers for pair, numbers in judged.items() if numbers is not None}
        results |= known
        strongest = min(known, key=lambda pair: known[pair][2], default=None)
        if strongest is None or known[strongest][2] > _JOINS:
            break
        others = [pair for pair in known if pair != strongest]
        sample = sample.joined_by(_contrast_columns(sample, *strongest))
        results = {pair: numbers for pair, numbers in results.items() if pair not in others}
    return results


def _judge_products(sample: Sample, pairs: list[tuple[str, str]]) -> dict[tuple[str, str], Statistics]:
    """Judge products of two numbers, all at once (Frisch and Waugh): each alone beyond the model, not all together."""
    freedom = len(sample.left) - sample.n_used - 1
    if freedom < _MIN_FREEDOM:
        return {}
    products = np.column_stack([sample.places[one] * sample.places[other] for one, other in pairs])
    new = sample.residual(products)
    size = np.sum(new**2, axis=0)
    is_new = size > _ALIKE * np.sum(products**2, axis=0)
    new, size = new[:, is_new], size[is_new]
    weight = new.T @ sample.left / size
    leverage = np.sum(sample.basis**2, axis=1)[:, None] + new**2 / size
    # A trial of leverage 1 is fitted exactly, whatever its score: it says nothing about the noise.
    free = np.where(leverage < 1.0 - 1e-9, 1.0 - leverage, np.inf)
    pull = new * (sample.left[:, None] - weight * new) / free
    if sample.group is not None:
        # What is left of the scores of one point sums to 0: its trials are one witness.
        pull = _sums(pull, sample.group)
    error = np.sqrt(np.sum(pull**2, axis=0)) / size
    explained = weight**2 * size
    total_left = float(sample.left @ sample.left)
    is_exact = explained <= _ALIKE * sample.total
    statistic = np.where(is_exact, 0.0, weight / np.maximum(error, 1e-12 * np.abs(weight) + 1e-300))
    strength = np.where(is_exact, 0.0, np.clip(weight * np.sqrt(size) / max(math.sqrt(total_left), 1e-300), -1, 1))
    chance = 2.0 * scipy.stats.t.sf(np.abs(statistic), freedom)
    told = [pair for pair, known in zip(pairs, is_new, strict=True) if known]
    table = zip(strength, statistic, chance, explained / sample.total, strict=True)
    return {pair: (float(a), float(b), float(c), float(d)) for pair, (a, b, c, d) in zip(told, table, strict=True)}


def _contrast_columns(sample: Sample, one: str, other: str) -> Floats:
    """Return the linear and square terms of a number, of each category but the first, shape (n, 2 (K - 1))."""
    number, contrasts = sample.places[one], sample.places[other]
    if number.ndim == 2:
        number, contrasts = contrasts, number
    return np.column_stack([contrasts * number[:, None], contrasts * (number**2)[:, None]])


def _judge_category(sample: Sample, one: str, other: str) -> Statistics | None:
    """Judge whether the linear and square terms of a number differ between categories; None where nothing can tell."""
    new = sample.beyond(_contrast_columns(sample, one, other))
    n_terms = new.shape[1]
    freedom = len(sample.left) - sample.n_used - n_terms
    if n_terms == 0 or freedom < _MIN_FREEDOM:
        return None
    explained = float(np.sum((new.T @ sample.left) ** 2))
    if explained <= _ALIKE * sample.total:
        return 0.0, 0.0, 1.0, 0.0
    total_left = float(sample.left @ sample.left)
    noise = max(total_left - explained, 1e-12 * total_left) / freedom
    statistic = explained / n_terms / noise
    chance = float(scipy.stats.f.sf(statistic, n_terms, freedom))
    return math.sqrt(min(1.0, explained / total_left)), statistic, chance, explained / sample.total
