"""How much warmup does a larger learning rate need? The shortest one that keeps training stable.

Playbook: "How to apply learning rate warmup": ramp up from 0 to base rates ten and a hundred times the unstable one,
over numbers of steps of different orders of magnitude, and then hold the rate twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Direction
from playbook_plugins.analysis.stability import ERROR_RATE
from playbook_plugins.optuna.plans import Plan, TrainConfig
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.stages import Stability, check_config, judge_stability, train_stage

SECTION = "How to apply learning rate warmup"
# Beyond this share of training, training may have to be longer.
_LONG_SHARE = 0.05
# The least of the orders of magnitude that are tried by default, as in the playbook's example.
_LEAST = 10


def tune_warmup(
    train: TrainConfig,
    config: Mapping[str, Any],
    *,
    unstable_base_learning_rate: float,
    max_train_steps: int,
    factors: Sequence[float] = (10.0, 100.0),
    warmup_steps: Sequence[int] | None = None,
    max_share: float = 0.10,
    least_post_warmup_steps: int = 100,
    learning_rate: str = "learning_rate",
    warmup_steps_name: str = "warmup_steps",
    max_train_steps_name: str = "max_train_steps",
    study_name: str,
    storage: str | BaseStorage | None = None,
    direction: Direction = "minimize",
    n_jobs: int = 1,
) -> ProtocolResult:
    """Find the largest base learning rate that warmup makes stable, and the shortest warmup that does.

    Each run rises linearly from 0 to its base rate over its warmup steps and then trains at the constant base rate for
    twice as many: its ``max_train_steps`` are three times its warmup steps, or more for the shortest.

    Parameters
    ----------
    train
        ``train(config) -> TrialRecord``, with warmup and then a constant rate (`Schedule` does that), and with the
        training loss at every step or nearly so: below 50 evaluations stability is not judged, and a record keeps 500.
    config
        What all runs share.
    unstable_base_learning_rate
        The smallest rate at which training is unstable without warmup, as `learning_rate_sweep` finds it.
    max_train_steps
        The length of the training that the warmup is for, without warmup, in optimizer steps.
    factors
        The base rates, as multiples of the unstable one: ascending, above 1; the playbook asks for ten at least.
    warmup_steps
        What to try, ascending, in optimizer steps. By default the longest that ``max_share`` allows, and a tenth, a
        hundredth, ... of it, down to 10 steps.
    max_share
        The largest share of ``max_train_steps`` that warmup may take, in (0, 1].
    least_post_warmup_steps
        How many steps follow the warmup at least: after a short one, twice its steps are too few to judge by.
    learning_rate, warmup_steps_name, max_train_steps_name
        The entries of the configuration that take the base rate, the warmup steps and the length of the run, warmup
        included.
    study_name
        The beginning of the name of the study, ``"<study_name>/warmup"``.
    storage, direction, n_jobs
        As in `run_plan`.

    Returns
    -------
    ProtocolResult
        ``recommendation`` has the largest base rate with a stable warmup, its shortest stable warmup, and
        ``max_train_steps`` grown by it, because warmup is prepended to the schedule. (`LearningRateWarmup` grows
        training by itself: give its Trainer the steps without warmup.) Empty where nothing was stable. Findings:

        - ``"warmup"``, one a base rate, subject ``"<entry> x <factor>"``: FLAG where no warmup keeps training stable,
          or a longer one than any that does is unstable; TOO_LITTLE_DATA where runs that could not be judged leave it
          open. Numbers: ``base_learning_rate``, ``n_runs``, ``n_stable``, ``n_unstable``, ``n_unknown``;
          ``shortest_stable`` (beyond which no warmup was unstable) and ``longest`` (tried), in steps; ``share`` (of the
          former in ``max_train_steps``); ``kind`` and ``step`` of the instability with the longest warmup; and
          ``needed_max_train_steps``, the length from which ten times the longest would be allowed. Of healthy runs at
          most 2% are told unstable, which flags a rate only where it happens with its longest warmup.
        - ``"warmup length"``, subject ``"max_train_steps"``: FLAG where the recommended warmup takes more than 5% of
          training, which may then have to be longer. Numbers: ``warmup_steps``, ``max_train_steps``, ``share``,
          ``longer_max_train_steps`` (with the warmup prepended) and ``needed_max_train_steps`` (of which the warmup
          would be 5%). TOO_LITTLE_DATA without a stable one. A plain comparison.

    Raises
    ------
    ValueError
        When a number is out of its range, a warmup is longer than ``max_share`` of training, ``config`` holds an entry
        that the procedure sets, or a study of this name was begun with other arguments.
    """
    if not 0 < max_share <= 1:
        raise ValueError(f"`max_share` is {max_share}: it must lie above 0 and be at most 1. The playbook advises 0.1.")
    allowed = int(max_share * max_train_steps * (1 + 1e-12))
    _check_rates(unstable_base_learning_rate, factors)
    _check_steps(max_train_steps, warmup_steps, allowed, max_share, least_post_warmup_steps)
    check_config(
        config,
        {
            "learning_rate": learning_rate,
            "warmup_steps_name": warmup_steps_name,
            "max_train_steps_name": max_train_steps_name,
        },
    )
    steps = _orders_of_magnitude(allowed) if warmup_steps is None else [int(n_steps) for n_steps in warmup_steps]
    grid = [(unstable_base_learning_rate * factor, n_steps) for factor in factors for n_steps in steps]
    plan = Plan(
        goal="How much warmup makes larger learning rates stable?",
        points=tuple({learning_rate: rate, warmup_steps_name: n_steps} for rate, n_steps in grid),
        fixed=dict(config),
        passed=tuple(
            {max_train_steps_name: n_steps + max(2 * n_steps, least_post_warmup_steps)} for _, n_steps in grid
        ),
        log=(learning_rate, warmup_steps_name),
    )
    trials, records = train_stage(
        plan,
        train,
        study_name=f"{study_name}/warmup",
        storage=optuna.storages.get_storage(storage),
        direction=direction,
        n_jobs=n_jobs,
    )
    verdicts = dict(zip(grid, map(judge_stability, records), strict=True))
    findings = []
    best: tuple[float, int] | None = None
    for factor in factors:
        rate = unstable_base_learning_rate * factor
        runs = {n_steps: verdicts[rate, n_steps] for n_steps in steps}
        shortest = _shortest_stable(runs)
        findings.append(_judge_rate(f"{learning_rate} x {factor:g}", rate, runs, shortest, max_train_steps, max_share))
        best = best if shortest is None else (rate, shortest)
    recommendation: dict[str, Any] = {}
    if best is not None:
        longer = max_train_steps + best[1]
        recommendation = {learning_rate: best[0], warmup_steps_name: best[1], max_train_steps_name: longer}
    findings.append(_judge_length(None if best is None else best[1], max_train_steps))
    return ProtocolResult(findings=tuple(findings), recommendation=recommendation, trials={"warmup": trials})


def _orders_of_magnitude(longest: int) -> list[int]:
    steps = [longest]
    while steps[0] // 10 >= _LEAST:
        steps.insert(0, steps[0] // 10)
    return steps


def _shortest_stable(runs: Mapping[int, Stability]) -> int | None:
    """Return the shortest stable warmup beyond which none was unstable.

    Where a longer one is unstable, the shorter one's run was too short to show it, or lucky.
    """
    longest_unstable = max((n_steps for n_steps, run in runs.items() if run.is_stable is False), default=0)
    return min((n_steps for n_steps, run in runs.items() if run.is_stable and n_steps > longest_unstable), default=None)


def _judge_rate(
    subject: str,
    rate: float,
    runs: Mapping[int, Stability],
    shortest: int | None,
    max_train_steps: int,
    max_share: float,
) -> Finding:
    longest = max(runs)
    n_unknown = sum(run.is_stable is None for run in runs.values())
    n_unstable = sum(run.is_stable is False for run in runs.values())
    is_refuted = shortest is None and (not n_unknown or runs[longest].is_stable is False)
    numbers: dict[str, Number] = {
        "base_learning_rate": rate,
        "n_runs": len(runs),
        "n_stable": len(runs) - n_unstable - n_unknown,
        "n_unstable": n_unstable,
        "n_unknown": n_unknown,
        "shortest_stable": shortest,
        "share": None if shortest is None else shortest / max_train_steps,
        "longest": longest,
        "kind": runs[longest].kind,
        "step": runs[longest].step,
        "needed_max_train_steps": math.ceil(10 * longest / max_share) if shortest is None else None,
    }
    verdict = Verdict.FLAG if is_refuted else Verdict.TOO_LITTLE_DATA if shortest is None else Verdict.NO_EVIDENCE
    return Finding(
        check="warmup", subject=subject, verdict=verdict, numbers=numbers, section=SECTION, error_rate=ERROR_RATE
    )


def _judge_length(warmup_steps: int | None, max_train_steps: int) -> Finding:
    numbers: dict[str, Number] = {"warmup_steps": warmup_steps, "max_train_steps": max_train_steps}
    verdict = Verdict.TOO_LITTLE_DATA
    if warmup_steps is not None:
        share = warmup_steps / max_train_steps
        numbers |= {
            "share": share,
            "longer_max_train_steps": max_train_steps + warmup_steps,
            "needed_max_train_steps": max(max_train_steps, math.ceil(warmup_steps / _LONG_SHARE)),
        }
        verdict = Verdict.FLAG if share > _LONG_SHARE else Verdict.NO_EVIDENCE
    return Finding(check="warmup length", subject="max_train_steps", verdict=verdict, numbers=numbers, section=SECTION)


def _check_rates(unstable: float, factors: Sequence[float]) -> None:
    if not 0 < unstable < math.inf:
        raise ValueError(
            f"`unstable_base_learning_rate` is {unstable}: a learning rate must be positive and finite. Pass the "
            "smallest rate at which training is unstable without warmup."
        )
    if not factors or list(factors) != sorted(set(factors)) or not all(1 < factor < math.inf for factor in factors):
        raise ValueError(
            f"`factors` is {tuple(factors)}: at least one multiple of the unstable rate is needed, and all must be "
            "above 1 and ascend. Pass for instance (10, 100)."
        )


def _check_steps(
    max_train_steps: int, warmup_steps: Sequence[int] | None, allowed: int, max_share: float, least: int
) -> None:
    if allowed < 1:
        raise ValueError(
            f"`max_train_steps` is {max_train_steps}: {max_share:.0%} of it is less than 1 step: no warmup fits in. "
            "Pass the length of the training that the warmup is for."
        )
    if least < 0:
        raise ValueError(f"`least_post_warmup_steps` is {least}: it must be at least 0. Pass 100.")
    if warmup_steps is None:
        return
    steps = list(warmup_steps)
    if not steps or steps != sorted(set(steps)) or steps[0] < 1:
        raise ValueError(
            f"`warmup_steps` is {steps}: at least one number of steps is needed, and all must be at least 1 and "
            "ascend. Pass a few orders of magnitude, or None for the default."
        )
    if steps[-1] > allowed:
        raise ValueError(
            f"`warmup_steps` has {steps[-1]}, {steps[-1] / max_train_steps:.0%} of the {max_train_steps} steps of "
            f"training: warmup may take at most {max_share:.0%}. Leave it out, train longer, or pass a larger "
            "max_share."
        )
