"""Which points should a round of experiments try? A quasi-random sequence whose points can be computed by index.

Playbook: "Why use quasi-random search instead of more sophisticated black box optimization algorithms during the
exploration phase of tuning?", "Where can I find an implementation of quasi-random search?".

Coordinate k of point i writes i in base p, the k-th prime, replaces each digit by way of a random permutation of the
digits, one permutation a place, and reads the places behind the point, the last digit first (Halton 1960, scrambled as
in Owen 2017: the endless zeros in front of i are permuted too). Nothing carries over from point to point, so workers
that share a seed need only the number of their trial to draw one sequence together.

Scrambling alone is weak while a base is not small against the number of points, and a round of experiments has few. So
each dimension draws 64 sets of permutations and keeps the one whose first 6 to 128 points cover best, alone and in the
worst pair with a dimension before it, as `playbook_plugins.optuna.discrepancy` judges them.

References
----------
J. H. Halton (1960). "On the efficiency of certain quasi-random sequences of points in evaluating multi-dimensional
integrals". Numerische Mathematik 2, 84-90.

A. B. Owen (2017). "A randomized Halton algorithm in R". arXiv:1706.02808.
"""

from __future__ import annotations

import operator
import threading
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.optuna.discrepancy import JUDGED_COUNTS, N_CELLS, Kernels, kernels_of, score

N_CANDIDATES = 64
# A dimension is paired with all dimensions before it while they are at most so many; later with the first half as many,
# which matter most, and the latest half as many, whose bases are nearest to its own and clash most.
MAX_PAIRED = 64
# Indices stay below the smallest p ** n_digits of the first MAX_DIMENSIONS primes, so that all points are distinct.
MAX_INDEX = 2**40
MAX_DIMENSIONS = 1000

_MAX_DIGITS = 53


class _Dimension(NamedTuple):
    """One base and its permutations, ready to be added up.

    ``weights[k, digit]`` is the permuted digit times its place value, of shape (n_digits, base);
    the coordinate is the sum over k, divided by base ** n_digits.
    """

    base: int
    weights: NDArray[np.int64]


class _Tables(NamedTuple):
    """All dimensions so far as flat arrays; replaced as a whole when the sequence grows."""

    n_dimensions: int
    base: NDArray[np.int64]
    scale: NDArray[np.float64]
    weights: NDArray[np.int64]
    # Where the weights of a place begin, shape (n_dimensions, 54); places that a base does not have lead to a zero.
    starts: NDArray[np.int64]
    # The sum of the weights of the zeros from a place on, shape (n_dimensions, 54).
    tails: NDArray[np.int64]


class HaltonSequence:
    """A scrambled Halton sequence as a pure function of seed, dimension and index.

    Dimensions are built when first asked for and kept: about 0.07 s for the first 8, 0.4 s for 32 and 4 s for 200.
    The same seed gives the same numbers on every machine, bit for bit. Safe to share between threads, cheap to pickle.

    Parameters
    ----------
    seed
        A whole number, 0 or greater. Another seed gives another draw of permutations.

    Examples
    --------
    >>> sequence = HaltonSequence(seed=0)
    >>> sequence.points(range(16), range(2)).shape
    (16, 2)
    """

    def __init__(self, seed: int) -> None:
        self.seed = check_seed(seed)
        self._lock = threading.Lock()
        self._dimensions: list[_Dimension] = []
        # The earlier dimensions that a new one is paired with.
        self._paired: list[Kernels] = []
        self._tables = _tabulate([])

    def points(self, indices: ArrayLike, dimensions: ArrayLike) -> NDArray[np.float64]:
        """Return the coordinates of some points.

        Parameters
        ----------
        indices
            Which points: whole numbers in [0, 2^40), shape (n_indices,), in any order.
        dimensions
            Which coordinates: whole numbers in [0, 1000), shape (n_dimensions,), in any order. Dimension 0 has base 2
            and covers best. A coordinate does not depend on which others are asked for.

        Returns
        -------
        ndarray
            float64 of shape (n_indices, n_dimensions), in [0, 1), exactly reproducible.

        Raises
        ------
        ValueError
            When an index or a dimension is out of range, or either is not one-dimensional.
        """
        rows = _as_numbers("indices", indices, MAX_INDEX)
        columns = _as_numbers("dimensions", dimensions, MAX_DIMENSIONS)
        if not len(rows) or not len(columns):
            return np.empty((len(rows), len(columns)))
        tables = self._grow(int(columns.max()) + 1)
        base, starts = tables.base[columns], tables.starts[columns]
        rest = np.repeat(rows[:, np.newaxis], len(columns), axis=1)
        total = np.zeros_like(rest)
        place = 0
        # Sums of whole numbers are exact, so neither the shape of the request nor the order of the sums can show.
        while rest.any():
            rest, digit = np.divmod(rest, base)
            total += tables.weights[starts[:, place] + digit]
            place += 1
        total += tables.tails[columns, place]
        return np.asarray(total / tables.scale[columns], dtype=np.float64)

    def _grow(self, n_dimensions: int) -> _Tables:
        tables = self._tables
        if tables.n_dimensions >= n_dimensions:
            return tables
        with self._lock:
            bases = _primes(n_dimensions)
            for dimension in range(len(self._dimensions), n_dimensions):
                chosen, kernels = _choose(self.seed, dimension, bases[dimension], self._paired)
                self._dimensions.append(chosen)
                self._paired.append(kernels)
                if len(self._paired) > MAX_PAIRED:
                    del self._paired[MAX_PAIRED // 2]
            if self._tables.n_dimensions < len(self._dimensions):
                self._tables = _tabulate(self._dimensions)
            return self._tables

    def __repr__(self) -> str:
        """Return the call that makes this sequence."""
        return f"HaltonSequence(seed={self.seed})"

    def __eq__(self, other: object) -> bool:
        """Two sequences are equal when their seeds are."""
        return self.seed == other.seed if isinstance(other, HaltonSequence) else NotImplemented

    def __hash__(self) -> int:
        """Return a hash of the seed."""
        return hash((HaltonSequence, self.seed))

    def __reduce__(self) -> tuple[type[HaltonSequence], tuple[int]]:
        """Pickle the seed only: the rest follows from it."""
        return HaltonSequence, (self.seed,)


def check_seed(seed: int) -> int:
    """Return the seed as a plain int.

    Raises
    ------
    ValueError
        When it is not a whole number, or negative.
    """
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(
            f"`seed` is {seed!r}: it must be a whole number, 0 or greater. Pass an int; another one gives another draw."
        )
    return number


def draw_permutations(seed: int, key: tuple[int, ...], *shapes: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """Return arrays of the given shapes whose last axis holds random permutations of 0, 1, ..., its length - 1.

    Made from the raw numbers of a bit generator, which numpy promises never to change; the streams of its `Generator`
    carry no such promise, and a study must be continued under the next numpy.
    """
    stream = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=key))
    draws = [np.asarray(stream.random_raw(int(np.prod(shape)))).reshape(shape) for shape in shapes]
    return [np.argsort(draw, axis=-1, kind="stable").astype(np.int64) for draw in draws]


def _as_numbers(name: str, values: ArrayLike, end: int) -> NDArray[np.int64]:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise ValueError(
            f"`{name}` is {values!r}: it must be a one-dimensional sequence of whole numbers. "
            f"Pass for instance range(8) or [3]."
        )
    outside = (numbers < 0) | (numbers >= end)
    if outside.any():
        raise ValueError(
            f"`{name}` contains {numbers[outside][0]}: the sequence has {name} from 0 to {end - 1}. "
            "Pass numbers in that range."
        )
    return numbers.astype(np.int64)


def _primes(count: int) -> list[int]:
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found if prime * prime <= candidate):
            found.append(candidate)
        candidate += 1
    return found


def _tabulate(dimensions: list[_Dimension]) -> _Tables:
    n_dimensions = len(dimensions)
    # The entry at 0 is the zero that stands for the places which a base does not have.
    starts = np.zeros((n_dimensions, _MAX_DIGITS + 1), dtype=np.int64)
    tails = np.zeros((n_dimensions, _MAX_DIGITS + 1), dtype=np.int64)
    flat = [np.zeros(1, dtype=np.int64)]
    length = 1
    for row, (base, weights) in enumerate(dimensions):
        n_digits = len(weights)
        starts[row, :n_digits] = length + base * np.arange(n_digits)
        tails[row, :n_digits] = weights[::-1, 0].cumsum()[::-1]
        flat.append(weights.ravel())
        length += weights.size
    return _Tables(
        n_dimensions=n_dimensions,
        base=np.array([base for base, _ in dimensions], dtype=np.int64),
        scale=np.array([base ** len(weights) for base, weights in dimensions], dtype=np.float64),
        weights=np.concatenate(flat),
        starts=starts,
        tails=tails,
    )


def _choose(seed: int, dimension: int, base: int, paired: list[Kernels]) -> tuple[_Dimension, Kernels]:
    """Draw the candidates of one dimension and return the best with its kernels."""
    # As many digits as float64 holds exactly, so that no coordinate rounds to 1.
    n_digits = next(n for n in range(1, _MAX_DIGITS + 1) if base ** (n + 1) > 2**_MAX_DIGITS)
    # Only the leading digits can differ within the judged points; one more places the points inside their cells. The
    # digits beyond are drawn once.
    n_judged = 1 + next(n for n in range(1, _MAX_DIGITS) if base**n >= JUDGED_COUNTS[-1])
    candidates, rest = draw_permutations(
        seed, (dimension,), (N_CANDIDATES, n_judged, base), (n_digits - n_judged, base)
    )
    index = np.arange(JUDGED_COUNTS[-1])
    numerators = np.zeros((N_CANDIDATES, len(index)), dtype=np.int64)
    for place in range(n_judged):
        numerators = numerators * base + candidates[:, place][:, index // base**place % base]
    kernels = kernels_of(numerators * N_CELLS // base**n_judged)
    best = int(np.argmin(score(kernels, paired)))
    place_values = base ** np.arange(n_digits - 1, -1, -1, dtype=np.int64)
    digits = np.concatenate([candidates[best], rest])
    return _Dimension(base, digits * place_values[:, np.newaxis]), kernels.of(best)
