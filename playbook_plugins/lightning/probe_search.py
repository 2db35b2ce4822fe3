"""Which batch sizes are to be tried? Doubling until memory, the data or a limit ends it.

Playbook: "Determining the feasible batch sizes and estimating training throughput": powers of two, until one of the
jobs exceeds the available memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from playbook_plugins.analysis.throughput import Limit, Throughput


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured at one batch size.

    Attributes
    ----------
    seconds
        The median time of a step on the slowest rank, above 0.
    data_wait_share
        The share of it spent waiting for data, in [0, 1]; NaN where unknown.
    peak_memory
        Bytes per device; NaN where unknown.
    """

    seconds: float
    data_wait_share: float
    peak_memory: float


Attempt: TypeAlias = Measured | Literal["memory", "data"]


def search_batch_sizes(
    attempt: Callable[[int], Attempt], *, start: int, max_batch_size: int, n_devices: int = 1
) -> Throughput:
    """Try batch sizes from `start` on, doubling; where `start` itself fails, halving until one works.

    Parameters
    ----------
    attempt
        Measures one batch size (per device), or says what it lacks.
    start
        At least 1.
    max_batch_size
        At least `start`: larger sizes are not tried.
    n_devices
        How many devices train.

    Returns
    -------
    Throughput
        Without any row where not even a batch of one example fits.

    Raises
    ------
    ValueError
        When the data hold no batch at all.
    """
    rows: dict[int, Measured] = {}
    limit: Limit = "max_batch_size"
    failed: int | None = None
    size, is_growing = start, True
    while 1 <= size <= max_batch_size:
        outcome = attempt(size)
        if isinstance(outcome, Measured):
            rows[size] = outcome
            if not is_growing:
                break
            size *= 2
            continue
        limit = outcome
        failed = size if outcome == "memory" else None
        if rows:
            break
        is_growing = False
        size //= 2
    if not rows and limit == "data":
        raise ValueError(
            "`data` holds no batch: the loader gave nothing to train on. Pass a loader with at least one batch."
        )
    sizes = sorted(rows)
    return Throughput(
        batch_size=np.array(sizes, dtype=np.int64),
        seconds_per_step=np.array([rows[one].seconds for one in sizes], dtype=np.float64),
        data_wait_share=np.array([rows[one].data_wait_share for one in sizes], dtype=np.float64),
        peak_memory=np.array([rows[one].peak_memory for one in sizes], dtype=np.float64),
        n_devices=n_devices,
        limit=limit,
        failed_batch_size=failed,
    )
