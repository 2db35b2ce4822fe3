"""Do the findings of a single run read as plain sentences? Those of real checks, on runs made to raise them."""

from __future__ import annotations

import numpy as np
import pytest

from playbook_plugins.analysis import (
    Curve,
    Finding,
    Throughput,
    Verdict,
    check_learning_rate_limit,
    check_stability,
    check_throughput,
)
from playbook_plugins.report import word
from playbook_plugins.report.run_flags import RUN_FLAGS

STEPS = np.arange(1, 501)
NOISE = 0.02 * np.random.default_rng(0).standard_normal(500)
HEALTHY = 1 + np.exp(-STEPS / 100) + NOISE


def table(seconds: list[float], wait: float = 0.0, failed: int | None = None) -> Throughput:
    n_sizes = len(seconds)
    return Throughput(
        batch_size=2 ** np.arange(n_sizes),
        seconds_per_step=np.array(seconds),
        data_wait_share=np.full(n_sizes, wait),
        peak_memory=np.full(n_sizes, np.nan),
        limit="max_batch_size" if failed is None else "memory",
        failed_batch_size=failed,
    )


def run(loss: np.ndarray, norm: np.ndarray | None = None) -> Curve:
    return Curve.from_columns(STEPS[: len(loss)], loss, loss, gradient_norm=norm)


def only(findings: list[Finding], check: str, subject: str | None = None) -> Finding:
    [finding] = [one for one in findings if one.check == check and subject in (None, one.subject)]
    assert finding.verdict is Verdict.FLAG
    return finding


def test_the_throughput() -> None:
    words = word(only(check_throughput(table([1, 1, 2, 4])), "throughput", "accelerator"))
    assert words.headline == "Batches larger than 2 do not pay"
    assert words.sentence == (
        "The next larger batch size brings 1 times the examples per second of half of it; 2 per device is the largest "
        "that brings 1.1 times or more."
    )
    words = word(only(check_throughput(table([1, 1, 1], wait=0.25)), "throughput", "input"))
    assert words.headline == "Training waits for data"
    assert words.sentence == "Waiting for the loader takes 25% of a step."
    words = word(only(check_throughput(table([1, 1, 1], failed=8)), "throughput", "memory"))
    assert words.headline == "Memory limits the training throughput"
    assert words.sentence == "The throughput still grows at 4 examples per device; 8 run out of memory."
    assert "Gradient accumulation brings none" in words.action
    words = word(only(check_throughput(table([], failed=1)), "throughput", "memory"))
    assert (words.headline, words.sentence) == (
        "No batch size fits into memory",
        "Even 1 example per device is too much.",
    )


def test_a_run_that_diverges() -> None:
    words = word(only(check_stability(run(np.append(HEALTHY[:99], np.inf)), subject="learning rate x 2"), "non-finite"))
    assert words.headline == "Training diverges (learning rate x 2)"
    assert words.sentence == "A loss, an objective or a gradient norm is no longer finite at step 100."
    assert words.section == "Identifying unstable workloads"


def test_an_early_blow_up() -> None:
    bump = np.zeros(500)
    bump[5:40] = 2
    words = word(only(check_stability(run(HEALTHY + bump)), "early instability"))
    assert words.headline == "Training blows up early (run)"
    assert words.sentence.startswith("The loss rises above its first value, up to step ")
    assert " and comes back below it later: usual evaluations are too rare to see it." in words.sentence
    assert words.action.startswith("Prepend learning rate warmup")


def test_a_run_without_progress() -> None:
    swinging = np.tile([0.0, 2, 4, 2], 125) + 0.01 * NOISE
    run = Curve.from_columns(np.arange(500), swinging - swinging[0])
    words = word(only(check_stability(run), "no progress"))
    assert words.headline == "Training never gets better than its start (run)"
    assert words.sentence.startswith("100% of the evaluations are not better than the one before training")


def test_a_rise_spikes_and_outlying_norms() -> None:
    rise = np.zeros(500)
    rise[250:] = 1
    words = word(only(check_stability(run(HEALTHY + rise)), "loss rise"))
    assert words.headline == "The loss rises again during training (run)"
    assert words.sentence.startswith("Having been lowest around step ")
    spike = np.zeros(500)
    spike[300:305] = 1
    words = word(only(check_stability(run(HEALTHY + spike)), "loss spike"))
    assert words.sentence.startswith(
        "It leaps above the steps before it and stays there for three steps or more 1 time, first at step 301."
    )
    norm = np.exp(0.1 * np.random.default_rng(1).standard_normal(500))
    norm[300] = 50
    words = word(only(check_stability(run(HEALTHY, norm)), "gradient norm spike"))
    assert words.headline == "Some gradient norms lie far out (run)"
    assert words.sentence.endswith("the first is at step 301. (False flags: at most 2% of runs.)")


def test_a_rate_held_down_by_instability() -> None:
    runs = {1.0: run(HEALTHY), 2.0: run(HEALTHY), 5.0: run(np.append(HEALTHY[:99], np.inf))}
    words = word(only(check_learning_rate_limit(runs), "learning rate limit"))
    assert words.headline == "Instability keeps the learning rate small"
    assert words.sentence.startswith(
        "At 5 times the best learning rate the run shows: non-finite (step 100); at 2 times there is no sign of it."
    )


@pytest.mark.parametrize("check", RUN_FLAGS)
def test_missing_numbers_fall_back_on_plain_words(check: str) -> None:
    for verdict in Verdict:
        words = word(Finding(check=check, subject="run", verdict=verdict))
        assert words.headline
        assert "None" not in words.headline + words.sentence


def test_too_little_is_not_told_in_trials() -> None:
    short = check_stability(run(HEALTHY[:10]))
    headlines = [word(one).headline for one in short if one.check == "early instability"]
    assert headlines == ["Too short a run to look for an early blow-up of the loss at run"]
    [finding, *_] = check_throughput(table([1.0]))
    assert (
        word(finding).headline
        == "Too few batch sizes to look for a limit of the training throughput by the accelerator"
    )
