"""Is the gradient noise scale unbiased in both its terms, and does its interval cover the truth?"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis.gradient_noise import GradientNoiseScale, gradient_noise_scale


def measure(
    signal: float, trace: float, small: int, big: int, n_measurements: int, seed: int, dimension: int = 50
) -> GradientNoiseScale:
    """Estimate from mean gradients of small batches, whose union is the big one."""
    generator = np.random.default_rng(seed)
    noise = np.sqrt(trace / dimension / small) * generator.normal(size=(n_measurements, big // small, dimension))
    parts = np.sqrt(signal / dimension) + noise
    return gradient_noise_scale((parts**2).sum(2).mean(1), (parts.mean(1) ** 2).sum(1), small, big)


def test_a_hand_worked_value() -> None:
    # |G|^2 = (4 * 3 - 1 * 9) / 3 = 1, tr(Sigma) = (9 - 3) / (1 - 1 / 4) = 8.
    scale = gradient_noise_scale([9.0], [3.0], 1, 4)
    assert (scale.squared_gradient, scale.trace, scale.value) == pytest.approx((1.0, 8.0, 8.0))
    assert (scale.standard_error, scale.low, scale.high, scale.n_measurements) == (None, None, None, 1)


def test_a_hand_worked_standard_error() -> None:
    # Signals 1 and 1, traces 8 and 12 (9.0, 3.0 and 13 - 4 = 9): the mean trace 10 has the standard error 2.
    scale = gradient_noise_scale([9.0, 13.0], [3.0, 4.0], 1, 4)
    assert (scale.value, scale.standard_error) == pytest.approx((10.0, 2.0))
    # Only the trace is uncertain: Fieller's interval is Student's, with 1 degree of freedom, and ends at 0.
    assert (scale.low, scale.high) == pytest.approx((0.0, 10.0 + 12.7062 * 2.0), rel=1e-5)


def test_norms_are_averaged_before_the_ratio() -> None:
    # The mean of the ratios would be (8 / 1 + 8 / 4) / 2 = 5.
    scale = gradient_noise_scale([9.0, 12.0], [3.0, 6.0], 1, 4)
    assert scale.value == pytest.approx(8.0 / 2.5)


def test_the_order_of_the_measurements_and_the_scale_of_the_loss_do_not_matter() -> None:
    generator = np.random.default_rng(0)
    small, big = generator.gamma(20, size=40) + 8, generator.gamma(20, size=40) / 4
    one = gradient_noise_scale(small, big, 8, 64)
    order = generator.permutation(40)
    for other in (
        gradient_noise_scale(small[order], big[order], 8, 64),
        gradient_noise_scale(1e6 * small, 1e6 * big, 8, 64),
    ):
        for name in ("value", "standard_error", "low", "high"):
            assert getattr(other, name) == pytest.approx(getattr(one, name))
    # Counting pairs of examples as one halves it.
    assert gradient_noise_scale(small, big, 4, 32).value == pytest.approx(one.value / 2)


def test_without_a_signal_there_is_no_number() -> None:
    scale = gradient_noise_scale([8.0, 9.0, 10.0], [1.0, 2.0, 1.5], 1, 4)
    assert scale.squared_gradient < 0
    assert (scale.value, scale.standard_error, scale.high) == (None, None, math.inf)
    # A signal that is surely negative says nothing about the ratio either.
    scale = gradient_noise_scale([9.0, 9.01, 9.0], [1.0, 1.01, 1.02], 1, 4)
    assert (scale.value, scale.low, scale.high) == (None, 0.0, math.inf)


def test_a_weak_signal_bounds_the_scale_from_below_only() -> None:
    scale = measure(signal=0.02, trace=100.0, small=8, big=64, n_measurements=100, seed=3)
    assert scale.high == math.inf
    assert scale.low is not None
    assert 0 < scale.low < 5000


def test_without_noise_the_scale_is_zero() -> None:
    scale = gradient_noise_scale([4.0, 4.0], [4.0, 4.0], 8, 64)
    assert (scale.value, scale.standard_error, scale.low, scale.high) == (0.0, 0.0, 0.0, 0.0)
    assert gradient_noise_scale([3.9, 3.8], [4.0, 4.0], 8, 64).value == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ([1.0, 2.0], [1.0], 8, 64),
            "`small_squared_norms` has 2 entries and `big_squared_norms` has 1: both need one entry a measurement, and "
            "at least one. Pass the two norms of each step.",
        ),
        (
            ([], [], 8, 64),
            "`small_squared_norms` has 0 entries and `big_squared_norms` has 0: both need one entry a measurement, and "
            "at least one. Pass the two norms of each step.",
        ),
        (
            ([1.0], [1.0], 64, 64),
            "`small_batch` is 64 and `big_batch` is 64: the small batch must hold at least 1 example and fewer than "
            "the big one. Pass their sizes in examples, at least a factor of 2 apart.",
        ),
        (
            ([1.0, math.nan], [1.0, 1.0], 8, 64),
            "`small_squared_norms` is [1.0, nan]: squared norms must be finite and at least 0, in one dimension. Leave "
            "out the steps whose gradient was not finite.",
        ),
        (
            ([1.0], [-1.0], 8, 64),
            "`big_squared_norms` is [-1.0]: squared norms must be finite and at least 0, in one dimension. Leave out "
            "the steps whose gradient was not finite.",
        ),
    ],
)
def test_messages(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        gradient_noise_scale(*arguments)


# Signal, trace, small batch, big batch, measurements: well known, and hardly known at all.
DESIGNS = [(1.0, 100.0, 8, 64, 30), (1.0, 100.0, 8, 64, 200), (1.0, 5.0, 1, 16, 30), (0.02, 100.0, 8, 64, 100)]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_interval_covers_the_scale(design: tuple[float, float, int, int, int]) -> None:
    signal, trace = design[:2]
    n_runs = 300
    found = [measure(*design, seed=seed) for seed in range(n_runs)]
    covered = np.mean([one.low <= trace / signal <= one.high for one in found])  # type: ignore[operator]
    error = 2 * math.sqrt(0.05 * 0.95 / n_runs)
    assert 0.93 - error <= covered <= 0.98 + error
    # Both terms are unbiased: their means over the runs are right within 4 standard errors.
    for name, truth in (("squared_gradient", signal), ("trace", trace)):
        values = np.array([getattr(one, name) for one in found])
        assert abs(values.mean() - truth) <= 4 * values.std() / math.sqrt(n_runs)


def test_the_standard_error_is_the_spread_over_runs_where_the_interval_is_bounded() -> None:
    found = [measure(1.0, 100.0, 8, 64, 200, seed=seed) for seed in range(200)]
    spread = np.std([one.value for one in found])
    assert np.median([one.standard_error for one in found]) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize(("design", "is_known"), [(DESIGNS[1], True), (DESIGNS[3], False)])
def test_two_standard_errors_suffice_only_where_the_interval_is_bounded(design: Any, is_known: bool) -> None:
    truth = design[1] / design[0]
    found = [measure(*design, seed=seed) for seed in range(300)]
    covered = [one.value is not None and abs(one.value - truth) <= 2 * (one.standard_error or 0.0) for one in found]
    if is_known:
        assert np.mean(covered) >= 0.93 - 2 * math.sqrt(0.05 * 0.95 / 300)
    else:
        assert np.mean(covered) <= 0.7
    assert (np.mean([one.high == math.inf for one in found]) < 0.5) == is_known
