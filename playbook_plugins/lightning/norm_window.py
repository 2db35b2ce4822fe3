"""Which gradient norms were seen, and what is their percentile? Exact, in O(log n) a step, free of any framework.

Playbook: "Gradient clipping".
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

# An insertion moves at most this many numbers, a look-up walks over n / _BLOCK blocks: microseconds at 10^6 norms.
_BLOCK = 4096
_INFINITY = float("inf")


class ThresholdRule(NamedTuple):
    """What decides about the threshold: `threshold` where given, else the percentile once min_steps norms are known."""

    percentile: float
    threshold: float | None
    window: int | None
    min_steps: int


class NormWindow:
    """The finite gradient norms of a run, and the running percentile of the last ones.

    Parameters
    ----------
    percentile
        In [0, 100].
    window
        How many of the latest norms the percentile looks at; all of them by default.

    Attributes
    ----------
    history
        All finite norms in the order of training, float64.
    n_updates
        How many updates were counted, those without a finite norm included.
    nonfinite
        The updates, counted from 0, whose norm was NaN or infinite, int64.
    without
        The updates, counted from 0, that had no gradient at all, int64.
    """

    def __init__(self, percentile: float = 90.0, window: int | None = None) -> None:
        self.percentile = percentile
        self.window = window
        self.history = array("d")
        self.n_updates = 0
        self.nonfinite = array("q")
        self.without = array("q")
        self._blocks: list[array[float]] = []
        self._last: list[float] = []

    def __len__(self) -> int:
        """Return how many norms the percentile looks at."""
        return len(self.history) if self.window is None else min(self.window, len(self.history))

    def add(self, norm: float) -> None:
        """Take in the norm of one update; NaN and infinities are counted and never enter."""
        self.n_updates += 1
        # Both comparisons are false for NaN.
        if not -_INFINITY < norm < _INFINITY:
            self.nonfinite.append(self.n_updates - 1)
            return
        self.history.append(norm)
        self._insert(norm)
        if self.window is not None and len(self.history) > self.window:
            self._remove(self.history[-self.window - 1])

    def pass_over(self) -> None:
        """Count one update that had no gradient."""
        self.without.append(self.n_updates)
        self.n_updates += 1

    def updates(self) -> NDArray[np.int64]:
        """Return which update each norm of the history belongs to, counted from 0, shape (n_norms,)."""
        return np.delete(np.arange(self.n_updates), [*self.nonfinite, *self.without])

    def value(self) -> float:
        """Return the percentile of the window, equal to `numpy.percentile` to the last bit; NaN when empty."""
        n = len(self)
        if n == 0:
            return float("nan")
        place = (n - 1) * (self.percentile / 100)
        below = int(place)
        if below >= n - 1:
            return self._select(n - 1)
        low, high = self._select(below), self._select(below + 1)
        # numpy interpolates from the nearer side.
        share = place - below
        return high - (high - low) * (1 - share) if share >= 0.5 else low + (high - low) * share

    def packed(self) -> NDArray[np.float32] | NDArray[np.float64]:
        """Return the history, shape (n_norms,), in single precision where that loses nothing: 4 MB at 10^6 norms."""
        norms = np.frombuffer(self.history, dtype=np.float64) if self.history else np.empty(0)
        with np.errstate(over="ignore", under="ignore"):
            single = norms.astype(np.float32)
        return single if np.array_equal(single.astype(np.float64), norms) else norms.copy()

    def load(self, norms: ArrayLike, nonfinite: Sequence[int] = (), without: Sequence[int] = ()) -> None:
        """Replace the history, as `packed` returned it, and the updates that have no norm in it."""
        values = np.asarray(norms, dtype=np.float64)
        self.history = array("d", values.tobytes())
        self.nonfinite, self.without = array("q", nonfinite), array("q", without)
        self.n_updates = len(values) + len(nonfinite) + len(without)
        seen = np.sort(values if self.window is None else values[-self.window :])
        self._blocks = [
            array("d", seen[start : start + _BLOCK // 2].tobytes()) for start in range(0, len(seen), _BLOCK // 2)
        ]
        self._last = [block[-1] for block in self._blocks]

    def _insert(self, norm: float) -> None:
        if not self._blocks:
            self._blocks.append(array("d", [norm]))
            self._last.append(norm)
            return
        place = min(bisect_left(self._last, norm), len(self._blocks) - 1)
        block = self._blocks[place]
        insort(block, norm)
        if len(block) > _BLOCK:
            half = len(block) // 2
            self._blocks.insert(place + 1, block[half:])
            self._last.insert(place + 1, block[-1])
            del block[half:]
        self._last[place] = block[-1]

    def _remove(self, norm: float) -> None:
        place = bisect_left(self._last, norm)
        block = self._blocks[place]
        del block[bisect_left(block, norm)]
        if block:
            self._last[place] = block[-1]
        else:
            del self._blocks[place], self._last[place]

    def _select(self, rank: int) -> float:
        """Return the rank-th smallest norm of the window, from 0; walked from the nearer end."""
        from_top = len(self) - 1 - rank
        if from_top < rank:
            for block in reversed(self._blocks):
                if from_top < len(block):
                    return block[-1 - from_top]
                from_top -= len(block)
        else:
            for block in self._blocks:
                if rank < len(block):
                    return block[rank]
                rank -= len(block)
        raise IndexError(rank)


def replay_thresholds(norms: ArrayLike, rule: ThresholdRule, start: int = 0) -> NDArray[np.float64]:
    """Return the threshold that was in force at each of ``norms[start:]``, NaN where nothing was clipped yet.

    Parameters
    ----------
    norms
        The finite norms from the first step on, shape (n_norms,).
    rule
        What decided about the threshold from ``start`` on.
    start
        From 0 to n_norms.
    """
    values = np.asarray(norms, dtype=np.float64)
    if rule.threshold is not None:
        return np.full(len(values) - start, rule.threshold)
    window = NormWindow(rule.percentile, rule.window)
    window.load(values[:start])
    thresholds = np.full(len(values) - start, np.nan)
    for place, norm in enumerate(values[start:].tolist()):
        if len(window) >= rule.min_steps:
            thresholds[place] = window.value()
        window.add(norm)
    return thresholds


def concatenate(histories: Sequence[array[float]]) -> NDArray[np.float64]:
    """Return the norms of several optimizers as one array, shape (n_norms,)."""
    filled = [np.frombuffer(history, dtype=np.float64) for history in histories if len(history)]
    return np.concatenate(filled) if filled else np.empty(0)
