"""Is training unstable, and does that hold the learning rate down? Spikes, rises and early blow-ups of the loss.

Playbook: "How can optimization failures be debugged and mitigated?", "Identifying unstable workloads": any
workload becomes unstable if the learning rate is too large; it is an issue only where it forces a rate too small.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy
from numpy.typing import NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.objectives import is_training_minimized
from playbook_plugins.analysis.records import Curve, Status, TrialRecord

SECTION = "Identifying unstable workloads"

# Below it neither noise nor trend is known well enough.
_MIN_POINTS = 50
# What is smaller than this share of the loss's range matters to nobody, however little noise there is.
_MATERIAL = 0.02
# Scaled by it, a median absolute deviation estimates the standard deviation of Gaussian noise.
SIGMA = 1.4826

# Spikes: so many noises above the median of the points before, for so many points on end. One or two points are an
# outlying batch: under Student's t with 3 degrees of freedom a point exceeds 5 noises in 0.5% of steps, three on end
# in one of ten million.
_SPIKE_NOISES = 5.0
_SPIKE_POINTS = 3
_WINDOW = 50
# A gradient norm spikes with a single step too, if it lies as far out as hardly any noise does: outlying norms are
# themselves what the playbook looks for. Its noise is that of the logarithm, and it must double at least.
_OUTLYING_NOISES = 12.0
_MIN_RATIO = 2.0

# Rises: the curve is cut into so many blocks, whose medians stand for the smoothed loss; the threshold in standard
# errors allows for looking at all pairs of blocks, and for a spread known from the points of one block only.
_BLOCKS = 20
_RISE_NOISES = 7.0

# Early: the first fifth, in which the playbook's 500 steps show a blow-up and the beginning of the recovery. The start
# is a single noisy point, hence more noises than for a spike.
_EARLY = 0.2
_EARLY_NOISES = 6.0
_START = 20

# No progress: so many of the evaluations are not better than the one before training. The same examples are evaluated
# each time, so that the start is no noisy draw; were it one, it would be so low in about one of a hundred runs.
_NOT_BETTER = 0.99
_BETTER = 0.005  # of the range; less is no gain

# Simulated: the largest share of healthy runs with any flag, over the kinds of noise in tests/test_stability.py.
ERROR_RATE = 0.02

# Losses beyond it are scaled down to it, which changes no verdict.
_HUGE = 1e100

# How the reason of an infeasible trial begins whose loss or gradient was not finite.
_DIVERGED = ("diverged", "non-finite")


@dataclass(frozen=True)
class _Series:
    """The known values of one column, arrays of shape (n_points,), and the step at which it ceased to be finite."""

    name: str
    step: NDArray[np.int64]
    values: NDArray[np.float64]
    broken: int | None = None


def check_stability(run: Curve | TrialRecord, *, subject: str = "run") -> list[Finding]:
    """Ask whether a run was unstable: in what way, and at which step.

    The training loss (a training accuracy turned round, see `is_training_minimized` of analysis/objectives.py) and,
    where it is minimized, the monitored validation objective are judged; the one with the larger excess is reported.
    All rules compare losses by their noise and their range, so that ``a * loss + b`` with a > 0 gets the verdicts of
    ``loss``; the gradient norm's are unchanged by a scale.

    - **non-finite**: a value is infinite; or the training loss is NaN from some step to the end; or a validation
      objective is NaN; or the record says that the run diverged.
    - **early instability**: within the first fifth of the run, at least 3 points on end exceed the first point by 6
      noises (those of `_start_noise`). Recovery shows in a number.
    - **no progress**: 99% of the validation objectives are not better than the one at step 0, and the median of the
      last half is worse, as where the loss swings widely from the first steps on and hides its rises in its own noise.
    - **loss rise**: after a decline, the median of one of 20 equal blocks exceeds that of the lowest block before by 7
      standard errors. It asks the training loss only: a rising validation loss is overfitting's question. A learning
      rate that restarts raises the loss as well.
    - **loss spike**: at least 3 points on end exceed the median of the (up to 50) points before by 5 of their noises.
      One or two such points are an outlying batch, and are counted apart.
    - **gradient norm spike**: in logarithms, the same by 5 noises, or a single step by 12; the norm at least doubles.

    What exceeds by less than 2% of the loss's range does not count.

    Parameters
    ----------
    run
        One row a step tells most: spikes and blow-ups are shorter than the time between usual evaluations.
    subject
        What the findings are about, for instance ``"learning rate x 2"``.

    Returns
    -------
    list of Finding
        Six, in the order above. Numbers: ``n_points`` (known values judged); ``series`` (``"train"``,
        ``"validation"``, ``"gradient_norm"`` or ``"status"``); ``step`` (of the first spike, the highest point of a
        blow-up or a rise, the first value that is not finite; in optimizer steps); ``height`` (in noises; None without
        any) and ``share_of_range`` (of the loss; early: of its first fifth) of the largest excess; ``recovered``
        (early: 1 where the last tenth of the run lies below the start, else 0); ``low_step`` (rise: the middle of the
        lowest block); ``share_not_better`` (no progress); ``n_spikes``, ``n_isolated``; and ``ratio`` (of the largest
        norm to the median before it). TOO_LITTLE_DATA below 50 points.
        ``error_rate`` bounds the chance that a healthy run of 500 steps gets any of the flags: 1.1% at most were
        simulated with Gaussian, heavy-tailed, skewed, proportional and autocorrelated noise (up to 0.5 between
        neighbouring steps; 6% at 0.8). Of runs that go wrong by 20 noises, at least 92% are found. NO_EVIDENCE does
        not mean that training is stable, at other steps or seeds least of all.
    """
    curve = run.curve if isinstance(run, TrialRecord) else run
    losses = known_losses(run)
    horizon = _horizon(run)
    empty = Finding(
        check="",
        subject=subject,
        verdict=Verdict.TOO_LITTLE_DATA,
        section=SECTION,
        error_rate=ERROR_RATE,
    )
    train = [series for series in losses if series.name == "train"] or losses
    norms = _known("gradient_norm", curve.step, curve.gradient_norm)
    return [
        _check_finite(empty, run, [*losses, norms]),
        _largest(empty, "early instability", [_early(_tame(series), horizon) for series in losses]),
        _largest(
            empty, "no progress", [_no_progress(_tame(series)) for series in losses if series.name == "validation"]
        ),
        _largest(empty, "loss rise", [_rise(_tame(series)) for series in train]),
        _largest(empty, "loss spike", [_spikes(_tame(series)) for series in losses]),
        _largest(empty, "gradient norm spike", [_norm_spikes(norms)]),
    ]


def _known(name: str, step: NDArray[np.int64], values: NDArray[np.float64]) -> _Series:
    """Return the values up to the first that is not finite; NaN means unknown unless nothing finite follows it."""
    finite = np.flatnonzero(np.isfinite(values))
    infinite = np.flatnonzero(np.isinf(values))
    is_over = len(finite) > 0 and finite[-1] + 1 < len(values)
    broken = np.append(infinite, finite[-1] + 1) if is_over else infinite
    end = int(broken.min()) if len(broken) else len(values)
    rows = finite[finite < end]
    return _Series(name, step[rows], values[rows], int(step[end]) if len(broken) else None)


def known_losses(run: Curve | TrialRecord) -> list[_Series]:
    """Return the losses that a run is judged by: of training, and of validation where it is minimized."""
    curve = run.curve if isinstance(run, TrialRecord) else run
    direction = run.direction if isinstance(run, TrialRecord) else "minimize"
    # A training accuracy is a loss when it is turned round.
    is_loss = is_training_minimized(curve, direction)
    train = _known("train", curve.step, curve.train if is_loss else -curve.train)
    # Every evaluation of a validation objective has a value: NaN says that it was not finite.
    is_known = bool(np.isfinite(curve.validation).any())
    validation = _known("validation", curve.step, np.where(np.isnan(curve.validation), np.inf, curve.validation))
    is_other = not np.array_equal(curve.train, curve.validation, equal_nan=True)
    both = [train] * (len(train.values) > 0 or train.broken is not None)
    return both + [validation] * (is_known and direction == "minimize" and (is_other or not both))


def _horizon(run: Curve | TrialRecord) -> int:
    """Return the planned length of the run, in optimizer steps, or the last step that is known."""
    if isinstance(run, TrialRecord) and run.max_steps > 0:
        return run.max_steps
    step = (run.curve if isinstance(run, TrialRecord) else run).step
    return int(step[-1]) if len(step) else 0


def _is_diverged(run: Curve | TrialRecord) -> bool:
    return isinstance(run, TrialRecord) and run.status is Status.INFEASIBLE and run.reason.startswith(_DIVERGED)


def _check_finite(empty: Finding, run: Curve | TrialRecord, columns: list[_Series]) -> Finding:
    broken = [(series.broken, series.name) for series in columns if series.broken is not None]
    step, name = min(broken, default=(None, None))
    if step is None and _is_diverged(run):
        curve = run.curve if isinstance(run, TrialRecord) else run
        step, name = int(curve.step[-1]) if len(curve) else 0, "status"
    n_points = max((len(series.values) for series in columns), default=0)
    verdict = Verdict.FLAG if name else Verdict.NO_EVIDENCE if n_points else Verdict.TOO_LITTLE_DATA
    numbers: dict[str, Number] = {"n_points": n_points, "series": name, "step": step}
    return replace(empty, check="non-finite", verdict=verdict, numbers=numbers, error_rate=None)


# The numbers of a check on one series, and whether it is flagged; None where it has too few points.
_Judgement = tuple[bool, dict[str, Number]] | None


def _largest(empty: Finding, check: str, judged: list[_Judgement]) -> Finding:
    known = [one for one in judged if one is not None]
    if not known:
        return replace(empty, check=check)
    flagged, numbers = max(known, key=lambda one: (one[0], float(one[1]["height"] or 0.0)))
    height = numbers["height"]
    # Without any noise an excess is no number of noises.
    numbers["height"] = height if height is None or np.isfinite(float(height)) else None
    return replace(empty, check=check, verdict=Verdict.FLAG if flagged else Verdict.NO_EVIDENCE, numbers=numbers)


def _span(values: NDArray[np.float64]) -> float:
    """Return the range of the loss, without its outlying points."""
    smooth = scipy.ndimage.median_filter(values, size=_SPIKE_POINTS, mode="nearest")
    return float(smooth.max() - smooth.min())


def _in_noises(excess: NDArray[np.float64], noise: NDArray[np.float64] | float) -> NDArray[np.float64]:
    """Return the excess in units of the noise, shape (n,): infinite where there is an excess and no noise."""
    noises = np.broadcast_to(np.asarray(noise, dtype=np.float64), excess.shape)
    without = np.where(excess == 0, 0.0, np.copysign(np.inf, excess))
    return np.divide(excess, noises, out=without, where=noises > 0)


def _tame(series: _Series) -> _Series:
    """Return the series on a scale at which differences of the losses of a blown-up run stay within float64."""
    largest = float(np.abs(series.values).max(initial=0.0))
    return series if largest < _HUGE else replace(series, values=series.values / (largest / _HUGE))


def _runs_on_end(is_above: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first places, shape (n_runs,), and the lengths, shape (n_runs,), of the runs of True."""
    edges = np.diff(np.concatenate([[0], is_above.astype(np.int8), [0]]))
    starts = np.flatnonzero(edges == 1)
    return starts, np.flatnonzero(edges == -1) - starts


def _early(series: _Series, horizon: int) -> _Judgement:
    values = series.values
    if len(values) < _MIN_POINTS:
        return None
    part = values[: max(int((series.step <= _EARLY * horizon).sum()), 2 * _SPIKE_POINTS)]
    noise = _start_noise(part)
    excess = part - part[0]
    # The lowest of each three on end: their common height above the start.
    common = np.lib.stride_tricks.sliding_window_view(excess, _SPIKE_POINTS).min(axis=1)
    height = _in_noises(common, noise)
    # A blow-up that goes on to the end must not make its beginning small.
    span = _span(part)
    tail = float(np.median(values[-max(len(values) // 10, 1) :]))
    flagged = bool(np.any((height > _EARLY_NOISES) & (common >= _MATERIAL * span) & (common > 0)))
    return flagged, {
        "n_points": len(values),
        "series": series.name,
        "step": int(series.step[int(np.argmax(part))]),
        "height": float(height.max()),
        "share_of_range": _share(float(excess.max()), span),
        "recovered": int(tail < values[0]),
    }


def _start_noise(part: NDArray[np.float64]) -> float:
    """Return the larger of two estimates of the noise at the start, given the first fifth of the run.

    Residuals from a running median see correlated noise; second differences of the first points see that the noise is
    larger where the loss is, and no blow-up that lasts for some steps.
    """
    residual = part - scipy.ndimage.median_filter(part, size=11, mode="nearest")
    second = np.diff(part[:_START], 2)
    return SIGMA * max(float(np.median(np.abs(residual))), float(np.median(np.abs(second)) / np.sqrt(6.0)))


def _no_progress(series: _Series) -> _Judgement:
    values = series.values
    if len(values) < _MIN_POINTS or series.step[0] != 0:
        return None
    span = _span(values)
    excess = float(np.median(values[len(values) // 2 :]) - values[0])
    share = float(np.mean(values[1:] > values[0] - _BETTER * span))
    return share >= _NOT_BETTER and excess >= _MATERIAL * span and excess > 0, {
        "n_points": len(values),
        "series": series.name,
        "step": int(series.step[int(np.argmax(values))]),
        "height": None,
        "share_of_range": _share(excess, span),
        "share_not_better": share,
    }


def _rise(series: _Series) -> _Judgement:
    values = series.values
    if len(values) < _MIN_POINTS:
        return None
    blocks = np.array_split(values, _BLOCKS)
    middle = np.array([np.median(block) for block in blocks])
    size = len(values) / _BLOCKS
    # The standard error of a median is 1.2533 times that of a mean.
    error = 1.2533 * SIGMA * np.array([np.median(np.abs(b - m)) for b, m in zip(blocks, middle, strict=True)])
    error = error / np.sqrt(size)
    # Where neighbouring blocks differ by more than their points explain, the noise is correlated.
    between = SIGMA * float(np.median(np.abs(np.diff(middle, 2)))) / np.sqrt(6.0)
    within = float(np.median(error))
    correlation = max(1.0, between / within) if within > 0 else 1.0
    low = np.array([int(np.argmin(middle[: place + 1])) for place in range(_BLOCKS)])
    rise = middle - middle[low]
    # A block on which the loss stands still by chance, as under coarse rounding, is not without noise.
    floor = np.maximum(error, 0.5 * within)
    height = _in_noises(rise, correlation * np.hypot(floor, floor[low]))
    declined = _in_noises(middle[0] - middle[low], correlation * np.hypot(floor[0], floor[low])) > 2.0
    height = np.where(declined, height, 0.0)
    span = _span(values)
    is_material = rise >= _MATERIAL * span
    # The blow-up of the loss grows with its place: the place is the highest block among those that count.
    place = int(np.argmax(np.where(is_material & (height > _RISE_NOISES), rise, -1.0)))
    flagged = bool(is_material[place] and height[place] > _RISE_NOISES)
    place = place if flagged else int(np.argmax(height))
    centres = np.array([block[len(block) // 2] for block in np.array_split(series.step, _BLOCKS)])
    return flagged, {
        "n_points": len(values),
        "series": series.name,
        "step": int(centres[place]),
        "low_step": int(centres[low[place]]),
        "height": float(height[place]),
        "share_of_range": _share(float(rise[place]), span),
    }


def _above_before(values: NDArray[np.float64]) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Return the window w, and for the points from w on, the excess over the median of the w points before and noise.

    Both arrays have shape (n_points - w,).
    """
    window = min(max(len(values) // 10, 20), _WINDOW)
    before = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]
    level = np.median(before, axis=1)
    noise = SIGMA * np.median(np.abs(before - level[:, None]), axis=1)
    return window, values[window:] - level, noise


def _spikes(series: _Series) -> _Judgement:
    values = series.values
    if len(values) < _MIN_POINTS:
        return None
    window, excess, noise = _above_before(values)
    height = _in_noises(excess, noise)
    span = _span(values)
    starts, lengths = _runs_on_end((height > _SPIKE_NOISES) & (excess >= _MATERIAL * span) & (excess > 0))
    spikes = starts[lengths >= _SPIKE_POINTS]
    highest = int(np.argmax(height))
    return len(spikes) > 0, {
        "n_points": len(values),
        "series": series.name,
        "step": int(series.step[window + (int(spikes[0]) if len(spikes) else highest)]),
        "height": float(height[highest]),
        "share_of_range": _share(float(excess[highest]), span),
        "n_spikes": len(spikes),
        "n_isolated": int((lengths < _SPIKE_POINTS).sum()),
    }


def _norm_spikes(series: _Series) -> _Judgement:
    is_positive = series.values > 0
    if int(is_positive.sum()) < _MIN_POINTS:
        return None
    window, excess, noise = _above_before(np.log(series.values[is_positive]))
    height = _in_noises(excess, noise)
    is_doubled = excess >= np.log(_MIN_RATIO)
    starts, lengths = _runs_on_end((height > _SPIKE_NOISES) & is_doubled)
    outlying = np.array(
        [bool(np.any(height[s : s + n] > _OUTLYING_NOISES)) for s, n in zip(starts, lengths, strict=True)]
    )
    spikes = starts[(lengths >= _SPIKE_POINTS) | outlying.astype(np.bool_)]
    highest = int(np.argmax(height))
    return len(spikes) > 0, {
        "n_points": int(is_positive.sum()),
        "series": series.name,
        "step": int(series.step[is_positive][window + (int(spikes[0]) if len(spikes) else highest)]),
        "height": float(height[highest]),
        "ratio": float(np.exp(min(float(excess[highest]), 700.0))),
        "n_spikes": len(spikes),
        "n_isolated": len(starts) - len(spikes),
    }


def _share(excess: float, span: float) -> float:
    return excess / span if span > 0 else 0.0
