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

from playbook_plugins.analysis.infeasible import InfeasibleError
from playbook_plugins.analysis.records import Curve, Status, TrialRecord
from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import DEEPSPEED, SPAWNED, is_fitting, refuse
from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.divergence import LossWatch
from playbook_plugins.lightning.early_read import EarlyRead, widen
from playbook_plugins.lightning.random_state import RandomState
from playbook_plugins.lightning.summary import classify as classify
from playbook_plugins.lightning.summary import log_summary
from playbook_plugins.lightning.training_time import TrainingTime, count_examples, time_fetches

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from torch.optim import Optimizer

# The columns of a row: those of a curve, and the other metrics behind a prefix that keeps them apart.
_NORMS = ("gradient_norm", "gradient_norm_max")
_COLUMNS = ("step", "validation", "train", "learning_rate", *_NORMS, "clip_threshold")
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
    divergence_factor
        Above 1: also stop, and mark infeasible, where the training loss is uncharacteristically high, at least 180 of
        its last 200 values above about this multiple of its start. `LossWatch` states the rule, which also serves
        losses that start near zero or below, and its false alarms. None, the default, leaves it off; 2 is a cautious
        value. Each optimizer's losses are judged for themselves. Not meant for losses that healthy training raises.
    clock
        Returns the time in seconds; for tests.

    Notes
    -----
    - Each evaluation adds a row to the curve: the optimizer step; the monitored value; the mean of the training
      objectives since the evaluation before, over all batches and ranks; the rate of the first
      parameter group in the last step; with `PercentileGradientClipping`, the median and the largest gradient norm
      since the evaluation before and the first optimizer's threshold; and every other scalar logged during
      validation. Two evaluations at one step leave the later one.
    - Status: COMPLETE after a normal end, early stopping included; INFEASIBLE after `InfeasibleError` or out of
      memory; PRUNED after Optuna's ``TrialPruned``; FAILED after any other exception or an interrupt; RUNNING before.
    - Training time runs from asking for a batch to the end of its step, so that validation, checkpoints and logging
      are left out. Its share spent in the loader's ``next`` is the wait for data. The first batch of each fit, which
      pays for start-up, counts for neither. Examples are counted by the first dimension of the first tensor in the
      batch, or its ``num_graphs``, times the number of ranks.
    - The loss is read on the host once a step, before the update. On CUDA its copy starts before the backward pass,
      so that the host waits for the forward pass at most and the device for nothing.
    - When a fit ends, by an exception too, the flat keys of `summary_keys` (``playbook_objective``,
      ``playbook_status``, ...) are logged to every logger of the trainer, before it is closed. A run that ended
      normally without an evaluation has the status "failed" there.
    - Checkpoints hold the random number generators of every rank, and a resumed run goes on with them: with
      `ResumableDataLoader` it equals the run that was interrupted, bit for bit (`random_state.py` states the limits).

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed
      accumulation         yes: the loss of a step is the mean over its batches
      manual optimization  yes: two optimizers, a divergence rule each; train is NaN where training_step returns none
      ddp                  yes: one small reduction a step, so that all ranks stop together
      ddp_spawn            refused: the record would stay behind in the worker process
      FSDP                 yes: FSDP1 and FSDP2, resumed too
      DeepSpeed            refused: whether all ranks stop before the update is not tested there
      compile              yes: a compiled network inside the module
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"],
        train: str = "loss",
        divergence_factor: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(
                f"`mode` is {mode!r}: it must be 'min' or 'max'. Pass the way in which {monitor} gets better."
            )
        self.monitor = monitor
        self.mode = mode
        self.train = train
        self.divergence_factor = divergence_factor
        # Refuses a factor out of range.
        LossWatch(divergence_factor)
        self.clock = clock
        self._restored = False
        self._random = RandomState()
        self._clipping: PercentileGradientClipping | None = None
        self._keepers: list[Any] = []
        self._untime: Callable[[], None] | None = None
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
        self._read: EarlyRead | None = None
        # One an optimizer, by its place.
        self._watches: list[LossWatch] = []
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
        return self._make_record(self._status, self._reason)

    def _make_record(self, status: Status, reason: str) -> TrialRecord:
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
            status=status,
            reason=reason,
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
            why = "whether all ranks stop before the update that would destroy the weights is not tested there"
            refuse(trainer, self, DEEPSPEED, why, "Use ddp, or ModelParallelStrategy.")
        self._random.setup(trainer, pl_module, stage)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._restored and trainer.global_step == 0:
            self._forget()
        self._restored = False
        self._time.begin_fit()
        self._status, self._reason, self._loss, self._read = Status.RUNNING, "", None, None
        callbacks: list[Any] = list(trainer.callbacks)  # type: ignore[attr-defined]
        self._clipping = next((one for one in callbacks if isinstance(one, PercentileGradientClipping)), None)
        self._keepers = [one for one in callbacks if hasattr(one, "kept_checkpoints")]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        planned = trainer.estimated_stepping_batches
        self._max_steps = -1 if math.isinf(planned) else int(planned)
        self._untime = time_fetches(trainer.fit_loop.epoch_loop, self._time)
        self._random.on_train_start(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._time.begin_batch()

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            # Lightning hands over the scaled loss. A scale of 0 is what is left of it after many skipped updates.
            scale = scaler._get_scale_async().to(loss.device)
            loss = loss / torch.where(scale == 0, torch.ones_like(scale), scale)
        # Under accumulation or several optimizers the sum is finite only where every loss is.
        self._loss = loss.detach() if self._loss is None else self._loss + loss.detach()
        self._read = EarlyRead(self._loss)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if optimizer is trainer.optimizers[0]:
            rate = optimizer.param_groups[0]["lr"]
            self._rate = rate.detach().clone() if isinstance(rate, Tensor) else rate
        fault = None
        if self._read is not None:
            fault = self._watch(trainer, optimizer).observe(self._read.value())
            self._loss = self._read = None
        high = "" if self.divergence_factor is None else ", or uncharacteristically high,"
        self._stop_if(trainer, fault, f"training loss is not finite{high}")

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
            self._train_sum = self._train_sum + scale * widen(torch.as_tensor(value).detach())
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
            **dict(zip(_NORMS, self._take_norms(), strict=True)),
            "clip_threshold": self._current_threshold(),
        }
        if self._rows and self._rows[-1]["step"] >= step:
            last = self._rows.pop()
            # Nothing was trained in between: what is known of training is in the row before.
            for name in ("train", *_NORMS):
                row[name] = last[name] if math.isnan(row[name]) else row[name]
        self._rows.append(row)
        fault = None if math.isfinite(value) else f"{self.monitor} is {value}"
        self._stop_if(trainer, fault, f"{self.monitor} is not finite")

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._random.on_train_end(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._random.on_fit_end(trainer, pl_module)
        self._end(trainer, Status.COMPLETE, "")

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._random.on_exception(trainer, pl_module, exception)
        if str(getattr(trainer.state.fn, "value", "")) != "fit":
            # A test of the trained model that fails is not the run's end.
            return
        self._end(trainer, *classify(exception))
        if isinstance(exception, InfeasibleError):
            # Whoever catches it, such as Round.objective, keeps the history of the run.
            exception.record = self.record

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._random.on_save_checkpoint(trainer, pl_module, checkpoint)

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._random.on_load_checkpoint(trainer, pl_module, checkpoint)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": {name: torch.tensor(column, dtype=torch.float64) for name, column in self._columns().items()},
            "train_sum": float(self._train_sum),
            "n_trained": self._n_trained,
            "n_norms": list(self._n_norms),
            "rate": float(self._rate),
            "watches": [watch.state_dict() for watch in self._watches],
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
        for state in state_dict["watches"]:
            self._watches.append(LossWatch(self.divergence_factor))
            self._watches[-1].load_state_dict(state)
        self._restored = True

    def _columns(self) -> dict[str, list[float]]:
        names = sorted({name for row in self._rows for name in row}.difference(_COLUMNS))
        return {name: [row.get(name, math.nan) for row in self._rows] for name in (*_COLUMNS, *names)}

    def _watch(self, trainer: Trainer, optimizer: Optimizer) -> LossWatch:
        while len(self._watches) < len(trainer.optimizers):
            self._watches.append(LossWatch(self.divergence_factor))
        places = (place for place, known in enumerate(trainer.optimizers) if known is optimizer)
        return self._watches[next(places, 0)]

    def _stop_if(self, trainer: Trainer, fault: str | None, elsewhere: str) -> None:
        """Raise on all ranks when any has a fault; what the others say of it stands in ``elsewhere``."""
        is_stopped = fault is not None
        if trainer.world_size > 1:
            is_stopped = trainer.strategy.reduce_boolean_decision(is_stopped, all=False)
        if is_stopped:
            raise InfeasibleError(f"diverged: {fault or f'{elsewhere} on another rank'} at step {trainer.global_step}")

    def _take_loss(self, trainer: Trainer) -> float:
        total, count = float(self._train_sum), self._n_trained
        self._train_sum, self._n_trained = 0.0, 0
        if trainer.world_size > 1:
            pair = torch.tensor([total, count], dtype=torch.float32, device=trainer.strategy.root_device)
            total, count = torch.as_tensor(trainer.strategy.reduce(pair, reduce_op="sum")).tolist()
        return total / count if count else math.nan

    def _take_norms(self) -> tuple[float, float]:
        """Return the median and the largest of the norms since the call before, NaN without any."""
        if self._clipping is None:
            return math.nan, math.nan
        histories = [window.history for window in self._clipping.windows]
        known = self._n_norms + [0] * (len(histories) - len(self._n_norms))
        new = [norm for history, start in zip(histories, known, strict=False) for norm in history[start:]]
        self._n_norms = [len(history) for history in histories]
        return (float(np.median(new)), max(new)) if new else (math.nan, math.nan)

    def _current_threshold(self) -> float:
        """Return the norm above which the first optimizer's gradients are clipped, NaN where none are."""
        if self._clipping is None or not self._clipping.windows:
            return math.nan
        threshold = self._clipping.current_threshold(0)
        return math.nan if threshold is None else threshold

    def _end(self, trainer: Trainer, status: Status, reason: str) -> None:
        self._status, self._reason, self._loss, self._read = status, reason, None, None
        self._time.end_fit()
        if self._untime is not None:
            self._untime()
            self._untime = None
        try:
            record = self.record
        except ValueError as error:
            # Without an evaluation, this run has no record; its keys say so.
            record = self._make_record(Status.FAILED, str(error))
        log_summary(trainer, record)


def _validation_metrics(trainer: Trainer) -> dict[str, Tensor]:
    """Return the scalars logged during the validation that has just ended, without those of training."""
    results = trainer._results
    logged: Mapping[str, Any] = {} if results is None else results.metrics(False)["callback"]
    return {name: value for name, value in logged.items() if isinstance(value, Tensor) and value.numel() == 1}
