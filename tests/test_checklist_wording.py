"""Do the findings on curves, budget, adoption and evaluation read as plain sentences? Those of the real checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis import (
    Curve,
    Finding,
    Parameter,
    Role,
    Status,
    Trials,
    Verdict,
    check_budget,
    check_critical_batch_size,
    check_evaluation_sample,
    check_selection_bias,
    critical_batch_size,
    diagnose_curve,
)
from playbook_plugins.analysis.interactions import check_interactions
from playbook_plugins.analysis.max_train_steps import check_max_train_steps, pick_max_train_steps
from playbook_plugins.report import word
from playbook_plugins.report.checklist_flags import CHECKLIST_FLAGS
from playbook_plugins.report.wording import Wording

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


def test_hyperparameters_that_must_be_tuned_together() -> None:
    generator = np.random.default_rng(7)
    x, y = generator.uniform(-1, 1, (2, 60))
    kind = np.tile(["adam", "sgd"], 30)
    numbers = [Parameter(name=name, kind="float", low=-1, high=1) for name in ("x", "y")]
    together = Trials.from_columns(
        "study", numbers, {"x": x, "y": y}, (x - y) ** 2 + 0.01 * generator.standard_normal(60)
    )
    words = word(flagged(check_interactions(together), "interaction"))
    assert words.headline == "x and y must be tuned together"
    assert words.sentence.startswith("Where x is high, higher values of y are better; that explains ")
    against = Trials.from_columns("study", numbers, {"x": x, "y": -y}, (x - y) ** 2)
    words = word(flagged(check_interactions(against), "interaction"))
    assert words.sentence.startswith("Where x is high, lower values of y are better; that explains ")
    optimizer = Parameter(name="optimizer", kind="categorical", choices=("adam", "sgd"), role=Role.SCIENTIFIC)
    anew = Trials.from_columns(
        "study",
        [optimizer, numbers[0]],
        {"optimizer": kind, "x": x},
        (x - np.where(kind == "sgd", 0.4, -0.4)) ** 2 + 0.01 * generator.standard_normal(60),
    )
    words = word(flagged(check_interactions(anew), "interaction"))
    assert words.headline == "x must be tuned anew for each optimizer"
    assert words.sentence.startswith("The best x depends on optimizer; that explains ")
    assert " for adam and 0." in words.sentence
    [nothing] = check_interactions(Trials.from_columns("study", numbers, {"x": x, "y": y}, x + y))
    assert word(nothing).headline == "No evidence of hyperparameters that must be tuned together in the study"


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


def sweep_words(rates: list[float], trains: list[list[float]], goal: float = 0.0, **columns: Any) -> dict[str, Wording]:
    curves = [Curve.from_columns([0, 100, 200, 300], train, train, columns.pop("rate", [0.1] * 4)) for train in trains]
    rate = Parameter(name="learning_rate", kind="float", low=1e-3, high=1.0, log=True)
    trials = Trials.from_columns("s", [rate], {"learning_rate": rates}, np.ones(len(rates)), curves=curves, **columns)
    return {one.subject: word(one) for one in check_max_train_steps(pick_max_train_steps(trials, goal))}


def test_a_sweep_for_max_train_steps() -> None:
    fast, slow, never = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 0.9, 0.8, 0.7]
    good = sweep_words([0.01, 0.1, 1.0], [slow, fast, never])
    assert good["fit"].headline == "No evidence of a sweep that misleads about max_train_steps by its fit"
    assert good["fit"].sentence == (
        "The fastest of 3 trials began to fit the training set after more than 0 steps and at 100 at the latest."
    )
    assert good["learning_rate"].sentence == (
        "The fastest trial has learning_rate = 0.1; 1 trial had a smaller one and 1 a larger one."
    )
    assert good["schedule"].sentence.startswith("Of 3 trials, 0 did not record the learning rate")
    edge = sweep_words(
        [0.01, 0.1, 1.0], [slow, fast, never], status=[Status.COMPLETE, Status.COMPLETE, Status.INFEASIBLE]
    )
    assert edge["learning_rate"].sentence.endswith("1 a larger one, where training diverged.")
    none = sweep_words([0.01, 0.1], [never, never], goal=0.1)
    assert none["fit"].headline == "No trial fits the training set perfectly"
    assert none["fit"].sentence == "None of 2 trials brings the training objective to 0.1 within 300 steps."
    early = sweep_words([0.01, 0.1], [never, never], goal=2.0)
    assert early["fit"].headline == "The training set seems to be fitted at the first evaluation"


def test_what_speaks_against_a_sweep_for_max_train_steps() -> None:
    fast, slow = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]
    upper = sweep_words([0.01, 0.1], [slow, fast])["learning_rate"]
    assert upper.headline == "learning_rate: the fastest fit is at the upper end of the sweep"
    assert upper.sentence == "The fastest trial has learning_rate = 0.1, the largest that was tried."
    assert upper.action.startswith("Sweep larger rates")
    lower = sweep_words([0.1, 0.01], [slow, fast])["learning_rate"]
    assert "the smallest that was tried" in lower.sentence
    assert sweep_words([0.1], [fast])["learning_rate"].headline.endswith("is no sweep for max_train_steps")
    decayed = sweep_words([0.01, 0.1], [slow, slow], rate=[0.1, 0.1, 0.05, 0.01])["schedule"]
    assert decayed.headline == "The sweep for max_train_steps has learning rates that decay"
    assert decayed.sentence == "1 trial had to be left out for it; 1 of constant rate remain."
    regularized = sweep_words([0.01, 0.1], [slow, fast], fixed={"dropout": 0.1})["regularization"]
    assert regularized.sentence == "Not off: dropout."


@pytest.mark.parametrize("check", CHECKLIST_FLAGS)
def test_missing_numbers_fall_back_on_plain_words(check: str) -> None:
    for verdict in Verdict:
        words = word(Finding(check=check, subject="run", verdict=verdict))
        assert words.headline
        assert "None" not in words.headline + words.sentence
