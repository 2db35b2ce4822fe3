from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from playbook_plugins.analysis import Parameter, Role, Trials, Verdict
from playbook_plugins.analysis.good_region import check_good_region
from playbook_plugins.analysis.sensitivity import check_sensitivity


def table(points: NDArray[np.float64], error: NDArray[np.float64]) -> Trials:
    names = [f"p{place}" for place in range(points.shape[1])]
    parameters = [Parameter(name=name, kind="float", low=0, high=1) for name in names]
    return Trials.from_columns("t", parameters, {name: points[:, place] for place, name in enumerate(names)}, error)


def test_sensitivity_is_the_same_upwards_and_in_any_order() -> None:
    generator = np.random.default_rng(0)
    points = generator.random((50, 2))
    error = (points[:, 0] - 0.4) ** 2 + 0.02 * generator.standard_normal(50)
    found = {finding.subject: finding for finding in check_sensitivity(table(points, error))}
    assert found["p0"].verdict is Verdict.NO_EVIDENCE
    assert found["p1"].verdict is Verdict.FLAG
    shuffle = generator.permutation(50)
    again = {finding.subject: finding for finding in check_sensitivity(table(points[shuffle], error[shuffle]))}
    assert again["p0"].numbers["share"] == pytest.approx(found["p0"].numbers["share"])
    # Ranks: any rising transformation of the objective says the same.
    again = {finding.subject: finding for finding in check_sensitivity(table(points, np.exp(5 * error)))}
    assert again["p1"].numbers == pytest.approx(found["p1"].numbers)


def test_a_hand_worked_share() -> None:
    # A grid of five by four, ranked by the second coordinate and then the first: ranks 5 j + i + 1. Their variance is
    # (20^2 - 1) / 12 = 33.25, of which i has (5^2 - 1) / 12 = 2 and 5 j the rest; there is no noise.
    i, j = (place.ravel() for place in np.meshgrid(np.arange(5), np.arange(4), indexing="ij"))
    first, second = check_sensitivity(table(np.column_stack([i / 4, j / 3]), 10.0 * j + i))
    assert (first.verdict, second.verdict) == (Verdict.FLAG, Verdict.NO_EVIDENCE)
    assert first.numbers["share"] == pytest.approx(2 / 33.25)
    assert second.numbers["share"] == pytest.approx(31.25 / 33.25)
    assert (first.numbers["p"], second.numbers["p"]) == (0.0, 1.0)
    assert (first.numbers["n_points"], first.numbers["noticeable"], first.numbers["allowed_p"]) == (20, 0.1, 0.0075)


def test_minimizing_and_maximizing_are_dual() -> None:
    generator = np.random.default_rng(1)
    points = generator.random((60, 2))
    error = (points[:, 0] - 0.4) ** 2 + 0.02 * generator.standard_normal(60)
    error[::7] = np.inf
    trials = table(points, error)
    turned = Trials.from_columns("t", trials.parameters, trials.values, -error, direction="maximize")
    assert [one.numbers for one in check_sensitivity(turned)] == [one.numbers for one in check_sensitivity(trials)]
    assert check_good_region(turned) == check_good_region(trials)


def test_the_good_region_knows_no_order_or_scale() -> None:
    generator = np.random.default_rng(2)
    points = generator.random((60, 2))
    error = (points[:, 0] - 0.5) ** 2
    expected = check_good_region(table(points, error))
    assert [one.verdict for one in expected][:2] == [Verdict.FLAG, Verdict.FLAG]
    shuffle = generator.permutation(60)
    assert check_good_region(table(points[shuffle], np.exp(9 * error[shuffle]))) == expected
    # On a logarithmic scale the same places are cut.
    parameters = [Parameter(name=f"p{place}", kind="float", low=1e-6, high=1, log=True) for place in range(2)]
    columns = {f"p{place}": 10 ** (6 * points[:, place] - 6) for place in range(2)}
    assert check_good_region(Trials.from_columns("t", parameters, columns, error)) == expected


def test_a_repeated_point_is_one_witness() -> None:
    generator = np.random.default_rng(3)
    points = generator.random((60, 2))
    error = (points[:, 0] - 0.5) ** 2
    repeated = table(np.repeat(points, 3, axis=0), np.repeat(error, 3) + np.tile([0.0, 1.0, 2.0], 60))
    once = table(points, error)
    assert [one.numbers for one in check_sensitivity(repeated)] == [one.numbers for one in check_sensitivity(once)]
    assert [one.numbers["n_points"] for one in check_good_region(repeated)] == [60] * 4


def test_an_interaction_is_no_insensitivity() -> None:
    generator = np.random.default_rng(0)
    points = generator.random((100, 3))
    error = (points[:, 0] - 0.5) * (points[:, 1] - 0.5) + 0.01 * generator.standard_normal(100)
    found = {finding.subject: finding.verdict for finding in check_sensitivity(table(points, error))}
    assert found == {"p0": Verdict.NO_EVIDENCE, "p1": Verdict.NO_EVIDENCE, "p2": Verdict.FLAG}


def test_what_matters_to_one_scientific_value_is_not_insensitive() -> None:
    generator = np.random.default_rng(0)
    points = np.repeat(generator.random((60, 2)), 2, axis=0)
    kind = np.array(["a", "b"] * 60)
    error = np.where(kind == "a", points[:, 0], 10 + points[:, 1])
    parameters = [
        Parameter(name="kind", kind="categorical", choices=("a", "b"), role=Role.SCIENTIFIC),
        Parameter(name="p0", kind="float", low=0, high=1),
        Parameter(name="p1", kind="float", low=0, high=1),
    ]
    trials = Trials.from_columns("t", parameters, {"kind": kind, "p0": points[:, 0], "p1": points[:, 1]}, error)
    found = {finding.subject: finding for finding in check_sensitivity(trials)}
    assert found["p1"].verdict is Verdict.NO_EVIDENCE
    assert found["p1"].numbers["value"] == "kind=b"


def test_few_points_are_too_little_data() -> None:
    points = np.random.default_rng(0).random((14, 2))
    assert {finding.verdict for finding in check_sensitivity(table(points, points[:, 0]))} == {Verdict.TOO_LITTLE_DATA}
    assert {finding.verdict for finding in check_good_region(table(points, points[:, 0]))} == {Verdict.TOO_LITTLE_DATA}


@pytest.mark.slow
def test_the_known_error_rates_hold() -> None:
    """Each of three hyperparameters explains exactly a tenth of the variance, and none may be called insensitive."""
    generator = np.random.default_rng(0)
    for n_points in (30, 60, 120):
        n_wrong = n_cut = 0
        for _ in range(400):
            points = generator.random((n_points, 3))
            effect = math.sqrt(0.1 * 12) * (points - 0.5).sum(axis=1)
            trials = table(points, effect + math.sqrt(0.7) * generator.standard_normal(n_points))
            n_wrong += any(finding.verdict is Verdict.FLAG for finding in check_sensitivity(trials))
            noise = table(points, generator.random(n_points))
            n_cut += any(finding.verdict is Verdict.FLAG for finding in check_good_region(noise))
        assert n_wrong / 400 <= 0.05
        assert n_cut / 400 <= 0.05


def test_the_good_region_by_hand() -> None:
    # 60 points on a line: the best 12 are those of the middle, none of them in an outer third (20 points).
    places = (np.arange(60) + 0.5) / 60
    found = {finding.subject: finding for finding in check_good_region(table(places[:, None], abs(places - 0.5)))}
    upper = found["p0, upper"]
    assert upper.verdict is Verdict.FLAG
    assert {name: upper.numbers[name] for name in ("n_points", "k", "n_outer", "k_outer", "allowed_p")} == {
        "n_points": 60,
        "k": 12,
        "n_outer": 20,
        "k_outer": 0,
        "allowed_p": 0.025,
    }
    assert upper.numbers["p"] == pytest.approx(math.comb(40, 12) / math.comb(60, 12))
    # Mirrored, and with the objective turned round, the findings are the same.
    mirrored = check_good_region(table(1 - places[:, None], abs(places - 0.5)))
    assert [finding.numbers for finding in mirrored] == [found["p0, lower"].numbers, upper.numbers]
    # A best trial in the outer quarter stays.
    error = abs(places - 0.5)
    error[-1] = -1.0
    assert check_good_region(table(places[:, None], error))[1].verdict is not Verdict.FLAG


def test_infeasible_trials_count_as_worst() -> None:
    places = (np.arange(60) + 0.5) / 60
    error = np.where(places > 0.6, np.inf, 0.0)
    found = {finding.subject: finding for finding in check_good_region(table(places[:, None], error))}
    assert found["p0, upper"].numbers["k_outer"] == 0
    sensitive = check_sensitivity(table(places[:, None], error))[0]
    assert sensitive.verdict is Verdict.NO_EVIDENCE
    assert float(sensitive.numbers["share"] or 0) > 0.5


@pytest.mark.parametrize("n_parameters", [1, 2, 6])
def test_the_known_error_rates_hold_for_any_number_of_hyperparameters(n_parameters: int) -> None:
    generator = np.random.default_rng(6)
    n_studies = 300
    for n_points in (30, 60):
        n_wrong = n_cut = 0
        for _ in range(n_studies):
            points = generator.random((n_points, n_parameters))
            effect = math.sqrt(0.1 * 12) * (points - 0.5).sum(axis=1)
            noise = math.sqrt(1 - 0.1 * n_parameters) * generator.standard_normal(n_points)
            trials = table(points, effect + noise)
            n_wrong += any(finding.verdict is Verdict.FLAG for finding in check_sensitivity(trials))
            flat = table(points, generator.random(n_points))
            n_cut += any(finding.verdict is Verdict.FLAG for finding in check_good_region(flat))
        allowed = 0.05 + 2 * math.sqrt(0.05 * 0.95 / n_studies)
        assert n_wrong / n_studies <= allowed
        assert n_cut / n_studies <= allowed


@pytest.mark.parametrize(("n_points", "power"), [(30, 0.44), (60, 0.94)])
def test_what_has_no_effect_is_found_insensitive(n_points: int, power: float) -> None:
    generator = np.random.default_rng(4)
    n_studies, n_found = 300, 0
    for _ in range(n_studies):
        points = generator.random((n_points, 3))
        error = math.sqrt(0.8 * 12) * points[:, 0] + math.sqrt(0.2) * generator.standard_normal(n_points)
        first, *others = check_sensitivity(table(points, error))
        assert first.verdict is Verdict.NO_EVIDENCE
        n_found += sum(finding.verdict is Verdict.FLAG for finding in others)
    # Of the same study, the two are not independent.
    assert n_found / (2 * n_studies) == pytest.approx(power, abs=2 * math.sqrt(power * (1 - power) / n_studies))


@pytest.mark.parametrize(
    ("n_points", "n_parameters", "power"), [(30, 1, 0.15), (50, 1, 0.81), (60, 1, 0.95), (60, 3, 0.74), (120, 3, 1.0)]
)
def test_the_ends_of_a_range_whose_middle_is_best_may_be_cut(n_points: int, n_parameters: int, power: float) -> None:
    generator = np.random.default_rng(5)
    n_studies, n_found = 300, 0
    for _ in range(n_studies):
        points = generator.random((n_points, n_parameters))
        ends = check_good_region(table(points, (points[:, 0] - 0.5) ** 2))[:2]
        n_found += sum(finding.verdict is Verdict.FLAG for finding in ends)
    error = math.sqrt(power * (1 - power) / n_studies)
    assert n_found / (2 * n_studies) == pytest.approx(power, abs=max(2 * error, 0.01))
