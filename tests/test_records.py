from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbook_plugins.analysis import Curve, Status, TrialRecord

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


def make_record(n_evaluations: int = 5, **fields: object) -> TrialRecord:
    generator = np.random.default_rng(n_evaluations)
    curve = Curve.from_columns(
        np.arange(n_evaluations) * 10,
        generator.random(n_evaluations),
        train=[math.nan, *generator.random(n_evaluations - 1)],
        learning_rate=generator.random(n_evaluations),
        gradient_norm=generator.random(n_evaluations),
        metrics={"loss": generator.random(n_evaluations)},
        gradient_norm_max=generator.random(n_evaluations),
        clip_threshold=[math.nan, *generator.random(n_evaluations - 1)],
    )
    return TrialRecord(
        **{"direction": "minimize", "curve": curve, "objective_name": "val_error", "max_steps": 40} | fields
    )


def test_the_objective_is_the_best_over_training() -> None:
    curve = Curve.from_columns([0, 10, 20, 30], [0.9, 0.2, math.nan, 0.4])
    record = TrialRecord(direction="minimize", curve=curve)
    assert (record.objective, record.best_step, record.final_objective) == (0.2, 10, 0.4)
    record = TrialRecord(direction="maximize", curve=curve)
    assert (record.objective, record.best_step, record.final_objective) == (0.9, 0, 0.4)


def test_an_infeasible_record_has_the_worst_objective_and_keeps_its_curve() -> None:
    curve = Curve.from_columns([0, 10], [0.9, 0.5])
    record = TrialRecord(direction="minimize", curve=curve, status=Status.INFEASIBLE, reason="diverged")
    assert record.objective == math.inf
    assert record.best_step == 10
    assert TrialRecord(direction="maximize", curve=curve, status=Status.INFEASIBLE).objective == -math.inf


def assert_same(first: TrialRecord, second: TrialRecord) -> None:
    for name, column in first.curve.columns().items():
        np.testing.assert_array_equal(column, second.curve.columns()[name])
    np.testing.assert_array_equal(first.curve.step, second.curve.step)
    np.testing.assert_array_equal(first.gradient_norm_quantiles, second.gradient_norm_quantiles)
    for one, other in zip(first.gradient_norm_histogram, second.gradient_norm_histogram, strict=True):
        np.testing.assert_array_equal(one, other)
    for name in ("direction", "objective_name", "status", "reason", "max_steps", "checkpoints"):
        assert getattr(first, name) == getattr(second, name)
    for name in ("clipped_share", "examples_per_second", "data_wait_share", "seconds"):
        np.testing.assert_equal(getattr(first, name), getattr(second, name))


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS), max_size=20),
    st.sampled_from([Status.INFEASIBLE, Status.FAILED, Status.PRUNED]),
    st.text(max_size=50),
    NUMBERS,
)
def test_json_keeps_every_number(rows: list[tuple[float, float]], status: Status, reason: str, share: float) -> None:
    record = TrialRecord(
        direction="maximize",
        curve=Curve.from_columns(
            range(len(rows)),
            [row[0] for row in rows],
            metrics={reason: [row[1] for row in rows]},
            clip_threshold=[row[1] for row in rows],
        ),
        status=status,
        reason=reason,
        clipped_share=share,
        gradient_norm_quantiles=np.linspace(0, 1, 101),
        gradient_norm_histogram=(np.array([0.0, 1.0, math.inf]), np.array([3, 4])),
        checkpoints=("a.ckpt", "b.ckpt"),
    )
    text = record.to_json()
    # Strict JSON: what a database or another language can read.
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))
    assert_same(TrialRecord.from_json(text), record)


@pytest.mark.parametrize(("n_evaluations", "n_metrics"), [(5_000, 0), (5_000, 30), (400, 60)])
def test_json_stays_below_the_limit_and_keeps_the_best_evaluation(n_evaluations: int, n_metrics: int) -> None:
    generator = np.random.default_rng(0)
    record = TrialRecord(
        direction="minimize",
        curve=Curve.from_columns(
            range(n_evaluations),
            generator.random(n_evaluations),
            train=generator.random(n_evaluations),
            learning_rate=generator.random(n_evaluations),
            gradient_norm=generator.random(n_evaluations),
            gradient_norm_max=generator.random(n_evaluations),
            clip_threshold=generator.random(n_evaluations),
            metrics={f"metric {place}": generator.random(n_evaluations) for place in range(n_metrics)},
        ),
    )
    text = record.to_json()
    kept = TrialRecord.from_json(text)
    assert len(text.encode()) <= 60_000
    assert len(kept.curve) <= 500
    assert (kept.objective, kept.best_step) == (record.objective, record.best_step)
    assert kept.curve.step[[0, -1]].tolist() == [0, n_evaluations - 1]
    assert kept.final_objective == record.final_objective


def test_a_curve_without_the_columns_of_the_clipping_has_nan_there() -> None:
    unknown = {name: np.empty(0) for name in ("gradient_norm_max", "clip_threshold")}
    columns = {name: np.ones(3) for name in ("validation", "train", "learning_rate", "gradient_norm")}
    for curve in (
        Curve.from_columns([0, 1, 2], [1, 1, 1]),
        Curve(step=np.arange(3), **columns),
        Curve(step=np.arange(3), **columns, **unknown),
    ):
        assert np.isnan(curve.gradient_norm_max).tolist() == [True] * 3
        assert np.isnan(curve.clip_threshold).tolist() == [True] * 3
    message = (
        "`clip_threshold` has 2 entries, but there are 3 evaluations: every column has one entry an evaluation. Fill "
        "what is unknown with NaN."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Curve.from_columns([0, 1, 2], [1, 1, 1], clip_threshold=[1, 2])


def test_thinning_keeps_the_rows_together() -> None:
    curve = make_record(40).curve
    thin = curve.thin(10, [7])
    rows = np.searchsorted(curve.step, thin.step)
    assert 7 in rows
    for name, column in curve.columns().items():
        np.testing.assert_array_equal(thin.columns()[name], column[rows], err_msg=name)


def test_json_of_before_the_columns_of_the_clipping_is_read() -> None:
    record = make_record()
    data = json.loads(record.to_json())
    del data["curve"]["gradient_norm_max"], data["curve"]["clip_threshold"]
    before = TrialRecord.from_json(json.dumps(data))
    assert np.isnan(before.curve.gradient_norm_max).all()
    assert np.isnan(before.curve.clip_threshold).all()
    np.testing.assert_array_equal(before.curve.gradient_norm, record.curve.gradient_norm)
    # What is unknown is not written, so that such a text is what a package of before wrote.
    assert json.loads(before.to_json()) == data


def test_the_clip_threshold_is_a_percentile_of_the_norms() -> None:
    norms = np.random.default_rng(1).lognormal(size=1_001)
    record = make_record(gradient_norm_quantiles=np.percentile(norms, np.arange(101)))
    assert record.clip_threshold() == np.percentile(norms, 90)
    assert record.clip_threshold(25) == np.percentile(norms, 25)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: TrialRecord(direction="minimize", curve=Curve.from_columns([], [])),
            "`curve` has 0 evaluations, none with a finite objective: a complete record needs at least one. Evaluate "
            "at least once during training, or give the record the status INFEASIBLE or FAILED with its reason.",
        ),
        (
            lambda: make_record(direction="min"),
            "`direction` is 'min': it must be 'minimize' or 'maximize'. Pass the direction in which val_error gets "
            "better.",
        ),
        (
            lambda: make_record().clip_threshold(101),
            "`percentile` is 101: it must lie between 0 and 100. The playbook recommends 90.",
        ),
        (
            lambda: make_record().clip_threshold(),
            "`gradient_norm_quantiles` is empty: this record holds no gradient norms. Train with "
            "PercentileGradientClipping, which records them.",
        ),
        (
            lambda: TrialRecord.from_json(make_record().to_json().replace('"version": 1', '"version": 2')),
            "`text` is a trial record of version 2: this package reads version 1. Upgrade playbook-plugins to read it.",
        ),
    ],
)
def test_bad_input_is_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()
