"""Studies for the simulations of the boundary check: how points are drawn, repeated, branched and lost.

Every design is a function of (generator, n, d, objective, points): n distinct points in d nuisance coordinates, and an
objective of a place in the unit cube. Scientific values have an objective of their own each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import qmc

from playbook_plugins.analysis import Finding, Parameter, Role, Trials, Verdict, check_boundaries

Objective: TypeAlias = Callable[[np.random.Generator, np.ndarray], np.ndarray]
Points: TypeAlias = Callable[[np.random.Generator, int, int], np.ndarray]
Design: TypeAlias = Callable[..., Trials]

N_STUDIES = 600


def random_points(generator: np.random.Generator, n: int, d: int) -> np.ndarray:
    return generator.random((n, d))


def halton_points(generator: np.random.Generator, n: int, d: int) -> np.ndarray:
    return qmc.Halton(d, scramble=True, rng=generator).random(n)


def flat(generator: np.random.Generator, unit: np.ndarray) -> np.ndarray:
    return generator.random(len(unit))


def valley(optimum: np.ndarray) -> Objective:
    """Return a bowl around one place; the noise of a trial is a tenth of the bowl's standard deviation."""

    def cost(generator: np.random.Generator, unit: np.ndarray) -> np.ndarray:
        exact = ((unit - optimum) ** 2).sum(axis=1)
        return exact + 0.1 * exact.std() * generator.normal(size=len(unit))

    return cost


def interior(generator: np.random.Generator, unit: np.ndarray) -> np.ndarray:
    return valley(generator.uniform(0.3, 0.7, unit.shape[1]))(generator, unit)


def valley_at(first: float) -> Objective:
    """Return bowls whose optimum is at one place in x0, and somewhere inside in the others."""

    def cost(generator: np.random.Generator, unit: np.ndarray) -> np.ndarray:
        optimum = generator.uniform(0.3, 0.7, unit.shape[1])
        optimum[0] = first
        return valley(optimum)(generator, unit)

    return cost


def make_study(unit: np.ndarray, cost: np.ndarray, direction: str = "minimize") -> Trials:
    names = [f"x{place}" for place in range(unit.shape[1])]
    parameters = [Parameter(name=name, kind="float", low=1e-4, high=1.0, log=True) for name in names]
    columns = {name: 10 ** (4 * unit[:, place] - 4) for place, name in enumerate(names)}
    return Trials.from_columns("s", parameters, columns, cost, direction=direction)


def plain(
    generator: np.random.Generator, n: int, d: int, objective: Objective, points: Points = random_points
) -> Trials:
    unit = points(generator, n, d)
    return make_study(unit, objective(generator, unit))


def paired(n_values: int) -> Design:
    """Return studies whose scientific values all face the same points."""

    def study(
        generator: np.random.Generator, n: int, d: int, objective: Objective, points: Points = random_points
    ) -> Trials:
        unit = points(generator, n, d)
        return with_method(unit, [objective(generator, unit) for _ in range(n_values)])

    return study


def with_method(unit: np.ndarray, costs: list[np.ndarray], direction: str = "minimize") -> Trials:
    methods = tuple(f"method {place}" for place in range(len(costs)))
    parameters = [Parameter(name="method", kind="categorical", choices=methods, role=Role.SCIENTIFIC)]
    columns: dict[str, Any] = {"method": np.repeat(methods, len(unit))}
    for place, column in enumerate(unit.T):
        parameters.append(Parameter(name=f"x{place}", kind="float", low=0, high=1))
        columns[f"x{place}"] = np.tile(column, len(costs))
    return Trials.from_columns("s", parameters, columns, np.concatenate(costs), direction=direction)


def conditional(
    generator: np.random.Generator, n: int, d: int, objective: Objective, points: Points = random_points
) -> Trials:
    """Return studies of two optimizers that share half of the coordinates and have their own ranges of the others."""
    unit = points(generator, n, d)
    return with_branches(unit, [objective(generator, unit) for _ in range(2)])


def with_branches(unit: np.ndarray, costs: list[np.ndarray], direction: str = "minimize") -> Trials:
    n, d = unit.shape
    optimizers = ("adam", "nesterov")
    parameters = [Parameter(name="optimizer", kind="categorical", choices=optimizers, role=Role.SCIENTIFIC)]
    columns: dict[str, Any] = {"optimizer": np.repeat(optimizers, n)}
    for place in range(d // 2):
        parameters.append(Parameter(name=f"x{place}", kind="float", low=0, high=1))
        columns[f"x{place}"] = np.tile(unit[:, place], 2)
    for rank, optimizer in enumerate(optimizers):
        for place in range(d // 2, d):
            # The same places of ranges of their own.
            name, high = f"{optimizer}.x{place}", 1 + 2.0 * rank
            parameters.append(Parameter(name=name, kind="float", low=0, high=high, condition=("optimizer", optimizer)))
            columns[name] = np.full(2 * n, np.nan)
            columns[name][rank * n : (rank + 1) * n] = high * unit[:, place]
    return Trials.from_columns("s", parameters, columns, np.concatenate(costs), direction=direction)


def random_divergence(
    generator: np.random.Generator, n: int, d: int, objective: Objective, points: Points = random_points
) -> Trials:
    unit = points(generator, n, d)
    return make_study(unit, np.where(generator.random(n) < 0.4, np.nan, objective(generator, unit)))


def divergence_above(threshold: float) -> Design:
    """Return studies in which every trial above a place in x0 diverges."""

    def study(
        generator: np.random.Generator, n: int, d: int, objective: Objective, points: Points = random_points
    ) -> Trials:
        unit = points(generator, n, d)
        return make_study(unit, np.where(unit[:, 0] > threshold, np.nan, objective(generator, unit)))

    return study


def divergence_in_a_corner(
    generator: np.random.Generator, n: int, d: int, objective: Objective, points: Points = random_points
) -> Trials:
    """Return studies in which 40% diverge: those whose first two coordinates are large together."""
    unit = points(generator, n, d)
    return make_study(unit, np.where(unit[:, 0] + unit[:, 1] > 1.1056, np.nan, objective(generator, unit)))


def integers(
    generator: np.random.Generator, n: int, d: int, objective: Objective, points: Points = random_points
) -> Trials:
    """Return studies of integers with four values each, so that many points are met again."""
    values = 1 + np.floor(4 * points(generator, n, d))
    parameters = [Parameter(name=f"x{place}", kind="int", low=1, high=4) for place in range(d)]
    columns = {f"x{place}": column for place, column in enumerate(values.T)}
    return Trials.from_columns("s", parameters, columns, objective(generator, (values - 1) / 3))


def retrains(
    generator: np.random.Generator, n: int, d: int, objective: Objective, points: Points = random_points
) -> Trials:
    """Return studies of which a third of the trials repeat a point."""
    unit = points(generator, n, d)
    unit = unit[np.concatenate([np.arange(n), generator.integers(0, n, n // 2)])]
    return make_study(unit, objective(generator, unit))


def scientific_number(
    generator: np.random.Generator, n: int, d: int, objective: Objective, points: Points = random_points
) -> Trials:
    """Return studies whose last coordinate is scientific: five numbers of layers, all at the same other points."""
    unit = np.repeat(points(generator, n, d), 5, axis=0)
    unit[:, -1] = np.tile(np.arange(5) / 4, n)
    parameters = [Parameter(name=f"x{place}", kind="float", low=0, high=1) for place in range(d - 1)]
    parameters.append(Parameter(name="layers", kind="int", low=2, high=6, role=Role.SCIENTIFIC))
    columns = {f"x{place}": unit[:, place] for place in range(d - 1)} | {"layers": 2 + 4 * unit[:, -1]}
    return Trials.from_columns("s", parameters, columns, objective(generator, unit))


CELLS = [(d, n) for d in (2, 4, 8) for n in (16, 32, 64, 128)]
DESIGNS = {
    "plain": plain,
    "2 paired values": paired(2),
    "5 paired values": paired(5),
    "conditional": conditional,
    "random divergence": random_divergence,
    "divergence above 0.6": divergence_above(0.6),
}
MORE_DESIGNS = {
    "divergence in a corner": divergence_in_a_corner,
    "integers": integers,
    "retrains": retrains,
    "scientific number": scientific_number,
}


def flagged(findings: list[Finding], check: str = "boundary") -> list[str]:
    return [finding.subject for finding in findings if finding.check == check and finding.verdict is Verdict.FLAG]


def rates(
    design: Design,
    objective: Objective,
    cells: list[tuple[int, int]],
    check: str = "boundary",
    points: Points = random_points,
) -> np.ndarray:
    """Return the share of studies with any flag of a check, one a cell of (d, n)."""
    found = []
    for d, n in cells:
        generator = np.random.default_rng([d, n])
        flags = 0
        for _ in range(N_STUDIES):
            flags += bool(flagged(check_boundaries(design(generator, n, d, objective, points)), check))
        found.append(flags / N_STUDIES)
    return np.array(found)


def power(design: Design, d: int, n: int, check: str = "boundary") -> float:
    """Return the share of studies with an optimum at 1.2 in x0 in which its upper side is flagged."""
    generator = np.random.default_rng(d)
    hits = 0
    for _ in range(N_STUDIES):
        hits += "x0, upper" in flagged(check_boundaries(design(generator, n, d, valley_at(1.2))), check)
    return hits / N_STUDIES
