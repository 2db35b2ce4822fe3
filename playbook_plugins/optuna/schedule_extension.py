"""At which learning rate are the extra steps of longer training spent? How a schedule is extended, and a check of it.

Playbook: "Deciding how long to train when training is compute-bound", its "Round 2": the part at the high learning rate
is extended, and the decay keeps its length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

import numpy as np

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Curve
from playbook_plugins.optuna.schedules import Family, Schedule

SECTION = "Deciding how long to train when training is compute-bound"

Extend: TypeAlias = Callable[[Mapping[str, Any], int, int], Mapping[str, Any]]

# A schedule that spends less of its extra steps at half the peak or more has them at too small a learning rate. One
# that is stretched has half of them there, if it is linear or a cosine.
_LEAST_HIGH = 0.25


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


def check_extension(short: Curve | None, long: Curve | None) -> Finding:
    """Ask whether enough of the extra training is spent at a high learning rate.

    Parameters
    ----------
    short, long
        The curves of the short and of the long run of one configuration; None where there is none.

    Returns
    -------
    Finding
        ``"schedule extension"`` of ``"learning rate"``: FLAG where less than a quarter of the extra steps are spent at
        half of the peak rate or more, TOO_LITTLE_DATA where the curves hold no learning rates. Numbers:
        ``extra_steps``, ``share_high`` (of them), ``allowed_share``.
    """
    numbers: dict[str, Number] = {"allowed_share": _LEAST_HIGH}
    verdict = Verdict.TOO_LITTLE_DATA
    short_high, short_end = _steps_at_high_rate(short)
    long_high, long_end = _steps_at_high_rate(long)
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
