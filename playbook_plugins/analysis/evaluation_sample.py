"""Does a sampled evaluation set behave like the full one, and what can it tell apart?

Playbook: "Choosing a sample for periodic evaluation": check that the sample used during training behaves like the
full evaluation set, and reconcile skews.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.findings import Finding, Number, Verdict

SECTION = "Choosing a sample for periodic evaluation"
# A sample is judged once, and a skew of two standard errors is what one random draw in twenty has.
_LEVEL = 0.01
_MIN_EXAMPLES = 20
# Where only the mean of the full set is known, the spread comes from the sample, and losses have long tails.
_MIN_WITHOUT_VALUES = 100
_MEAN_ONLY_ERROR_RATE = 0.05
_N_DRAWS = 1_999
# Of the difference of two trials: seen at 5% (two-sided) in 80% of the cases, 1.960 + 0.842.
_RESOLVED = 2.8016


def check_evaluation_sample(
    sample: ArrayLike,
    full: ArrayLike,
    *,
    n_full: int | None = None,
    indices: ArrayLike | None = None,
    rival: ArrayLike | None = None,
    seed: int = 0,
) -> list[Finding]:
    """Ask whether the mean over a sampled evaluation set is further from the full set's than a random draw would be.

    All values are of one trained model: losses, errors, or 1 for a correct prediction and 0 for a wrong one. FLAG
    where so large a difference has a chance of at most 1% for samples drawn at random without replacement: by the
    hypergeometric law for zeros and ones; for other values by 1,999 redrawn samples of the full set, so that the rate
    of false flags holds for long-tailed losses and few examples too. Of samples of 200 examples whose mean is expected
    to lie 4 standard errors off, at least 85% are found; at 2 standard errors, about a quarter.

    Where only the mean of the full set is known, it is hypergeometric (binomial without `n_full`) for zeros and ones;
    for other values it is a t-test, of which long tails raise the rate of false flags: simulated with 100 examples,
    1.7% for exponential losses and 3.5% for lognormal ones.

    Parameters
    ----------
    sample
        Values on the sampled set, shape (n,).
    full
        Values on the full set, shape (N,), of which the sample is a part; or only their mean, a number.
    n_full
        N, where `full` is a mean; None takes it for much larger than n.
    indices
        Where the sample lies in the full set, shape (n,), each once. Then two causes are told apart: which examples
        were drawn, and whether these same examples come out differently in the two evaluations.
    rival
        Values of another trial on the same sample, shape (n,): the trials' differences, example by example, say more
        than two means.
    seed
        Of the redrawn samples.

    Returns
    -------
    list of Finding
        Subject ``"mean"``: ``n``, ``n_full`` (None if unknown), ``sample_mean``, ``full_mean``, ``difference`` (sample
        less full), its ``standard_error`` (with the correction for a finite set, sqrt(1 - n / N)), ``z``, ``p``,
        ``allowed_p``, and ``resolvable_difference``: the smallest difference between two trials' full means that the
        sample shows at 5% in 80% of the draws, uncorrelated trials assumed unless `rival` is given. With `indices`, a
        second one with the subject ``"same examples"``: ``n_differing``, ``difference`` (the mean of the paired
        differences), ``standard_error``, ``t``, ``p`` (paired t-test) and ``allowed_p``. TOO_LITTLE_DATA with fewer
        than 20 examples in the sample, or 100 where of values other than zeros and ones only the full mean is known.

    Raises
    ------
    ValueError
        When values are not finite, or the shapes and counts do not fit together.
    """
    values = _values("sample", sample)
    others = np.atleast_1d(np.asarray(full, dtype=np.float64))
    mean_only = np.ndim(full) == 0
    others = _values("full", others)
    size = n_full if mean_only else len(others)
    if not mean_only and n_full is not None:
        raise ValueError(f"`n_full` is {n_full}, and `full` has {len(others)} values: leave n_full out beside values.")
    if size is not None and size < len(values):
        raise ValueError(
            f"`sample` has {len(values)} values, and the full set {size}: the sample must be a part of it. Pass the "
            "sample first."
        )
    if indices is not None and mean_only:
        raise ValueError("`indices` are given, and `full` is a mean: pass the values of the full set as full.")
    findings = []
    drawn = values
    if indices is not None:
        places = _places(indices, len(values), len(others))
        drawn = others[places]
        findings.append(_same_examples(values - drawn))
    spread = None
    if rival is not None:
        paired = _values("rival", rival)
        if len(paired) != len(values):
            raise ValueError(
                f"`rival` has {len(paired)} values, and the sample {len(values)}: they are compared example by "
                "example. Pass those of the same examples."
            )
        spread = _deviation(values - paired)
    return [_mean(drawn, others, mean_only, size, spread, seed), *findings]


def check_sample_classes(sample_classes: ArrayLike, full_classes: ArrayLike) -> list[Finding]:
    """Ask whether a sampled evaluation set holds each class in the share that it has in the full set.

    FLAG where, over k classes, the count of some class in the sample has a chance of at most 0.01 / k for samples
    drawn at random without replacement: exact (hypergeometric, twice the smaller tail). A stratified sample is never
    flagged. Of samples of 200 examples in which one of ten equal classes is twice as likely to be drawn, 55% are found.

    Parameters
    ----------
    sample_classes
        The class of each example of the sample, shape (n,), numbers or names.
    full_classes
        The same of the full set, which the sample is a part of, shape (N,).

    Returns
    -------
    list of Finding
        One, subject ``"classes"``. Numbers: ``n``, ``n_full``, ``n_classes``, ``n_missing`` (classes without an example
        in the sample); of the class that deviates most ``class``, ``n_sampled``, ``expected``, ``p`` and ``allowed_p``.
        TOO_LITTLE_DATA with fewer than 20 examples in the sample.

    Raises
    ------
    ValueError
        When the sample holds more examples of a class than the full set.
    """
    mine, whole = np.asarray(sample_classes), np.asarray(full_classes)
    classes, counts = np.unique(whole, return_counts=True)
    sampled = np.array([int(np.sum(mine == one)) for one in classes])
    if sampled.sum() < len(mine) or np.any(sampled > counts):
        raise ValueError(
            f"`sample_classes` has {len(mine)} examples that are no part of the {len(whole)} of `full_classes`: some "
            "class has more of them. Pass the classes of the full set that the sample was drawn from."
        )
    n, n_full = len(mine), len(whole)
    numbers: dict[str, Number] = {"n": n, "n_full": n_full, "n_classes": len(classes)}
    numbers |= {"n_missing": int(np.sum(sampled == 0))}
    verdict = Verdict.TOO_LITTLE_DATA
    if n >= _MIN_EXAMPLES:
        chances = [
            _two_sided(scipy.stats.hypergeom(n_full, count, n), hits)
            for count, hits in zip(counts, sampled, strict=True)
        ]
        worst = int(np.argmin(chances))
        numbers |= {"class": str(classes[worst]), "n_sampled": int(sampled[worst])}
        allowed = _LEVEL / len(classes)
        numbers |= {"expected": n * float(counts[worst]) / n_full, "p": chances[worst], "allowed_p": allowed}
        verdict = Verdict.FLAG if chances[worst] <= allowed else Verdict.NO_EVIDENCE
    return [_finding("classes", verdict, numbers, _LEVEL)]


def _mean(
    values: NDArray[np.float64],
    full: NDArray[np.float64],
    mean_only: bool,
    size: int | None,
    paired_spread: float | None,
    seed: int,
) -> Finding:
    n, middle = len(values), float(full.mean())
    difference = float(values.mean()) - middle
    if math.isclose(values.mean(), middle, rel_tol=1e-12):
        difference = 0.0
    left_out = 1.0 if size is None else 1 - n / size
    binary = _is_binary(values) and (_is_binary(full) or (mean_only and 0 <= middle <= 1))
    if binary:
        variance = middle * (1 - middle) / (1 - (0 if size is None else 1 / max(size, 2)))
    else:
        variance = _deviation(values if mean_only else full) ** 2
    error = math.sqrt(variance * left_out / n)
    numbers: dict[str, Number] = {"n": n, "n_full": size, "sample_mean": float(values.mean()), "full_mean": middle}
    numbers |= {"difference": difference, "standard_error": error}
    spread = math.sqrt(2 * variance) if paired_spread is None else paired_spread
    numbers |= {"resolvable_difference": _RESOLVED * spread * math.sqrt(left_out / n)}
    error_rate = _MEAN_ONLY_ERROR_RATE if mean_only and not binary else _LEVEL
    if n < (_MIN_WITHOUT_VALUES if mean_only and not binary else _MIN_EXAMPLES):
        return _finding("mean", Verdict.TOO_LITTLE_DATA, numbers, error_rate)
    if binary:
        hits = round(float(values.sum()))
        p = _two_sided(
            scipy.stats.binom(n, middle) if size is None else scipy.stats.hypergeom(size, round(middle * size), n), hits
        )
    elif mean_only:
        p = float(2 * scipy.stats.t.sf(_ratio(abs(difference), error), n - 1))
    else:
        p = _redrawn(full, n, difference, seed)
    numbers |= {"z": _ratio(difference, error), "p": p, "allowed_p": _LEVEL}
    return _finding("mean", Verdict.FLAG if p <= _LEVEL else Verdict.NO_EVIDENCE, numbers, error_rate)


def _same_examples(differences: NDArray[np.float64]) -> Finding:
    n, middle = len(differences), float(differences.mean())
    numbers: dict[str, Number] = {"n": n, "n_differing": int(np.sum(differences != 0)), "difference": middle}
    if n < _MIN_EXAMPLES:
        return _finding("same examples", Verdict.TOO_LITTLE_DATA, numbers, _LEVEL)
    error = _deviation(differences) / math.sqrt(n)
    ratio = _ratio(middle, error)
    p = float(2 * scipy.stats.t.sf(abs(ratio), n - 1))
    numbers |= {"standard_error": error, "t": ratio, "p": p, "allowed_p": _LEVEL}
    return _finding("same examples", Verdict.FLAG if p <= _LEVEL else Verdict.NO_EVIDENCE, numbers, _LEVEL)


def _redrawn(full: NDArray[np.float64], n: int, difference: float, seed: int) -> float:
    """Return the share of samples at least as far off, the one at hand counted with them."""
    generator = np.random.default_rng(seed)
    centred = full - full.mean()
    # As many as are left out or drawn, whichever are fewer: the two sums are opposite.
    m = min(n, len(full) - n)
    far = n * (abs(difference) - 1e-9 * float(centred.std()))
    draws = (generator.choice(centred, m, replace=False, shuffle=False).sum() for _ in range(_N_DRAWS))
    return (1 + sum(bool(abs(total) >= far) for total in draws)) / (1 + _N_DRAWS)


def _two_sided(law: Any, hits: int) -> float:
    """Return the chance of a count at least as far out, twice the smaller tail."""
    return float(min(1.0, 2 * min(law.cdf(hits), law.sf(hits - 1))))


def _ratio(difference: float, error: float) -> float:
    if difference == 0:
        return 0.0
    return difference / error if error else math.copysign(math.inf, difference)


def _deviation(values: NDArray[np.float64]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _is_binary(values: NDArray[np.float64]) -> bool:
    return bool(np.isin(values, (0.0, 1.0)).all())


def _values(name: str, given: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(given, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        n_bad = int(np.sum(~np.isfinite(values)))
        raise ValueError(
            f"`{name}` has shape {values.shape} and {n_bad} values that are not finite: it must be one finite number "
            "for each example, at least one. Pass the per-example values, and mend those that are not finite."
        )
    return values


def _places(indices: ArrayLike, n: int, n_full: int) -> NDArray[np.intp]:
    places = np.asarray(indices)
    if places.shape != (n,) or len(np.unique(places)) < n or places.min() < 0 or places.max() >= n_full:
        raise ValueError(
            f"`indices` has shape {places.shape}, from {places.min()} to {places.max()}: it must name {n} different "
            f"examples of the {n_full}, in the order of the sample. Pass the indices that the sample was made with."
        )
    return places.astype(np.intp)


def _finding(subject: str, verdict: Verdict, numbers: dict[str, Number], error_rate: float) -> Finding:
    return Finding(
        check="evaluation sample",
        subject=subject,
        verdict=verdict,
        numbers=numbers,
        section=SECTION,
        error_rate=error_rate,
    )
