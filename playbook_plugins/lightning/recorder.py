"""What happened in this run? A callback that fills the trial's record and stops a run that has diverged.

Playbook: "Examining the training curves", "Identifying bad search space boundaries" (infeasible points).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from playbook_plugins.analysis.infeasible import InfeasibleError, is_out_of_memory
from playbook_plugins.analysis.records import Curve, Status, TrialRecord
from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import SPAWNED, is_fitting, refuse
from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.training_time import TrainingTime, count_examples

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from torch.optim import Optimizer

# The columns of a row: those of a curve, and the other metrics behind a prefix that keeps them apart.
_COLUMNS = ("step", "validation", "train", "learning_rate", "gradient_norm")
_METRICS = "metrics."


class TrialRecorder(CallbackBase):
    """Record the curve and the outcome of a run, and stop it at once where it diverges.

    A NaN or infinite training loss, or monitored value, raises `InfeasibleError` out of ``trainer.fit`` on all ranks,
    in the step where it occurs and before the weights are updated with it. (Not through ``trainer.should_stop``,
    which waits for ``min_steps`` and evaluates once more.) `record` can be read at any time: during training, after a
    normal end, and after any exception.

    Parameters
    ----------
    monitor
        The objective: a metric that is logged during validation.
    mode
        ``"min"`` or ``"max"``: which way it gets better.
    train
        Which entry of what `training_step` returns is the training objective of the curve: ``"loss"``, or the key of
        the monitored quantity on the training batch, for instance ``"error"`` of ``{"loss": ..., "error": ...}``, so
        that both curves have one unit.
    clock
        Returns the time in seconds; for tests.

    Notes
    -----
    - Each evaluation adds a row to the curve: the optimizer step; the monitored value; the mean of the training
      objectives since the evaluation before, over all batches and ranks; the rate of the first
      parameter group in the last step; the median gradient norm since the evaluation before (with
      `PercentileGradientClipping`); and every other scalar logged during validation. Two evaluations at one step leave
      the later one.
    - Status: COMPLETE after a normal end, early stopping included; INFEASIBLE after `InfeasibleError` or out of
      memory; PRUNED after Optuna's ``TrialPruned``; FAILED after any other exception or an interrupt; RUNNING before.
    - Training time runs from asking for a batch to the end of its step, so that validation, checkpoints and logging
      are left out. Its share spent in the loader's ``next`` is the wait for data. The first batch of each fit, which
      pays for start-up, counts for neither. Examples are counted by the first dimension of the first tensor in the
      batch, or its ``num_graphs``, times the number of ranks.
    - The finiteness of the loss is read on the host once a step, before the update: beside
      `PercentileGradientClipping`, which waits there for the gradient norm anyhow, it adds no wait.

    Support: any precision, gradient accumulation, manual optimization with several optimizers (the training loss is
    NaN where `training_step` returns none), ddp (one small reduction a step, so that all ranks stop together),
    compiled modules. FSDP and DeepSpeed by construction, not yet tested. ddp_spawn and its kin are refused: the record
    would stay behind in the worker.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"],
        train: str = "loss",
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(
                f"`mode` is {mode!r}: it must be 'min' or 'max'. Pass the way in which {monitor} gets better."
            )
        self.monitor = monitor
        self.mode = mode
        self.train = train
        self.clock = clock
        self._restored = False
        self._clipping: PercentileGradientClipping | None = None
        self._keepers: list[Any] = []
        self._fetching: tuple[Any, Any, Any] | None = None
        self._forget()

    def _forget(self) -> None:
        self._status = Status.RUNNING
        self._reason = ""
        self._rows: list[dict[str, float]] = []
        self._max_steps = -1
        # Since the evaluation before: the sum of the training objectives (on the device), their number, and how many
        # norms were told already.
        self._train_sum: Tensor | float = 0.0
        self._n_trained = 0
        self._n_norms: list[int] = []
        self._loss: Tensor | None = None
        self._rate: float | Tensor = math.nan
        self._time = TrainingTime(self.clock)

    @property
    def record(self) -> TrialRecord:
        """The record of the run so far.

        Raises
        ------
        ValueError
            When a run has ended normally without a single evaluation.
        """
        columns = self._columns()
        clipping = self._clipping
        more: dict[str, Any] = {}
        if clipping is not None:
            more = {
                "gradient_norm_quantiles": clipping.quantiles(),
                "gradient_norm_histogram": clipping.histogram(),
                "clipped_share": clipping.clipped_share,
            }
        return TrialRecord(
            direction="minimize" if self.mode == "min" else "maximize",
            objective_name=self.monitor,
            status=self._status,
            reason=self._reason,
            max_steps=self._max_steps,
            curve=Curve.from_columns(
                **{name: columns.pop(name) for name in _COLUMNS},
                metrics={name.removeprefix(_METRICS): column for name, column in columns.items()},
            ),
            examples_per_second=self._time.examples_per_second,
            data_wait_share=self._time.wait_share,
            seconds=self._time.seconds,
            checkpoints=tuple(str(path) for keeper in self._keepers for path in keeper.kept_checkpoints),
            **more,
        )

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            refuse(trainer, self, SPAWNED, "the record would stay behind in the worker process", "Use strategy='ddp'.")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._restored and trainer.global_step == 0:
            self._forget()
        self._restored = False
        self._time.begin_fit()
        self._status, self._reason, self._loss = Status.RUNNING, "", None
        callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
        self._clipping = next((one for one in callbacks if isinstance(one, PercentileGradientClipping)), None)
        self._keepers = [one for one in callbacks if hasattr(one, "kept_checkpoints")]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        planned = trainer.estimated_stepping_batches
        self._max_steps = -1 if math.isinf(planned) else int(planned)
        # The training loop hands these two to the loader's iterator at the start of every epoch.
        loop: Any = trainer.fit_loop.epoch_loop
        self._fetching = (loop, loop._on_before_fetch, loop._on_after_fetch)
        loop._on_before_fetch = self._before_fetch
        loop._on_after_fetch = self._after_fetch

    def _before_fetch(self) -> None:
        self._time.begin_wait()
        if self._fetching is not None:
            self._fetching[1]()

    def _after_fetch(self) -> None:
        if self._fetching is not None:
            self._fetching[2]()
        self._time.end_wait()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._time.begin_batch()

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # Under accumulation or several optimizers the sum is finite only where every loss is.
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if optimizer is trainer.optimizers[0]:
            rate = optimizer.param_groups[0]["lr"]
            self._rate = rate.detach().clone() if isinstance(rate, Tensor) else rate
        loss = math.nan if self._loss is None else float(self._loss)
        is_finite = self._loss is None or math.isfinite(loss)
        self._loss = None
        self._stop_unless(trainer, is_finite, "training loss", loss)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        value = outputs.get(self.train) if isinstance(outputs, Mapping) else outputs if self.train == "loss" else None
        if value is None and self.train != "loss":
            raise ValueError(
                f"`train` is {self.train!r}: training_step returned no such entry, but the training objective of the "
                f"curve is read from there. Return {{'loss': ..., {self.train!r}: ...}}, or leave train='loss'."
            )
        if value is not None:
            # Lightning hands over the share of the loss that enters the accumulated gradient.
            is_share = self.train == "loss" and pl_module.automatic_optimization
            scale = trainer.accumulate_grad_batches if is_share else 1
            self._train_sum = self._train_sum + scale * _widen(torch.as_tensor(value).detach())
            self._n_trained += 1
        self._time.end_batch(count_examples(batch) * trainer.world_size)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer):
            return
        metrics = {name: float(value) for name, value in _validation_metrics(trainer).items()}
        if self.monitor not in metrics:
            raise ValueError(
                f"`monitor` is {self.monitor!r}: validation logged no such metric. Log it in validation_step by "
                f"self.log({self.monitor!r}, ...), or pass one of {sorted(metrics)}."
            )
        step, value = trainer.global_step, metrics.pop(self.monitor)
        row = {f"{_METRICS}{name}": metric for name, metric in metrics.items()}
        row |= {
            "step": step,
            "validation": value if math.isfinite(value) else math.nan,
            "train": self._take_loss(trainer),
            "learning_rate": float(self._rate),
            "gradient_norm": self._take_norm(),
        }
        if self._rows and self._rows[-1]["step"] >= step:
            last = self._rows.pop()
            # Nothing was trained in between: what is known of training is in the row before.
            for name in ("train", "gradient_norm"):
                row[name] = last[name] if math.isnan(row[name]) else row[name]
        self._rows.append(row)
        self._stop_unless(trainer, math.isfinite(value), self.monitor, value)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(Status.COMPLETE, "")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._end(*classify(exception))
        if isinstance(exception, InfeasibleError):
            # Whoever catches it, such as Round.objective, keeps the history of the run.
            exception.record = self.record

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": {name: torch.tensor(column, dtype=torch.float64) for name, column in self._columns().items()},
            "train_sum": float(self._train_sum),
            "n_trained": self._n_trained,
            "n_norms": list(self._n_norms),
            "rate": float(self._rate),
            "time": self._time.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._forget()
        columns = {name: column.tolist() for name, column in state_dict["rows"].items()}
        self._rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        self._train_sum = state_dict["train_sum"]
        self._n_trained = state_dict["n_trained"]
        self._n_norms = list(state_dict["n_norms"])
        self._rate = state_dict["rate"]
        self._time.load_state_dict(state_dict["time"])
        self._restored = True

    def _columns(self) -> dict[str, list[float]]:
        names = sorted({name for row in self._rows for name in row}.difference(_COLUMNS))
        return {name: [row.get(name, math.nan) for row in self._rows] for name in (*_COLUMNS, *names)}

    def _stop_unless(self, trainer: Trainer, is_finite: bool, name: str, value: float) -> None:
        """Raise on all ranks when the value of any is not finite."""
        is_stopped = not is_finite
        if trainer.world_size > 1:
            is_stopped = trainer.strategy.reduce_boolean_decision(is_stopped, all=False)
        if is_stopped:
            what = f"{name} is {value}" if not is_finite else f"{name} is not finite on another rank"
            raise InfeasibleError(f"diverged: {what} at step {trainer.global_step}")

    def _take_loss(self, trainer: Trainer) -> float:
        total, count = float(self._train_sum), self._n_trained
        self._train_sum, self._n_trained = 0.0, 0
        if trainer.world_size > 1:
            pair = torch.tensor([total, count], dtype=torch.float32, device=trainer.strategy.root_device)
            total, count = torch.as_tensor(trainer.strategy.reduce(pair, reduce_op="sum")).tolist()
        return total / count if count else math.nan

    def _take_norm(self) -> float:
        """Return the median of the norms since the call before, NaN without any."""
        if self._clipping is None:
            return math.nan
        histories = [window.history for window in self._clipping.windows]
        known = self._n_norms + [0] * (len(histories) - len(self._n_norms))
        new = [norm for history, start in zip(histories, known, strict=False) for norm in history[start:]]
        self._n_norms = [len(history) for history in histories]
        return float(np.median(new)) if new else math.nan

    def _end(self, status: Status, reason: str) -> None:
        self._status, self._reason, self._loss = status, reason, None
        self._time.end_fit()
        if self._fetching is not None:
            loop = self._fetching[0]
            del loop._on_before_fetch, loop._on_after_fetch
            self._fetching = None


def classify(exception: BaseException) -> tuple[Status, str]:
    """Return how a run that ended by this exception is to be counted, and why.

    `InfeasibleError` and out of memory (CUDA, MPS, XPU, the CPU allocator, Python) mean that the point itself cannot
    be trained; Optuna's ``TrialPruned`` that it was not worth finishing; anything else is a failure.
    """
    text = str(exception)
    if isinstance(exception, InfeasibleError):
        return Status.INFEASIBLE, exception.reason
    if is_out_of_memory(exception):
        return Status.INFEASIBLE, f"out of memory: {text.partition(chr(10))[0][:300]}" if text else "out of memory"
    if any(cls.__name__ == "TrialPruned" for cls in type(exception).__mro__):
        return Status.PRUNED, text or "pruned"
    return Status.FAILED, repr(exception)[:500]


def _widen(loss: Tensor) -> Tensor | float:
    """Return the loss in double precision where the device has it, without waiting for the device."""
    if loss.device.type == "cpu":
        return float(loss)
    return loss.float() if loss.device.type == "mps" else loss.double()


def _validation_metrics(trainer: Trainer) -> dict[str, Tensor]:
    """Return the scalars logged during the validation that has just ended, without those of training."""
    results = trainer._results
    logged: Mapping[str, Any] = {} if results is None else results.metrics(False)["callback"]
    return {name: value for name, value in logged.items() if isinstance(value, Tensor) and value.numel() == 1}
