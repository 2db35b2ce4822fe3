"""Is a configuration fit to begin with? Clearly better than chance, simple, and fast: one run tells what can be seen.

Playbook: "Choosing the initial configuration": a simple, relatively fast configuration of low resource consumption that
obtains a reasonable result; what makes it complicated can be added later.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage

from playbook_plugins.analysis.curve_noise import MIN_EVALUATIONS, noise_of, series_of
from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Direction, Status, TrialRecord
from playbook_plugins.analysis.regularizers import is_on, is_regularizer
from playbook_plugins.analysis.steps import is_constant_rate
from playbook_plugins.optuna.plans import Plan, TrainConfig
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.stages import check_config, train_stage

SECTION = "Choosing the initial configuration"
# By so many standard deviations of a single evaluation must the last quarter of training be better than chance.
_CLEAR_NOISES = 3.0
# What the names of further extras hold: remedies and refinements that can be added once something trains.
_EXTRAS = ("warmup", "clip", "polyak", "averag", "lookahead", "accumulat")
# Too short to be looked for within a name: "schema" has "ema" in it.
_WHOLE_EXTRAS = ("ema", "swa")
# Its words for none beside those of `is_on`.
_CONSTANT = ("constant", "const", "fixed")


def check_start(
    train: TrainConfig,
    config: Mapping[str, Any],
    *,
    chance_level: float,
    max_seconds: float | None = None,
    study_name: str,
    storage: str | BaseStorage | None = None,
    direction: Direction = "minimize",
    n_jobs: int = 1,
) -> ProtocolResult:
    """Train a configuration once and ask what speaks against tuning from it.

    Parameters
    ----------
    train
        ``train(config) -> TrialRecord``.
    config
        The configuration to begin with.
    chance_level
        The validation objective of guessing, in its unit: for instance an error of 0.9 with ten even classes.
    max_seconds
        How long a run may take, wall clock; None not to ask.
    study_name
        The beginning of the name of the study, ``"<study_name>/start"``.
    storage, direction, n_jobs
        As in `run_plan`.

    Returns
    -------
    ProtocolResult
        Without a recommendation. Findings, ``check`` being ``"start"``:

        - ``"result"``: FLAG where the run is infeasible, no evaluation is better than chance, or those of the last
          quarter of training are not better, by their median, than chance by 3 standard deviations of an evaluation.
          That is less than "much better than chance", which depends on the problem: see ``gain``. Numbers:
          ``chance_level``, ``best``, ``late`` (the median), ``gain`` (its distance from chance, positive when better;
          in the objective's unit, as all these), ``noise`` (the standard deviation), ``n_evaluations``, ``reason``
          (where infeasible). TOO_LITTLE_DATA below 12 evaluations, unless none is better than chance. As simulated,
          a run at chance passes in at most 0.1% of cases, with Gaussian and heavy-tailed noise, and in 0.7% where 12
          neighboring evaluations are correlated by 0.5; a gain of 10 noises passes in 99%, one of 6 in 82% (12
          evaluations) to 98% (40).
        - ``"simplicity"``: FLAG where regularizers, augmentation, warmup, clipping, weight averaging or gradient
          accumulation are on, judged by the names of the entries, or the learning rate decays. Numbers: ``n_extras``,
          ``extras`` (the names), ``decays`` (1, 0, or None where the record does not tell). What is written in the
          training code itself cannot be seen.
        - ``"time"``, with ``max_seconds``: FLAG where the run took longer. Numbers: ``seconds``, ``max_seconds``.
          TOO_LITTLE_DATA where the record has no time, or the run ended early because it is infeasible.

        The last two are plain comparisons.

    Raises
    ------
    ValueError
        When a number is out of its range, or a study of this name was begun with another configuration.
    """
    if not math.isfinite(chance_level):
        raise ValueError(
            f"`chance_level` is {chance_level}: it must be finite. Pass the validation objective of guessing, for "
            "instance an error of 0.9 with ten even classes."
        )
    if max_seconds is not None and not max_seconds > 0:
        raise ValueError(
            f"`max_seconds` is {max_seconds}: it must be positive. Pass how long a run may take, or None not to ask."
        )
    check_config(config, {})
    plan = Plan(goal="Is this configuration fit to begin with?", points=({},), fixed=dict(config))
    trials, [record] = train_stage(
        plan,
        train,
        study_name=f"{study_name}/start",
        storage=optuna.storages.get_storage(storage),
        direction=direction,
        n_jobs=n_jobs,
    )
    findings = [_judge_result(record, chance_level), _judge_simplicity(config, record)]
    if max_seconds is not None:
        findings.append(_judge_time(record, max_seconds))
    return ProtocolResult(findings=tuple(findings), recommendation={}, trials={"start": trials})


def _judge_result(record: TrialRecord, chance_level: float) -> Finding:
    curve = record.curve
    is_minimized = record.direction == "minimize"
    values = series_of("validation", curve.step, curve.validation, is_minimized)
    cost = values.values
    chance = chance_level if is_minimized else -chance_level
    numbers: dict[str, Number] = {"chance_level": chance_level, "n_evaluations": len(cost)}
    verdict = Verdict.TOO_LITTLE_DATA
    if len(cost):
        late = float(np.median(cost[-max(len(cost) // 4, 1) :]))
        best = float(cost.min())
        sign = 1.0 if is_minimized else -1.0
        numbers |= {"best": sign * best, "late": sign * late, "gain": chance - late}
        if best >= chance:
            verdict = Verdict.FLAG
        elif len(cost) >= MIN_EVALUATIONS:
            noise = noise_of(values)
            numbers["noise"] = noise
            is_clear = chance - late > _CLEAR_NOISES * noise
            verdict = Verdict.NO_EVIDENCE if is_clear else Verdict.FLAG
    if record.status is Status.INFEASIBLE:
        verdict = Verdict.FLAG
        numbers["reason"] = record.reason or "infeasible"
    return Finding(check="start", subject="result", verdict=verdict, numbers=numbers, section=SECTION)


def _judge_simplicity(config: Mapping[str, Any], record: TrialRecord) -> Finding:
    extras = [name for name, value in config.items() if _is_extra(name) and is_on(value)]
    extras += [name for name, value in config.items() if _is_schedule(name, value)]
    is_constant = is_constant_rate(record.curve.learning_rate)
    return Finding(
        check="start",
        subject="simplicity",
        verdict=Verdict.FLAG if extras or is_constant is False else Verdict.NO_EVIDENCE,
        numbers={
            "n_extras": len(extras),
            "extras": ", ".join(extras) or None,
            "decays": None if is_constant is None else int(not is_constant),
        },
        section=SECTION,
    )


def _is_extra(name: str) -> bool:
    own = name.rpartition(".")[2].lower().replace("-", "_")
    parts = own.split("_")
    return is_regularizer(name) or any(word in own for word in _EXTRAS) or any(word in _WHOLE_EXTRAS for word in parts)


def _is_schedule(name: str, value: Any) -> bool:
    own = name.rpartition(".")[2].lower()
    is_named = "schedule" in own or "decay_steps" in own
    return is_named and is_on(value) and str(value).lower() not in _CONSTANT


def _judge_time(record: TrialRecord, max_seconds: float) -> Finding:
    is_known = math.isfinite(record.seconds)
    verdict = Verdict.TOO_LITTLE_DATA
    if is_known and record.seconds > max_seconds:
        verdict = Verdict.FLAG
    elif is_known and record.status is not Status.INFEASIBLE:
        verdict = Verdict.NO_EVIDENCE
    numbers: dict[str, Number] = {"seconds": record.seconds if is_known else None, "max_seconds": max_seconds}
    return Finding(check="start", subject="time", verdict=verdict, numbers=numbers, section=SECTION)
