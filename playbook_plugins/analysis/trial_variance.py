"""How much do retrains of one configuration differ? The spread over seeds, pooled over several configurations.

Playbook: "Determining whether to adopt a training pipeline change or hyperparameter configuration", which calls it the
trial variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import ArrayLike, NDArray

# Larger objectives are cut to it: no verdict changes, and squares of differences stay within float64.
_HUGE = 1e100


@dataclass(frozen=True, kw_only=True)
class TrialVariance:
    """How much retrains of one configuration differ.

    Attributes
    ----------
    sd
        The standard deviation over retrains, pooled over the configurations, in the objective's unit.
    low, high
        Its 95% interval for normal noise, in the same unit.
    freedom
        The degrees of freedom behind it: retrains less configurations. Pass it on with ``sd`` as ``known_freedom``.
    n_groups
        The configurations that had at least two finite retrains.
    """

    sd: float
    low: float
    high: float
    freedom: int
    n_groups: int


def estimate_trial_variance(groups: Sequence[ArrayLike]) -> TrialVariance:
    """Pool the spread of retrains over several configurations.

    It takes the spread to be the same for all of them, which fails where some train unstably. Usually it needs to be
    measured again only after major changes to the pipeline.

    Parameters
    ----------
    groups
        One array a configuration, shape (n_retrains,), in the objective's unit. What is not finite is left out, and
        so is a configuration with fewer than two finite retrains.

    Returns
    -------
    TrialVariance
        The pooled standard deviation with its interval; all NaN without any group of two.
    """
    arrays = [cut_huge(group) for group in groups]
    kept = [array[np.isfinite(array)] for array in arrays]
    kept = [array for array in kept if len(array) > 1]
    freedom = sum(len(array) - 1 for array in kept)
    if not freedom:
        return TrialVariance(sd=math.nan, low=math.nan, high=math.nan, freedom=0, n_groups=0)
    squares = float(sum(np.sum((array - array.mean()) ** 2) for array in kept))
    return TrialVariance(
        sd=math.sqrt(squares / freedom),
        low=math.sqrt(squares / float(scipy.stats.chi2.isf(0.025, freedom))),
        high=math.sqrt(squares / float(scipy.stats.chi2.ppf(0.025, freedom))),
        freedom=freedom,
        n_groups=len(kept),
    )


def cut_huge(values: ArrayLike) -> NDArray[np.float64]:
    """Return the values in one dimension, those that are finite cut to where their squares stay within float64."""
    group = np.asarray(values, dtype=np.float64).reshape(-1)
    return np.where(np.isfinite(group), np.clip(group, -_HUGE, _HUGE), group)
