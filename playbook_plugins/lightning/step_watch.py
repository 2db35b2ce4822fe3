"""What happens in every single step? Loss, gradient norm and evaluation, until the first that is not finite.

Playbook: "How can optimization failures be debugged and mitigated?", "Identifying unstable workloads".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from playbook_plugins.analysis.gradient_norms import norm_histogram, norm_quantiles
from playbook_plugins.analysis.infeasible import InfeasibleError
from playbook_plugins.analysis.records import Curve, Status, TrialRecord
from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import is_fitting
from playbook_plugins.lightning.gradient_norm import total_norm

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from torch.optim import Optimizer

# A row of a probe's curve; other metrics go behind a prefix that keeps them apart.
_COLUMNS = ("step", "train", "learning_rate", "gradient_norm")
_METRICS = "metrics."


class StepWatch(CallbackBase):
    """Keeps the loss, the gradient norm and the evaluation of every step, and ends a run that is no longer finite."""

    def __init__(self, monitor: str | None) -> None:
        self.monitor = monitor
        self._rows: list[dict[str, float]] = []
        self._reason = ""
        self._max_steps = -1
        self._begin_step()

    def _begin_step(self) -> None:
        self._losses: list[float] = []
        self._backward: list[float] = []
        self._norm = math.nan
        self._rate = math.nan

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._max_steps = trainer.max_steps

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        value = _share(trainer, pl_module) * float(loss.detach())
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            value /= float(scaler.get_scale())
        self._backward.append(value)
        # What overflows only after scaling is left to the scaler, which skips that update.
        if not math.isfinite(value) and (scaler is None or math.isnan(value)):
            self._losses = [value]
            self._stop(trainer, f"diverged: training loss is {value}")

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if optimizer is trainer.optimizers[0]:
            self._rate = float(optimizer.param_groups[0]["lr"])
        if not gradients:
            return
        norm = float(total_norm(gradients))
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            norm /= float(scaler.get_scale())
        if math.isfinite(norm):
            # Of several optimizers together.
            self._norm = norm if math.isnan(self._norm) else math.hypot(self._norm, norm)
        elif scaler is None:
            self._norm = norm
            self._losses = self._losses or self._backward[-1:]
            self._stop(trainer, "non-finite gradient norm")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        value = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if value is not None:
            self._losses.append(_share(trainer, pl_module) * float(torch.as_tensor(value).detach()))
        elif self._backward:
            self._losses.append(sum(self._backward))
        self._backward = []
        loss = self._losses[-1] if self._losses else 0.0
        if not math.isfinite(loss) and getattr(trainer.precision_plugin, "scaler", None) is None:
            # Of an optimization by hand, which went on with it.
            self._reason = f"diverged: training loss is {loss} at step {trainer.global_step}"
        if trainer.global_step > (self._rows[-1]["step"] if self._rows else 0):
            self._add_row(trainer.global_step)
        if self._reason:
            raise InfeasibleError(self._reason)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results = trainer._results
        if not is_fitting(trainer) or results is None:
            return
        step = trainer.global_step
        if not self._rows or self._rows[-1]["step"] != step:
            self._rows.append({"step": step})
        logged: Mapping[str, Any] = results.metrics(False)["callback"]
        metrics = {name: float(value) for name, value in logged.items() if value.numel() == 1}
        name = self.monitor = self._find_monitor(metrics)
        self._rows[-1] |= {f"{_METRICS}{key}": value for key, value in metrics.items()}
        if name is not None and not math.isfinite(metrics[name]):
            self._reason = f"diverged: {name} is {metrics[name]} at step {step}"
            raise InfeasibleError(self._reason)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, InfeasibleError):
            self._reason = exception.reason

    def record(self) -> TrialRecord:
        """Return what happened, a row a step."""
        names = sorted({name for row in self._rows for name in row}.difference(_COLUMNS))
        columns = {name: [row.get(name, math.nan) for row in self._rows] for name in (*_COLUMNS, *names)}
        metrics = {name.removeprefix(_METRICS): columns.pop(name) for name in names}
        if not self._reason and not np.isfinite(columns["train"]).any():
            raise ValueError(
                "`model` returned no loss from training_step, and none went through self.manual_backward: there is no "
                "training loss to judge. Return the loss."
            )
        norms = np.asarray(columns["gradient_norm"], dtype=np.float64)
        norms = norms[np.isfinite(norms)]
        validation = columns["train"] if self.monitor is None else metrics.pop(self.monitor)
        return TrialRecord(
            direction="minimize",
            objective_name=self.monitor or "train_loss",
            status=Status.INFEASIBLE if self._reason else Status.COMPLETE,
            reason=self._reason,
            max_steps=self._max_steps,
            curve=Curve.from_columns(validation=validation, metrics=metrics, **columns),
            gradient_norm_quantiles=norm_quantiles(norms),
            gradient_norm_histogram=norm_histogram(norms),
        )

    def _add_row(self, step: int) -> None:
        self._rows.append(
            {
                "step": step,
                "train": sum(self._losses) / len(self._losses) if self._losses else math.nan,
                "learning_rate": self._rate,
                "gradient_norm": self._norm,
            }
        )
        self._begin_step()

    def _stop(self, trainer: Trainer, what: str) -> None:
        self._reason = f"{what} at step {trainer.global_step}"
        self._add_row(trainer.global_step + 1)
        raise InfeasibleError(self._reason)

    def _find_monitor(self, metrics: Mapping[str, float]) -> str | None:
        if self.monitor is not None and self.monitor not in metrics:
            raise ValueError(
                f"`monitor` is {self.monitor!r}: validation logged no such metric. Log it in validation_step by "
                f"self.log({self.monitor!r}, ...), or pass one of {sorted(metrics)}."
            )
        if self.monitor is not None or "val_loss" in metrics:
            return self.monitor or "val_loss"
        losses = [name for name in metrics if "loss" in name.lower()]
        return losses[0] if len(losses) == 1 else None


def _share(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return into how many shares Lightning divides a loss, under accumulation."""
    return trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
