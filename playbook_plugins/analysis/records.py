"""What does one training run tell? The record that training returns, free of any framework, and its JSON form.

Playbook: "Examining the training curves", "Saving checkpoints and retrospectively selecting the best checkpoint".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Direction: TypeAlias = Literal["minimize", "maximize"]

# Some databases end a text column at 64 KB (MySQL's TEXT); a record always fits, with room for its key.
MAX_JSON_BYTES = 60_000
MAX_CURVE_POINTS = 500
# Columns that were added later are left out of the JSON form where they are unknown, and may be absent from a text: it
# stays version 1, which older and newer packages read.
_VERSION = 1
_ADDED = ("gradient_norm_max", "clip_threshold")


class Status(StrEnum):
    """How a trial ended.

    INFEASIBLE means that the point itself failed: a non-finite loss or objective, out of memory, or another
    constraint that the training code reports by raising `InfeasibleError`. FAILED means that the trial ended without
    a known cause, or was interrupted or killed; it is shown and counted apart, neither feasible nor infeasible.
    """

    COMPLETE = "complete"
    PRUNED = "pruned"
    INFEASIBLE = "infeasible"
    RUNNING = "running"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """One trial's history at its evaluation steps; step 0 is the evaluation before any update.

    Attributes
    ----------
    step
        int64 of shape (n_evaluations,), strictly increasing, in optimizer steps.
    validation
        float64 of shape (n_evaluations,): the monitored validation objective; NaN where it was not finite.
    train
        float64 of shape (n_evaluations,): the training objective averaged over the steps since the evaluation
        before; NaN where unknown, as at step 0.
    learning_rate
        float64 of shape (n_evaluations,): the rate of the last step before the evaluation; NaN where unknown.
    gradient_norm
        float64 of shape (n_evaluations,): the median norm of the unclipped gradients since the evaluation before;
        NaN where unknown.
    metrics
        Other metrics by name, float64 of shape (n_evaluations,) each.
    gradient_norm_max
        float64 of shape (n_evaluations,): the largest finite norm of the unclipped gradients since the evaluation
        before; NaN where unknown. Empty, as when left out, becomes NaN everywhere.
    clip_threshold
        float64 of shape (n_evaluations,): the norm above which gradients were clipped at the evaluation; NaN where
        nothing was. Empty, as when left out, becomes NaN everywhere.
    """

    step: NDArray[np.int64]
    validation: NDArray[np.float64]
    train: NDArray[np.float64]
    learning_rate: NDArray[np.float64]
    gradient_norm: NDArray[np.float64]
    metrics: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    gradient_norm_max: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    clip_threshold: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        """Check that the steps increase and the columns fit."""
        for name in _ADDED:
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.full(len(self.step), np.nan))
        if len(self.step) and (self.step[0] < 0 or np.any(np.diff(self.step) <= 0)):
            raise ValueError(
                f"`step` is {self.step.tolist()}: the steps of a curve must be non-negative and strictly increasing. "
                "Pass one entry an evaluation, in the order of training."
            )
        for name, column in self.columns().items():
            if len(column) != len(self.step):
                raise ValueError(
                    f"`{name}` has {len(column)} entries, but there are {len(self.step)} evaluations: every column "
                    "has one entry an evaluation. Fill what is unknown with NaN."
                )

    @classmethod
    def from_columns(
        cls,
        step: ArrayLike,
        validation: ArrayLike,
        train: ArrayLike | None = None,
        learning_rate: ArrayLike | None = None,
        gradient_norm: ArrayLike | None = None,
        metrics: Mapping[str, ArrayLike] | None = None,
        gradient_norm_max: ArrayLike | None = None,
        clip_threshold: ArrayLike | None = None,
    ) -> Curve:
        """Build a curve from plain columns of shape (n_evaluations,); what is left out is NaN."""
        steps = np.asarray(step, dtype=np.int64)

        def column(values: ArrayLike | None) -> NDArray[np.float64]:
            return np.full(len(steps), np.nan) if values is None else np.asarray(values, dtype=np.float64)

        return cls(
            step=steps,
            validation=column(validation),
            train=column(train),
            learning_rate=column(learning_rate),
            gradient_norm=column(gradient_norm),
            metrics={name: column(values) for name, values in (metrics or {}).items()},
            gradient_norm_max=column(gradient_norm_max),
            clip_threshold=column(clip_threshold),
        )

    def __len__(self) -> int:
        """Return the number of evaluations."""
        return len(self.step)

    def columns(self) -> dict[str, NDArray[np.float64]]:
        """Return all columns but the steps, the other metrics under ``metrics.<name>``."""
        return {
            "validation": self.validation,
            "train": self.train,
            "learning_rate": self.learning_rate,
            "gradient_norm": self.gradient_norm,
            "gradient_norm_max": self.gradient_norm_max,
            "clip_threshold": self.clip_threshold,
            **{f"metrics.{name}": column for name, column in self.metrics.items()},
        }

    def thin(self, n_points: int, keep: Sequence[int] = ()) -> Curve:
        """Return at most about ``n_points`` evaluations, evenly spaced by index.

        The first and the last evaluation and the rows in ``keep`` stay.
        """
        if len(self) <= n_points:
            return self
        even = np.linspace(0, len(self) - 1, max(2, n_points - len(keep))).round().astype(np.intp)
        rows = np.unique(np.concatenate([even, np.asarray(keep, dtype=np.intp)]))
        return Curve(
            step=self.step[rows],
            validation=self.validation[rows],
            train=self.train[rows],
            learning_rate=self.learning_rate[rows],
            gradient_norm=self.gradient_norm[rows],
            metrics={name: column[rows] for name, column in self.metrics.items()},
            gradient_norm_max=self.gradient_norm_max[rows],
            clip_threshold=self.clip_threshold[rows],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrialRecord:
    """What training returns: the outcome of one trial and its history.

    Attributes
    ----------
    direction
        ``"minimize"`` or ``"maximize"``: which way the objective gets better.
    objective_name
        The monitored metric, for instance ``"val_error"``.
    status
        COMPLETE, INFEASIBLE, PRUNED or FAILED; RUNNING for a record taken during training.
    reason
        Why, where the status is not COMPLETE; otherwise "".
    curve
        The evaluations, at most 500 of them after `to_json`.
    max_steps
        The planned length of training, in optimizer steps.
    gradient_norm_quantiles
        The 0th, 1st, ..., 100th percentile of the finite unclipped gradient norms, shape (101,); empty when unknown.
    gradient_norm_histogram
        ``(edges, counts)``, shapes (n_bins + 1,) and (n_bins,); both empty when unknown.
    clipped_share
        The share of updates whose gradient was clipped, in [0, 1]; NaN when unknown.
    examples_per_second
        Training throughput; NaN when unknown.
    data_wait_share
        The share of training time spent waiting for data, in [0, 1]; NaN when unknown.
    seconds
        Wall-clock time of the run; NaN when unknown.
    checkpoints
        The paths of the checkpoints kept, the best first.
    """

    direction: Direction
    curve: Curve
    objective_name: str = "objective"
    status: Status = Status.COMPLETE
    reason: str = ""
    max_steps: int = -1
    gradient_norm_quantiles: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    gradient_norm_histogram: tuple[NDArray[np.float64], NDArray[np.int64]] = field(
        default_factory=lambda: (np.empty(0), np.empty(0, dtype=np.int64))
    )
    clipped_share: float = math.nan
    examples_per_second: float = math.nan
    data_wait_share: float = math.nan
    seconds: float = math.nan
    checkpoints: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the direction and that a complete record has an evaluation."""
        if self.direction not in ("minimize", "maximize"):
            raise ValueError(
                f"`direction` is {self.direction!r}: it must be 'minimize' or 'maximize'. Pass the direction in which "
                f"{self.objective_name} gets better."
            )
        if self.status is Status.COMPLETE and not np.isfinite(self.curve.validation).any():
            raise ValueError(
                f"`curve` has {len(self.curve)} evaluations, none with a finite {self.objective_name}: a complete "
                "record needs at least one. Evaluate at least once during training, or give the record the status "
                "INFEASIBLE or FAILED with its reason."
            )

    @property
    def best_row(self) -> int | None:
        """The row of the curve with the best finite validation objective, the first of equals; None without one."""
        validation = self.curve.validation if self.direction == "minimize" else -self.curve.validation
        finite = np.flatnonzero(np.isfinite(validation))
        return int(finite[np.argmin(validation[finite])]) if len(finite) else None

    @property
    def objective(self) -> float:
        """The best validation objective over training; the worst possible value where infeasible, NaN without one."""
        if self.status is Status.INFEASIBLE:
            return math.inf if self.direction == "minimize" else -math.inf
        return math.nan if self.best_row is None else float(self.curve.validation[self.best_row])

    @property
    def best_step(self) -> int:
        """The optimizer step of the best evaluation; -1 without one."""
        return -1 if self.best_row is None else int(self.curve.step[self.best_row])

    @property
    def final_objective(self) -> float:
        """The validation objective of the last evaluation; NaN without one."""
        return float(self.curve.validation[-1]) if len(self.curve) else math.nan

    def clip_threshold(self, percentile: float = 90.0) -> float:
        """Return a fixed threshold for gradient clipping: a percentile of the unclipped gradient norms of this run.

        Playbook: "Gradient clipping" takes the 90th percentile.

        Parameters
        ----------
        percentile
            In [0, 100]; between whole percentiles it is interpolated linearly.

        Raises
        ------
        ValueError
            When the percentile is out of range or the record holds no gradient norms.
        """
        if not 0 <= percentile <= 100:
            raise ValueError(
                f"`percentile` is {percentile}: it must lie between 0 and 100. The playbook recommends 90."
            )
        if not len(self.gradient_norm_quantiles):
            raise ValueError(
                "`gradient_norm_quantiles` is empty: this record holds no gradient norms. Train with "
                "PercentileGradientClipping, which records them."
            )
        return float(np.interp(percentile, np.arange(101), self.gradient_norm_quantiles))

    def to_json(self) -> str:
        """Return the record as strict JSON of at most 60,000 bytes.

        The curve is thinned to at most 500 evaluations, fewer where its columns are many; the first, the last and
        the best evaluation always stay.
        """
        n_points = MAX_CURVE_POINTS
        while True:
            keep = [] if self.best_row is None else [self.best_row]
            text = json.dumps(_encode(replace(self, curve=self.curve.thin(n_points, keep))), allow_nan=False)
            size = len(text.encode())
            if size <= MAX_JSON_BYTES or n_points <= 3:
                return text
            n_points = max(3, min(n_points - 1, int(n_points * MAX_JSON_BYTES / size)))

    @classmethod
    def from_json(cls, text: str) -> TrialRecord:
        """Rebuild a record from `to_json`.

        Raises
        ------
        ValueError
            When the text was written by a newer version of this package.
        """
        data = json.loads(text)
        version = data.get("version")
        if version != _VERSION:
            raise ValueError(
                f"`text` is a trial record of version {version!r}: this package reads version {_VERSION}. Upgrade "
                "playbook-plugins to read it."
            )
        curve = data["curve"]
        edges, counts = data["gradient_norm_histogram"]
        return cls(
            direction=data["direction"],
            objective_name=data["objective_name"],
            status=Status(data["status"]),
            reason=data["reason"],
            max_steps=data["max_steps"],
            curve=Curve(
                step=np.asarray(curve["step"], dtype=np.int64),
                validation=_numbers(curve["validation"]),
                train=_numbers(curve["train"]),
                learning_rate=_numbers(curve["learning_rate"]),
                gradient_norm=_numbers(curve["gradient_norm"]),
                metrics={name: _numbers(column) for name, column in curve["metrics"].items()},
                **{name: _numbers(curve[name]) for name in _ADDED if name in curve},
            ),
            gradient_norm_quantiles=_numbers(data["gradient_norm_quantiles"]),
            gradient_norm_histogram=(_numbers(edges), np.asarray(counts, dtype=np.int64)),
            **{name: _number(data[name]) for name in _SCALARS},
            checkpoints=tuple(data["checkpoints"]),
        )


def summary_keys(record: TrialRecord) -> dict[str, float | int | str]:
    """Return a record as the flat keys that every run logs, whichever tracker it logs to.

    Parameters
    ----------
    record
        Of any status.

    Returns
    -------
    dict
        ``playbook_objective`` (the best over training; the worst possible value, an infinity, where infeasible; NaN
        without an evaluation), ``playbook_status``, ``playbook_reason`` ("" where complete), ``playbook_best_step``
        and ``playbook_max_steps`` (-1 where unknown) are always there, because a chart over many runs loses each run
        that lacks one of its keys. ``playbook_final_objective``, ``playbook_clipped_share``,
        ``playbook_examples_per_second``, ``playbook_data_wait_share``, ``playbook_seconds`` and the percentiles
        ``playbook_gradient_norm_p50``, ``_p90`` and ``_p99`` are left out where unknown.
    """
    known = {name: getattr(record, name) for name in ("final_objective", *_SCALARS)}
    if len(record.gradient_norm_quantiles):
        known |= {f"gradient_norm_p{percentile}": record.clip_threshold(percentile) for percentile in (50, 90, 99)}
    return {
        "playbook_objective": record.objective,
        "playbook_status": str(record.status),
        "playbook_reason": record.reason,
        "playbook_best_step": record.best_step,
        "playbook_max_steps": int(record.max_steps),
        **{f"playbook_{name}": float(value) for name, value in known.items() if not math.isnan(value)},
    }


_SCALARS = ("clipped_share", "examples_per_second", "data_wait_share", "seconds")


def _encode(record: TrialRecord) -> dict[str, Any]:
    """Return a record as JSON values; NaN becomes null and infinities strings, which strict JSON can hold."""
    curve = record.curve
    edges, counts = record.gradient_norm_histogram
    return {
        "version": _VERSION,
        "direction": record.direction,
        "objective_name": record.objective_name,
        "status": str(record.status),
        # A reason can quote a whole traceback.
        "reason": record.reason[:2000],
        "max_steps": int(record.max_steps),
        "curve": {
            "step": [int(step) for step in curve.step],
            "validation": _plain(curve.validation),
            "train": _plain(curve.train),
            "learning_rate": _plain(curve.learning_rate),
            "gradient_norm": _plain(curve.gradient_norm),
            "metrics": {name: _plain(column) for name, column in curve.metrics.items()},
            **{name: _plain(column) for name, column in curve.columns().items() if _is_added(name, column)},
        },
        "gradient_norm_quantiles": _plain(record.gradient_norm_quantiles),
        "gradient_norm_histogram": [_plain(edges), [int(count) for count in counts]],
        **{name: _plain([getattr(record, name)])[0] for name in _SCALARS},
        "checkpoints": list(record.checkpoints[:20]),
    }


def _is_added(name: str, column: NDArray[np.float64]) -> bool:
    return name in _ADDED and not np.isnan(column).all()


def _plain(values: ArrayLike) -> list[float | str | None]:
    numbers = np.asarray(values, dtype=np.float64).tolist()
    return [
        number if math.isfinite(number) else None if math.isnan(number) else "inf" if number > 0 else "-inf"
        for number in numbers
    ]


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)


def _numbers(values: Sequence[float | str | None]) -> NDArray[np.float64]:
    return np.array([_number(value) for value in values], dtype=np.float64)
