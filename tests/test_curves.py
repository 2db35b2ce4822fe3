from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from playbook_plugins.analysis import Curve, Finding, Parameter, Role, Status, TrialRecord, Trials, Verdict
from playbook_plugins.analysis.curve_noise import step_noise
from playbook_plugins.analysis.curves import SECTION, check_curves, diagnose_curve
from playbook_plugins.analysis.periodicity import find_period, fisher_p

CHECKS = [
    "overfitting",
    "late variance",
    "still improving",
    "early saturation",
    "rising training loss",
    "periodic validation",
]
# The mean of any three on end is zero, and their second differences are 0, 3 and 3 in size.
SAW = np.array([-1.0, 0.0, 1.0])


def curve(validation: Any, train: Any = None, **columns: Any) -> Curve:
    return Curve.from_columns(100 * np.arange(len(validation)), validation, train, **columns)


def found(run: Any, **options: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in reversed(diagnose_curve(run, **options))}


def flagged(run: Any, **options: Any) -> list[str]:
    return [finding.check for finding in diagnose_curve(run, **options) if finding.verdict is Verdict.FLAG]


def falling(n_evaluations: int = 60, generator: np.random.Generator | None = None, noise: float = 0.01) -> np.ndarray:
    """Return a loss that falls from 2 to 1 and has settled in the middle."""
    place = np.arange(n_evaluations)
    draws = np.random.default_rng(0) if generator is None else generator
    return 1.0 + np.exp(-place / (0.07 * n_evaluations)) + noise * draws.normal(size=n_evaluations)


def rising(n_evaluations: int = 60, height: float = 0.3) -> np.ndarray:
    place = np.linspace(0.0, 1.0, n_evaluations)
    return falling(n_evaluations) + height * np.maximum(0.0, place - 0.5) / 0.5


def test_the_findings_name_their_question() -> None:
    findings = diagnose_curve(curve(falling(), metrics={"val_loss": rising()}), subject="trial 3")
    assert [finding.check for finding in findings] == ["overfitting", *CHECKS]
    assert [finding.subject for finding in findings] == ["trial 3", "trial 3, val_loss", *["trial 3"] * 5]
    assert {finding.section for finding in findings} == {SECTION}
    assert [finding.error_rate for finding in findings] == [0.03] * 6 + [0.01]


def test_a_hand_worked_step_noise() -> None:
    assert step_noise(np.tile(SAW, 10)) == pytest.approx(1.4826 * 3 / np.sqrt(6))
    # At a spacing of the period nothing differs; a straight line has no noise.
    assert step_noise(np.tile(SAW, 10), spacing=3) == 0.0
    assert step_noise(np.tile(SAW, 10) + 7.0 * np.arange(30)) == pytest.approx(1.4826 * 3 / np.sqrt(6))
    # The first half does not count.
    assert step_noise(np.concatenate([1e6 * SAW, np.tile(SAW, 4)])) == pytest.approx(step_noise(np.tile(SAW, 4)), rel=1)
    assert step_noise(np.concatenate([np.tile(1e6 * SAW, 5), np.zeros(15)])) == 0.0
    assert np.isnan(step_noise(np.array([1.0, 2.0])))
    noise = np.random.default_rng(1).normal(size=4000)
    assert step_noise(3.0 * noise) == pytest.approx(3.0, rel=0.05)


@pytest.mark.parametrize(("excess", "verdict"), [(8.8, Verdict.NO_EVIDENCE), (9.0, Verdict.FLAG)])
def test_a_hand_worked_overfitting(excess: float, verdict: Verdict) -> None:
    # 42 evaluations in windows of 3; 6 noise / sqrt(w / 2) = 6 * 1.4826 * 3 / sqrt(6) / sqrt(1.5) = 6 * 1.4826.
    level = np.concatenate([np.full(6, 100.0), np.zeros(27), np.full(9, excess)])
    finding = found(curve(level + np.tile(SAW, 14)))["overfitting"]
    assert finding.verdict is verdict
    assert finding.numbers["height"] == pytest.approx(excess / 1.4826)
    assert finding.numbers["excess"] == pytest.approx(excess)
    assert finding.numbers["share_of_range"] == pytest.approx(excess / 100)
    assert finding.numbers["noise"] == pytest.approx(1.4826 * 3 / np.sqrt(6))
    # The first of the best windows covers rows 6 to 8.
    assert finding.numbers["best_step"] == 700


def test_what_is_less_than_2_percent_of_the_range_is_no_overfitting() -> None:
    for first, verdict in ((1001.0, Verdict.NO_EVIDENCE), (999.0, Verdict.FLAG)):
        level = np.concatenate([np.full(6, first), np.zeros(27), np.full(9, 20.0)])
        assert found(curve(level))["overfitting"].verdict is verdict
    assert found(curve(level))["overfitting"].numbers["height"] is None


def test_objective_and_loss_are_judged_separately() -> None:
    accuracy = -falling()
    run = curve(
        accuracy, metrics={"val_loss": rising(), "train_loss": rising(), "top5": rising(), "copy_loss": accuracy}
    )
    findings = [one for one in diagnose_curve(run, direction="maximize") if one.check == "overfitting"]
    assert [(one.subject, one.verdict) for one in findings] == [
        ("run", Verdict.NO_EVIDENCE),
        ("run, val_loss", Verdict.FLAG),
    ]
    assert [one.numbers["series"] for one in findings] == ["validation", "val_loss"]
    named = [one.subject for one in diagnose_curve(run, direction="maximize", losses=["top5"])]
    assert named[:2] == ["run", "run, top5"]
    assert flagged(run, direction="maximize", losses=[])[:1] != ["overfitting"]


def test_a_run_that_overfits_is_found_and_has_not_saturated() -> None:
    assert flagged(curve(rising())) == ["overfitting"]
    assert "early saturation" in flagged(curve(falling(noise=0.001)))


def test_late_variance() -> None:
    # The range is that of the smoothed curve, 30; the noise 1.816.
    level = np.concatenate([np.full(6, 30.0), np.zeros(36)])
    finding = found(curve(level + np.tile(SAW, 14)))["late variance"]
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["share_of_range"] == pytest.approx(1.4826 * 3 / np.sqrt(6) / 30)
    level[:6] = 40.0
    assert found(curve(level + np.tile(SAW, 14)))["late variance"].verdict is Verdict.NO_EVIDENCE


def test_still_improving_unless_the_learning_rate_decays() -> None:
    values = np.linspace(2.0, 1.0, 40)
    finding = found(curve(values))["still improving"]
    assert finding.verdict is Verdict.FLAG
    # A quarter of the evaluations, 10, spans 9 intervals of 39.
    assert finding.numbers["gain"] == pytest.approx(9 / 39)
    assert finding.numbers["learning_rate_decays"] is None
    constant = found(curve(values, learning_rate=np.full(40, 0.1)))["still improving"]
    assert (constant.verdict, constant.numbers["learning_rate_decays"]) == (Verdict.FLAG, 0)
    decayed = found(curve(values, learning_rate=np.linspace(0.1, 0.0, 40)))["still improving"]
    assert (decayed.verdict, decayed.numbers["learning_rate_decays"]) == (Verdict.NO_EVIDENCE, 1)
    assert found(curve(falling()))["still improving"].verdict is Verdict.NO_EVIDENCE
    assert found(curve(rising()))["still improving"].verdict is Verdict.NO_EVIDENCE


def test_early_saturation() -> None:
    settled = np.concatenate([np.linspace(1.0, 0.0, 11), np.zeros(49)])
    finding = found(curve(settled, settled))["early saturation"]
    assert finding.verdict is Verdict.FLAG
    # Windows of 3: that over rows 9 to 11 lies 0.033 above the end, beyond 2% of the range of 0.9; the next is there.
    assert finding.numbers["step"] == 1100
    assert finding.numbers["gain"] == 0.0
    # The training objective still improves.
    assert found(curve(settled, np.linspace(1.0, 0.0, 60)))["early saturation"].verdict is Verdict.NO_EVIDENCE
    # With a noise of 2% of the range nobody can tell.
    noisy = settled + 0.02 * np.random.default_rng(0).normal(size=60)
    assert found(curve(noisy))["early saturation"].verdict is Verdict.TOO_LITTLE_DATA


def test_a_training_loss_that_rises() -> None:
    finding = found(curve(falling(), rising()))["rising training loss"]
    assert (finding.verdict, finding.numbers["series"]) == (Verdict.FLAG, "train")
    assert found(curve(falling(), falling()))["rising training loss"].verdict is Verdict.NO_EVIDENCE
    assert found(curve(falling()))["rising training loss"].verdict is Verdict.TOO_LITTLE_DATA
    # Beside a maximized objective the column is a loss if it ends lower than it began, else a metric.
    for train, verdict in ((rising(), Verdict.FLAG), (-rising(), Verdict.FLAG), (-falling(), Verdict.NO_EVIDENCE)):
        one = found(curve(-falling(), train), direction="maximize")["rising training loss"]
        assert one.verdict is verdict


def test_a_validation_metric_that_swings() -> None:
    swings = falling(100) + 0.05 * np.sin(2 * np.pi * np.arange(100) / 5)
    finding = found(curve(swings))["periodic validation"]
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers["period"] == pytest.approx(5.0, rel=0.05)
    assert finding.numbers["period_steps"] == pytest.approx(500.0, rel=0.05)
    assert finding.numbers["n_learning_rate_rises"] == 0
    # A cyclic learning rate explains it.
    cyclic = found(curve(swings, learning_rate=1.0 - (np.arange(100) % 5) / 5))["periodic validation"]
    assert (cyclic.verdict, cyclic.numbers["n_learning_rate_rises"]) == (Verdict.NO_EVIDENCE, 19)
    warmup = np.concatenate([np.linspace(0.1, 1, 10), np.linspace(1, 0, 90)])
    assert found(curve(swings, learning_rate=warmup))["periodic validation"].verdict is Verdict.FLAG


def test_fishers_test() -> None:
    # For two ordinates the larger share is uniform on (1/2, 1).
    assert fisher_p(0.75, 2) == pytest.approx(0.5)
    # The 5% points of Fisher's (1929) table for 5 and 10 ordinates.
    assert fisher_p(0.68377, 5) == pytest.approx(0.05, abs=1e-4)
    assert fisher_p(0.44495, 10) == pytest.approx(0.05, abs=1e-4)
    assert fisher_p(1.0, 5) == 0.0
    assert fisher_p(1e-4, 20_000) == pytest.approx(1.0)
    assert fisher_p(0.5, 1) == 1.0
    draws = np.random.default_rng(0).exponential(size=(20_000, 30))
    largest = draws.max(axis=1) / draws.sum(axis=1)
    for share in (0.1, 0.15, 0.2, 0.25):
        assert fisher_p(share, 30) == pytest.approx(float(np.mean(largest >= share)), abs=0.012)


def test_a_period_knows_no_unit_and_no_direction() -> None:
    swings = np.sin(2 * np.pi * np.arange(120) / 6) + 0.5 * np.random.default_rng(0).normal(size=120)
    expected = find_period(swings)
    assert expected is not None
    assert expected.length == pytest.approx(6, rel=0.03)
    for other in (-swings, 1e-3 * swings + 7, swings + np.linspace(5, 0, 120) ** 3):
        period = find_period(other)
        assert period is not None
        assert (period.length, period.p, period.share) == pytest.approx((expected.length, expected.p, expected.share))
    # Of 121 evaluations 91 are judged and 90 are left by the autoregression, 18 cycles of 5. A wave without noise has
    # something beside its line because normal scores stand for its five values.
    wave = find_period(np.sin(2 * np.pi * np.arange(121) / 5))
    assert wave is not None
    assert wave.length == 5
    assert wave.share > 0.85
    assert wave.p < 1e-30


def test_no_period_where_nothing_varies() -> None:
    assert find_period(np.ones(100)) is None
    assert find_period(np.linspace(3, 1, 100)) is None
    assert find_period(np.random.default_rng(0).normal(size=31)) is None


@pytest.mark.parametrize("n_evaluations", [0, 1, 2, 11])
def test_too_few_evaluations(n_evaluations: int) -> None:
    values = np.linspace(1, 5, n_evaluations)
    run = curve(values, values, metrics={"val_loss": values[::-1]})
    assert {finding.verdict for finding in diagnose_curve(run)} == {Verdict.TOO_LITTLE_DATA}


@pytest.mark.parametrize("value", [0.0, 1.0, 1e-300, 0.1, 1e300])
def test_a_constant_objective(value: float) -> None:
    assert flagged(curve(np.full(60, value), np.full(60, value))) == []


def test_what_is_not_finite_is_left_out() -> None:
    values, holes = rising(), rising()
    holes[[0, 20, 59]] = [np.nan, np.inf, np.nan]
    assert flagged(curve(holes)) == flagged(curve(values)) == ["overfitting"]
    assert found(curve(holes))["overfitting"].numbers["n_evaluations"] == 57
    assert {one.verdict for one in diagnose_curve(curve(np.full(60, np.nan)))} == {Verdict.TOO_LITTLE_DATA}
    values[40:] = 1e308
    assert "overfitting" in flagged(curve(values))


def test_direction_scale_and_shift_do_not_matter() -> None:
    for values in (rising(), falling(), np.linspace(2, 1, 60), falling(noise=0.2)):
        expected = diagnose_curve(curve(values, values))
        for scale, shift in ((-1.0, 0.0), (1e-4, 0.0), (3.0, 100.0)):
            direction: Any = "maximize" if scale < 0 else "minimize"
            other = diagnose_curve(curve(scale * values + shift, scale * values + shift), direction=direction)
            assert [one.verdict for one in other] == [one.verdict for one in expected]
            for one, same in zip(expected, other, strict=True):
                for name in one.numbers.keys() & {"height", "share_of_range", "largest_share", "p", "best_step"}:
                    # What is zero but for rounding, such as the excess of a curve that ends at its best, stays so.
                    number = one.numbers[name]
                    expected_number = None if number is None else pytest.approx(number, rel=1e-6, abs=1e-8)
                    assert same.numbers[name] == expected_number, name


def test_a_record_knows_its_direction() -> None:
    record = TrialRecord(direction="maximize", curve=curve(-rising()))
    assert flagged(record) == ["overfitting"]
    assert diagnose_curve(TrialRecord.from_json(record.to_json())) == diagnose_curve(record)


def test_messages() -> None:
    run = curve(falling(), metrics={"top5": falling()})
    with pytest.raises(
        ValueError,
        match=re.escape(
            "`direction` is 'max': it must be 'minimize' or 'maximize'. Pass the direction in which the objective gets "
            "better."
        )
        + "$",
    ):
        diagnose_curve(run, direction="max")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError,
        match=re.escape(
            "`losses` names 'val_loss': the curve has no such metric. Pass some of ['top5'], or leave losses=None."
        )
        + "$",
    ):
        diagnose_curve(run, losses=["val_loss"])
    with pytest.raises(
        ValueError,
        match=re.escape(
            "`regularizers` names 'drop': the study 'study' has no such hyperparameter. Pass some of ['dropout', 'lr']."
        )
        + "$",
    ):
        check_curves(study([curve(falling())], [0]), regularizers=["drop"])


def study(
    curves: list[Curve | None],
    dropout: list[Any],
    role: Role = Role.SCIENTIFIC,
    name: str = "dropout",
    order: Any = None,
    **columns: Any,
) -> Trials:
    """Return a study of two dropout rates, the objectives of which get worse with the number of the trial."""
    rows = np.arange(len(curves)) if order is None else np.asarray(order)
    return Trials.from_columns(
        "study",
        [
            Parameter(name=name, kind="categorical", choices=(0, 1), role=role),
            Parameter(name="lr", kind="float", low=0.0, high=1.0),
        ],
        {name: [dropout[row] for row in rows], "lr": rows / len(rows)},
        rows.astype(float),
        curves=[curves[row] for row in rows],
        number=rows,
        **columns,
    )


def calm() -> Curve:
    return curve(falling())


def bad() -> Curve:
    return curve(rising())


def test_the_best_trial_of_each_scientific_value_is_asked() -> None:
    curves: list[Curve | None] = [calm(), calm(), bad(), calm()]
    found = check_curves(study(curves, [0, 0, 1, 1], name="layers"))
    overfitting = [one for one in found if one.check == "overfitting"]
    assert [(one.subject, one.verdict) for one in overfitting] == [
        ("trial 0", Verdict.NO_EVIDENCE),
        ("trial 2", Verdict.FLAG),
        ("all trials", Verdict.FLAG),
    ]
    assert [one.numbers.get("value") for one in overfitting] == ["layers=0", "layers=1", None]
    assert overfitting[1].numbers["trial"] == 2
    # Without a scientific hyperparameter the best trial of the study is asked.
    subjects = {one.subject for one in check_curves(study(curves, [0, 0, 1, 1], Role.NUISANCE, "layers"))}
    assert subjects == {"trial 0", "all trials"}
    # The order of the trials does not matter, but for the order of the findings.
    again = check_curves(study(curves, [0, 0, 1, 1], name="layers", order=[3, 1, 0, 2]))
    assert again == found


def test_a_regularizer_that_is_scientific_is_exempt() -> None:
    curves: list[Curve | None] = [bad(), bad(), calm(), calm()]
    values = [0, 0, 1, 1]
    named = check_curves(study(curves, values))
    exempt = [one.subject for one in named if one.numbers.get("exempt") == "dropout"]
    assert exempt == ["trial 0", "all trials"]
    assert {one.verdict for one in named if one.check == "overfitting"} == {Verdict.NO_EVIDENCE}
    for trials, options in (
        (study(curves, values), {"regularizers": []}),
        (study(curves, values), {"regularizers": ["lr"]}),
        (study(curves, values, Role.NUISANCE), {}),
        (study(curves, values, name="layers"), {}),
    ):
        verdicts = [one.verdict for one in check_curves(trials, **options) if one.check == "overfitting"]
        assert verdicts[0] is verdicts[-1] is Verdict.FLAG
    assert flagged_of(study(curves, values, name="layers"), regularizers=["layers"]) == []


def flagged_of(trials: Trials, **options: Any) -> list[str]:
    found = check_curves(trials, **options)
    return [one.subject for one in found if one.check == "overfitting" and one.verdict is Verdict.FLAG]


def test_any_trial_that_overfits_is_mentioned() -> None:
    curves: list[Curve | None] = [calm()] * 8 + [bad()]
    finding = check_curves(study(curves, [0] * 9, Role.NUISANCE))[-1]
    assert (finding.subject, finding.verdict) == ("all trials", Verdict.FLAG)
    assert (finding.numbers["n_trials"], finding.numbers["n_overfitting"], finding.numbers["trial"]) == (9, 1, 8)
    # One of nine may be a false flag, P = 1 - 0.97 ** 9, unless the rise is far beyond noise, as above.
    assert finding.numbers["p"] == pytest.approx(1 - 0.97**9)
    generator = np.random.default_rng(3)
    slight = curve(rising(height=0.09) + 0.01 * generator.normal(size=60))
    assert flagged(slight) == ["overfitting"]
    one = check_curves(study([*curves[:8], slight], [0] * 9, Role.NUISANCE))[-1]
    assert (one.verdict, one.numbers["n_overfitting"]) == (Verdict.NO_EVIDENCE, 1)
    two = check_curves(study([*curves[:7], slight, slight], [0] * 9, Role.NUISANCE))[-1]
    assert (two.verdict, two.numbers["n_overfitting"]) == (Verdict.FLAG, 2)


def test_only_feasible_trials_are_asked() -> None:
    for status in (Status.INFEASIBLE, Status.PRUNED, Status.FAILED, Status.RUNNING):
        trials = study([bad(), calm()], [0, 0], status=[status, Status.COMPLETE])
        assert flagged_of(trials, regularizers=[]) == []
        assert {one.subject for one in check_curves(trials)} == {"trial 1", "all trials"}
        broken = study([bad(), bad()], [0, 1], status=[status, status])
        [finding] = check_curves(broken)
        assert (finding.verdict, finding.numbers["n_trials"]) == (Verdict.TOO_LITTLE_DATA, 0)
    [finding] = check_curves(study([None, None], [0, 1]))
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert [one.verdict for one in check_curves(study([], []))] == [Verdict.TOO_LITTLE_DATA]
    assert flagged_of(study([bad()], [0]), regularizers=[]) == ["trial 0", "all trials"]


def test_conditional_and_numeric_scientific_hyperparameters() -> None:
    n_trials = 12
    trials = Trials.from_columns(
        "study",
        [
            Parameter(name="optimizer", kind="categorical", choices=("adam", "sgd"), role=Role.SCIENTIFIC),
            Parameter(name="layers", kind="int", low=1, high=3, role=Role.SCIENTIFIC),
            Parameter(name="adam.weight_decay", kind="float", low=0, high=1, condition=("optimizer", "adam")),
        ],
        {
            "optimizer": ["adam", "sgd"] * 6,
            "layers": [1, 2, 3] * 4,
            "adam.weight_decay": [0.5, np.nan] * 6,
        },
        np.arange(n_trials),
        curves=[bad() if row in (1, 2) else calm() for row in range(n_trials)],
    )
    found = check_curves(trials)
    values = {one.subject: one.numbers.get("value") for one in found}
    assert values == {
        "trial 0": "optimizer=adam, layers=1",
        "trial 1": "optimizer=sgd, layers=2",
        "trial 2": "layers=3",
        "all trials": None,
    }
    assert flagged_of(trials) == ["trial 1", "trial 2", "all trials"]


def correlated(generator: np.random.Generator, n_evaluations: int, correlation: float) -> np.ndarray:
    fresh = generator.normal(size=n_evaluations + 30) * np.sqrt(1 - correlation**2)
    return np.asarray(lfilter([1.0], [1.0, -correlation], fresh))[30:]


def healthy(generator: np.random.Generator, n_evaluations: int, correlation: float, slowest: float = 1.0) -> np.ndarray:
    """Return a loss that falls by 0 to 300 noises, within 3% of training or more slowly."""
    length = n_evaluations * np.exp(generator.uniform(np.log(0.03), np.log(slowest)))
    fall = generator.choice([0.0, 3.0, 30.0, 300.0]) * np.exp(-np.arange(n_evaluations) / length)
    return np.asarray(fall + correlated(generator, n_evaluations, correlation))


def two_errors(rate: float, n_runs: int) -> float:
    return 2.0 * float(np.sqrt(rate * (1.0 - rate) / n_runs))


@pytest.mark.slow
@pytest.mark.parametrize("n_evaluations", [12, 16, 24, 50, 100, 200, 500])
@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.5])
def test_runs_that_do_not_overfit_are_rarely_flagged(n_evaluations: int, correlation: float) -> None:
    generator = np.random.default_rng(21)
    n_runs = 1000
    counts = dict.fromkeys(CHECKS, 0)
    for _ in range(n_runs):
        columns = [healthy(generator, n_evaluations, correlation) for _ in range(3)]
        run = curve(columns[0], columns[1], metrics={"val_loss": columns[2]})
        for check in set(flagged(run)):
            counts[check] += 1
    for check, allowed in (("overfitting", 0.03), ("rising training loss", 0.03), ("periodic validation", 0.01)):
        assert counts[check] / n_runs <= allowed + two_errors(allowed, n_runs), check
    # Measured: 2.5% at most.
    assert counts["overfitting"] / n_runs <= 0.03


@pytest.mark.slow
@pytest.mark.parametrize("n_evaluations", [12, 24, 50, 200])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_the_other_questions_are_rarely_answered_wrongly(n_evaluations: int, correlation: float) -> None:
    generator = np.random.default_rng(22)
    n_runs = 800
    place = np.arange(n_evaluations) / n_evaluations
    loud = improving = saturated = 0
    for _ in range(n_runs):
        noise = correlated(generator, n_evaluations, correlation)
        # The noise is 2% of the smoothed range; the curve has settled; the last half improves by 2% of the range.
        fall = np.exp(-place / 0.04)
        span = fall[: max(3, n_evaluations // 20)].mean()
        loud += "late variance" in flagged(curve(fall + 0.02 * span * noise))
        improving += "still improving" in flagged(curve(generator.choice([0.0, 5.0, 50.0]) * fall + noise))
        slow = 0.96 * fall + 0.04 * (1 - place)
        saturated += "early saturation" in flagged(curve(slow + generator.choice([0.001, 0.003, 0.01]) * noise))
    for check, n_false in (("late variance", loud), ("still improving", improving), ("early saturation", saturated)):
        assert n_false / n_runs <= 0.03 + two_errors(0.03, n_runs), check


@pytest.mark.slow
@pytest.mark.parametrize("n_evaluations", [24, 50, 200])
def test_what_is_there_is_found(n_evaluations: int) -> None:
    generator = np.random.default_rng(23)
    n_runs = 300
    place = np.arange(n_evaluations) / n_evaluations
    hits = dict.fromkeys(CHECKS, 0)
    for _ in range(n_runs):
        noise = correlated(generator, n_evaluations, 0.3)
        fall = np.exp(-place / 0.07)
        rise = 0.3 * np.maximum(0.0, place - 0.5)
        hits["overfitting"] += "overfitting" in flagged(curve(fall + rise + 0.01 * noise))
        hits["rising training loss"] += "rising training loss" in flagged(curve(fall, fall + rise + 0.01 * noise))
        hits["late variance"] += "late variance" in flagged(curve(fall + 0.15 * noise))
        hits["still improving"] += "still improving" in flagged(curve(1.0 - place + 0.01 * noise))
        hits["early saturation"] += "early saturation" in flagged(curve(fall + 0.001 * noise))
        swing = 0.02 * np.sin(2 * np.pi * np.arange(n_evaluations) / 5.3)
        hits["periodic validation"] += "periodic validation" in flagged(curve(fall + swing + 0.01 * noise))
    for check, n_found in hits.items():
        if check != "periodic validation" or n_evaluations >= 50:
            assert n_found >= 0.9 * n_runs, (check, n_found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "n_evaluations", "power"), [(8, 12, 0.31), (8, 50, 0.94), (5, 50, 0.52), (5, 100, 0.88)]
)
def test_the_power_is_the_stated_one(height: int, n_evaluations: int, power: float) -> None:
    generator = np.random.default_rng(26)
    n_runs = 400
    place = np.arange(n_evaluations) / n_evaluations
    # From the middle to the end it rises by `height` noises, after a fall by 100.
    level = 100 * np.exp(-place / 0.07) + 2 * height * np.maximum(0.0, place - 0.5)
    n_found = sum(
        "overfitting" in flagged(curve(level + correlated(generator, n_evaluations, 0.3))) for _ in range(n_runs)
    )
    assert n_found / n_runs == pytest.approx(power, abs=2 * two_errors(power, n_runs))


@pytest.mark.slow
def test_studies_without_overfitting_are_rarely_flagged() -> None:
    generator = np.random.default_rng(24)
    n_studies = 150
    n_flagged = 0
    for _ in range(n_studies):
        n_evaluations = int(generator.choice([12, 24, 50, 100]))
        curves: list[Curve | None] = [curve(healthy(generator, n_evaluations, 0.5)) for _ in range(64)]
        n_flagged += check_curves(study(curves, [0] * 64, Role.NUISANCE))[-1].verdict is Verdict.FLAG
    assert n_flagged / n_studies <= 0.05 + two_errors(0.05, n_studies)


def test_the_stated_error_rates_hold_for_a_few_runs() -> None:
    generator = np.random.default_rng(25)
    n_flagged = sum("overfitting" in flagged(curve(healthy(generator, 50, 0.5))) for _ in range(200))
    assert n_flagged <= 6
