"""Which evaluations were made, which files hold them, and which is best? The index beside the checkpoints.

Playbook: "Saving checkpoints and retrospectively selecting the best checkpoint".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from playbook_plugins.lightning.atomic_files import write_atomically

INDEX_NAME = "checkpoints.json"
_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One evaluation of a run.

    Attributes
    ----------
    step
        In optimizer steps.
    score
        The monitored metric, finite or not.
    file
        The checkpoint of this evaluation: its name in the folder, or an absolute path elsewhere; None where none is
        kept.
    metrics
        All metrics at that moment, by name.
    time
        Seconds since the epoch.
    """

    step: int
    score: float
    file: str | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    time: float = math.nan

    def value(self, metric: str | None) -> float:
        """Return a metric of this evaluation, the score for None; NaN where it was not logged."""
        return self.score if metric is None else self.metrics.get(metric, math.nan)

    def to_dict(self) -> dict[str, Any]:
        """Return strict JSON values: NaN becomes null and infinities strings, which JSON can hold."""
        return {
            "step": self.step,
            "score": _plain(self.score),
            "file": self.file,
            "metrics": {name: _plain(value) for name, value in self.metrics.items()},
            "time": _plain(self.time),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """Rebuild an evaluation from `to_dict`."""
        return cls(
            step=int(data["step"]),
            score=_number(data["score"]),
            file=data["file"],
            metrics={name: _number(value) for name, value in data["metrics"].items()},
            time=_number(data["time"]),
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointIndex:
    """All evaluations of a run, as ``checkpoints.json`` keeps them.

    Attributes
    ----------
    monitor
        The metric by which checkpoints were kept.
    mode
        ``"min"`` or ``"max"``: which way it gets better.
    evaluations
        In the order of training.
    last
        The name of the file to resume from.
    earlier_runs
        The evaluations of former runs into the same folder, whose files are left alone.
    """

    monitor: str
    mode: str
    evaluations: tuple[Evaluation, ...] = ()
    last: str | None = None
    earlier_runs: tuple[tuple[Evaluation, ...], ...] = ()

    def ranked(self, metric: str | None = None, mode: str | None = None) -> list[Evaluation]:
        """Return the evaluations with a file and a finite metric, the best first, the earlier of equals."""
        return rank((row for row in self.evaluations if row.file is not None), metric, mode or self.mode)

    def write(self, folder: Path) -> None:
        """Replace the index of a folder at once.

        Raises
        ------
        OSError
            When it cannot be written; the earlier index is then intact.
        """
        data = {
            "version": _VERSION,
            "monitor": self.monitor,
            "mode": self.mode,
            "last": self.last,
            "evaluations": [row.to_dict() for row in self.evaluations],
            "earlier_runs": [[row.to_dict() for row in run] for run in self.earlier_runs],
        }
        write_atomically(folder / INDEX_NAME, json.dumps(data, allow_nan=False).encode())

    @classmethod
    def read(cls, folder: str | Path) -> CheckpointIndex:
        """Read the index of a folder.

        Raises
        ------
        ValueError
            When the folder has no index, or one of another kind.
        """
        path = Path(folder) / INDEX_NAME
        try:
            text = path.read_text()
        except OSError as error:
            raise ValueError(
                f"`folder` is {str(folder)!r}: it holds no {INDEX_NAME}. Pass the folder into which BestCheckpoints "
                "wrote."
            ) from error
        try:
            data = json.loads(text)
            version = data["version"]
            if version != _VERSION:
                raise ValueError(f"version {version}")
            return cls(
                monitor=data["monitor"],
                mode=data["mode"],
                last=data["last"],
                evaluations=tuple(Evaluation.from_dict(row) for row in data["evaluations"]),
                earlier_runs=tuple(
                    tuple(Evaluation.from_dict(row) for row in run) for run in data.get("earlier_runs", ())
                ),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"`folder` is {str(folder)!r}: its {INDEX_NAME} is not an index of version {_VERSION} of "
                "BestCheckpoints. Upgrade playbook-plugins if a newer one wrote it, or use another folder."
            ) from error


def rank(rows: Iterable[Evaluation], metric: str | None, mode: str) -> list[Evaluation]:
    """Sort evaluations with a finite metric, the best first, the earlier of equals."""
    sign = 1 if mode == "min" else -1
    finite = [row for row in rows if math.isfinite(row.value(metric))]
    return sorted(finite, key=lambda row: (sign * row.value(metric), row.step))


def select_checkpoint(folder: str | Path, metric: str | None = None, mode: str | None = None) -> str:
    """Choose in retrospect: return the path of the best checkpoint that a folder holds.

    Playbook: "Saving checkpoints and retrospectively selecting the best checkpoint".

    Parameters
    ----------
    folder
        Into which `BestCheckpoints` wrote; it may have been moved.
    metric
        Any metric that was logged at the evaluations; by default the monitored one. Only kept files can be chosen:
        keep them all (``save_top_k=-1``) to choose freely by another metric.
    mode
        ``"min"`` or ``"max"``; needed with another metric than the monitored one.

    Raises
    ------
    ValueError
        When the folder has no index, no kept file has the metric, or `mode` is missing.
    """
    index = CheckpointIndex.read(folder)
    if mode not in (None, "min", "max"):
        raise ValueError(f"`mode` is {mode!r}: it must be 'min' or 'max'. Pass which way the metric gets better.")
    if metric is not None and metric != index.monitor and mode is None:
        raise ValueError(
            f"`mode` is None, and `metric` is {metric!r}: the folder knows the direction of {index.monitor!r} only. "
            "Pass 'min' or 'max'."
        )
    for row in index.ranked(None if metric == index.monitor else metric, mode):
        path = Path(folder) / str(row.file)
        if path.is_file():
            return str(path)
    known = sorted({name for row in index.evaluations if row.file is not None for name in row.metrics})
    raise ValueError(
        f"`metric` is {metric or index.monitor!r}: no kept checkpoint in {str(folder)!r} has a finite value of it. "
        f"Pass one of {known}."
    )


def load_best(
    model: torch.nn.Module,
    folder: str | Path,
    metric: str | None = None,
    mode: str | None = None,
    weights_only: bool = True,
) -> str:
    """Load the weights of the best checkpoint of a folder into a model, and return its path.

    Parameters
    ----------
    model
        The module whose checkpoints they are, on any device.
    folder, metric, mode
        As in `select_checkpoint`.
    weights_only
        Read tensors and plain values only, as is safe with files of others. Turn it off for files of your own that
        hold objects, hyperparameters for instance.

    Raises
    ------
    ValueError
        As `select_checkpoint`.
    """
    path = select_checkpoint(folder, metric, mode)
    checkpoint = torch.load(path, map_location="cpu", weights_only=weights_only)
    model.load_state_dict(checkpoint["state_dict"])
    return path


def _plain(value: float) -> float | str | None:
    return None if math.isnan(value) else value if math.isfinite(value) else str(value)


def _number(value: float | str | None) -> float:
    return math.nan if value is None else float(value)
