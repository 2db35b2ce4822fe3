"""Does the table of throughputs recommend the right batch size and name the right bottleneck, noise or not?"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from playbook_plugins.analysis import Finding, Verdict
from playbook_plugins.analysis.concave_fit import concave_fit
from playbook_plugins.analysis.throughput import Bottleneck, Scaling, Throughput, check_throughput


def table(
    batch_size: Any,
    seconds: Any,
    wait: Any = math.nan,
    memory: Any = math.nan,
    limit: Any = "max_batch_size",
    **more: Any,
) -> Throughput:
    n_sizes = len(batch_size)
    return Throughput(
        batch_size=np.asarray(batch_size),
        seconds_per_step=np.asarray(seconds, dtype=float),
        data_wait_share=np.broadcast_to(np.asarray(wait, dtype=float), n_sizes),
        peak_memory=np.broadcast_to(np.asarray(memory, dtype=float), n_sizes),
        limit=limit,
        **more,
    )


def doubling(rates: Any, smallest: int = 1, **more: Any) -> Throughput:
    """Return a table of doubling sizes with these examples per second."""
    sizes = smallest * 2 ** np.arange(len(rates))
    return table(sizes, sizes / np.asarray(rates, dtype=float), **more)


def powers(n_sizes: int) -> np.ndarray:
    return 2.0 ** np.arange(n_sizes)


def flat_then_linear(batch_size: np.ndarray, knee: float) -> np.ndarray:
    """Return the time per step where an example takes no time until the accelerator is full."""
    return 0.01 * np.maximum(1, batch_size / knee)


def linear(batch_size: np.ndarray, knee: float) -> np.ndarray:
    """Return the time per step as overhead and a cost an example, where 10% are gained at the knee.

    t = a + b B gains 2 (a + b B / 2) / (a + b B) over half of B, which is 1.1 where b B = 9 a.
    """
    return 0.01 * (1 + 9 * batch_size / knee)


# What is computed


def test_hand_worked_columns() -> None:
    throughput = table([8, 16, 32], [0.1, 0.1, 0.2], wait=[0.0, 0.1, math.nan], n_devices=4)
    assert throughput.examples_per_second == pytest.approx([320, 640, 640])
    assert throughput.device_seconds_per_step == pytest.approx([0.4, 0.4, 0.8])
    assert throughput.gain == pytest.approx([math.nan, 2, 1], nan_ok=True)
    assert throughput.recommended == 16
    assert throughput.recommended_row == 1
    assert throughput.scaling == (Scaling.SMALLEST, Scaling.NEARLY_DOUBLES, Scaling.SATURATED)
    assert throughput.bottleneck is Bottleneck.SATURATED
    assert len(throughput) == 3


@pytest.mark.parametrize(
    ("last", "scaling", "recommended"),
    [
        (1.8, Scaling.NEARLY_DOUBLES, 4),
        (1.79, Scaling.GROWS, 4),
        (1.1, Scaling.GROWS, 4),
        (1.09, Scaling.SATURATED, 2),
        (0.5, Scaling.SATURATED, 2),
    ],
)
def test_a_tenth_pays_and_less_does_not(last: float, scaling: Scaling, recommended: int) -> None:
    throughput = doubling([100, 200, 200 * last])
    assert throughput.scaling[-1] is scaling
    assert throughput.recommended == recommended


def test_it_recommends_the_smallest_size_where_no_doubling_pays() -> None:
    throughput = doubling([100, 103, 104], smallest=8)
    assert throughput.recommended == 8
    assert throughput.bottleneck is Bottleneck.SATURATED


def test_slow_growth_counts_each_doubling_by_itself() -> None:
    # 9% a doubling never pays, however much four of them bring together; 11% always does.
    assert doubling(1.09 ** np.arange(5)).recommended == 1
    assert doubling(1.11 ** np.arange(5)).recommended == 16


@pytest.mark.parametrize(
    ("rates", "recommended"),
    [
        # The literal rule would stop before the dip, or count the way out of it as a gain.
        ([1, 2, 1.5, 8, 16, 16, 16], 32),
        ([1, 2, 4, 8, 8, 4, 8, 8, 8], 8),
        # Sizes so small that nothing is gained yet.
        ([1, 1, 1, 2, 4, 8, 8, 8], 64),
        # The smallest size was timed too slow; throughput that falls beyond the peak.
        ([0.3, 2, 4, 8, 16, 16, 16], 16),
        ([1, 2, 4, 8, 7, 6, 5], 8),
    ],
)
def test_a_chain_broken_in_the_middle_does_not_mislead(rates: list[float], recommended: int) -> None:
    assert doubling(rates).recommended == recommended


def test_sizes_that_are_no_powers_of_two_are_compared_with_half_of_themselves() -> None:
    # 96 lies half way between 64 and 192 in the table; the rate at 48, between 32 and 64, is log-interpolated.
    throughput = table([32, 64, 96], [32 / 100, 64 / 200, 96 / 220])
    assert throughput.gain[2] == pytest.approx(220 / (100 * 2 ** math.log2(48 / 32)))
    # Half of 96 is below 64, where the slope between the two goes on: 1.2 in log2(1.5) of a doubling.
    throughput = table([64, 96], [64 / 200, 96 / 240])
    assert throughput.gain[1] == pytest.approx(1.2 ** (1 / math.log2(1.5)))
    assert throughput.recommended == 96


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=14), st.floats(1e-6, 1e6), st.sampled_from([0.0, 0.2, 0.6]))
@settings(max_examples=60, deadline=None)
def test_the_unit_of_time_and_the_number_of_devices_change_no_verdict(
    rates: list[float], scale: float, wait: float
) -> None:
    one = doubling(rates, wait=wait)
    other = table(one.batch_size, scale * one.seconds_per_step, wait=wait, n_devices=8)
    assert other.gain == pytest.approx(one.gain, rel=1e-6, nan_ok=True)
    # Within rounding of a threshold either side is right.
    if np.abs(one.gain[1:, np.newaxis] / [1.1, 1.8] - 1).min(initial=1) > 1e-6:
        assert other.scaling == one.scaling
        assert other.recommended == one.recommended
        assert other.bottleneck is one.bottleneck


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=14))
@settings(max_examples=60, deadline=None)
def test_the_recommended_row_is_the_last_that_pays_and_gains_never_grow(rates: list[float]) -> None:
    throughput = doubling(rates)
    assert np.all(np.diff(throughput.gain[1:]) <= 1e-6 * throughput.gain[1:-1])
    row = throughput.recommended_row
    assert row is not None
    assert all(verdict is not Scaling.SATURATED for verdict in throughput.scaling[: row + 1])
    assert all(verdict is Scaling.SATURATED for verdict in throughput.scaling[row + 1 :])


def test_concave_measurements_are_taken_as_they_are() -> None:
    rates = np.array([10, 19.5, 37, 66, 105, 140, 150, 151, 140])
    assert doubling(rates).gain[1:] == pytest.approx(rates[1:] / rates[:-1], rel=1e-12)


def test_the_concave_curve_is_the_closest_one() -> None:
    # A reference by another way: the straight line projected out, the bends by non-negative least squares.
    generator = np.random.default_rng(0)
    for n_points in (3, 5, 13, 30):
        for _ in range(10):
            x, y = np.cumsum(generator.uniform(0.1, 1.5, n_points)), generator.standard_normal(n_points)
            line, _ = np.linalg.qr(np.column_stack([np.ones(n_points), x]))
            bends = -np.maximum(x[:, np.newaxis] - x[1:-1], 0)
            sizes, _ = nnls(bends - line @ (line.T @ bends), y - line @ (line.T @ y))
            closest = line @ (line.T @ y) + (bends - line @ (line.T @ bends)) @ sizes
            assert concave_fit(x, y) == pytest.approx(closest, abs=1e-9)
    # Convex points: the straight line of least squares.
    assert concave_fit([0, 1, 2], [1, 0, 1]) == pytest.approx([2 / 3] * 3)
    assert concave_fit([0, 1], [5, 9]) == pytest.approx([5, 9])


# The knee under noise


def n_within_one_power(model: Any, knee: float, noise: float, n_sizes: int, n_seeds: int) -> int:
    sizes, hits = powers(n_sizes), 0
    for seed in range(n_seeds):
        generator = np.random.default_rng([seed, int(knee), n_sizes])
        seconds = model(sizes, knee) * np.exp(noise * generator.standard_normal(n_sizes))
        recommended = table(sizes, seconds).recommended
        assert recommended is not None
        hits += abs(math.log2(recommended / knee)) <= 1
    return hits


@pytest.mark.parametrize("noise", [0.03, 0.05])
@pytest.mark.parametrize("knee", [1, 2, 8, 32, 128, 512, 2048, 4096])
def test_a_known_knee_is_found_within_one_power_of_two(knee: int, noise: float) -> None:
    # Sizes from 1 to 4096.
    assert n_within_one_power(flat_then_linear, knee, noise, n_sizes=13, n_seeds=20) >= 19


def test_without_the_concave_curve_the_knee_would_be_lost_in_noise() -> None:
    # The same sizes, knee and noise, but each size compared with the measurement at half of it.
    hits = 0
    for seed in range(100):
        noise = np.exp(0.05 * np.random.default_rng(seed).standard_normal(13))
        rates = powers(13) / (flat_then_linear(powers(13), 8) * noise)
        last = 1 + np.flatnonzero(rates[1:] >= 1.1 * rates[:-1])[-1]
        hits += abs(last - 3) <= 1
    assert hits <= 60


@pytest.mark.parametrize("n_sizes", [4, 6, 8])
def test_a_known_knee_is_found_in_short_tables_too(n_sizes: int) -> None:
    for knee in powers(n_sizes):
        assert n_within_one_power(flat_then_linear, knee, 0.05, n_sizes, n_seeds=20) >= 19


@pytest.mark.parametrize("knee", [12, 48, 192, 768])
def test_a_knee_between_two_sizes_is_found(knee: int) -> None:
    # 1.5 times a power of two: the size above it, 0.42 powers away, is right, and the next one is too far.
    assert n_within_one_power(flat_then_linear, knee, 0.03, n_sizes=13, n_seeds=20) >= 19


@pytest.mark.parametrize("knee", [45, 181, 724])
def test_a_gradual_knee_is_found_within_one_power_of_two(knee: int) -> None:
    # Half way between two sizes: the one below gains 13.6% over its half, the one above 7.3%.
    sizes = powers(13)
    truth = table(sizes, linear(sizes, knee)).recommended
    assert truth == 2 ** int(math.log2(knee))
    hits = 0
    for seed in range(100):
        noise = np.exp(0.03 * np.random.default_rng([seed, knee]).standard_normal(13))
        recommended = table(sizes, linear(sizes, knee) * noise).recommended
        assert recommended is not None
        hits += abs(math.log2(recommended / truth)) <= 1
    assert hits >= 95


@pytest.mark.parametrize(
    ("model", "noise", "share"),
    [(flat_then_linear, 0.03, 0.99), (flat_then_linear, 0.05, 0.99), (linear, 0.03, 0.99), (linear, 0.05, 0.95)],
)
def test_the_recommendation_is_right_in_the_stated_share_of_tables(model: Any, noise: float, share: float) -> None:
    n_tables = n_right = 0
    for n_sizes in (5, 8, 13):
        sizes = powers(n_sizes)
        # The gradual knee lies half way between two sizes.
        for knee in sizes if model is flat_then_linear else 2 ** (np.arange(1, n_sizes - 2) + 0.5):
            truth = table(sizes, model(sizes, knee)).recommended
            for seed in range(30):
                generator = np.random.default_rng([seed, int(knee), n_sizes])
                seconds = model(sizes, knee) * np.exp(noise * generator.standard_normal(n_sizes))
                recommended = table(sizes, seconds).recommended
                assert truth is not None
                assert recommended is not None
                n_right += abs(math.log2(recommended / truth)) <= 1
                n_tables += 1
    assert n_right >= share * n_tables


def test_a_knee_beyond_memory_leaves_the_largest_size() -> None:
    for seed in range(20):
        noise = np.exp(0.05 * np.random.default_rng(seed).standard_normal(8))
        throughput = table(powers(8), flat_then_linear(powers(8), 1e4) * noise, limit="memory", failed_batch_size=256)
        assert throughput.recommended == 128
        assert throughput.bottleneck is Bottleneck.MEMORY


# The bottleneck


@pytest.mark.parametrize(
    ("limit", "failed", "bottleneck"),
    [
        ("memory", 8, Bottleneck.MEMORY),
        ("max_batch_size", None, Bottleneck.MAX_BATCH_SIZE),
        ("data", None, Bottleneck.DATA),
    ],
)
def test_growth_to_the_end_is_limited_by_what_ended_the_search(
    limit: str, failed: int | None, bottleneck: Bottleneck
) -> None:
    assert doubling([1, 2, 3], limit=limit, failed_batch_size=failed).bottleneck is bottleneck
    assert doubling([1], limit=limit, failed_batch_size=failed).bottleneck is bottleneck
    assert doubling([1, 2, 2], limit=limit, failed_batch_size=failed).bottleneck is Bottleneck.SATURATED


def test_waiting_dominates_from_half_of_the_step() -> None:
    assert doubling([1, 2, 4], wait=0.5).bottleneck is Bottleneck.INPUT
    assert doubling([1, 2, 4], wait=0.5).scaling == (Scaling.INPUT,) * 3
    assert doubling([1, 2, 4], wait=0.49).bottleneck is Bottleneck.MAX_BATCH_SIZE
    # Below the recommended size it does not matter.
    throughput = doubling([1, 2, 4], wait=[0.9, 0.9, 0.1])
    assert throughput.bottleneck is Bottleneck.MAX_BATCH_SIZE
    assert throughput.scaling == (Scaling.INPUT, Scaling.INPUT, Scaling.NEARLY_DOUBLES)


def test_a_background_loader_shows_beyond_the_size_where_it_becomes_the_bottleneck() -> None:
    # Computing takes max(1, B / 64), loading B / 16 at the same time: what is not hidden is waited for.
    sizes = powers(9)
    computing, loading = np.maximum(1, sizes / 64), sizes / 16
    seconds = np.maximum(computing, loading)
    throughput = table(sizes, seconds, wait=(seconds - computing) / seconds)
    assert throughput.recommended == 16
    assert throughput.data_wait_share[4] == 0
    # 32, 64, 128, 256 wait for 1/2, 3/4, 3/4, 3/4 of the step.
    assert throughput.wait_share == 0.75
    assert throughput.bottleneck is Bottleneck.INPUT


def test_an_unknown_wait_is_no_bottleneck() -> None:
    throughput = doubling([1, 2, 2, 2], wait=math.nan)
    assert math.isnan(throughput.wait_share)
    assert throughput.bottleneck is Bottleneck.SATURATED
    assert doubling([1, 2, 2, 2], wait=[0, 0.1, math.nan, 0.7]).wait_share == 0.7
    assert doubling([1, 2, 2, 2], wait=[0, 0.1, math.nan, math.nan]).wait_share == 0.1
    # One hiccup among the larger sizes does not decide: their median does.
    assert doubling([1, 2, 2, 2, 2], wait=[0, 0.1, 0.2, 0.9, 0.3]).wait_share == 0.3


def test_one_row_is_recommended_without_a_comparison() -> None:
    throughput = table([4], [0.1], limit="memory", failed_batch_size=8)
    assert throughput.recommended == 4
    assert throughput.scaling == (Scaling.SMALLEST,)
    assert np.isnan(throughput.gain).all()


def test_nothing_fits() -> None:
    throughput = table([], [], limit="memory", failed_batch_size=1)
    assert throughput.recommended is None
    assert throughput.recommended_row is None
    assert throughput.bottleneck is Bottleneck.MEMORY
    assert throughput.rows() == []
    assert throughput.scaling == ()
    assert len(throughput.examples_per_second) == 0


# Findings


def verdicts(throughput: Throughput) -> dict[str, Verdict]:
    findings = check_throughput(throughput)
    assert {finding.check for finding in findings} == {"throughput"}
    return {finding.subject: finding.verdict for finding in findings}


def finding(throughput: Throughput, subject: str) -> Finding:
    [one] = [finding for finding in check_throughput(throughput) if finding.subject == subject]
    return one


FLAG, NO_EVIDENCE, TOO_LITTLE = Verdict.FLAG, Verdict.NO_EVIDENCE, Verdict.TOO_LITTLE_DATA


def test_each_bottleneck_has_its_flag() -> None:
    out_of_memory = {"limit": "memory", "failed_batch_size": 64}
    expected = {
        "saturated": (doubling([1, 2, 2], wait=0.05), FLAG, NO_EVIDENCE, NO_EVIDENCE),
        "memory": (doubling([1, 2, 4], wait=0.05, **out_of_memory), NO_EVIDENCE, NO_EVIDENCE, FLAG),
        "saturated before memory": (doubling([1, 2, 2], wait=0.0, **out_of_memory), FLAG, NO_EVIDENCE, NO_EVIDENCE),
        # Without a wait of 1 / 11 the step is 10% faster.
        "input": (doubling([1, 2, 4], wait=1 / 11), NO_EVIDENCE, FLAG, NO_EVIDENCE),
        "nearly input": (doubling([1, 2, 4], wait=0.09), NO_EVIDENCE, NO_EVIDENCE, NO_EVIDENCE),
        "unknown wait": (doubling([1, 2, 4]), NO_EVIDENCE, TOO_LITTLE, NO_EVIDENCE),
        "one row": (doubling([1], wait=0.0, **out_of_memory), TOO_LITTLE, NO_EVIDENCE, TOO_LITTLE),
        "none": (doubling([], **out_of_memory), TOO_LITTLE, TOO_LITTLE, FLAG),
    }
    for name, (throughput, accelerator, data, memory) in expected.items():
        assert verdicts(throughput) == {"accelerator": accelerator, "input": data, "memory": memory}, name


def test_findings_carry_the_numbers_that_they_rest_on() -> None:
    throughput = table(
        [8, 16, 32],
        [0.1, 0.1, 0.2],
        wait=0.2,
        memory=[1e9, 2e9, 3e9],
        n_devices=2,
        limit="memory",
        failed_batch_size=64,
    )
    common = {
        "n_sizes": 3,
        "recommended": 16,
        "largest": 32,
        "bottleneck": "saturated",
        "examples_per_second": pytest.approx(320),
        "seconds_per_step": 0.1,
        "device_seconds_per_step": 0.2,
    }
    gains = {"gain": pytest.approx(2), "gain_beyond": pytest.approx(1)}
    assert finding(throughput, "accelerator").numbers == common | gains
    assert finding(throughput, "input").numbers == common | {"wait_share": 0.2}
    memory = {"peak_memory": 3e9, "failed_batch_size": 64, "limit": "memory"}
    assert finding(throughput, "memory").numbers == common | memory
    for one in check_throughput(throughput):
        assert one.section == "Determining the feasible batch sizes and estimating training throughput"
        assert one.error_rate is None
        json.dumps(dict(one.numbers), allow_nan=False)


def test_findings_of_an_empty_table_hold_no_nan() -> None:
    for one in check_throughput(table([], [], limit="memory", failed_batch_size=2)):
        json.dumps(dict(one.numbers), allow_nan=False)
        assert one.numbers["recommended"] is None


# Rows and JSON


def test_rows_are_plain_python() -> None:
    throughput = table([1, 2], [0.5, 0.5], wait=[math.nan, 0.25], memory=[1024, math.nan], n_devices=3)
    assert throughput.rows() == [
        {
            "batch_size": 1,
            "seconds_per_step": 0.5,
            "examples_per_second": 6.0,
            "device_seconds_per_step": 1.5,
            "gain": None,
            "data_wait_share": None,
            "peak_memory": 1024.0,
            "verdict": "smallest size",
            "recommended": False,
        },
        {
            "batch_size": 2,
            "seconds_per_step": 0.5,
            "examples_per_second": 12.0,
            "device_seconds_per_step": 1.5,
            "gain": pytest.approx(2.0),
            "data_wait_share": 0.25,
            "peak_memory": None,
            "verdict": "nearly doubles",
            "recommended": True,
        },
    ]
    assert all(
        type(value) in (int, float, str, bool, type(None)) for row in throughput.rows() for value in row.values()
    )


@pytest.mark.parametrize(
    "throughput",
    [
        table([3, 7, 19], [0.1, 1 / 3, 2.5], wait=[0, math.nan, 1], memory=[math.nan, 5, 1e12], n_devices=np.int64(8)),
        table([3], [0.1], limit="memory", failed_batch_size=np.int64(6)),
        table([], [], limit="memory", failed_batch_size=1),
        table([5, 6], [1, 2], limit="data"),
    ],
)
def test_json_round_trip(throughput: Throughput) -> None:
    text = json.dumps(throughput.to_dict(), allow_nan=False)
    again = Throughput.from_dict(json.loads(text))
    for name in ("batch_size", "seconds_per_step", "data_wait_share", "peak_memory"):
        before, after = getattr(throughput, name), getattr(again, name)
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
    assert (again.n_devices, again.limit) == (throughput.n_devices, throughput.limit)
    assert again.failed_batch_size == throughput.failed_batch_size
    assert json.dumps(again.to_dict()) == text


def test_columns_are_copied_and_typed() -> None:
    seconds = np.array([1.0, 1.0])
    throughput = Throughput(
        batch_size=[1, 2],  # type: ignore[arg-type]
        seconds_per_step=seconds,
        data_wait_share=[None, 0],  # type: ignore[arg-type, list-item]
        peak_memory=[1, 2],  # type: ignore[arg-type]
        limit="data",
    )
    seconds[0] = 5
    assert throughput.seconds_per_step[0] == 1
    assert throughput.batch_size.dtype == np.int64
    assert throughput.peak_memory.dtype == np.float64


# Messages


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"batch_size": [1, 4, 2]},
            "`batch_size` is [1.0, 4.0, 2.0]: batch sizes must be whole numbers of at least 1, strictly increasing. "
            "Pass one entry a size, the smallest first.",
        ),
        (
            {"batch_size": [1, 2, 2.5]},
            "`batch_size` is [1.0, 2.0, 2.5]: batch sizes must be whole numbers of at least 1, strictly increasing. "
            "Pass one entry a size, the smallest first.",
        ),
        (
            {"batch_size": [0, 1, math.inf]},
            "`batch_size` is [0.0, 1.0, inf]: batch sizes must be whole numbers of at least 1, strictly increasing. "
            "Pass one entry a size, the smallest first.",
        ),
        (
            {"peak_memory": [1, 2]},
            "`peak_memory` has the shape (2,), but there are 3 batch sizes: every column has one entry a batch size. "
            "Fill what is unknown with NaN.",
        ),
        (
            {"seconds_per_step": [[1, 2, 3]]},
            "`seconds_per_step` has the shape (1, 3), but there are 3 batch sizes: every column has one entry a batch "
            "size. Fill what is unknown with NaN.",
        ),
        (
            {"seconds_per_step": [0.1, -0.2, 0.3]},
            "`seconds_per_step` is [0.1, -0.2, 0.3]: the time of a step must be finite and above 0. Leave out the "
            "sizes that were not timed.",
        ),
        (
            {"seconds_per_step": [0.1, math.nan, 0.3]},
            "`seconds_per_step` is [0.1, nan, 0.3]: the time of a step must be finite and above 0. Leave out the "
            "sizes that were not timed.",
        ),
        (
            {"data_wait_share": [0, 1.5, math.nan]},
            "`data_wait_share` is [0.0, 1.5, nan]: it is a share of the step, in [0, 1]. Divide the time spent "
            "waiting by the time of the step.",
        ),
        (
            {"peak_memory": [-1, 2, math.nan]},
            "`peak_memory` is [-1.0, 2.0, nan]: bytes per device must be finite and not negative. Fill what is unknown "
            "with NaN.",
        ),
        ({"n_devices": 0}, "`n_devices` is 0: at least 1 device trains. Pass the number of ranks."),
        (
            {"limit": "time"},
            "`limit` is 'time': what ended the search is one of 'memory', 'max_batch_size', 'data'. Pass one of these.",
        ),
        (
            {"limit": "memory"},
            "`failed_batch_size` is None and `limit` is 'memory': the search is limited by memory exactly when a size "
            "ran out of it. Pass that size with limit='memory', or None with another limit.",
        ),
        (
            {"failed_batch_size": 8},
            "`failed_batch_size` is 8 and `limit` is 'data': the search is limited by memory exactly when a size ran "
            "out of it. Pass that size with limit='memory', or None with another limit.",
        ),
        (
            {"limit": "memory", "failed_batch_size": 4},
            "`failed_batch_size` is 4, but 4 was timed: the size that ran out of memory must be at least 1 and larger "
            "than all that fit. Pass the smallest size that failed.",
        ),
        (
            {"batch_size": [], "seconds_per_step": [], "data_wait_share": [], "peak_memory": []},
            "`batch_size` is empty: a table without any row says something only where the smallest size ran out of "
            "memory. Time at least one batch size.",
        ),
    ],
)
def test_bad_input_is_refused(wrong: dict[str, Any], message: str) -> None:
    right: dict[str, Any] = {
        "batch_size": [1, 2, 4],
        "seconds_per_step": [0.1, 0.1, 0.1],
        "data_wait_share": [0, 0, 0],
        "peak_memory": [1, 2, 3],
        "limit": "data",
    }
    Throughput(**right)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Throughput(**right | wrong)


def test_another_version_is_refused() -> None:
    data = table([1], [1]).to_dict() | {"version": 2}
    message = (
        "`data` is a throughput table of version 2: this package reads version 1. Upgrade playbook-plugins to read it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Throughput.from_dict(data)
