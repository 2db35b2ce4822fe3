"""Do the norms of a run tell which updates were clipped, and do a few of them still show the extremes?"""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis import Curve, TrialRecord
from playbook_plugins.analysis.gradient_norms import GradientNorms, norm_histogram, norm_quantiles

NAN = math.nan


def make_norms(norm: Any, threshold: Any = None, nonfinite: Any = (), update: Any = None) -> GradientNorms:
    values = np.asarray(norm, dtype=np.float64)
    return GradientNorms(
        update=np.arange(len(values)) if update is None else np.asarray(update, dtype=np.int64),
        norm=values,
        threshold=np.full(len(values), NAN) if threshold is None else np.asarray(threshold, dtype=np.float64),
        nonfinite=np.asarray(nonfinite, dtype=np.int64),
    )


def make_record(**columns: Any) -> TrialRecord:
    curve = Curve.from_columns([0, 10, 20, 30], [4.0, 3.0, 2.0, 1.0], **columns)
    return TrialRecord(direction="minimize", curve=curve)


def test_an_update_is_clipped_above_its_own_threshold_by_hand() -> None:
    norms = make_norms([5.0, 1.0, 2.0, 3.0, 3.0], [NAN, 2.0, 2.0, 2.0, 0.0])
    # Not while there is no threshold, not at it, and a threshold of zero clips nothing.
    assert norms.clipped.tolist() == [False, False, False, True, False]
    assert norms.clipped_share == 0.2
    assert norms.last_threshold == 0.0
    assert make_norms([5.0]).clipped_share == 0.0


def test_without_norms_there_are_no_numbers() -> None:
    empty = make_norms([])
    assert len(empty) == 0
    assert math.isnan(empty.clipped_share)
    assert math.isnan(empty.percentile(90))
    assert math.isnan(empty.last_threshold)
    assert [part.shape for part in empty.histogram()] == [(0,), (0,)]
    assert len(empty.thin(10)) == 0


def test_percentile_and_histogram_are_numpys() -> None:
    values = np.random.default_rng(0).lognormal(size=1000)
    norms = make_norms(values)
    assert norms.percentile(90) == np.percentile(values, 90)
    assert norms.percentile(37.5) == np.percentile(values, 37.5)
    edges, counts = norms.histogram(20)
    np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
    # Scaling all gradients scales the axis and leaves the counts.
    scaled, again = make_norms(8 * values).histogram(20)
    np.testing.assert_allclose(scaled, 8 * edges)
    np.testing.assert_array_equal(again, counts)


def test_quantiles_and_histogram() -> None:
    norms = np.random.default_rng(2).lognormal(size=1000)
    assert norm_quantiles(norms)[[0, 50, 100]].tolist() == [norms.min(), np.median(norms), norms.max()]
    edges, counts = norm_histogram(norms, 20)
    assert (len(edges), counts.sum(), edges[0], edges[-1]) == (21, 1000, norms.min(), norms.max())
    for few in ([2.0], [2.0, 2.0], [2.0, np.nextafter(2.0, 3.0)], [0.0, 1.0], [0.0]):
        edges, counts = norm_histogram(few)
        assert counts.sum() == len(few)
        assert np.all(np.diff(edges) > 0)
    assert norm_quantiles([]).shape == (0,)
    assert [part.shape for part in norm_histogram([])] == [(0,), (0,)]


@pytest.mark.parametrize("n_points", [3, 10, 100, 1800])
def test_a_thinned_run_keeps_the_largest_and_the_extremes_of_each_stretch(n_points: int) -> None:
    values = np.random.default_rng(n_points).lognormal(size=5000)
    whole = make_norms(values, np.linspace(1, 2, 5000), nonfinite=np.arange(5000, 6000))
    thin = whole.thin(n_points)
    assert len(thin) <= n_points
    assert len(thin.nonfinite) <= max(1, n_points // 10)
    largest = np.sort(values)[5000 - n_points // 10 :]
    assert np.isin(largest, thin.norm).all()
    for stretch in np.array_split(np.arange(5000), (n_points - n_points // 10) // 3):
        kept = thin.norm[np.isin(thin.update, stretch)]
        assert (kept.min(), kept.max()) == (values[stretch].min(), values[stretch].max())
    assert np.all(np.diff(thin.update) > 0)
    np.testing.assert_array_equal(thin.norm, values[thin.update])
    np.testing.assert_array_equal(thin.threshold, whole.threshold[thin.update])


def test_a_short_run_is_kept_whole() -> None:
    norms = make_norms([1.0, 2.0, 3.0], nonfinite=[3])
    assert norms.thin(3).norm.tolist() == [1.0, 2.0, 3.0]
    assert norms.thin(3).nonfinite.tolist() == [3]


def test_a_record_gives_the_median_of_each_stretch() -> None:
    norms = GradientNorms.from_record(make_record(gradient_norm=[NAN, 3.0, 2.0, NAN]))
    assert norms.update.tolist() == [10, 20]
    assert norms.norm.tolist() == [3.0, 2.0]
    assert np.isnan(norms.threshold).all()
    assert norms.nonfinite.tolist() == []


@pytest.mark.parametrize("place", ["column", "metric"])
def test_a_record_gives_the_threshold_where_it_has_one(place: str) -> None:
    threshold = [NAN, 2.5, 2.5, 1.5]
    more: dict[str, Any] = {"metrics": {"clip_threshold": threshold}} if place == "metric" else {}
    if place == "column":
        more = {"clip_threshold": threshold}
    norms = GradientNorms.from_record(make_record(gradient_norm=[NAN, 3.0, 2.0, 1.0], **more))
    assert norms.threshold.tolist() == [2.5, 2.5, 1.5]
    assert norms.clipped.tolist() == [True, False, False]


def test_an_infinite_median_is_no_norm() -> None:
    norms = GradientNorms.from_record(make_record(gradient_norm=[NAN, 3.0, math.inf, 1.0]))
    assert (norms.update.tolist(), norms.nonfinite.tolist()) == ([10, 30], [20])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            lambda: make_norms([1.0, 2.0], [1.0]),
            "`threshold` has 1 entries, but there are 2 updates: every column has one entry an update. Fill an unknown "
            "threshold with NaN.",
        ),
        (
            lambda: make_norms([1.0, 2.0], update=[1]),
            "`norm` has 2 entries, but there are 1 updates: every column has one entry an update. Fill an unknown "
            "threshold with NaN.",
        ),
        (
            lambda: make_norms([1.0, math.inf]),
            "`norm` holds inf: only finite norms stand there. Name the updates whose norm was not finite in nonfinite.",
        ),
        (
            lambda: make_norms([1.0]).percentile(101),
            "`q` is 101: it must lie between 0 and 100. The playbook recommends 90.",
        ),
        (
            lambda: make_norms([1.0]).thin(2),
            "`n_points` is 2: it must be at least 3, the smallest, the largest and one between. Pass more points.",
        ),
        (
            lambda: GradientNorms.from_record(make_record()),
            "`record` has a curve without gradient norms: there is nothing to show. Train with "
            "PercentileGradientClipping beside TrialRecorder, which records them.",
        ),
    ],
)
def test_what_cannot_be_is_refused(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        bad()
