from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from playbook_plugins.lightning.divergence import LossWatch


def first_stop(watch: LossWatch, losses: list[float]) -> int | None:
    """Return the index of the loss at which the run counts as diverged."""
    return next((place for place, loss in enumerate(losses) if watch.observe(loss) is not None), None)


def healthy_losses(generator: np.random.Generator, n_steps: int = 5_000) -> tuple[NDArray[np.float64], float]:
    """Return the losses of a run that trains well, and how much it can gain; see the docstring of `LossWatch`."""
    start = generator.choice([2.0, 0.001, 0.0, -3.0])
    gain = 0.001 if start == 0.001 else generator.choice([2.0, 0.5])
    decay = (1 + np.arange(n_steps) / 10 ** generator.uniform(0.5, 3)) ** -generator.uniform(0.2, 1.5)
    noise = generator.uniform(0.02, 0.5) * gain
    is_symmetric = generator.random() < 0.5
    rough = generator.standard_t(2, n_steps) if is_symmetric else generator.lognormal(0, 1, n_steps) - 1
    losses = start + gain * (decay - 1) + noise * rough
    n_spikes = generator.integers(0, 6)
    for first in 200 * generator.choice(np.arange(1, n_steps // 200), size=n_spikes, replace=False):
        length = generator.integers(1, 151)
        losses[first : first + length] += gain * 10 ** generator.uniform(0, 2) * np.linspace(1, 0.05, length)
    return losses, float(gain)


def test_the_limit_by_hand() -> None:
    def limit(losses: list[float], factor: float = 3.0) -> float:
        watch = LossWatch(factor)
        assert math.isnan(watch.limit)
        assert first_stop(watch, losses) is None
        return watch.limit

    # Never negative: the factor times the start, whatever was gained since.
    assert limit([2.0] * 20) == 6
    assert limit([2.0] * 20 + [0.1] * 40) == 6
    # From -3 down to -13: twice the gain of 10 above the start.
    assert limit([-3.0] * 20 + [-13.0] * 20) == 17
    # The level is a median: one outlier, or fewer than a half, moves nothing.
    assert limit([-3.0] * 20 + [-13.0] * 20 + [-13.0] * 11 + [-1e9] * 9) == 17
    # Around zero: the noise, six standard deviations of losses whose median absolute deviation is 1.
    assert limit([1.0, -1.0] * 10, 2.0) == pytest.approx(6 * 1.4826)


def test_it_stops_where_nine_tenths_of_the_last_losses_are_high() -> None:
    watch = LossWatch(2.0)
    losses = [2.5] * 20 + [1.0] * 300 + [5.5] * 179
    assert first_stop(watch, losses) is None
    assert watch.observe(5.5) == (
        "training loss is uncharacteristically high (180 of its last 200 values above 5, after a start at 2.5)"
    )
    # With a dip at every eleventh step too, but not at every ninth.
    dips = [[5.5] * (every - 1) + [1.0] for every in (9, 11)]
    assert first_stop(LossWatch(2.0), [2.5] * 20 + dips[0] * 100) is None
    assert first_stop(LossWatch(2.0), [2.5] * 20 + dips[1] * 100) is not None


@pytest.mark.parametrize("length", [1, 100, 179])
def test_a_spike_that_comes_back_is_forgiven(length: int) -> None:
    watch = LossWatch(1.5)
    run = [2.0] * 50 + ([1e6] * length + [1.0] * 200) * 5
    assert first_stop(watch, run) is None
    assert first_stop(watch, [1e6] * 200) == 179


def test_the_first_steps_are_not_judged() -> None:
    # High before anything was learned, and slowly coming down, as with a bad initialization.
    losses = np.geomspace(1e6, 1, 1_000).tolist()
    assert first_stop(LossWatch(1.01), losses) is None
    assert first_stop(LossWatch(1.01), [1e6] * 500) is None


@pytest.mark.parametrize("factor", [None, 2.0])
@pytest.mark.parametrize(("loss", "word"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_loss_that_is_not_finite_has_diverged_at_once(factor: float | None, loss: float, word: str) -> None:
    assert LossWatch(factor).observe(loss) == f"training loss is {word}"
    watch = LossWatch(factor)
    assert first_stop(watch, [2.0] * 30) is None
    assert watch.observe(loss) == f"training loss is {word}"


def test_without_a_factor_only_finiteness_counts() -> None:
    assert first_stop(LossWatch(), [2.0] * 20 + [1e30] * 1_000) is None


@pytest.mark.parametrize("scale", [2.0**-40, 2.0**40])
def test_the_unit_of_the_loss_does_not_matter(scale: float) -> None:
    for seed in range(20):
        losses, gain = healthy_losses(np.random.default_rng(seed), 2_000)
        losses[1_500:] += 50 * gain
        stop = first_stop(LossWatch(2.0), losses.tolist())
        assert stop is not None
        assert first_stop(LossWatch(2.0), (scale * losses).tolist()) == stop


def count_false_stops(seeds: range, factor: float) -> int:
    runs = (healthy_losses(np.random.default_rng(seed))[0].tolist() for seed in seeds)
    return sum(first_stop(LossWatch(factor), losses) is not None for losses in runs)


def test_no_healthy_run_is_stopped() -> None:
    assert count_false_stops(range(500), 1.5) == 0


@pytest.mark.slow
def test_no_healthy_run_of_ten_thousand_is_stopped() -> None:
    assert count_false_stops(range(10_000), 1.5) == 0


def test_every_clear_divergence_is_found() -> None:
    delays = []
    for seed in range(500):
        generator = np.random.default_rng(seed)
        losses, gain = healthy_losses(generator)
        onset = int(generator.integers(20, 4_500))
        # Within 50 steps the loss grows to ten times what training gains above its start, and stays there.
        level = losses[:20].max() + 10 * max(gain, abs(losses[0]))
        losses[onset:] += np.minimum(np.arange(len(losses) - onset) / 50, 1) * (level - losses[onset:].min())
        stop = first_stop(LossWatch(2.0), losses.tolist())
        assert stop is not None, seed
        delays.append(stop - onset)
    assert min(delays) >= 0
    assert max(delays) <= 200


@pytest.mark.parametrize("split", [0, 13, 20, 47, 333, 400])
def test_it_goes_on_where_it_was_after_a_resume(split: int) -> None:
    losses = healthy_losses(np.random.default_rng(1))[0].tolist()[:300] + [1e3] * 300
    whole, before = LossWatch(2.0), LossWatch(2.0)
    for loss in losses[:split]:
        assert whole.observe(loss) == before.observe(loss)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = LossWatch(2.0)
    # As Lightning loads a checkpoint with weights_only=True.
    after.load_state_dict(torch.load(file, weights_only=True))
    told = [whole.observe(loss) for loss in losses[split:]]
    assert [after.observe(loss) for loss in losses[split:]] == told
    assert any(told)
    assert after.state_dict() == whole.state_dict()


@pytest.mark.parametrize("factor", [1.0, 0.5, -2.0, math.inf, math.nan])
def test_a_factor_out_of_range_is_refused(factor: float) -> None:
    message = (
        f"`divergence_factor` is {factor}: it must be finite and above 1, the multiple of its start at which a loss "
        "counts as diverged where it stays there. Pass for instance 2, or None to stop only where the loss is not "
        "finite."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LossWatch(factor)
