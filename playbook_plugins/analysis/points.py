"""Which trials lie at one point of the search space? Paired scientific values and retrains repeat points.

Playbook: "Designing the next round of experiments": each scientific value sees the same nuisance hyperparameters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def point_codes(coordinates: Sequence[NDArray[np.float64]], n_trials: int) -> NDArray[np.intp]:
    """Return a number for the point of each trial.

    Parameters
    ----------
    coordinates
        One array a dimension, shape (n_trials,), places in [0, 1]; NaN, where a trial has none, is a place of its own.
        Places that agree in 9 decimals are equal: computed from different ranges, they differ in their last bits.
    n_trials
        The number of trials, for a space without dimensions, which has a single point.

    Returns
    -------
    ndarray
        intp of shape (n_trials,): equal for trials at one point, from 0 up.
    """
    codes = np.zeros(n_trials, dtype=np.intp)
    for column in coordinates:
        # Sorting one column after the other beats sorting rows: the first continuous one tells nearly all apart.
        places, code = np.unique(np.nan_to_num(np.round(column, 9), nan=-1.0), return_inverse=True)
        _, codes = np.unique(codes * len(places) + code.reshape(-1), return_inverse=True)
        codes = codes.reshape(-1).astype(np.intp, copy=False)
        if codes.max(initial=-1) + 1 == n_trials:
            break
    return codes
