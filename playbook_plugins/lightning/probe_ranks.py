"""What do all ranks together say about a batch size? They agree after each one, so that no rank waits for another.

Playbook: "Determining the feasible batch sizes and estimating training throughput".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from playbook_plugins.lightning.probe_search import Attempt, Measured

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_OUTCOMES = ("measured", "data", "memory", "error")
# The size of DDP's buckets.
_BUCKET_BYTES = 25 * 2**20
_N_REDUCTIONS = 5


class Ranks:
    """The ranks that train together.

    Parameters
    ----------
    trainer
        Inside `fit`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.n_ranks = trainer.world_size
        strategy: Any = trainer.strategy
        self._device = strategy.root_device
        # Kept as it is now: while the probe trains, another one stands in its place.
        self._gather = strategy.all_gather

    def agree(self, attempt: Attempt | None) -> Attempt:
        """Return what counts for all ranks: a failure of any of them, or the times of the slowest.

        Parameters
        ----------
        attempt
            What happened on this rank; None for an error that ends the probe.

        Raises
        ------
        RuntimeError
            When another rank had such an error.
        """
        if self.n_ranks == 1:
            if attempt is None:
                raise RuntimeError("BatchSizeProbe has ended: a training step failed.")
            return attempt
        name = "error" if attempt is None else "measured" if isinstance(attempt, Measured) else attempt
        row = [float(_OUTCOMES.index(name)), math.nan, math.nan, math.nan]
        if isinstance(attempt, Measured):
            row[1:] = [attempt.seconds, attempt.data_wait_share, attempt.peak_memory]
        table = self._gather(torch.tensor(row, dtype=torch.float64, device=self._device)).cpu().numpy().reshape(-1, 4)
        worst = _OUTCOMES[int(table[:, 0].max())]
        if worst == "error":
            raise RuntimeError("BatchSizeProbe has ended: a training step failed on another rank, see its error.")
        if worst == "memory":
            return "memory"
        if worst == "data":
            return "data"
        seconds, share, _ = table[int(np.argmax(table[:, 1])), 1:]
        peaks = table[:, 3]
        peak = float(np.nanmax(peaks)) if not np.isnan(peaks).all() else math.nan
        return Measured(seconds=float(seconds), data_wait_share=float(share), peak_memory=peak)

    def reduction_seconds(self, n_bytes: int, clock: Callable[[], float], synchronize: Callable[[], None]) -> float:
        """Return the time of summing so many bytes of gradients over the ranks, bucket by bucket; 0 for one rank."""
        if self.n_ranks == 1 or not n_bytes:
            return 0.0
        bucket = torch.zeros(max(1, min(n_bytes, _BUCKET_BYTES) // 4), device=self._device)
        n_buckets = math.ceil(n_bytes / _BUCKET_BYTES)
        times = []
        for _ in range(1 + _N_REDUCTIONS):
            synchronize()
            begin = clock()
            for _ in range(n_buckets):
                torch.distributed.all_reduce(bucket)
            synchronize()
            times.append(clock() - begin)
        return float(np.median(times[1:]))
