"""Which conclusions of short runs hold for long ones? The best configurations of a first round, trained for longer.

Playbook: "Deciding how long to train when training is compute-bound", its "Round 1" and "Round 2": many short runs to
find good hyperparameters, then very few long ones, whose extra steps are spent at the high learning rate.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna

from playbook_plugins.analysis.curves import diagnose_curve
from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.plans import Plan, TrainConfig, is_plain
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.schedule_extension import Extend, check_extension, extend_schedule
from playbook_plugins.optuna.stages import train_stage
from playbook_plugins.optuna.transfer import SECTION, TRANSFER, Kind, check_transfer
from playbook_plugins.optuna.trials import trials_from_study


def second_round(
    train: TrainConfig,
    first: Trials | optuna.Study,
    config: Mapping[str, Any] | None = None,
    *,
    short_steps: int,
    long_steps: int,
    n_best: int = 3,
    extend: Extend | None = None,
    kinds: Mapping[str, Kind] | None = None,
    max_train_steps: str = "max_train_steps",
    study_name: str,
    storage: str | optuna.storages.BaseStorage | None = None,
    n_jobs: int = 1,
) -> ProtocolResult:
    """Train the best configurations of a first round for longer, and say what of its conclusions may be kept.

    Parameters
    ----------
    train
        ``train(config) -> TrialRecord``.
    first
        The first round, finished: its trials decide what is trained. Its direction is that of the long runs, too.
    config
        What the first round's runs shared, beside what its table knows as fixed.
    short_steps, long_steps
        The lengths of training of the first and of this round, in optimizer steps.
    n_best
        How many configurations are trained: very few.
    extend
        ``extend(config, short_steps, long_steps)`` returns the configuration with its schedule made longer; by
        default `extend_schedule`, which knows the entries of `Schedule`.
    kinds
        What hyperparameters are, where their names do not tell: see `transfer_kind`.
    max_train_steps
        The entry of the configuration that takes the length of training.
    study_name
        The stage is ``"<study_name>/long"``.
    storage, n_jobs
        As in `optuna.create_study` and `optuna.Study.optimize`.

    Returns
    -------
    ProtocolResult
        ``recommendation`` is the whole configuration of the best long run; empty where none is feasible. Findings:

        - ``"transfer"``, one a tuned hyperparameter, in the playbook's order: FLAG where its conclusions are unlikely
          to hold for longer training, TOO_LITTLE_DATA where its name tells nothing. These are the suspicions of the
          playbook's authors, no statement about these runs. Numbers: ``kind``, ``likelihood`` (``"very likely"``,
          ``"likely"``, ``"might"``, ``"unlikely"``), ``best`` (its value in the best long run).
        - ``"longer training"`` of ``"best"``: FLAG where the best long run is no better than the best short one: with
          the best checkpoint kept, training longer should not harm. Numbers: ``n_runs``, ``n_infeasible``,
          ``n_better`` (than the same configuration was when short), ``best_short`` and ``best_long``, ``gain`` (> 0 is
          better), in the objective's unit, ``winner_held`` (1 where the best short configuration is the best long
          one). The short best was chosen for its luck too, so that the gain is rather too small. A comparison,
          without a known rate of errors.
        - ``"schedule extension"`` of ``"learning rate"``: FLAG where less than a quarter of the extra steps of the best
          long run are spent at half of its peak rate or more. Numbers: ``extra_steps``, ``share_high`` (of them),
          ``allowed_share``. TOO_LITTLE_DATA where the curves hold no learning rates.
        - ``"still improving"``, ``"early saturation"`` and ``"overfitting"`` of the best long run, of `diagnose_curve`.

    Raises
    ------
    ValueError
        When the round has no feasible trial, the long runs are not longer, ``n_best`` is below 1, ``config``
        contradicts the round, or the study was begun with other arguments.
    """
    trials = first if isinstance(first, Trials) else trials_from_study(first)
    _check(trials, config or {}, short_steps, long_steps, n_best, kinds or {}, max_train_steps)
    shared = {**trials.fixed, **(config or {}), max_train_steps: short_steps}
    rows = _best_rows(trials, n_best)
    lengthen = extend_schedule if extend is None else extend
    configs = [
        {**lengthen({**shared, **given_config(trials, row)}, short_steps, long_steps), max_train_steps: long_steps}
        for row in rows
    ]
    goal = f"Do the {len(rows)} best configurations of {trials.name} hold for {long_steps} steps?"
    plan = _plan(configs, goal, [parameter.given_name for parameter in trials.parameters if parameter.log])
    long, _ = train_stage(
        plan,
        train,
        study_name=f"{study_name}/long",
        storage=optuna.storages.get_storage(storage),
        direction=trials.direction,
        n_jobs=n_jobs,
    )
    ranking = long.ranking()
    best = int(ranking[0]) if len(ranking) else None
    curves = (None, None) if best is None else (trials.curves[rows[best]], long.curves[best])
    findings = [
        *check_transfer(trials, kinds or {}, {} if best is None else trials.config(rows[best])),
        _longer_training(trials, rows, long),
        check_extension(*curves),
    ]
    record = None if best is None else long.record(best)
    if record is not None:
        asked = ("still improving", "early saturation", "overfitting")
        findings += [one for one in diagnose_curve(record, subject="best long run") if one.check in asked]
    return ProtocolResult(
        findings=tuple(findings), recommendation={} if best is None else configs[best], trials={"long": long}
    )


def given_config(trials: Trials, row: int) -> dict[str, Any]:
    """Return the searched hyperparameters of one trial (by row) under the names that training gets."""
    config = trials.config(row)
    given = {}
    for parameter in trials.parameters:
        if parameter.name in config:
            given[parameter.given_name] = config[parameter.name]
    return given


def _best_rows(trials: Trials, n_best: int) -> list[int]:
    """Return the rows of the best trials, each configuration once."""
    rows: dict[str, int] = {}
    for row in trials.ranking():
        rows.setdefault(json.dumps(trials.config(int(row)), sort_keys=True, default=repr), int(row))
    return list(rows.values())[:n_best]


def _plan(configs: list[dict[str, Any]], goal: str, log: list[str]) -> Plan:
    """Return the plan of these configurations: what they share is fixed, what tells them apart are its points."""
    names = list(dict.fromkeys(name for config in configs for name in config))
    missing = object()
    shared = {
        name: configs[0][name]
        for name in names
        if all(config.get(name, missing) == configs[0].get(name, missing) for config in configs)
    }
    points, passed = [], []
    for config in configs:
        own = {name: value for name, value in config.items() if name not in shared}
        points.append({name: value for name, value in own.items() if is_plain(value)})
        passed.append({name: value for name, value in own.items() if not is_plain(value)})
    varied = {name for point in points for name in point}
    return Plan(
        goal=goal,
        points=tuple(points),
        fixed=shared,
        passed=tuple(passed),
        log=tuple(name for name in dict.fromkeys(log) if name in varied),
    )


def _longer_training(trials: Trials, rows: list[int], long: Trials) -> Finding:
    before = trials.cost[rows]
    feasible = long.is_feasible
    numbers: dict[str, Number] = {
        "n_runs": len(long),
        "n_infeasible": int(long.is_infeasible.sum()),
        "n_better": int(np.sum(long.cost[feasible] < before[feasible])),
        "best_short": float(trials.objective[rows[0]]),
    }
    verdict = Verdict.TOO_LITTLE_DATA
    if feasible.any():
        best = int(long.ranking()[0])
        gain = float(before[0] - long.cost[best])
        numbers |= {"best_long": float(long.objective[best]), "gain": gain, "winner_held": int(best == 0)}
        verdict = Verdict.NO_EVIDENCE if gain > 0 else Verdict.FLAG
    elif long.is_infeasible.any():
        verdict = Verdict.FLAG
    return Finding(check="longer training", subject="best", verdict=verdict, numbers=numbers, section=SECTION)


def _check(
    trials: Trials,
    config: Mapping[str, Any],
    short_steps: int,
    long_steps: int,
    n_best: int,
    kinds: Mapping[str, str],
    max_train_steps: str,
) -> None:
    if not 0 < short_steps < long_steps:
        raise ValueError(
            f"`long_steps` is {long_steps} and `short_steps` is {short_steps}: a second round trains for longer than "
            "the first. Pass lengths of training in optimizer steps, the second the larger."
        )
    if n_best < 1:
        raise ValueError(
            f"`n_best` is {n_best}: at least one configuration is trained for longer. Pass 1 to 3: long runs are few."
        )
    if not len(trials.ranking()):
        raise ValueError(
            f"`first` is the study {trials.name!r} with {len(trials)} trials, none of them feasible: there is no "
            "configuration to train for longer. Finish the first round, or change its search space."
        )
    searched = {parameter.given_name for parameter in trials.parameters}
    if max_train_steps in searched:
        raise ValueError(
            f"`first` searched {max_train_steps!r}: the length of training is never tuned in a study. Fix it in the "
            "first round, or name the entry that holds it by `max_train_steps`."
        )
    for name, value in config.items():
        other = trials.fixed.get(name, value)
        if name in searched or other != value:
            found = "searched it" if name in searched else f"had {other!r}"
            raise ValueError(
                f"`config` has {name!r} = {value!r}, but the first round {found}: its conclusions are not about this "
                "value. Leave the entry out."
            )
    length = {**trials.fixed, **config}.get(max_train_steps, short_steps)
    if length != short_steps:
        raise ValueError(
            f"`short_steps` is {short_steps}, but the first round had {max_train_steps!r} = {length!r}. Pass the "
            "length that it trained for."
        )
    unknown = {name: kind for name, kind in kinds.items() if kind not in TRANSFER}
    if unknown:
        raise ValueError(f"`kinds` has {unknown}: a hyperparameter is one of {list(TRANSFER)}. Pass one of these.")
