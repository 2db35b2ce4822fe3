"""How large were the gradients over training, and which updates were clipped?

Playbook: "How can optimization failures be debugged and mitigated?", "Gradient clipping": the norm of the unclipped
gradient over the steps shows the outliers, and its 90th percentile is where to clip.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from playbook_plugins.analysis.records import TrialRecord


@dataclass(frozen=True, kw_only=True, eq=False)
class GradientNorms:
    """The gradient norms of one optimizer over a run.

    Attributes
    ----------
    update
        int64 of shape (n,), strictly increasing: how many updates the optimizer had made before this one, from 0.
    norm
        float64 of shape (n,): the L2 norm of the whole unclipped gradient, finite and not negative.
    threshold
        float64 of shape (n,): the threshold in force at that update; NaN while nothing was clipped.
    nonfinite
        int64 of shape (m,), increasing: the updates whose norm was NaN or infinite; none of them is in ``update``.
    """

    update: NDArray[np.int64]
    norm: NDArray[np.float64]
    threshold: NDArray[np.float64]
    nonfinite: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check that the columns fit and that every norm is finite."""
        for name, column in (("norm", self.norm), ("threshold", self.threshold)):
            if len(column) != len(self.update):
                raise ValueError(
                    f"`{name}` has {len(column)} entries, but there are {len(self.update)} updates: every column has "
                    "one entry an update. Fill an unknown threshold with NaN."
                )
        if not np.all(np.isfinite(self.norm)):
            bad = self.norm[~np.isfinite(self.norm)][0]
            raise ValueError(
                f"`norm` holds {bad}: only finite norms stand there. Name the updates whose norm was not finite in "
                "nonfinite."
            )

    @classmethod
    def from_record(cls, record: TrialRecord) -> GradientNorms:
        """Read the norms off a trial's record: the median of each stretch between two evaluations, at its end.

        The record of a run that was not clipped has no thresholds, and no record tells which single updates were not
        finite; `PercentileGradientClipping.history` tells every step.

        Parameters
        ----------
        record
            Of a run with `PercentileGradientClipping`; evaluations without a norm, as that at step 0, are left out.

        Raises
        ------
        ValueError
            When no evaluation of the record has a gradient norm.
        """
        curve = record.curve
        is_known = np.isfinite(curve.gradient_norm)
        if not is_known.any():
            raise ValueError(
                "`record` has a curve without gradient norms: there is nothing to show. Train with "
                "PercentileGradientClipping beside TrialRecorder, which records them."
            )
        threshold = _optional_column(record, "clip_threshold")
        return cls(
            update=curve.step[is_known],
            norm=curve.gradient_norm[is_known],
            threshold=np.full(int(is_known.sum()), np.nan) if threshold is None else threshold[is_known],
            nonfinite=curve.step[np.isinf(curve.gradient_norm)],
        )

    def __len__(self) -> int:
        """Return the number of finite norms."""
        return len(self.norm)

    @property
    def clipped(self) -> NDArray[np.bool_]:
        """Which norms lie above the threshold in force, shape (n,)."""
        # The comparison is false where the threshold is NaN; a threshold of zero clips nothing.
        clipped: NDArray[np.bool_] = (self.norm > self.threshold) & (self.threshold > 0)
        return clipped

    @property
    def clipped_share(self) -> float:
        """The share of the norms above the threshold in force, in [0, 1]; NaN without norms."""
        return float(self.clipped.mean()) if len(self) else math.nan

    @property
    def last_threshold(self) -> float:
        """The threshold in force at the last update that had one; NaN without any."""
        known = self.threshold[np.isfinite(self.threshold)]
        return float(known[-1]) if len(known) else math.nan

    def percentile(self, q: float = 90.0) -> float:
        """Return a percentile of the norms, q in [0, 100]; NaN without norms.

        Raises
        ------
        ValueError
            When q is out of range.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"`q` is {q}: it must lie between 0 and 100. The playbook recommends 90.")
        return float(np.percentile(self.norm, q)) if len(self) else math.nan

    def histogram(self, n_bins: int = 50) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the edges, shape (n_bins + 1,), and the counts, shape (n_bins,), as `norm_histogram` does."""
        return norm_histogram(self.norm, n_bins)

    def thin(self, n_points: int) -> GradientNorms:
        """Return at most ``n_points`` norms, evenly spread over the updates, with the outliers among them.

        The largest tenth of ``n_points`` norms stays, and of each of so many stretches of equal length as fill the
        rest the smallest, the largest and one in between. Of the updates that were not finite stay at most
        ``n_points / 10``, evenly spread.

        Parameters
        ----------
        n_points
            At least 3.

        Raises
        ------
        ValueError
            When ``n_points`` is smaller.
        """
        if n_points < 3:
            raise ValueError(
                f"`n_points` is {n_points}: it must be at least 3, the smallest, the largest and one between. Pass "
                "more points."
            )
        rows = np.arange(len(self))
        if len(self) > n_points:
            n_largest = n_points // 10
            largest = np.argsort(self.norm, kind="stable")[len(self) - n_largest :]
            stretches = np.array_split(rows, (n_points - n_largest) // 3)
            low = [part[np.argmin(self.norm[part])] for part in stretches]
            high = [part[np.argmax(self.norm[part])] for part in stretches]
            middle = [part[len(part) // 2] for part in stretches]
            rows = np.unique(np.concatenate([largest, low, high, middle]))
        most = max(1, n_points // 10)
        marks = np.arange(len(self.nonfinite))
        if len(marks) > most:
            marks = np.unique(np.linspace(0, len(marks) - 1, most).round().astype(np.intp))
        return GradientNorms(
            update=self.update[rows],
            norm=self.norm[rows],
            threshold=self.threshold[rows],
            nonfinite=self.nonfinite[marks],
        )


def norm_quantiles(norms: ArrayLike) -> NDArray[np.float64]:
    """Return the 0th, 1st, ..., 100th percentile, shape (101,); empty without norms."""
    values = np.asarray(norms, dtype=np.float64)
    return np.asarray(np.percentile(values, np.arange(101)), dtype=np.float64) if len(values) else np.empty(0)


def norm_histogram(norms: ArrayLike, n_bins: int = 50) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Count the norms in bins of equal width on a logarithmic axis (a linear one where a norm is zero).

    Returns
    -------
    tuple of ndarray
        The edges, shape (n_bins + 1,), and the counts, shape (n_bins,); both empty without norms.
    """
    values = np.asarray(norms, dtype=np.float64)
    if not len(values):
        return np.empty(0), np.empty(0, dtype=np.int64)
    low, high = float(values.min()), float(values.max())
    edges: NDArray[np.float64]
    if 0 < low < high:
        edges = np.geomspace(low, high, n_bins + 1)
        # The rounding of the logarithm must not push the extremes out of the outer bins.
        edges[0], edges[-1] = low, high
    else:
        edges = np.histogram_bin_edges(values, bins=n_bins)
    if not np.all(np.diff(edges) > 0):
        # All norms within rounding of each other: one bin.
        edges = np.array([low, np.nextafter(high, np.inf)])
    counts, _ = np.histogram(values, bins=edges)
    return edges, counts.astype(np.int64)


def _optional_column(record: TrialRecord, name: str) -> NDArray[np.float64] | None:
    """Return a column that not every curve has, by attribute or among its metrics; None without it."""
    for column in (getattr(record.curve, name, None), record.curve.metrics.get(name)):
        if column is not None and len(column) == len(record.curve) and np.isfinite(column).any():
            return np.asarray(column, dtype=np.float64)
    return None
