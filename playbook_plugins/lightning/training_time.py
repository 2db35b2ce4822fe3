"""How fast does training go, and how much of it waits for data? Sums over a run.

Playbook: "Determining the feasible batch sizes and estimating training throughput", "Optimizing the input pipeline".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch import Tensor

_SUMS = ("n_examples", "training_seconds", "waiting_seconds")


class TrainingTime:
    """Sums up training from asking for a batch to the end of its step, and the wall-clock time of the fits.

    What happens between two batches (validation, checkpoints, logging) belongs to no batch. The first batch of each
    fit, which pays for start-up, is left out.

    Parameters
    ----------
    clock
        Returns the time in seconds.

    Attributes
    ----------
    n_examples
        Examples trained on, over all ranks.
    training_seconds
        The time of their batches, the wait for data included.
    waiting_seconds
        The part of it spent in the loader's ``next``.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.n_examples = 0
        self.training_seconds = 0.0
        self.waiting_seconds = 0.0
        self._seconds_before = 0.0
        self._started: float | None = None
        self._is_first = True
        self._batch_started: float | None = None
        self._wait = 0.0

    @property
    def seconds(self) -> float:
        """Wall-clock time of the fits so far."""
        return self._seconds_before + (0.0 if self._started is None else self._clock() - self._started)

    @property
    def examples_per_second(self) -> float:
        """Training throughput; NaN before the second batch."""
        return self.n_examples / self.training_seconds if self.training_seconds > 0 else math.nan

    @property
    def wait_share(self) -> float:
        """The share of training spent waiting for data, in [0, 1]; NaN before the second batch."""
        return self.waiting_seconds / self.training_seconds if self.training_seconds > 0 else math.nan

    def begin_fit(self) -> None:
        """Start the clock of a fit."""
        self.end_fit()
        self._started = self._clock()
        self._is_first, self._batch_started, self._wait = True, None, 0.0

    def end_fit(self) -> None:
        """Stop the clock of a fit; harmless when it stands."""
        self._seconds_before, self._started = self.seconds, None

    def begin_wait(self) -> None:
        """Say that a batch is asked for."""
        now = self._clock()
        if self._batch_started is None:
            self._batch_started = now
        self._wait -= now

    def end_wait(self) -> None:
        """Say that the batch is there."""
        self._wait += self._clock()

    def begin_batch(self) -> None:
        """Say that training on a batch begins, where nobody saw it being asked for."""
        if self._batch_started is None:
            self._batch_started = self._clock()

    def end_batch(self, n_examples: int) -> None:
        """Say that the step on a batch has ended."""
        if self._batch_started is not None and not self._is_first:
            self.training_seconds += self._clock() - self._batch_started
            self.waiting_seconds += self._wait
            self.n_examples += n_examples
        self._is_first, self._batch_started, self._wait = False, None, 0.0

    def state_dict(self) -> dict[str, float]:
        """Return the sums as Python numbers."""
        return {"seconds": self.seconds, **{name: getattr(self, name) for name in _SUMS}}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from the sums of an earlier run."""
        self._seconds_before = state["seconds"]
        for name in _SUMS:
            setattr(self, name, state[name])


def time_fetches(loop: Any, timing: TrainingTime) -> Callable[[], None]:
    """Have a training loop of Lightning tell when it asks for a batch and when the batch is there.

    Lightning has no hook for it, but hands these two methods to the loader's iterator at the start of every epoch.

    Parameters
    ----------
    loop
        The trainer's ``fit_loop.epoch_loop``, before an epoch starts.
    timing
        What is told.

    Returns
    -------
    callable
        Takes it back.
    """
    before, after = loop._on_before_fetch, loop._on_after_fetch

    def before_fetch() -> None:
        timing.begin_wait()
        before()

    def after_fetch() -> None:
        after()
        timing.end_wait()

    def undo() -> None:
        del loop._on_before_fetch, loop._on_after_fetch

    loop._on_before_fetch, loop._on_after_fetch = before_fetch, after_fetch
    return undo


def count_examples(batch: Any) -> int:
    """Return the number of examples in a batch: the first dimension of its first tensor, 1 without one.

    A graph batch tells it by ``num_graphs``.
    """
    n_graphs = getattr(batch, "num_graphs", None)
    if isinstance(n_graphs, int):
        return n_graphs
    waiting = [batch]
    while waiting:
        part = waiting.pop()
        if isinstance(part, (Tensor, np.ndarray)):
            if part.ndim:
                return int(part.shape[0])
        elif isinstance(part, Mapping):
            waiting.extend(reversed(list(part.values())))
        elif isinstance(part, (list, tuple)):
            waiting.extend(reversed(part))
    return 1
