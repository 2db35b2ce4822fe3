"""Do the findings on curves, budget, adoption and evaluation read as plain sentences? Those of the real checks."""

from __future__ import annotations

import numpy as np
import pytest

from playbook_plugins.analysis import (
    Curve,
    Finding,
    Parameter,
    Trials,
    Verdict,
    check_budget,
    check_critical_batch_size,
    check_evaluation_sample,
    check_selection_bias,
    critical_batch_size,
    diagnose_curve,
)
from playbook_plugins.report import word
from playbook_plugins.report.checklist_flags import CHECKLIST_FLAGS

STEPS = np.arange(0, 1000, 10)
NOISE = 0.01 * np.random.default_rng(0).standard_normal(100)
FALL = np.exp(-STEPS / 150)


def flagged(findings: list[Finding], check: str) -> Finding:
    [finding] = [one for one in findings if one.check == check and one.verdict is Verdict.FLAG]
    return finding


def study(objective: np.ndarray) -> Trials:
    x = np.random.default_rng(1).uniform(size=len(objective))
    return Trials.from_columns(
        name="study",
        parameters=[Parameter(name="x", kind="float", low=0.0, high=1.0)],
        values={"x": x},
        objective=objective,
    )


def test_overfitting_and_a_rising_training_objective() -> None:
    worse = FALL + NOISE + np.clip(STEPS - 500, 0, None) / 1000
    found = diagnose_curve(Curve.from_columns(STEPS, worse, worse), subject="trial 3")
    words = word(flagged(found, "overfitting"))
    assert words.headline == "Overfitting (trial 3)"
    assert words.sentence.startswith("Having been best around step ")
    assert "regularization" in words.action
    assert word(flagged(found, "rising training loss")).headline == "The training objective gets worse (trial 3)"


def test_a_run_that_still_improves_and_one_that_was_over() -> None:
    slope = 1 - STEPS / 1000 + NOISE
    words = word(flagged(diagnose_curve(Curve.from_columns(STEPS, slope, slope)), "still improving"))
    assert words.headline == "Training ended while still improving (run)"
    assert words.action == "Train longer, or change the learning rate schedule."
    early = np.exp(-STEPS / 20) + NOISE / 10
    words = word(flagged(diagnose_curve(Curve.from_columns(STEPS, early, early)), "early saturation"))
    assert words.sentence.startswith("From step ")


def test_evaluations_that_vary_and_swing() -> None:
    loud = FALL + 20 * NOISE
    words = word(flagged(diagnose_curve(Curve.from_columns(STEPS, loud)), "late variance"))
    assert words.headline == "Evaluations late in training vary much (run)"
    swing = FALL + NOISE + 0.1 * np.sin(2 * np.pi * np.arange(100) / 8)
    words = word(flagged(diagnose_curve(Curve.from_columns(STEPS, swing)), "periodic validation"))
    assert words.sentence.startswith("It comes back every ")
    assert "shuffled" in words.action


def test_the_budget() -> None:
    objective = np.sort(np.random.default_rng(2).uniform(size=64))
    objective = np.random.default_rng(3).permutation(objective)
    words = word(flagged(check_budget(study(objective), retrain_sd=1e-4), "budget"))
    assert words.headline == "More points would probably find something better"
    assert words.sentence.startswith("The last doubling of the points (to 64) improved the best objective by ")
    words = word(flagged(check_budget(study(np.full(20, 0.5))), "budget"))
    assert words.headline == "Every trial has the same objective"
    noise = 0.5 + 0.01 * np.random.default_rng(4).standard_normal(64)
    words = word(flagged(check_budget(study(noise), retrain_sd=0.03), "budget"))
    assert words.headline == "The objective hardly depends on the hyperparameters here"


def test_the_luck_of_the_winner() -> None:
    objective = 0.1 + 0.01 * np.random.default_rng(5).standard_normal(64)
    words = word(flagged(check_selection_bias(study(objective), 900), "selection bias"))
    assert words.headline == "The best result is flattered by being the best"
    assert words.sentence.startswith("Of 64 trials judged on 900 examples the best reaches ")


def test_a_sample_that_differs() -> None:
    full = (np.arange(5000) < 2500).astype(float)
    words = word(
        flagged(check_evaluation_sample(full[2000:2600], full, indices=np.arange(2000, 2600)), "evaluation sample")
    )
    assert words.headline.startswith("The sampled evaluation set differs from the full one (")
    assert words.sentence.startswith("Its mean differs by ")


def test_batch_sizes_that_save_no_steps() -> None:
    sizes = 2.0 ** np.arange(4, 16)
    steps = 1000 * (1 + 512 / sizes) * np.exp(0.02 * np.random.default_rng(6).standard_normal(len(sizes)))
    words = word(flagged(check_critical_batch_size(critical_batch_size(sizes, steps)), "critical batch size"))
    assert words.headline == "The largest batch sizes save hardly any steps"
    assert " The critical batch size is about 5" in words.sentence
    rising = 1000 * (1 + np.log2(sizes))
    words = word(flagged(check_critical_batch_size(critical_batch_size(sizes, rising)), "steps to target"))
    assert words.headline == "A larger batch needs more steps"


@pytest.mark.parametrize(("method", "by"), [("welch", " by 0.02 (90% interval 0.01 to 0.03)"), ("rank", " (0 of its")])
def test_an_adoption(method: str, by: str) -> None:
    numbers = {"winner": "nesterov", "runner_up": "adam", "n_candidate": 5, "n_baseline": 4, "probability": 0.97}
    more = {"n_diverged_candidate": 0, "n_diverged_baseline": 2}
    if method == "welch":
        more |= {"improvement": 0.02, "low": 0.01, "high": 0.03}
    finding = Finding(check="adoption", subject="optimizer", verdict=Verdict.FLAG, numbers=numbers | more)
    words = word(finding)
    assert words.headline == "optimizer: nesterov is better when retrained"
    assert words.sentence.startswith(f"Nesterov is better than adam over 5 fresh retrains against 4{by}")


@pytest.mark.parametrize("check", CHECKLIST_FLAGS)
def test_missing_numbers_fall_back_on_plain_words(check: str) -> None:
    for verdict in Verdict:
        words = word(Finding(check=check, subject="run", verdict=verdict))
        assert words.headline
        assert "None" not in words.headline + words.sentence
