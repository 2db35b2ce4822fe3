"""How is a stream timed without taking anything from training? It is read ahead, and training reads it afterwards.

Playbook: "Determining the feasible batch sizes and estimating training throughput": the input pipeline is part of what
is measured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from playbook_plugins.lightning.probe_cutting import count_in_batch, join_batches

_FEWEST_PULLS = 4


class KeptSource:
    """Batches cut from those that a stream gives, which are kept for training to see.

    The stream is pulled from ahead of training, never further than training itself will go in this epoch. Batches
    are cut and joined from what was kept, repeated where that does not suffice. The wait for data follows from the
    time that the pulls took.

    Parameters
    ----------
    stream
        What training itself will read.
    clock
        Returns the time in seconds.
    n_allowed
        How many batches may be pulled ahead at most; infinity where training reads all.
    hint
        The batch size of the stream, where it is known.
    n_workers
        Processes that load data for it.
    n_prefetched
        Batches that may lie ready before the first pull.
    max_seconds
        Pulling for one batch size ends after so many seconds.
    seen
        Batches that have left the stream already and that training has not changed.
    """

    is_fetch_timed = False

    def __init__(
        self,
        stream: KeptIterator,
        clock: Callable[[], float],
        *,
        n_allowed: float,
        hint: int | None = None,
        n_workers: int = 0,
        n_prefetched: int = 0,
        max_seconds: float = math.inf,
        seen: Sequence[Any] = (),
    ) -> None:
        self.n_workers = 0
        self.data: list[Any] = []
        self._stream = stream
        self._clock = clock
        self._n_allowed = n_allowed
        self._hint = hint
        self._is_concurrent = n_workers > 0
        self._n_prefetched = n_prefetched
        self._max_seconds = max_seconds
        # The time that each pull took, and the examples that it brought.
        self._pulls: list[tuple[float, int]] = []
        self._seen = list(seen)
        self._counts: list[int] = []

    @property
    def example(self) -> Any:
        """A batch of the stream, None where there is none."""
        return next(iter(self._batches()), None)

    def can_be_cut(self) -> bool:
        """Return whether the batches of the stream are of a kind that can be cut."""
        try:
            self._counts = [count_in_batch(batch, self._hint) for batch in self._batches()]
            if not self._counts and self._n_allowed > 0:
                self._pull()
            if self._counts:
                join_batches([self._batches()[0]], self._counts[:1], 1)
        except TypeError:
            return False
        return True

    def open(self, batch_size: int) -> Callable[[], Any] | None:
        """Return what makes batches of this size, None where the stream has ended before."""
        begin = self._clock()
        while sum(self._counts) < batch_size or len(self._pulls) < _FEWEST_PULLS + self._n_prefetched:
            is_late = bool(self._counts) and self._clock() - begin >= self._max_seconds
            if is_late or len(self._stream.kept) >= self._n_allowed or not self._pull():
                break
        if not self._counts or (self._stream.is_exhausted and sum(self._counts) < batch_size):
            return None
        needed = 1 + int(np.searchsorted(np.cumsum(self._counts), batch_size))
        batches, counts = self._batches()[:needed], self._counts[:needed]
        return lambda: join_batches(batches, counts, batch_size)

    def waiting_seconds(self, batch_size: int, step_seconds: float) -> float:
        """Return how long a batch of this size would be waited for, the rest of the step being known.

        Without workers, loading and training take turns; with workers, training waits for what remains of loading.
        """
        steady = self._pulls[self._n_prefetched :] or self._pulls
        n_examples = sum(count for _, count in steady)
        if not n_examples:
            return math.nan
        loading = batch_size * sum(seconds for seconds, _ in steady) / n_examples
        return max(0.0, loading - step_seconds) if self._is_concurrent else loading

    def close(self) -> None:
        """Nothing is open."""

    def _pull(self) -> bool:
        begin = self._clock()
        if not self._stream.look_ahead():
            return False
        seconds = self._clock() - begin
        self._counts.append(count_in_batch(self._stream.kept[-1], self._hint))
        self._pulls.append((seconds, self._counts[-1]))
        return True

    def _batches(self) -> list[Any]:
        return [*self._seen, *self._stream.kept]


class KeptIterator:
    """An iterator that can look ahead: what it has seen already comes first, in order."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.iterator = iterator
        self.kept: deque[Any] = deque()
        self.is_exhausted = False
        self._error: Exception | None = None

    def __iter__(self) -> KeptIterator:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next element, be it kept or new."""
        if self.kept:
            return self.kept.popleft()
        if self._error is not None:
            # A generator that has failed would seem to have ended.
            error, self._error = self._error, None
            raise error
        return next(self.iterator)

    def look_ahead(self) -> bool:
        """Keep one more element; return False where there is none."""
        if self._error is not None:
            return False
        try:
            self.kept.append(next(self.iterator))
        except StopIteration:
            self.is_exhausted = True
            return False
        except Exception as error:
            self._error = error
            raise
        return True
