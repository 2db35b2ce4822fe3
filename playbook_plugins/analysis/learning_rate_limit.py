"""Does instability hold the best learning rate down? Runs at 2, 5 and 10 times it, side by side.

Playbook: "How can optimization failures be debugged and mitigated?", "Identifying unstable workloads":
instability is an issue only where it forces a learning rate that is too small.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from playbook_plugins.analysis.findings import Finding, Number, Verdict
from playbook_plugins.analysis.records import Curve, TrialRecord
from playbook_plugins.analysis.stability import SECTION, SIGMA, check_stability, known_losses

# Of the loss, the gravest first. Outlying gradient norms by themselves make no run unstable.
_KINDS = ("non-finite", "loss rise", "early instability", "no progress", "loss spike")
# At up to twice the best rate any instability counts, a recovery included; beyond, and up to ten times, one that ends
# worse than the best rate does.
_NEAR = 2.0
_FAR = 10.0
# Simulated: the largest share of four healthy runs, at 1, 2, 5 and 10 times the rate, with a flag.
_LIMIT_ERROR_RATE = 0.03


def check_learning_rate_limit(runs: Mapping[float, Curve | TrialRecord]) -> list[Finding]:
    """Ask whether instability, and nothing else, keeps the best learning rate from being larger.

    A run counts as unstable where `check_stability` flags its loss (a gradient norm alone does not count). FLAG when

    - a run at up to 2 times the best rate is unstable, even where it recovers: the playbook's abbreviated check; or
    - a run at up to 10 times the best rate is unstable and does not end well: its loss ceases to be finite, or its
      last tenth lies above that of the reference by 3 standard errors (the playbook's check at 5 and 10 times). The
      reference is the stable run with the smallest factor; without one, instability is enough. A run that is merely
      noisier, and therefore ends worse, is no evidence.

    Warmup and gradient clipping may then allow larger rates. Runs beyond 10 times the best rate do not count: any
    workload becomes unstable at some rate.

    Parameters
    ----------
    runs
        By the factor, positive, with which the best learning rate was multiplied; for instance 1, 2, 5 and 10. All
        have the same seed, data order and length.

    Returns
    -------
    list of Finding
        One, ``check`` being ``"learning rate limit"`` and subject ``"learning rate"``. Numbers: ``n_runs`` and
        ``n_unstable``;
        ``unstable_factor``, the smallest that limits the rate, with its ``kind`` (a check of `check_stability`),
        ``step`` and ``ends_worse`` (1, 0, or None where unknown); ``stable_factor``, the largest below it without
        instability; None where there is none. TOO_LITTLE_DATA where no run between 1 and 10 times the best rate was
        long enough, and none is unstable. ``error_rate`` is the chance of a false flag in four runs, as simulated. Of
        runs that go wrong by 20 noises, at least 92% are found at twice the rate, and at 5 and 10 times it at least 98%
        of those that break or stay worse.

    Raises
    ------
    ValueError
        When a factor is not positive.
    """
    for factor in runs:
        if not 0 < factor < np.inf:
            raise ValueError(
                f"`runs` has the factor {factor}: a factor multiplies the best learning rate and must be positive. "
                "Pass the runs by factor, for instance {1.0: ..., 2.0: ..., 5.0: ..., 10.0: ...}."
            )
    findings = {factor: check_stability(runs[factor]) for factor in sorted(runs) if factor <= _FAR}
    kinds = {factor: _kind(found) for factor, found in findings.items()}
    stable = [factor for factor, kind in kinds.items() if kind is None and _is_judged(findings[factor])]
    worse = {
        factor: _ends_worse(runs[factor], runs[stable[0]] if stable else None) if kind is not None else None
        for factor, kind in kinds.items()
    }
    limiting = [
        factor
        for factor, kind in kinds.items()
        if kind is not None and (factor <= _NEAR or kind.check == "non-finite" or worse[factor] != 0)
    ]
    is_asked = any(factor > 1 and _is_judged(findings[factor]) for factor in findings)
    first = limiting[0] if limiting else None
    kind = None if first is None else kinds[first]
    numbers: dict[str, Number] = {
        "n_runs": len(findings),
        "n_unstable": sum(one is not None for one in kinds.values()),
        "unstable_factor": first,
        "kind": None if kind is None else kind.check,
        "step": None if kind is None else kind.numbers["step"],
        "ends_worse": None if first is None else worse[first],
        "stable_factor": max((factor for factor in stable if first is None or factor < first), default=None),
    }
    return [
        Finding(
            check="learning rate limit",
            subject="learning rate",
            verdict=Verdict.FLAG if limiting else Verdict.NO_EVIDENCE if is_asked else Verdict.TOO_LITTLE_DATA,
            numbers=numbers,
            section=SECTION,
            error_rate=_LIMIT_ERROR_RATE,
        )
    ]


def _kind(findings: list[Finding]) -> Finding | None:
    flags = {finding.check: finding for finding in findings if finding.verdict is Verdict.FLAG}
    return next((flags[check] for check in _KINDS if check in flags), None)


def _is_judged(findings: list[Finding]) -> bool:
    return any(finding.verdict is not Verdict.TOO_LITTLE_DATA for finding in findings if finding.check != "non-finite")


def _ends_worse(run: Curve | TrialRecord, reference: Curve | TrialRecord | None) -> int | None:
    """Return 1 where the last tenth of the loss lies above the reference's by 3 standard errors, None if unknown."""
    if reference is None or not known_losses(run) or not known_losses(reference):
        return None
    ends = [one.values[-max(len(one.values) // 10, 5) :] for one in (known_losses(run)[0], known_losses(reference)[0])]
    if any(len(end) < 5 for end in ends):
        return None
    levels = [float(np.median(end)) for end in ends]
    errors = [
        1.2533 * SIGMA * float(np.median(np.abs(end - level))) / np.sqrt(len(end))
        for end, level in zip(ends, levels, strict=True)
    ]
    return int(levels[0] - levels[1] > 3.0 * float(np.hypot(*errors)))
