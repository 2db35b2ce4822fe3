"""What do the training curves show? Overfitting, noise late in training, and a run that is too short or too long.

Playbook: "Examining the training curves": look at least at the best trial of each scientific value for problematic
overfitting, step-to-step variance late in training, improvement up to the end, early saturation, and a training loss
that rises. The questions that need every step (spikes, blow-ups) are stability.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy

from playbook_plugins.analysis.curve_noise import (
    MATERIAL,
    MIN_EVALUATIONS,
    Series,
    find_rise,
    noise_of,
    series_of,
    share_of,
)
from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.isolation import isolate
from playbook_plugins.analysis.objectives import is_training_minimized
from playbook_plugins.analysis.parameters import Role
from playbook_plugins.analysis.periodicity import find_period
from playbook_plugins.analysis.records import Curve, Direction, TrialRecord
from playbook_plugins.analysis.regularizers import is_regularizer
from playbook_plugins.analysis.steps import learning_rate_decays
from playbook_plugins.analysis.trials import Trials

SECTION = "Examining the training curves"

# At so many, one trial among many is not one of the false flags.
_CERTAIN_ERRORS = 15.0
_SLOPE_ERRORS = 5.0
_LEVEL_ERRORS = 3.0
_LOUD = 0.05
_PERIOD_LEVEL = 0.01
# Simulated in tests/test_curves.py at a lag-1 correlation up to 0.5, objective and loss together.
_ERROR_RATE = 0.03
_STUDY_LEVEL = 0.05


def diagnose_curve(
    run: Curve | TrialRecord,
    *,
    direction: Direction = "minimize",
    losses: Sequence[str] | None = None,
    subject: str = "run",
) -> list[Finding]:
    """Ask of one run what the playbook asks of its training curves.

    With the step noise of `step_noise` (the larger of spacing 1 and 3), windows of w = max(3, n // 20) evaluations,
    and the range of the smoothed curve, the evaluation at step 0 included:

    - **overfitting**: the last window is worse than the best window by more than 6 noise / sqrt(w / 2) and by at least
      2% of the range. Asked of the objective and of each validation loss separately.
    - **late variance**: the noise is at least 5% of the range: the step at which training stops decides the result.
    - **still improving**: a straight line through the last quarter improves by at least 2% of the range and by 5
      standard errors. Under a learning rate that ends below half of its peak, improvement up to the end is by design:
      then nothing is flagged.
    - **early saturation**: at the end, neither the objective nor the training objective is better than in the middle of
      training by 2% of its range, even allowing 3 standard errors. A curve that overfits is not saturated.
    - **rising training loss**: the rule of overfitting, on the training objective: usually a bug.
    - **periodic validation**: a line in the spectrum of the last three quarters at p <= 0.01 (`find_period`): usually
      training data that are not shuffled, or evaluations on changing examples. A learning rate that rises again twice
      explains it: then nothing is flagged.

    Parameters
    ----------
    run
        With one row an evaluation, evenly spaced. Evaluations that are not finite are left out.
    direction
        Which way the objective of a `Curve` gets better; a `TrialRecord` knows its own. The training objective of a
        maximized objective is minimized where it ends lower than it began, else maximized.
    losses
        The names of the validation losses among the curve's other metrics. By default those whose name contains "loss"
        and not "train". A copy of the objective is not asked again.
    subject
        What the findings are about, for instance ``"trial 3"``.

    Returns
    -------
    list of Finding
        In the order above; subject ``subject``, for the overfitting of a loss ``"<subject>, <loss>"``. Numbers:
        ``n_evaluations``; ``series`` (``"validation"``, ``"train"`` or the loss); ``noise`` (in the objective's unit).
        Of overfitting and a rising training loss: ``excess`` (>= 0, in the objective's unit), ``height`` (the same in
        noise / sqrt(w / 2); None without noise), ``share_of_range``, ``best_step`` (optimizer steps, the middle of the
        best window). Late variance: ``share_of_range``. Still improving: ``gain`` (> 0 is better) over the last
        quarter, ``share_of_range``, ``height`` (in standard errors), ``learning_rate_decays`` (1, 0 or None). Early
        saturation: ``gain`` over the last half, ``largest_share`` (of the range, with 3 standard errors, of objective
        and training objective the larger), ``step`` (the first from which the smoothed curve stays within 2% of its
        range of the end). Periodic: ``period`` (evaluations), ``period_steps`` (optimizer steps), ``p``,
        ``share_of_variance``, ``n_learning_rate_rises``.
        TOO_LITTLE_DATA below 12 evaluations, for a period below 32; for early saturation also where the noise is too
        large for an answer.
        ``error_rate`` bounds the chance of a false flag of each question: for overfitting, of the objective or a loss,
        2.5% at most were simulated (12 to 500 evaluations, lag-1 correlation up to 0.5). Of curves that rise by 8
        noises over their last half, 94% are found with 50 evaluations and 31% with 12; by 5 noises, 52% with 50 and 88%
        with 100.

    Raises
    ------
    ValueError
        When ``direction`` is neither of the two, or ``losses`` names a metric that the curve lacks.
    """
    if direction not in ("minimize", "maximize"):
        raise ValueError(
            f"`direction` is {direction!r}: it must be 'minimize' or 'maximize'. Pass the direction in which the "
            "objective gets better."
        )
    curve = run.curve if isinstance(run, TrialRecord) else run
    is_minimized = (run.direction if isinstance(run, TrialRecord) else direction) == "minimize"
    judged = _judged(curve, is_minimized, losses)
    objective = judged[0]
    train = _train(curve, is_minimized)
    return [
        *(_overfitting(series, subject) for series in judged),
        _late_variance(objective, subject),
        _still_improving(objective, subject, curve),
        _early_saturation(objective, train, subject),
        _rising_train(train, subject),
        _periodic(objective, subject, curve),
    ]


def check_curves(trials: Trials, *, regularizers: Sequence[str] | None = None) -> list[Finding]:
    """Ask of the best trial of each scientific value what its training curves show, and of all trials who overfits.

    Selecting the best trial favors those that do not overfit, so that a problem may show in the others only: where any
    overfit, a finding says how many. It is a flag where they are more than false flags explain (a binomial tail of at
    most 0.05 at the rate of 0.03), or where one of them rises by more than 15 noise / sqrt(w / 2).

    Parameters
    ----------
    trials
        The study; infeasible, pruned, failed and running trials, and those without a curve, are left out.
    regularizers
        The names of the hyperparameters that regularize. Where one of them is scientific, overfitting at its low
        values is no surprise, and is not flagged. By default those whose name says so (`is_regularizer` of
        analysis/regularizers.py).

    Returns
    -------
    list of Finding
        Those of `diagnose_curve` for the best trial of each value (or bucket) of each scientific hyperparameter, else
        of the study, subject ``"trial <number>"`` (a trial that is the best of several values is asked once); numbers
        also ``trial``, ``value`` (``"optimizer=adam"``, several joined by a comma; None without scientific
        hyperparameters), and ``exempt`` (the scientific regularizer, where overfitting would have been flagged). Then
        one of check ``"overfitting"``, subject ``"all trials"``: ``n_trials`` (judged), ``n_overfitting``, ``trial``
        (of the highest rise, None where none overfits), ``p``.

    Raises
    ------
    ValueError
        When ``regularizers`` names a hyperparameter that the study lacks.
    """
    exempt = _scientific_regularizer(trials, regularizers)
    findings = []
    for row, values in best_rows(trials).items():
        curve = trials.curves[row]
        if curve is None:
            continue
        number = int(trials.number[row])
        more: dict[str, Number] = {"trial": number, "value": ", ".join(values) or None}
        for finding in diagnose_curve(curve, direction=trials.direction, subject=f"trial {number}"):
            named = replace(finding, numbers={**finding.numbers, **more})
            findings.append(_exempted(named, exempt) if finding.check == "overfitting" else named)
    return [*findings, _exempted(_any_overfitting(trials), exempt)]


def _judged(curve: Curve, is_minimized: bool, losses: Sequence[str] | None) -> list[Series]:
    """Return the objective, then the validation losses that are not a copy of it."""
    if losses is None:
        losses = [name for name in curve.metrics if "loss" in name.lower() and "train" not in name.lower()]
    for name in losses:
        if name not in curve.metrics:
            raise ValueError(
                f"`losses` names {name!r}: the curve has no such metric. Pass some of {sorted(curve.metrics)}, or "
                "leave losses=None."
            )
    others = [
        series_of(name, curve.step, curve.metrics[name], True)
        for name in losses
        if not np.array_equal(curve.metrics[name], curve.validation, equal_nan=True)
    ]
    return [series_of("validation", curve.step, curve.validation, is_minimized), *others]


def _train(curve: Curve, is_minimized: bool) -> Series:
    is_loss = is_training_minimized(curve, "minimize" if is_minimized else "maximize")
    return series_of("train", curve.step, curve.train, is_loss)


def _finding(check: str, subject: str, series: Series, error_rate: float = _ERROR_RATE) -> Finding:
    numbers: dict[str, Number] = {"n_evaluations": len(series.values), "series": series.name}
    return Finding(
        check=check,
        subject=subject,
        verdict=Verdict.TOO_LITTLE_DATA,
        numbers=numbers,
        section=SECTION,
        error_rate=error_rate,
    )


def _answer(finding: Finding, is_flagged: bool, numbers: dict[str, Number]) -> Finding:
    verdict = Verdict.FLAG if is_flagged else Verdict.NO_EVIDENCE
    return replace(finding, verdict=verdict, numbers={**finding.numbers, **numbers})


def _overfitting(series: Series, subject: str) -> Finding:
    named = subject if series.name == "validation" else f"{subject}, {series.name}"
    return _judge_rise(_finding("overfitting", named, series), series)


def _rising_train(train: Series, subject: str) -> Finding:
    return _judge_rise(_finding("rising training loss", subject, train), train)


def _judge_rise(finding: Finding, series: Series) -> Finding:
    rise = find_rise(series)
    if rise is None:
        return finding
    numbers: dict[str, Number] = {
        "noise": noise_of(series),
        "excess": rise.excess,
        "height": rise.height if np.isfinite(rise.height) else None,
        "share_of_range": rise.share,
        "best_step": rise.step,
    }
    return _answer(finding, rise.is_flagged, numbers)


def _late_variance(series: Series, subject: str) -> Finding:
    finding = _finding("late variance", subject, series)
    if len(series.values) < MIN_EVALUATIONS:
        return finding
    noise = noise_of(series)
    share = share_of(noise, series.span)
    return _answer(finding, share >= _LOUD, {"noise": noise, "share_of_range": share})


def _still_improving(series: Series, subject: str, curve: Curve) -> Finding:
    finding = _finding("still improving", subject, series)
    n_evaluations = len(series.values)
    if n_evaluations < MIN_EVALUATIONS:
        return finding
    last = series.values[-max(n_evaluations // 4, 6) :]
    place = np.arange(len(last)) - (len(last) - 1) / 2.0
    spread = float(place @ place)
    gain = -float(place @ last) / spread * (len(last) - 1)
    noise = noise_of(series)
    error = noise / spread**0.5 * (len(last) - 1)
    share = share_of(gain, series.span)
    height = gain / error if error > 0 else None
    decays = learning_rate_decays([curve])
    is_clear = height is None or height > _SLOPE_ERRORS
    return _answer(
        finding,
        share >= MATERIAL and is_clear and decays != 1,
        {"noise": noise, "gain": gain, "share_of_range": share, "height": height, "learning_rate_decays": decays},
    )


def _early_saturation(series: Series, train: Series, subject: str) -> Finding:
    finding = _finding("early saturation", subject, series)
    if len(series.values) < MIN_EVALUATIONS:
        return finding
    gain, error, span = _last_half(series)
    shares = [share_of(gain + _LEVEL_ERRORS * error, span)]
    is_known = span > 0 and _LEVEL_ERRORS * error < MATERIAL * span
    if len(train.values) >= MIN_EVALUATIONS:
        train_gain, train_error, train_span = _last_half(train)
        shares.append(share_of(train_gain + _LEVEL_ERRORS * train_error, train_span))
        is_known = is_known and _LEVEL_ERRORS * train_error < MATERIAL * train_span
    smooth = series.smooth(series.window)
    is_far = np.flatnonzero(np.abs(smooth - smooth[-1]) >= MATERIAL * span)
    first = int(is_far[-1]) + 1 if len(is_far) else 0
    numbers: dict[str, Number] = {
        "noise": noise_of(series),
        "gain": gain,
        "largest_share": max(shares),
        "step": int(series.step[first + series.window // 2]),
    }
    if not is_known:
        return replace(finding, numbers={**finding.numbers, **numbers})
    rise = find_rise(series)
    overfits = rise is not None and rise.is_flagged
    return _answer(finding, max(shares) < MATERIAL and not overfits, numbers)


def _last_half(series: Series) -> tuple[float, float, float]:
    """Return the gain from the middle to the end (> 0 is better), its standard error, and the range."""
    n_evaluations = len(series.values)
    window = max(3, n_evaluations // 8)
    middle = series.values[n_evaluations // 2 - window : n_evaluations // 2]
    gain = float(middle.mean() - series.values[-window:].mean())
    return gain, noise_of(series) / (window / 2.0) ** 0.5, series.span


def _periodic(series: Series, subject: str, curve: Curve) -> Finding:
    finding = _finding("periodic validation", subject, series, _PERIOD_LEVEL)
    period = find_period(series.values)
    if period is None:
        return finding
    rates = curve.learning_rate[np.isfinite(curve.learning_rate)]
    change = np.sign(np.diff(rates))
    change = change[change != 0]
    n_rises = int(np.sum((change[1:] > 0) & (change[:-1] < 0)))
    numbers: dict[str, Number] = {
        "period": period.length,
        "period_steps": period.length * float(np.median(np.diff(series.step))),
        "p": period.p,
        "share_of_variance": period.share,
        "n_learning_rate_rises": n_rises,
    }
    return _answer(finding, period.p <= _PERIOD_LEVEL and n_rises < 2, numbers)


def best_rows(trials: Trials) -> dict[int, list[str]]:
    """Return the row of the best trial of each scientific value, with those values; else that of the study.

    Parameters
    ----------
    trials
        The study.

    Returns
    -------
    dict
        ``{row: ["optimizer=adam"]}``, one entry a trial, of several values where it is the best of several; an empty
        list where the study has no scientific hyperparameter. Empty where no trial is feasible.
    """
    best: dict[int, list[str]] = {}
    scientific = [parameter for parameter in trials.parameters if parameter.role is Role.SCIENTIFIC]
    for parameter in scientific:
        for group in isolate(trials, parameter.name).groups:
            if group.best_row is not None:
                value = trials.config(group.best_row)[parameter.name]
                best.setdefault(group.best_row, []).append(f"{parameter.name}={value}")
    ranking = trials.ranking()
    if not scientific and len(ranking):
        best[int(ranking[0])] = []
    return best


def _any_overfitting(trials: Trials) -> Finding:
    """Return how many of the feasible trials overfit, and whether that is more than chance."""
    heights: dict[int, float] = {}
    n_trials = 0
    for row in trials.ranking():
        curve = trials.curves[row]
        if curve is None:
            continue
        rises = [find_rise(series) for series in _judged(curve, trials.direction == "minimize", None)]
        known = [rise for rise in rises if rise is not None]
        n_trials += bool(known)
        if any(rise.is_flagged for rise in known):
            heights[int(trials.number[row])] = max(rise.height for rise in known if rise.is_flagged)
    finding = Finding(
        check="overfitting",
        subject="all trials",
        verdict=Verdict.TOO_LITTLE_DATA,
        numbers={"n_trials": n_trials},
        section=SECTION,
        error_rate=_STUDY_LEVEL,
    )
    if not n_trials:
        return finding
    chance = float(scipy.stats.binom.sf(len(heights) - 1, n_trials, _ERROR_RATE))
    highest = max(heights, key=lambda number: heights[number]) if heights else None
    is_certain = highest is not None and heights[highest] > _CERTAIN_ERRORS
    return _answer(
        finding,
        bool(heights) and (chance <= _STUDY_LEVEL or is_certain),
        {"n_overfitting": len(heights), "trial": highest, "p": chance},
    )


def _scientific_regularizer(trials: Trials, regularizers: Sequence[str] | None) -> str | None:
    """Return the first scientific hyperparameter that regularizes, None where there is none."""
    known = [parameter.name for parameter in trials.parameters]
    for name in regularizers or ():
        if name not in known and name not in trials.fixed:
            raise ValueError(
                f"`regularizers` names {name!r}: the study {trials.name!r} has no such hyperparameter. Pass some of "
                f"{known}."
            )
    for parameter in trials.parameters:
        regularizes = is_regularizer(parameter.name) if regularizers is None else parameter.name in regularizers
        if parameter.role is Role.SCIENTIFIC and regularizes:
            return parameter.name
    return None


def _exempted(finding: Finding, regularizer: str | None) -> Finding:
    """Return the finding without its flag where the study compares strengths of a regularizer."""
    if regularizer is None or finding.verdict is not Verdict.FLAG:
        return finding
    return replace(finding, verdict=Verdict.NO_EVIDENCE, numbers={**finding.numbers, "exempt": regularizer})
