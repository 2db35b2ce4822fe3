"""The best steps of a real random search under a decaying learning rate: 512 trials of ConvNeXt-tiny on ImageNet."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from real_studies import convnext, needs_convnext

from playbook_plugins.analysis import Trials, Verdict, check_best_steps
from playbook_plugins.analysis.max_train_steps import SweepRefusal, pick_max_train_steps

pytestmark = needs_convnext


@pytest.fixture(scope="module")
def pool() -> Trials:
    return convnext()


def test_best_steps_are_late_in_nearly_all_of_the_better_half(pool: Trials) -> None:
    # The data set's own figure takes the better half of all 512 trials: the best 256, 99.6%.
    best = pool.ranking()[:256]
    assert np.mean(pool.best_step[best] / pool.max_steps[best] > 0.75) == pytest.approx(255 / 256)
    [finding] = check_best_steps(pool)
    assert (finding.numbers["n_feasible"], finding.numbers["n_better_half"]) == (288, 144)
    assert finding.numbers["share_late"] == pytest.approx(143 / 144)
    assert finding.numbers["share_early"] == 0


def test_under_a_decaying_learning_rate_they_are_uninformative(pool: Trials) -> None:
    [finding] = check_best_steps(pool)
    assert finding.verdict is Verdict.NO_EVIDENCE
    assert finding.numbers["learning_rate_decays"] == 1
    # Without the learning rate, the same best steps would ask for longer training.
    constant = [replace(curve, learning_rate=np.ones(len(curve))) for curve in pool.curves if curve is not None]
    [flagged] = check_best_steps(replace(pool, curves=tuple(constant)))
    assert (flagged.verdict, flagged.numbers["learning_rate_decays"]) == (Verdict.FLAG, 0)
    [unknown] = check_best_steps(replace(pool, curves=(None,) * len(pool)))
    assert (unknown.verdict, unknown.numbers["learning_rate_decays"]) == (Verdict.FLAG, None)


def test_small_subsamples_say_the_same(pool: Trials) -> None:
    generator = np.random.default_rng(0)
    for _ in range(100):
        [finding] = check_best_steps(pool.select(np.sort(generator.choice(len(pool), 32, replace=False))))
        assert finding.verdict is Verdict.NO_EVIDENCE
        assert float(finding.numbers["share_late"] or 0) >= 0.8


def test_no_sweep_for_max_train_steps_is_made_of_it(pool: Trials) -> None:
    result = pick_max_train_steps(pool, 0.5, learning_rate="lr")
    assert (result.max_train_steps, result.refusal) == (None, SweepRefusal.NOT_CONSTANT)
    assert result.n_not_constant >= 288
    assert result.regularizers == ("weight_decay", "label_smoothing")
