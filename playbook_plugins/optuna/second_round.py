"""Which conclusions of short runs hold for long ones? The best configurations of a first round, trained for longer.

Playbook: "Deciding how long to train when training is compute-bound", its "Round 1" and "Round 2": many short runs to
find good hyperparameters, then very few long ones, whose extra steps are spent at the high learning rate.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import optuna

from playbook_plugins.analysis.curves import diagnose_curve
from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.parameters import Role
from playbook_plugins.analysis.records import Curve
from playbook_plugins.analysis.regularizers import is_regularizer
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.optuna.plans import Plan, TrainConfig
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.optuna.schedules import Family, Schedule
from playbook_plugins.optuna.stages import train_stage
from playbook_plugins.optuna.trials import trials_from_study

SECTION = "Deciding how long to train when training is compute-bound"

Kind: TypeAlias = Literal[
    "warmup",
    "initialization",
    "architecture",
    "optimizer",
    "data augmentation",
    "regularization",
    "learning rate schedule",
]
Extend: TypeAlias = Callable[[Mapping[str, Any], int, int], Mapping[str, Any]]

# The playbook's order, from the surest on.
TRANSFER: Mapping[Kind, str] = {
    "warmup": "very likely",
    "initialization": "very likely",
    "architecture": "likely",
    "optimizer": "might",
    "data augmentation": "might",
    "regularization": "might",
    "learning rate schedule": "unlikely",
}
# What the parts of a name tell, the first that fits.
_NAMES: tuple[tuple[Kind, str], ...] = (
    ("warmup", "warmup"),
    ("initialization", r"\binit|initiali[sz]"),
    ("data augmentation", "augment|mixup|cutmix|cutout|crop|flip|jitter"),
    ("learning rate schedule", r"schedule|cooldown|anneal|(?<!weight )(?<!ema )\bdecay|milestone"),
    (
        "architecture",
        r"architecture|\b(width|depth|layers?|hidden|heads?|kernels?|activation|channels?|embed\w*|blocks?|filters|units"
        r"|dim|model)\b",
    ),
    ("optimizer", r"optimi[sz]er|learning rate|momentum|nesterov|\b(lr|beta|betas|eps|epsilon|rho)\d*\b"),
)
# A schedule that spends less of its extra steps at half the peak or more has them at too small a learning rate. One
# that is stretched has half of them there, if it is linear or a cosine.
_LEAST_HIGH = 0.25


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
    findings = [
        *_transfer(trials, kinds or {}, None if best is None else rows[best]),
        _longer_training(trials, rows, long),
        _schedule(trials, rows, long, best),
    ]
    record = None if best is None else long.record(best)
    if record is not None:
        asked = ("still improving", "early saturation", "overfitting")
        findings += [one for one in diagnose_curve(record, subject="best long run") if one.check in asked]
    return ProtocolResult(
        findings=tuple(findings), recommendation={} if best is None else configs[best], trials={"long": long}
    )


def transfer_kind(name: str) -> Kind | None:
    """Return what a hyperparameter is, judged by its name; None where it tells nothing.

    Parameters
    ----------
    name
        As in ``"learning_rate"``; ``"adam.learning_rate"`` is one of a branch.
    """
    own = name.rpartition(".")[2]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]", " ", own).lower()
    early: tuple[Kind, ...] = ("warmup", "initialization", "data augmentation")
    for kind, pattern in _NAMES:
        if kind not in early and is_regularizer(own):
            return "regularization"
        if re.search(pattern, words):
            return kind
    return None


def extend_schedule(
    config: Mapping[str, Any], short_steps: int, long_steps: int, *, stretch_cosine: bool = False
) -> dict[str, Any]:
    """Return a configuration whose schedule spends the extra steps at its high learning rate.

    It knows the entries of `Schedule`: its family as ``schedule`` or ``family``, ``warmup_steps`` and ``decay_steps``,
    which is added where a decay took all of training after warmup, so that it does not stretch. A share of training
    (``decay_share``, ``warmup_fraction``) becomes the share that takes as many steps as before.

    Parameters
    ----------
    config
        The configuration of a short run.
    short_steps, long_steps
        Lengths of training, in optimizer steps.
    stretch_cosine
        Let a cosine decay take the extra steps, as `Schedule.extended` does with ``stretch``.

    Returns
    -------
    dict
        The configuration with its schedule changed.

    Raises
    ------
    ValueError
        When the configuration names a schedule of another family.
    """
    extended = dict(config)
    for name in ("warmup_share", "warmup_fraction", "decay_share", "decay_fraction"):
        if name in config:
            extended[name] = config[name] * short_steps / long_steps
    entry = next((name for name in ("schedule", "family") if isinstance(config.get(name), str)), None)
    if entry is None or {"decay_share", "decay_fraction"} & set(config):
        return extended
    if config[entry] not in get_args(Family):
        raise ValueError(
            f"`config` has {entry!r} = {config[entry]!r}: only {list(get_args(Family))} are known, and how to make it "
            "longer is not. Pass `extend`, a function that does."
        )
    schedule = Schedule(
        base_learning_rate=1.0,
        max_train_steps=short_steps,
        family=config[entry],
        warmup_steps=config.get("warmup_steps", 0),
        decay_steps=config.get("decay_steps"),
    ).extended(long_steps - short_steps, stretch=stretch_cosine and config[entry] == "cosine")
    return extended if schedule.decay_steps is None else extended | {"decay_steps": schedule.decay_steps}


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
        is_plain = {name: value is None or isinstance(value, bool | int | float | str) for name, value in own.items()}
        points.append({name: value for name, value in own.items() if is_plain[name]})
        passed.append({name: value for name, value in own.items() if not is_plain[name]})
    varied = {name for point in points for name in point}
    return Plan(
        goal=goal,
        points=tuple(points),
        fixed=shared,
        passed=tuple(passed),
        log=tuple(name for name in dict.fromkeys(log) if name in varied),
    )


def _transfer(trials: Trials, kinds: Mapping[str, Kind], row: int | None) -> list[Finding]:
    best = {} if row is None else trials.config(row)
    findings = []
    for parameter in trials.parameters:
        if parameter.role is Role.FIXED:
            continue
        kind = kinds.get(parameter.name, kinds.get(parameter.given_name, transfer_kind(parameter.name)))
        likelihood = None if kind is None else TRANSFER[kind]
        value = best.get(parameter.name)
        verdict = Verdict.TOO_LITTLE_DATA if kind is None else Verdict.NO_EVIDENCE
        findings.append(
            Finding(
                check="transfer",
                subject=parameter.name,
                verdict=Verdict.FLAG if likelihood == "unlikely" else verdict,
                numbers={
                    "kind": kind,
                    "likelihood": likelihood,
                    "best": value if value is None or isinstance(value, int | float) else str(value),
                },
                section=SECTION,
            )
        )
    order = [*TRANSFER, None]
    return sorted(findings, key=lambda finding: order.index(finding.numbers["kind"]))  # type: ignore[arg-type]


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


def _schedule(trials: Trials, rows: list[int], long: Trials, best: int | None) -> Finding:
    """Return how much of the extra training the best long run spends at a high learning rate."""
    numbers: dict[str, Number] = {"allowed_share": _LEAST_HIGH}
    verdict = Verdict.TOO_LITTLE_DATA
    if best is not None:
        short_high, short_end = _steps_at_high_rate(trials.curves[rows[best]])
        long_high, long_end = _steps_at_high_rate(long.curves[best])
        if math.isfinite(short_high) and math.isfinite(long_high) and long_end > short_end:
            extra = long_end - short_end
            share = (long_high - short_high) / extra
            numbers |= {"extra_steps": extra, "share_high": share}
            verdict = Verdict.FLAG if share < _LEAST_HIGH else Verdict.NO_EVIDENCE
    return Finding(
        check="schedule extension", subject="learning rate", verdict=verdict, numbers=numbers, section=SECTION
    )


def _steps_at_high_rate(curve: Curve | None) -> tuple[float, int]:
    """Return the steps at half the peak learning rate or more, NaN where unknown, and the last step."""
    if curve is None or np.isfinite(curve.learning_rate).sum() < 2:
        return math.nan, 0
    known = np.isfinite(curve.learning_rate)
    step, rate = curve.step[known], curve.learning_rate[known]
    is_high = (rate[1:] + rate[:-1]) / 2 >= rate.max() / 2
    return float(np.diff(step)[is_high].sum()), int(step[-1])


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
