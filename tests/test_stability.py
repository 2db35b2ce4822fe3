from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis import Curve, Finding, Status, TrialRecord, Verdict
from playbook_plugins.analysis.learning_rate_limit import check_learning_rate_limit
from playbook_plugins.analysis.stability import SECTION, check_stability

N_STEPS = 500
CHECKS = ["non-finite", "early instability", "no progress", "loss rise", "loss spike", "gradient norm spike"]
# Those that a training loss shows.
OF_THE_LOSS = ["non-finite", "early instability", "loss rise", "loss spike"]


def curve(train: Any, gradient_norm: Any = None, validation: Any = None) -> Curve:
    n_points = len(train)
    unknown = np.full(n_points, np.nan)
    return Curve.from_columns(
        np.arange(n_points), unknown if validation is None else validation, train, gradient_norm=gradient_norm
    )


def by_check(run: Any) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_stability(run)}


def flagged(run: Any) -> list[str]:
    return [finding.check for finding in check_stability(run) if finding.verdict is Verdict.FLAG]


def alternating(n_points: int) -> np.ndarray:
    return np.arange(n_points) % 2.0


def test_the_findings_name_their_question() -> None:
    findings = check_stability(curve(alternating(100)), subject="learning rate x 2")
    assert [finding.check for finding in findings] == CHECKS
    assert {finding.subject for finding in findings} == {"learning rate x 2"}
    assert {finding.section for finding in findings} == {SECTION}
    silent = ["no progress", "gradient norm spike"]
    assert [finding.check for finding in findings if finding.verdict is Verdict.TOO_LITTLE_DATA] == silent
    assert all(finding.verdict is not Verdict.FLAG for finding in findings)


def test_a_hand_worked_spike() -> None:
    # The 20 points before are ten zeros and ten ones: median 0.5, noise 1.4826 * 0.5.
    values = alternating(60)
    values[40:43] = 10.0
    spike = by_check(curve(values))["loss spike"]
    assert spike.verdict is Verdict.FLAG
    assert spike.numbers["step"] == 40
    assert spike.numbers["height"] == pytest.approx(9.5 / (1.4826 * 0.5))
    assert spike.numbers["share_of_range"] == pytest.approx(0.95)
    assert (spike.numbers["n_spikes"], spike.numbers["n_isolated"]) == (1, 0)


def test_one_or_two_outlying_points_are_no_spike() -> None:
    for n_points in (1, 2):
        values = alternating(60)
        values[40 : 40 + n_points] = 1e6
        spike = by_check(curve(values))["loss spike"]
        assert spike.verdict is Verdict.NO_EVIDENCE
        assert (spike.numbers["n_spikes"], spike.numbers["n_isolated"]) == (0, 1)


def test_a_hand_worked_blow_up() -> None:
    # Each point of 0, 1, 0, 1, ... lies 1 from the median of the 11 around it: noise 1.4826.
    values = alternating(100)
    values[4:8] = 20.0
    early = by_check(curve(values))["early instability"]
    assert early.verdict is Verdict.FLAG
    assert early.numbers["height"] == pytest.approx(20.0 / 1.4826)
    assert early.numbers["step"] == 4
    # The last tenth has the median 0.5, above the start of 0.
    assert early.numbers["recovered"] == 0
    values[8:] -= np.linspace(0, 5, 92)
    assert by_check(curve(values))["early instability"].numbers["recovered"] == 1
    # The same later in training is a spike.
    values = alternating(100)
    values[40:44] = 20.0
    assert flagged(curve(values)) == ["loss spike"]


def test_early_is_a_share_of_the_planned_training() -> None:
    values = alternating(100)
    values[30:34] = 20.0
    record = TrialRecord(direction="minimize", curve=curve(values, validation=values), max_steps=500)
    assert "early instability" in flagged(record)
    assert "early instability" not in flagged(curve(values))


def test_a_hand_worked_rise() -> None:
    # Twenty blocks of five points: median m, spread 1; the standard error of a median is 1.2533 * 1.4826 / sqrt(5).
    level = np.array([10.0, 8, 6, 4, 2, *[0.0] * 14, 20])
    values = np.repeat(level, 5) + np.tile([-2.0, 1, 0, -1, 2], 20)
    rise = by_check(curve(values))["loss rise"]
    error = 1.2533 * 1.4826 / np.sqrt(5)
    assert rise.verdict is Verdict.FLAG
    assert rise.numbers["height"] == pytest.approx(20.0 / (np.sqrt(2) * error))
    assert (rise.numbers["low_step"], rise.numbers["step"]) == (27, 97)
    # A decline has to come before: what rises from the start is no rise after a decline.
    assert "loss rise" not in flagged(curve(np.maximum.accumulate(values)))
    # 2% of the range is the least that matters.
    small = np.repeat(np.array([1e4, *[0.0] * 18, 20]), 5) + np.tile([-2.0, 1, 0, -1, 2], 20)
    assert "loss rise" not in flagged(curve(small))


def test_a_hand_worked_run_without_progress() -> None:
    # It swings between the start and 4 above it, from the first step on: no rise or blow-up stands out of such noise.
    values = np.tile([0.0, 2, 4, 2], 25)
    run = curve(np.full(100, np.nan), validation=values)
    found = by_check(run)["no progress"]
    assert flagged(run) == ["no progress"]
    assert (found.numbers["share_not_better"], found.numbers["step"]) == (1.0, 2)
    # The median of the last half is 2 and the range, smoothed over three points, is 2.
    assert found.numbers["share_of_range"] == pytest.approx(1.0)
    # Two of 99 evaluations below the start are 2%.
    better = values.copy()
    better[[60, 80]] = -1
    assert "no progress" not in flagged(curve(np.full(100, np.nan), validation=better))
    # A run that overfits in the end has been better before.
    overfit = np.concatenate([[2.0], np.linspace(1.9, 1, 30), np.linspace(1, 4, 69)])
    assert "no progress" not in flagged(curve(np.full(100, np.nan), validation=overfit))
    # Training losses are of other examples at every step: they do not tell, and neither does a start after step 0.
    assert by_check(curve(values))["no progress"].verdict is Verdict.TOO_LITTLE_DATA
    late = Curve.from_columns(np.arange(1, 101), values)
    assert by_check(late)["no progress"].verdict is Verdict.TOO_LITTLE_DATA


def test_a_hand_worked_outlying_gradient_norm() -> None:
    # In logarithms the points before are ten zeros and ten ones.
    norms = np.exp(alternating(60))
    losses = alternating(60)
    norms[40] = np.exp(0.5 + 12.1 * 1.4826 * 0.5)
    spike = by_check(curve(losses, norms))["gradient norm spike"]
    assert spike.verdict is Verdict.FLAG
    assert spike.numbers["step"] == 40
    assert spike.numbers["height"] == pytest.approx(12.1)
    assert spike.numbers["ratio"] == pytest.approx(np.exp(12.1 * 1.4826 * 0.5))
    norms[40] = np.exp(0.5 + 11.9 * 1.4826 * 0.5)
    assert "gradient norm spike" not in flagged(curve(losses, norms))
    # Three on end need not lie so far out.
    norms[40:43] = np.exp(0.5 + 11.9 * 1.4826 * 0.5)
    assert "gradient norm spike" in flagged(curve(losses, norms))
    # A norm that has no noise must at least double.
    calm = np.full(60, 1.0)
    calm[40:45] = 1.9
    assert "gradient norm spike" not in flagged(curve(losses, calm))
    calm[40:45] = 2.1
    assert "gradient norm spike" in flagged(curve(losses, calm))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_ceases_to_be_finite(bad: float) -> None:
    values = np.linspace(2, 1, 80)
    values[70:] = bad
    finding = by_check(curve(values))["non-finite"]
    assert finding.verdict is Verdict.FLAG
    assert (finding.numbers["step"], finding.numbers["series"]) == (70, "train")
    assert finding.error_rate is None


def test_what_is_unknown_is_not_what_is_not_finite() -> None:
    values = np.linspace(2, 1, 80)
    values[0] = values[30] = np.nan
    validation = np.linspace(2, 1, 80)
    assert flagged(curve(values, validation=validation)) == []
    # Every evaluation has a value: NaN says that it was not finite.
    validation[40] = np.nan
    finding = by_check(curve(values, validation=validation))["non-finite"]
    assert (finding.verdict, finding.numbers["step"], finding.numbers["series"]) == (Verdict.FLAG, 40, "validation")
    norms = np.ones(80)
    norms[50] = np.inf
    finding = by_check(curve(values, norms))["non-finite"]
    assert (finding.verdict, finding.numbers["step"], finding.numbers["series"]) == (Verdict.FLAG, 50, "gradient_norm")


@pytest.mark.parametrize(
    ("reason", "verdict"),
    [
        ("diverged: training loss is nan at step 60", Verdict.FLAG),
        ("non-finite gradient norm at step 60", Verdict.FLAG),
        ("out of memory", Verdict.NO_EVIDENCE),
    ],
)
def test_a_record_says_that_its_run_diverged(reason: str, verdict: Verdict) -> None:
    values = np.linspace(2, 1, 60)
    record = TrialRecord(
        direction="minimize", curve=curve(values, validation=values), status=Status.INFEASIBLE, reason=reason
    )
    finding = by_check(record)["non-finite"]
    assert finding.verdict is verdict
    assert finding.numbers["series"] == ("status" if verdict is Verdict.FLAG else None)
    again = TrialRecord.from_json(record.to_json())
    assert by_check(again)["non-finite"] == finding


@pytest.mark.parametrize("n_points", [0, 1, 2, 49])
def test_too_few_points_say_nothing(n_points: int) -> None:
    findings = by_check(curve(np.linspace(1, 50, n_points) ** 3, np.linspace(1, 50, n_points)))
    assert {findings[check].verdict for check in CHECKS[1:]} == {Verdict.TOO_LITTLE_DATA}
    assert flagged(curve(np.full(n_points, np.nan))) == []


def test_a_blow_up_to_the_end_of_float64() -> None:
    values = 2.0 * 1.3 ** (2 * np.arange(1350.0))
    assert values[-1] > 1e307
    found = by_check(curve(values, values))
    assert found["early instability"].verdict is Verdict.FLAG
    assert found["loss spike"].verdict is Verdict.FLAG
    [finding] = check_learning_rate_limit({1.0: curve(np.linspace(2, 1, 1350)), 5.0: curve(values)})
    assert (finding.verdict, finding.numbers["ends_worse"]) == (Verdict.FLAG, 1)


def test_without_noise_a_height_is_no_number() -> None:
    values = np.ones(100)
    values[50:60] = 2.0
    spike = by_check(curve(values))["loss spike"]
    assert (spike.verdict, spike.numbers["height"], spike.numbers["step"]) == (Verdict.FLAG, None, 50)


@pytest.mark.parametrize("values", [np.ones(100), np.linspace(1, 0, 100), np.zeros(100)])
def test_without_noise(values: np.ndarray) -> None:
    assert flagged(curve(values, values)) == []


def test_a_training_accuracy_is_judged_turned_round() -> None:
    generator = np.random.default_rng(0)
    accuracy = np.linspace(0.1, 0.9, 200) + 0.004 * generator.normal(size=200)
    noisy = accuracy + 0.01 * generator.normal(size=200)
    assert flagged(TrialRecord(direction="maximize", curve=curve(accuracy, validation=noisy))) == []
    broken = accuracy.copy()
    broken[120:140] -= 0.5
    assert flagged(TrialRecord(direction="maximize", curve=curve(broken, validation=noisy))) == [
        "loss rise",
        "loss spike",
    ]
    # A loss that blows up rises as well, but against the accuracy.
    rising = np.linspace(1, 3, 200) + 0.01 * generator.normal(size=200)
    found = flagged(TrialRecord(direction="maximize", curve=curve(rising, validation=1 - noisy)))
    assert "early instability" in found


def test_the_validation_loss_is_judged_where_it_is_minimized_and_not_for_rising() -> None:
    generator = np.random.default_rng(0)
    train = np.linspace(3, 1, 200) + 0.01 * generator.normal(size=200)
    blow_up = train.copy()
    blow_up[2:20] += 5 * np.exp(-np.arange(18) / 5)
    found = by_check(curve(train, validation=blow_up))["early instability"]
    assert (found.verdict, found.numbers["series"], found.numbers["recovered"]) == (Verdict.FLAG, "validation", 1)
    record = TrialRecord(direction="maximize", curve=curve(train, validation=blow_up))
    assert flagged(record) == []
    overfitting = train + np.maximum(0, np.linspace(-2, 3, 200))
    assert flagged(curve(train, validation=overfitting)) == []
    # Without a training loss the objective stands for it.
    assert flagged(curve(np.full(200, np.nan), validation=overfitting)) == ["loss rise"]


def unstable(generator: np.random.Generator, kind: str, noise: np.ndarray) -> np.ndarray:
    """Return a loss that falls from 2.3 to 0.3 with noise of 0.1 and goes wrong by 2."""
    step = np.arange(N_STEPS)
    loss = 0.3 + 2.0 * np.exp(-step / 80) + 0.1 * noise
    if kind == "early instability":
        return loss + _decay(step - generator.integers(1, 8), 2.0, 20)
    if kind == "loss spike":
        return loss + _decay(step - generator.integers(160, 470), 2.0, 5)
    if kind == "loss rise":
        return loss + 2.0 * np.clip((step - generator.integers(160, 330)) / 60, 0, 1)
    loss[generator.integers(50, N_STEPS) :] = np.nan
    return loss


def _decay(since: np.ndarray, height: float, length: float) -> np.ndarray:
    return height * np.where(since >= 0, np.exp(-np.maximum(since, 0) / length), 0)


def test_what_does_not_matter() -> None:
    generator = np.random.default_rng(4)
    for kind in OF_THE_LOSS:
        loss = unstable(generator, kind, generator.normal(size=N_STEPS))
        norms = np.exp(0.3 * generator.normal(size=N_STEPS))
        norms[300] = 100.0
        expected = check_stability(curve(loss, norms))
        for scale, shift, factor in ((1e-3, 0.0, 1.0), (1e3, -5e3, 1.0), (7.0, 1e3, 1e4), (1.0, 0.0, 1e-6)):
            for one, other in zip(expected, check_stability(curve(scale * loss + shift, factor * norms)), strict=True):
                assert (one.check, one.verdict) == (other.check, other.verdict)
                assert one.numbers.keys() == other.numbers.keys()
                for name, number in one.numbers.items():
                    is_text = number is None or isinstance(number, str)
                    same = number if is_text else pytest.approx(number, rel=1e-6)
                    assert other.numbers[name] == same, (one.check, name)


def correlated(generator: np.random.Generator, correlation: float) -> np.ndarray:
    fresh = generator.normal(size=N_STEPS) * np.sqrt(1 - correlation**2)
    noise = np.empty(N_STEPS)
    noise[0] = generator.normal()
    for step in range(1, N_STEPS):
        noise[step] = correlation * noise[step - 1] + fresh[step]
    return noise


def draw(generator: np.random.Generator, kind: str) -> np.ndarray:
    if kind == "t3":
        return generator.standard_t(3, N_STEPS)
    if kind == "laplace":
        return generator.laplace(size=N_STEPS)
    if kind == "exponential":
        return generator.exponential(size=N_STEPS) - 1
    if kind.startswith("correlated"):
        return correlated(generator, float(kind.split()[1]))
    return generator.normal(size=N_STEPS)


def healthy(generator: np.random.Generator, kind: str) -> Curve:
    """Return a run that gets better by 0 to 30 times its noise, or by a loss that is mostly noise itself.

    Gradient norms are lognormal, log-Laplace under Laplace noise, with a trend.
    """
    step = np.arange(N_STEPS)
    progress = np.exp(-step / np.exp(generator.uniform(np.log(5), np.log(N_STEPS))))
    if kind.startswith("gamma"):
        shape = float(kind.split()[1])
        loss = (generator.choice([0.02, 0.2, 1.0]) + 2 * progress) * generator.gamma(shape, 1 / shape, N_STEPS)
    else:
        gain = generator.choice([0.0, 0.3, 3.0, 30.0])
        scale = generator.choice([1.0, 0.0]) if gain else 1.0
        loss = gain * progress + (scale or gain * (0.1 * progress + 0.02)) * draw(generator, kind)
    noise = draw(generator, "laplace" if kind == "laplace" else "gaussian")
    trend = generator.normal() * np.linspace(0, 1, N_STEPS)
    return curve(loss, np.exp(generator.uniform(0.1, 0.8) * noise + trend))


# Kinds of noise, with the largest share of false flags that is allowed: 0.02 is what the findings state.
HEALTHY = {
    "gaussian": 0.02,
    "t3": 0.02,
    "laplace": 0.02,
    "exponential": 0.02,
    "gamma 2": 0.02,
    "gamma 4": 0.02,
    "correlated 0.5": 0.02,
    # Beyond what the error rate covers: batches are hardly ever so correlated.
    "correlated 0.8": 0.08,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_runs_are_rarely_flagged(kind: str) -> None:
    generator = np.random.default_rng(11)
    n_runs = 600
    n_flagged = sum(bool(flagged(healthy(generator, kind))) for _ in range(n_runs))
    allowed = HEALTHY[kind]
    assert n_flagged / n_runs <= allowed + 2 * np.sqrt(allowed * (1 - allowed) / n_runs)
    # As stated.
    assert n_flagged / n_runs <= (0.06 if kind == "correlated 0.8" else 0.011)


@pytest.mark.parametrize("kind", HEALTHY)
def test_healthy_evaluations_are_rarely_said_to_make_no_progress(kind: str) -> None:
    generator = np.random.default_rng(12)
    n_runs = 300
    # A fourth of these losses do not fall at all, and their start is as noisy as the rest.
    runs = (healthy(generator, kind) for _ in range(n_runs))
    n_flagged = sum("no progress" in flagged(curve(np.full(N_STEPS, np.nan), validation=run.train)) for run in runs)
    assert n_flagged / n_runs <= 0.01 + 2 * np.sqrt(0.01 * 0.99 / n_runs)


def test_the_stated_error_rate_is_that_of_the_simulation() -> None:
    rates = {finding.error_rate for finding in check_stability(curve(alternating(100)))}
    assert rates == {None, HEALTHY["gaussian"]}


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["gaussian", "t3", "correlated 0.5"])
@pytest.mark.parametrize("kind", OF_THE_LOSS)
def test_unstable_runs_are_found(kind: str, noise: str) -> None:
    generator = np.random.default_rng(12)
    n_runs = 300
    found = sum(kind in flagged(curve(unstable(generator, kind, draw(generator, noise)))) for _ in range(n_runs))
    assert found >= 0.92 * n_runs


def test_one_unstable_run_of_each_kind_is_found_and_its_healthy_twin_is_not() -> None:
    for kind in OF_THE_LOSS:
        generator = np.random.default_rng(13)
        noise = generator.normal(size=N_STEPS)
        assert kind in flagged(curve(unstable(generator, kind, noise)))
    step = np.arange(N_STEPS)
    assert flagged(curve(0.3 + 2.0 * np.exp(-step / 80) + 0.1 * noise)) == []


def runs(**kinds: str) -> dict[float, Curve]:
    """Return runs by factor (x1, x2, ...): healthy, noisier, or unstable in the way that is named."""
    generator = np.random.default_rng(5)
    result = {}
    for name, kind in kinds.items():
        noise = generator.normal(size=N_STEPS)
        scale = 4.0 if kind == "noisier" else 1.0
        loss = 0.3 + 2.0 * np.exp(-np.arange(N_STEPS) / 80) + 0.1 * scale * noise + 0.1 * (scale - 1)
        result[float(name[1:])] = curve(loss if kind in ("healthy", "noisier") else unstable(generator, kind, noise))
    return result


def limit(**kinds: str) -> Finding:
    [finding] = check_learning_rate_limit(runs(**kinds))
    return finding


def test_stable_and_merely_noisier_runs_are_no_evidence() -> None:
    finding = limit(x1="healthy", x2="healthy", x5="noisier", x10="noisier")
    assert (finding.check, finding.subject, finding.section) == ("learning rate limit", "learning rate", SECTION)
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert dict(finding.numbers) == {
        "n_runs": 4,
        "n_unstable": 0,
        "unstable_factor": None,
        "kind": None,
        "step": None,
        "ends_worse": None,
        "stable_factor": 10.0,
    }


@pytest.mark.parametrize("kind", OF_THE_LOSS)
def test_any_instability_at_twice_the_rate_limits_it(kind: str) -> None:
    finding = limit(x1="healthy", x2=kind, x5="healthy")
    assert finding.verdict is Verdict.FLAG
    assert (finding.numbers["unstable_factor"], finding.numbers["stable_factor"]) == (2.0, 1.0)
    assert finding.numbers["kind"] == kind
    assert finding.numbers["n_unstable"] == 1
    step = by_check(runs(x1="healthy", x2=kind, x5="healthy")[2.0])[kind].numbers["step"]
    assert finding.numbers["step"] == step


@pytest.mark.parametrize(
    ("kind", "verdict", "worse"),
    [("non-finite", Verdict.FLAG, None), ("loss rise", Verdict.FLAG, 1), ("early instability", Verdict.NO_EVIDENCE, 0)],
)
def test_at_five_and_ten_times_the_rate_a_recovery_does_not_count(
    kind: str, verdict: Verdict, worse: int | None
) -> None:
    for factor in ("x5", "x10"):
        finding = limit(x1="healthy", x2="healthy", **{factor: kind})
        assert finding.verdict is verdict
        assert finding.numbers["n_unstable"] == 1
        if verdict is Verdict.FLAG:
            assert finding.numbers["unstable_factor"] == float(factor[1:])
            assert finding.numbers["stable_factor"] == 2.0
            assert worse is None or finding.numbers["ends_worse"] == worse


def test_a_run_without_progress_limits_the_rate() -> None:
    healthy = runs(x1="healthy")[1.0]
    swinging = np.tile([0.0, 2, 4, 2], N_STEPS // 4) + 2.3
    for factor in (2.0, 5.0, 10.0):
        [finding] = check_learning_rate_limit({1.0: healthy, factor: curve(swinging, validation=swinging - 0.1)})
        assert finding.verdict is Verdict.FLAG
        assert (finding.numbers["unstable_factor"], finding.numbers["kind"]) == (factor, "no progress")


def test_without_a_stable_reference_instability_is_enough() -> None:
    finding = limit(x5="early instability")
    assert (finding.verdict, finding.numbers["ends_worse"]) == (Verdict.FLAG, None)


def test_runs_beyond_ten_times_the_rate_do_not_count() -> None:
    finding = limit(x1="healthy", x2="healthy", x20="non-finite")
    assert (finding.verdict, finding.numbers["n_runs"]) == (Verdict.NO_EVIDENCE, 2)


def test_an_outlying_gradient_norm_alone_limits_nothing() -> None:
    norms = np.ones(N_STEPS)
    norms[300:305] = 1e3
    healthy_runs = runs(x1="healthy", x2="healthy")
    spiked = curve(healthy_runs[2.0].train, norms)
    assert flagged(spiked) == ["gradient norm spike"]
    [finding] = check_learning_rate_limit({1.0: healthy_runs[1.0], 2.0: spiked})
    assert finding.verdict is Verdict.NO_EVIDENCE


@pytest.mark.parametrize("kinds", [{}, {"x1": "healthy"}, {"x1": "healthy", "x20": "healthy"}])
def test_without_a_larger_rate_there_is_too_little_to_say(kinds: dict[str, str]) -> None:
    assert limit(**kinds).verdict is Verdict.TOO_LITTLE_DATA
    short = {factor: curve(np.linspace(2, 1, 20)) for factor in (1.0, 2.0)}
    assert check_learning_rate_limit(short)[0].verdict is Verdict.TOO_LITTLE_DATA


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_a_factor_that_is_not_positive_is_refused(factor: float) -> None:
    message = (
        f"`runs` has the factor {factor}: a factor multiplies the best learning rate and must be positive. Pass the "
        "runs by factor, for instance {1.0: ..., 2.0: ..., 5.0: ..., 10.0: ...}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_learning_rate_limit({factor: curve(alternating(100))})


@pytest.mark.slow
def test_four_healthy_runs_are_rarely_said_to_be_limited() -> None:
    n_studies = 300
    for kind in ("gaussian", "exponential", "correlated 0.5"):
        generator = np.random.default_rng(14)
        n_flagged = 0
        for _ in range(n_studies):
            [finding] = check_learning_rate_limit(
                {factor: healthy(generator, kind) for factor in (1.0, 2.0, 5.0, 10.0)}
            )
            n_flagged += finding.verdict is Verdict.FLAG
        assert finding.error_rate is not None
        allowed = finding.error_rate
        assert n_flagged / n_studies <= allowed + 2 * np.sqrt(allowed * (1 - allowed) / n_studies), kind


@pytest.mark.slow
@pytest.mark.parametrize("noise", ["gaussian", "t3"])
@pytest.mark.parametrize(
    ("kind", "factor", "power"),
    [
        *[(kind, 2.0, 0.92) for kind in OF_THE_LOSS],
        *[(kind, factor, 0.98) for kind in ("non-finite", "loss rise") for factor in (5.0, 10.0)],
    ],
)
def test_what_limits_the_rate_is_found(kind: str, factor: float, power: float, noise: str) -> None:
    generator = np.random.default_rng(15)
    n_studies, n_found = 150, 0
    for _ in range(n_studies):
        candidates = {
            one: curve(0.3 + 2.0 * np.exp(-np.arange(N_STEPS) / 80) + 0.1 * draw(generator, noise))
            for one in (1.0, 2.0, 5.0, 10.0)
        }
        candidates[factor] = curve(unstable(generator, kind, draw(generator, noise)))
        [finding] = check_learning_rate_limit(candidates)
        n_found += finding.verdict is Verdict.FLAG and finding.numbers["unstable_factor"] == factor
    assert n_found / n_studies >= power


@pytest.mark.parametrize("kind", OF_THE_LOSS)
def test_the_unit_of_the_loss_and_the_order_of_the_runs_do_not_matter_to_the_limit(kind: str) -> None:
    candidates = runs(x1="healthy", x2="noisier", x5=kind, x10="non-finite")
    [expected] = check_learning_rate_limit(candidates)
    moved = {factor: curve(7.0 * one.train - 3.0) for factor, one in reversed(candidates.items())}
    assert check_learning_rate_limit(moved) == [expected]
    # A training accuracy that is maximized is the same run turned round.
    turned = {
        factor: TrialRecord(
            direction="maximize",
            curve=curve(-one.train, validation=-one.train),
            status=Status.INFEASIBLE if np.isnan(one.train).any() else Status.COMPLETE,
        )
        for factor, one in candidates.items()
    }
    assert check_learning_rate_limit(turned)[0].verdict is expected.verdict
