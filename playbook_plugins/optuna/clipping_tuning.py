"""At which norm should gradients be clipped? At the 90th percentile of an unclipped run, and lower where it must be.

Playbook: "Gradient clipping": the threshold is to be just above the typical norm; where training stays unstable it is
made smaller, and where most updates would be clipped, the learning rate is to be cut instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Direction, TrialRecord
from playbook_plugins.analysis.stability import ERROR_RATE, check_stability
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.plans import Plan, TrainConfig
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.stages import Stability, check_config, judge_stability, train_stage

SECTION = "Gradient clipping"
# Of shares.
_ROUNDING = 1e-9


def tune_clipping(
    train: TrainConfig,
    config: Mapping[str, Any],
    *,
    percentile: float = 90.0,
    max_clipped_share: float = 0.5,
    n_smaller: int = 3,
    clip_threshold: str = "clip_threshold",
    study_name: str,
    storage: str | BaseStorage | None = None,
    direction: Direction = "minimize",
    n_jobs: int = 1,
) -> ProtocolResult:
    """Find the largest threshold for gradient clipping that keeps an unstable training stable.

    A run without clipping records its gradient norms; the first threshold is a percentile of them. While training stays
    unstable, smaller ones are tried, down to the norm above which ``max_clipped_share`` of these norms lie: in even
    steps on a logarithmic scale, because norms after a blow-up, which count too, put a high percentile out by orders of
    magnitude, but hardly the median.

    Parameters
    ----------
    train
        ``train(config) -> TrialRecord``, which clips where the entry is not None, and whose record has the quantiles of
        the unclipped norms (`PercentileGradientClipping` and `TrialRecorder` of playbook_plugins.lightning) and
        the training loss at every step or nearly so.
    config
        What all runs share: with a learning rate at which training is unstable.
    percentile
        Below 100; the playbook starts with 90.
    max_clipped_share
        More clipped updates than this share, in (0, 1), are a disguised cut of the learning rate. The percentile clips
        less than that.
    n_smaller
        How many smaller thresholds are tried after the first, at least 0.
    clip_threshold
        The entry of the configuration that takes the threshold; None for no clipping.
    study_name
        The beginning of the names: the stages are ``"<study_name>/unclipped"``, ``"<study_name>/clipped 1"``, ...
    storage, direction, n_jobs
        As in `run_plan`.

    Returns
    -------
    ProtocolResult
        ``recommendation`` has the threshold (by the name of the entry); empty where the run without clipping is not
        unstable, or no threshold helps without clipping too much. Findings: those of `check_stability` that flag the
        run without clipping; and ``"clipping"``, subject the entry: FLAG where clipping does not cure it; NO_EVIDENCE
        where it does, or where the run without clipping shows no instability; TOO_LITTLE_DATA where a run could not be
        judged. Numbers: ``n_runs`` (clipped), ``percentile``, ``first_threshold`` and ``last_threshold`` (the largest
        and the smallest to try), ``threshold`` (the last one tried), ``clipped_share`` (of its updates, None where
        unknown), ``max_clipped_share``, ``is_stable`` (1, 0, or None where unknown), ``is_aggressive`` (1 where more
        are clipped than allowed), ``unclipped_is_stable``, and ``kind`` and ``step`` of the instability left. A cured
        run is told unstable in at most 2% of cases, which costs a smaller threshold before it costs a false flag.

    Raises
    ------
    ValueError
        When a number is out of its range, ``config`` holds a threshold, the unstable run recorded no gradient norms, or
        a study of these names was begun with other arguments.
    """
    _check(percentile, max_clipped_share, n_smaller)
    check_config(config, {"clip_threshold": clip_threshold})
    storage = optuna.storages.get_storage(storage)
    trials: dict[str, Trials] = {}

    def run(stage: str, threshold: float | None) -> TrialRecord:
        goal = "What norm do the gradients have?" if threshold is None else "Does this threshold keep training stable?"
        plan = Plan(goal=goal, points=({clip_threshold: threshold},), fixed=dict(config))
        trials[stage], [record] = train_stage(
            plan, train, study_name=f"{study_name}/{stage}", storage=storage, direction=direction, n_jobs=n_jobs
        )
        return record

    unclipped = run("unclipped", None)
    flags = [one for one in check_stability(unclipped, subject="unclipped run") if one.verdict is Verdict.FLAG]
    numbers: dict[str, Number] = {"n_runs": 0, "percentile": percentile, "max_clipped_share": max_clipped_share}
    before = judge_stability(unclipped)
    # Outlying norms are instability in the making, which clipping is for, too.
    is_asked = before.is_stable is False or bool(flags)
    numbers["unclipped_is_stable"] = 0 if is_asked else _as_number(before)
    if not is_asked:
        verdict = Verdict.NO_EVIDENCE if before.is_stable else Verdict.TOO_LITTLE_DATA
        finding = _finding(clip_threshold, verdict, numbers)
        return ProtocolResult(findings=(finding,), recommendation={}, trials=trials)
    thresholds = _thresholds(unclipped, percentile, max_clipped_share, n_smaller)
    numbers |= {"first_threshold": thresholds[0], "last_threshold": thresholds[-1]}
    for place, threshold in enumerate(thresholds, start=1):
        record = run(f"clipped {place}", threshold)
        after = judge_stability(record)
        share = _clipped_share(record, threshold)
        is_aggressive = share is not None and share > max_clipped_share + _ROUNDING
        numbers |= {
            "n_runs": place,
            "threshold": threshold,
            "clipped_share": share,
            "is_stable": _as_number(after),
            "is_aggressive": int(is_aggressive),
            "kind": after.kind,
            "step": after.step,
        }
        # The norms of a run that blows up are all large: what it clips says nothing about smaller thresholds.
        if after.is_stable is not False:
            break
    is_cured = after.is_stable is True and not is_aggressive
    verdict = Verdict.NO_EVIDENCE if is_cured else Verdict.TOO_LITTLE_DATA if after.is_stable is None else Verdict.FLAG
    return ProtocolResult(
        findings=(*flags, _finding(clip_threshold, verdict, numbers)),
        recommendation={clip_threshold: threshold} if is_cured else {},
        trials=trials,
    )


def _thresholds(unclipped: TrialRecord, percentile: float, max_clipped_share: float, n_smaller: int) -> list[float]:
    """Return what to try, descending."""
    first = unclipped.clip_threshold(percentile)
    last = unclipped.clip_threshold(100.0 * (1.0 - max_clipped_share))
    if not (last > 0 and first < math.inf):
        raise ValueError(
            f"`percentile` is {percentile} and `max_clipped_share` {max_clipped_share}: the thresholds would go from "
            f"{first:g} to {last:g}, and a threshold must be positive and finite. Pass others."
        )
    steps = [float(step) for step in np.geomspace(first, last, n_smaller + 1)]
    # Where all norms are alike, so are the thresholds.
    return list(dict.fromkeys([first, *steps[1:]]))


def _finding(subject: str, verdict: Verdict, numbers: Mapping[str, Number]) -> Finding:
    return Finding(
        check="clipping", subject=subject, verdict=verdict, numbers=numbers, section=SECTION, error_rate=ERROR_RATE
    )


def _as_number(stability: Stability) -> int | None:
    return None if stability.is_stable is None else int(stability.is_stable)


def _clipped_share(record: TrialRecord, threshold: float) -> float | None:
    """Return the share of clipped updates: as recorded, else that of the unclipped norms above the threshold."""
    if math.isfinite(record.clipped_share):
        return record.clipped_share
    if len(record.gradient_norm_quantiles):
        return float(np.mean(record.gradient_norm_quantiles > threshold))
    return None


def _check(percentile: float, max_clipped_share: float, n_smaller: int) -> None:
    if not 0 < max_clipped_share < 1:
        raise ValueError(
            f"`max_clipped_share` is {max_clipped_share}: it must lie between 0 and 1, both excluded. The playbook "
            "takes more than 0.5 for extremely aggressive."
        )
    least = 100.0 * (1.0 - max_clipped_share)
    if not least < percentile < 100:
        raise ValueError(
            f"`percentile` is {percentile}: it must lie between {least:g}, where max_clipped_share is clipped, and "
            "100, both excluded. The playbook starts with 90."
        )
    if n_smaller < 0:
        raise ValueError(f"`n_smaller` is {n_smaller}: it must be at least 0. Pass 0 to try a single threshold.")
