"""Which batch size does the hardware use best, and what limits it? The throughput at each batch size that was timed.

Playbook: "Determining the feasible batch sizes and estimating training throughput". While the accelerators are not
saturated, a batch twice as large takes nearly the same time, so that the throughput nearly doubles; once they are, the
step takes twice the time and nothing is gained. Only batch sizes up to the largest that still pays are worth
considering, even where memory holds more. Gradient accumulation simulates a larger batch than memory holds and brings
no throughput at all, so it never extends this table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.analysis.concave_fit import doubling_gains
from playbook_plugins.analysis.findings import Finding, Number, Verdict

Limit: TypeAlias = Literal["memory", "max_batch_size", "data"]

SECTION = "Determining the feasible batch sizes and estimating training throughput"
# A larger batch has to be worth tuning everything again for: a tenth more examples per second than half of it.
PAYS = 1.10
# "The training throughput should also double (or at least nearly double)": the step grows by at most a ninth.
NEARLY_DOUBLES = 1.80
# Waiting dominates where it takes as long as all the rest of the step together.
WAIT_DOMINATES = 0.5
# Without the waiting, a step is a tenth faster from here on: the same tenth that a larger batch has to bring.
WAIT_COSTS = 1 - 1 / PAYS
# A gain of exactly 10% is a gain of 10%, whichever way its last bits were rounded.
_ROUNDING = 1e-9
_VERSION = 1


class Bottleneck(StrEnum):
    """What keeps training from more examples per second; `Throughput.bottleneck` states the rules."""

    INPUT = "input-bound"
    SATURATED = "saturated"
    MEMORY = "memory-bound"
    MAX_BATCH_SIZE = "limited by max_batch_size"
    DATA = "limited by the training set"


class Scaling(StrEnum):
    """What one batch size gains over half of it; `Throughput.scaling` states the rules."""

    SMALLEST = "smallest size"
    NEARLY_DOUBLES = "nearly doubles"
    GROWS = "grows"
    SATURATED = "saturated"
    INPUT = "input-bound"


_LIMITS = {"memory": Bottleneck.MEMORY, "max_batch_size": Bottleneck.MAX_BATCH_SIZE, "data": Bottleneck.DATA}
_COLUMNS = ("seconds_per_step", "data_wait_share", "peak_memory")


@dataclass(frozen=True, kw_only=True, eq=False)
class Throughput:
    """What was measured at each batch size that fits into memory, one row a batch size, the smallest first.

    Attributes
    ----------
    batch_size
        int64 of shape (n,), at least 1, strictly increasing: examples per device. Empty where the smallest size that
        was tried ran out of memory.
    seconds_per_step
        float64 of shape (n,), above 0: the median time of a training step of the slowest rank, one forward, one
        backward and one optimizer update, with the fetching of its data.
    data_wait_share
        float64 of shape (n,), in [0, 1]: the share of the step that was spent waiting for the loader; NaN where
        unknown.
    peak_memory
        float64 of shape (n,): bytes per device; NaN where unknown.
    n_devices
        How many devices train together, each on a batch of its own.
    limit
        Why no larger size was tried: ``"memory"`` (the next size ran out of it), ``"max_batch_size"`` (the search
        ends there) or ``"data"`` (the training set holds no larger batch).
    failed_batch_size
        The smallest size that ran out of memory, larger than every row; None unless the limit is memory.

    Raises
    ------
    ValueError
        When the columns do not fit together or hold impossible numbers.
    """

    batch_size: NDArray[np.int64]
    seconds_per_step: NDArray[np.float64]
    data_wait_share: NDArray[np.float64]
    peak_memory: NDArray[np.float64]
    n_devices: int = 1
    limit: Limit
    failed_batch_size: int | None = None

    def __post_init__(self) -> None:
        """Take the columns as arrays of their types, and check them."""
        sizes = np.asarray(self.batch_size, dtype=np.float64)
        is_size = np.isfinite(sizes) & (sizes >= 1) & (sizes == np.floor(sizes))
        if sizes.ndim != 1 or not is_size.all() or np.any(np.diff(sizes) <= 0):
            raise ValueError(
                f"`batch_size` is {sizes.tolist()}: batch sizes must be whole numbers of at least 1, strictly "
                "increasing. Pass one entry a size, the smallest first."
            )
        object.__setattr__(self, "batch_size", sizes.astype(np.int64))
        for name in _COLUMNS:
            column = np.array(getattr(self, name), dtype=np.float64)
            if column.shape != sizes.shape:
                raise ValueError(
                    f"`{name}` has the shape {column.shape}, but there are {len(sizes)} batch sizes: every column has "
                    "one entry a batch size. Fill what is unknown with NaN."
                )
            object.__setattr__(self, name, column)
        _check_numbers(self)
        _check_limit(self)

    def __len__(self) -> int:
        """Return the number of batch sizes that were timed."""
        return len(self.batch_size)

    @property
    def examples_per_second(self) -> NDArray[np.float64]:
        """float64 of shape (n,): the training throughput over all devices, higher is better."""
        return self.batch_size * self.n_devices / self.seconds_per_step

    @property
    def device_seconds_per_step(self) -> NDArray[np.float64]:
        """float64 of shape (n,): what a step costs, in seconds times devices."""
        return self.seconds_per_step * self.n_devices

    @cached_property
    def gain(self) -> NDArray[np.float64]:
        """float64 of shape (n,): the examples per second over those at half the batch size; NaN in the first row.

        Single timings are noisy by some percent, and among many saturated sizes one would soon seem 10% faster than
        half its size by chance (simulated with 5% of noise: the recommendation is off by more than one power of two
        in over a third of the tables of 13 sizes). So the gains are read off the concave curve that is closest, by
        least squares, to the measured log throughput over log batch size: on the way to saturation no doubling gains
        more than the doubling before it. Measurements that obey this are taken as they are. Between the sizes tried
        the curve is a straight line, below the smallest it is extended.
        """
        if len(self) < 2:
            return np.full(len(self), np.nan)
        gain = doubling_gains(self.batch_size, self.examples_per_second)
        gain[0] = np.nan
        return gain

    @property
    def recommended_row(self) -> int | None:
        """The row of `recommended`; None where no size fits."""
        paying = np.flatnonzero(self.gain >= PAYS * (1 - _ROUNDING))
        return None if not len(self) else int(paying[-1]) if len(paying) else 0

    @property
    def recommended(self) -> int | None:
        """The largest batch size per device that is at least 10% faster, in examples per second, than half of it.

        It is the smallest size tried where no doubling pays, and None where no size fits into memory. Speed is
        compared by `gain`. In simulated tables of 5, 8 and 13 sizes with 3 to 5% of noise it lies within one power of
        two of what the noise-free times recommend: in 99% of them where a step takes max(a, b * batch size); where it
        takes a + b * batch size, whose gain passes 10% slowly, in 99% at 3% of noise and in 95% at 5%.
        """
        row = self.recommended_row
        return None if row is None else int(self.batch_size[row])

    @property
    def scaling(self) -> tuple[Scaling, ...]:
        """The verdict on each row, of length n.

        INPUT where waiting for data takes at least half of the step, whatever the gain; else by the gain over half
        the batch size: SMALLEST in the first row, which has none, NEARLY_DOUBLES from 1.8, GROWS from 1.1, SATURATED
        below.
        """
        return tuple(map(_scaling, self.gain, self.data_wait_share))

    @property
    def wait_share(self) -> float:
        """The share of the step, in [0, 1], that waiting for data takes where growth ends; NaN where unknown.

        It is the share at the recommended size, or the median share of the larger sizes if that is more: a loader
        that works in the background makes the training wait only once it has become the bottleneck.
        """
        row = self.recommended_row
        if row is None:
            return math.nan
        larger = self.data_wait_share[row + 1 :]
        larger = larger[~np.isnan(larger)]
        beyond = float(np.median(larger)) if len(larger) else math.nan
        return float(np.fmax(self.data_wait_share[row], beyond))

    @property
    def bottleneck(self) -> Bottleneck:
        """What keeps training from more examples per second, the first of these that holds.

        INPUT: waiting for data takes at least half of the step where growth ends (`wait_share`). SATURATED: a size
        larger than the recommended one was timed and does not pay. Else no end of the growth was seen, and what ended
        the search limits the throughput: MEMORY, MAX_BATCH_SIZE or DATA; so too with a single row or none.
        """
        if self.wait_share >= WAIT_DOMINATES:
            return Bottleneck.INPUT
        row = self.recommended_row
        return _LIMITS[self.limit] if row is None or row == len(self) - 1 else Bottleneck.SATURATED

    def rows(self) -> list[dict[str, Any]]:
        """Return one dict a batch size with measured and derived columns in plain Python types; None is unknown."""
        columns = {
            "batch_size": self.batch_size,
            "seconds_per_step": self.seconds_per_step,
            "examples_per_second": self.examples_per_second,
            "device_seconds_per_step": self.device_seconds_per_step,
            "gain": self.gain,
            "data_wait_share": self.data_wait_share,
            "peak_memory": self.peak_memory,
        }
        return [
            {name: _plain(column[row]) for name, column in columns.items()}
            | {"verdict": str(verdict), "recommended": row == self.recommended_row}
            for row, verdict in enumerate(self.scaling)
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as a dict that strict JSON can hold; unknown numbers are None."""
        return {
            "version": _VERSION,
            "batch_size": self.batch_size.tolist(),
            **{name: [_plain(value) for value in getattr(self, name)] for name in _COLUMNS},
            "n_devices": int(self.n_devices),
            "limit": self.limit,
            "failed_batch_size": None if self.failed_batch_size is None else int(self.failed_batch_size),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Throughput:
        """Rebuild the table from `to_dict`.

        Raises
        ------
        ValueError
            When the dict was written by another version of this package.
        """
        if data.get("version") != _VERSION:
            raise ValueError(
                f"`data` is a throughput table of version {data.get('version')!r}: this package reads version "
                f"{_VERSION}. Upgrade playbook-plugins to read it."
            )
        return cls(**{name: value for name, value in data.items() if name != "version"})


def check_throughput(throughput: Throughput) -> list[Finding]:
    """Ask whether the accelerator, the input or the memory keeps training from more examples per second.

    Parameters
    ----------
    throughput
        The measurements.

    Returns
    -------
    list of Finding
        Three, check ``"throughput"``. Subject ``"accelerator"``: FLAG when sizes larger than the recommended one gain
        less than 10% over half of them, so that they should not be considered. Subject ``"input"``: FLAG when training
        without the waiting for data would be at least 10% faster. Subject ``"memory"``: FLAG when the throughput
        still grows at the largest size that fits, or none fits. TOO_LITTLE_DATA with fewer than two sizes (for the
        memory, with one) or an unknown share.

        Numbers of all: ``n_sizes``, ``recommended`` and ``largest`` (examples per device), ``bottleneck``, and at the
        recommended size ``examples_per_second``, ``seconds_per_step``, ``device_seconds_per_step``; of the
        accelerator also ``gain`` there and ``gain_beyond`` (at the next larger size); of the input ``wait_share``; of
        the memory ``peak_memory`` (bytes, at the largest size), ``failed_batch_size``, and ``limit``.
    """
    row, n_sizes = throughput.recommended_row, len(throughput)
    common: dict[str, Number] = {
        "n_sizes": n_sizes,
        "recommended": throughput.recommended,
        "largest": int(throughput.batch_size[-1]) if n_sizes else None,
        "bottleneck": str(throughput.bottleneck),
    }
    for name in ("examples_per_second", "seconds_per_step", "device_seconds_per_step"):
        common[name] = None if row is None else _plain(getattr(throughput, name)[row])
    is_last = row is None or row == n_sizes - 1
    accelerator: dict[str, Number] = {
        "gain": None if row is None else _plain(throughput.gain[row]),
        "gain_beyond": None if row is None or is_last else _plain(throughput.gain[row + 1]),
    }
    memory: dict[str, Number] = {
        "peak_memory": _plain(throughput.peak_memory[-1]) if n_sizes else None,
        "failed_batch_size": throughput.failed_batch_size,
        "limit": throughput.limit,
    }
    wait_share = throughput.wait_share
    return [
        _finding("accelerator", not is_last, n_sizes >= 2, common | accelerator),
        _finding(
            "input",
            wait_share >= WAIT_COSTS * (1 - _ROUNDING),
            not math.isnan(wait_share),
            common | {"wait_share": _plain(wait_share)},
        ),
        _finding("memory", is_last and throughput.limit == "memory", n_sizes != 1, common | memory),
    ]


def _scaling(gain: float, wait_share: float) -> Scaling:
    if wait_share >= WAIT_DOMINATES:
        return Scaling.INPUT
    if math.isnan(gain):
        return Scaling.SMALLEST
    if gain >= NEARLY_DOUBLES * (1 - _ROUNDING):
        return Scaling.NEARLY_DOUBLES
    return Scaling.GROWS if gain >= PAYS * (1 - _ROUNDING) else Scaling.SATURATED


def _finding(subject: str, is_flagged: bool, has_data: bool, numbers: dict[str, Number]) -> Finding:
    verdict = Verdict.FLAG if is_flagged else Verdict.NO_EVIDENCE
    if not has_data:
        verdict = Verdict.TOO_LITTLE_DATA
    return Finding(check="throughput", subject=subject, verdict=verdict, numbers=numbers, section=SECTION)


def _plain(value: Any) -> Any:
    """Return a number as Python's own; NaN becomes None, which strict JSON can hold."""
    number = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(number, float) and math.isnan(number) else number


def _check_numbers(table: Throughput) -> None:
    if not (np.isfinite(table.seconds_per_step) & (table.seconds_per_step > 0)).all():
        raise ValueError(
            f"`seconds_per_step` is {table.seconds_per_step.tolist()}: the time of a step must be finite and above 0. "
            "Leave out the sizes that were not timed."
        )
    if np.any((table.data_wait_share < 0) | (table.data_wait_share > 1)):
        raise ValueError(
            f"`data_wait_share` is {table.data_wait_share.tolist()}: it is a share of the step, in [0, 1]. Divide the "
            "time spent waiting by the time of the step."
        )
    if np.any((table.peak_memory < 0) | np.isinf(table.peak_memory)):
        raise ValueError(
            f"`peak_memory` is {table.peak_memory.tolist()}: bytes per device must be finite and not negative. Fill "
            "what is unknown with NaN."
        )
    if table.n_devices < 1:
        raise ValueError(f"`n_devices` is {table.n_devices}: at least 1 device trains. Pass the number of ranks.")


def _check_limit(table: Throughput) -> None:
    if table.limit not in get_args(Limit):
        raise ValueError(
            f"`limit` is {table.limit!r}: what ended the search is one of {', '.join(map(repr, get_args(Limit)))}. "
            "Pass one of these."
        )
    failed, is_memory = table.failed_batch_size, table.limit == "memory"
    if is_memory != (failed is not None):
        raise ValueError(
            f"`failed_batch_size` is {failed} and `limit` is {table.limit!r}: the search is limited by memory exactly "
            "when a size ran out of it. Pass that size with limit='memory', or None with another limit."
        )
    if failed is None and not len(table):
        raise ValueError(
            "`batch_size` is empty: a table without any row says something only where the smallest size ran out of "
            "memory. Time at least one batch size."
        )
    largest = int(table.batch_size[-1]) if len(table) else 0
    if failed is not None and failed <= largest:
        raise ValueError(
            f"`failed_batch_size` is {failed}, but {largest} was timed: the size that ran out of memory must be at "
            "least 1 and larger than all that fit. Pass the smallest size that failed."
        )
