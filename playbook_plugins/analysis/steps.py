"""Was training long enough, or too long? What the step of the best checkpoint says about max_train_steps.

Playbook: "Deciding how long to train when training is not compute-bound": if the best checkpoint of the good trials
comes in the first 10% of training, or in the last 25%, the length of training should be looked at again.
"""

from __future__ import annotations

import math

import numpy as np

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Curve
from playbook_plugins.analysis.trials import Trials

SECTION = "Deciding how long to train when training is not compute-bound"
_MIN_FEASIBLE = 8
_CONSISTENT = 0.8
_EARLY = 0.10
_LATE = 0.75


def check_best_steps(trials: Trials) -> list[Finding]:
    """Ask whether the better trials reach their best evaluation very early or very late in training.

    Of the better half of the feasible trials (at least 8 of them), FLAG when at least 80% have their best step in the
    first 10% of training (the budget is too long, or they overfit) or in the last 25% (training longer may help).
    Under a decaying learning rate the best step is late by design: then the late share says nothing, and is not
    flagged.

    Parameters
    ----------
    trials
        The study; trials without ``best_step`` and ``max_steps`` are left out.

    Returns
    -------
    list of Finding
        One, subject ``"study"``. Numbers: ``n_feasible`` (with known steps), ``n_better_half``, ``share_early``,
        ``share_late``, and ``learning_rate_decays`` (1, 0, or None where the curves hold no learning rate).
    """
    ranking = trials.ranking()
    ranking = ranking[(trials.best_step[ranking] >= 0) & (trials.max_steps[ranking] > 0)]
    n_feasible = len(ranking)
    numbers: dict[str, Number] = {"n_feasible": n_feasible}
    verdict = Verdict.TOO_LITTLE_DATA
    if n_feasible >= _MIN_FEASIBLE:
        better = ranking[: math.ceil(n_feasible / 2)]
        progress = trials.best_step[better] / trials.max_steps[better]
        share_early = float(np.mean(progress <= _EARLY))
        share_late = float(np.mean(progress > _LATE))
        decays = learning_rate_decays([trials.curves[row] for row in better])
        numbers |= {
            "n_better_half": len(better),
            "share_early": share_early,
            "share_late": share_late,
            "learning_rate_decays": decays,
        }
        late_counts = decays != 1
        flagged = share_early >= _CONSISTENT or (late_counts and share_late >= _CONSISTENT)
        verdict = Verdict.FLAG if flagged else Verdict.NO_EVIDENCE
    return [Finding(check="best step", subject="study", verdict=verdict, numbers=numbers, section=SECTION)]


def learning_rate_decays(curves: list[Curve | None]) -> int | None:
    """Return 1 where most trials end below half of their peak learning rate, None where no curve tells."""
    ratios = []
    for curve in curves:
        rates = curve.learning_rate[np.isfinite(curve.learning_rate)] if curve is not None else np.empty(0)
        if len(rates) and rates.max() > 0:
            ratios.append(rates[-1] / rates.max())
    return int(np.median(ratios) < 0.5) if ratios else None
