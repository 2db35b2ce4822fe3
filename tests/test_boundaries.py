from __future__ import annotations

import numpy as np
import pytest

from playbook_plugins.analysis import Finding, Parameter, Role, Trials, Verdict, check_boundaries

N_STUDIES = 600


def make_study(unit: np.ndarray, cost: np.ndarray, direction: str = "minimize") -> Trials:
    names = [f"x{place}" for place in range(unit.shape[1])]
    parameters = [Parameter(name=name, kind="float", low=1e-4, high=1.0, log=True) for name in names]
    columns = {name: 10 ** (4 * unit[:, place] - 4) for place, name in enumerate(names)}
    return Trials.from_columns("s", parameters, columns, cost, direction=direction)


def flagged(findings: list[Finding], check: str = "boundary") -> list[str]:
    return [finding.subject for finding in findings if finding.check == check and finding.verdict is Verdict.FLAG]


def valley(generator: np.random.Generator, n_trials: int, optimum: np.ndarray, noise: float = 0.1) -> Trials:
    unit = generator.random((n_trials, len(optimum)))
    cost = ((unit - optimum) ** 2).sum(axis=1)
    return make_study(unit, cost + noise * cost.std() * generator.normal(size=n_trials))


def test_an_optimum_at_a_bound_is_flagged_at_that_bound() -> None:
    trials = valley(np.random.default_rng(0), 32, np.array([1.2, 0.5]))
    findings = check_boundaries(trials)
    assert flagged(findings) == ["x0, upper"]
    [finding] = [finding for finding in findings if finding.verdict is Verdict.FLAG]
    assert finding.numbers["bound"] == 1.0
    assert finding.numbers["n_points"] == 32
    assert finding.numbers["k"] == 7
    assert finding.numbers["best"] == trials.values["x0"][trials.ranking()[0]]


def test_a_hand_worked_chance() -> None:
    # 10 points, 2 of them in the outer fifth, both among the best 4: C(8, 2) / C(10, 4) = 28 / 210.
    unit = np.linspace(0.05, 0.95, 10)[:, None]
    cost = np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0], dtype=float)
    [lower, upper] = check_boundaries(make_study(unit, cost))
    assert upper.numbers["k"] == 4
    assert upper.numbers["k_outer"] == 2
    assert upper.numbers["p"] == pytest.approx(28 / 210)
    assert upper.numbers["allowed_p"] == pytest.approx(0.1)
    assert lower.numbers["k_outer"] == 0


def test_order_direction_and_scale_do_not_matter() -> None:
    generator = np.random.default_rng(3)
    unit, cost = generator.random((40, 3)), generator.random(40)
    cost[:9] = np.nan
    expected = check_boundaries(make_study(unit, cost))
    order = generator.permutation(40)
    for other in (
        check_boundaries(make_study(unit[order], cost[order])),
        check_boundaries(make_study(unit, -cost, "maximize")),
        check_boundaries(make_study(unit, 1e6 + 1e3 * cost)),
    ):
        for one, two in zip(expected, other, strict=True):
            assert (one.subject, one.verdict) == (two.subject, two.verdict)
            assert one.numbers == pytest.approx(two.numbers)


@pytest.mark.parametrize("n_trials", [0, 1, 7])
def test_too_few_trials_say_nothing(n_trials: int) -> None:
    generator = np.random.default_rng(0)
    findings = check_boundaries(make_study(generator.random((n_trials, 2)), generator.random(n_trials)))
    assert {finding.verdict for finding in findings} == {Verdict.TOO_LITTLE_DATA}
    findings = check_boundaries(make_study(generator.random((30, 2)), np.full(30, np.nan)))
    assert {finding.verdict for finding in findings} == {Verdict.TOO_LITTLE_DATA}


def test_a_constant_objective_is_no_evidence() -> None:
    findings = check_boundaries(make_study(np.random.default_rng(0).random((30, 2)), np.ones(30)))
    assert flagged(findings) == []


def test_divergence_beyond_the_best_trial_is_a_stability_edge_and_no_bound_to_widen() -> None:
    unit = np.random.default_rng(1).random((48, 2))
    cost = np.where(unit[:, 0] > 0.85, np.nan, (unit[:, 0] - 1.2) ** 2 + 0.1 * (unit[:, 1] - 0.5) ** 2)
    trials = make_study(unit, cost)
    findings = check_boundaries(trials)
    assert flagged(findings, "stability edge") == ["x0, upper"]
    assert flagged(findings) == []
    assert "x0, upper" not in {finding.subject for finding in findings if finding.check == "boundary"}
    [edge] = [finding for finding in findings if finding.check == "stability edge"]
    diverged = trials.is_infeasible
    assert edge.numbers["threshold"] == trials.values["x0"][diverged].min()
    assert edge.numbers["n_beyond"] == diverged.sum()
    assert edge.numbers["share_infeasible_beyond"] == 1
    assert edge.numbers["share_infeasible_before"] == 0


def test_divergence_far_from_the_best_trial_is_no_edge() -> None:
    unit = np.random.default_rng(1).random((48, 1))
    cost = np.where(unit[:, 0] > 0.8, np.nan, (unit[:, 0] - 0.3) ** 2)
    assert flagged(check_boundaries(make_study(unit, cost)), "stability edge") == []


def test_a_bound_beyond_mostly_infeasible_trials_is_not_flagged_by_a_bent_fit() -> None:
    generator = np.random.default_rng(0)
    flags = 0
    for _ in range(50):
        unit = generator.random((40, 2))
        cost = np.where(unit[:, 0] > 0.3, np.nan, (unit[:, 0] - 0.15) ** 2 + 0.01 * generator.normal(size=40))
        flags += "x0, upper" in flagged(check_boundaries(make_study(unit, cost)))
    assert flags == 0


def test_a_shared_nuisance_is_also_asked_of_each_scientific_value() -> None:
    generator = np.random.default_rng(0)
    n_points = 32
    decay = np.repeat(10 ** generator.uniform(-4, 0, n_points), 2)
    method = np.array(["a", "b"] * n_points)
    unit = (np.log10(decay) + 4) / 4
    # One value is best at the upper bound, the other, better one in the middle.
    cost = np.where(method == "a", (unit - 1) ** 2 + 1, (unit - 0.5) ** 2)
    trials = Trials.from_columns(
        "s",
        [
            Parameter(name="method", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC),
            Parameter(name="decay", kind="float", low=1e-4, high=1, log=True),
        ],
        {"method": method, "decay": decay},
        cost,
    )
    findings = check_boundaries(trials)
    [finding] = [finding for finding in findings if finding.verdict is Verdict.FLAG]
    assert (finding.subject, finding.numbers["value"]) == ("decay, upper", "method=a")
    assert {finding.numbers["n_points"] for finding in findings} == {n_points}


def flat(generator: np.random.Generator, n_trials: int, d: int) -> Trials:
    return make_study(generator.random((n_trials, d)), generator.random(n_trials))


def interior(generator: np.random.Generator, n_trials: int, d: int) -> Trials:
    return valley(generator, n_trials, generator.uniform(0.3, 0.7, d))


def infeasible(generator: np.random.Generator, n_trials: int, d: int) -> Trials:
    cost = generator.random(n_trials)
    cost[generator.random(n_trials) < 0.4] = np.nan
    return make_study(generator.random((n_trials, d)), cost)


@pytest.mark.slow
@pytest.mark.parametrize("n_trials", [16, 32, 64])
@pytest.mark.parametrize("d", [2, 4, 8])
@pytest.mark.parametrize("design", [flat, interior, infeasible])
def test_studies_without_a_bad_bound_are_rarely_flagged(design: object, d: int, n_trials: int) -> None:
    generator = np.random.default_rng([d, n_trials])
    flags = sum(bool(flagged(check_boundaries(design(generator, n_trials, d)))) for _ in range(N_STUDIES))
    assert flags / N_STUDIES <= 0.09 + 2 * np.sqrt(0.09 * 0.91 / N_STUDIES)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 4, 8])
def test_random_divergence_is_rarely_called_a_stability_edge(d: int) -> None:
    generator = np.random.default_rng(d)
    flags = sum(
        bool(flagged(check_boundaries(infeasible(generator, 48, d)), "stability edge")) for _ in range(N_STUDIES)
    )
    assert flags / N_STUDIES <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("d", "power"), [(2, 0.9), (4, 0.9), (8, 0.5)])
def test_an_optimum_beyond_a_bound_is_found(d: int, power: float) -> None:
    generator = np.random.default_rng(d)
    hits = 0
    for _ in range(300):
        optimum = generator.uniform(0.3, 0.7, d)
        optimum[0] = 1.2
        hits += "x0, upper" in flagged(check_boundaries(valley(generator, 64, optimum)))
    assert hits / 300 >= power
