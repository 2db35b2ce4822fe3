"""What a run consists of, hashed part by part without the code that is tested, and models that leave many traces."""

from __future__ import annotations

import hashlib
import pickle
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def _plain(one: Any) -> Any:
    """Return a picklable picture of nested state, tensors by their bytes."""
    if isinstance(one, Tensor):
        flat = one.detach().cpu().contiguous().reshape(-1)
        content = flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""
        return ("tensor", str(one.dtype), tuple(one.shape), one.requires_grad, content)
    if isinstance(one, np.ndarray):
        return ("array", str(one.dtype), one.shape, one.tobytes())
    if isinstance(one, dict):
        return [(_plain(key), _plain(value)) for key, value in one.items()]
    if isinstance(one, (list, tuple)):
        return [_plain(element) for element in one]
    if isinstance(one, (str, int, float, bool, bytes, type(None))):
        return one
    if isinstance(one, set):
        return sorted(map(repr, one))
    if isinstance(one, torch.Generator):
        return _plain(one.get_state())
    if isinstance(one, np.random.Generator):
        return repr(one.bit_generator.state)
    if type(one).__name__ in ("_ResultMetric", "NormWindow"):
        return [type(one).__name__, _plain(vars(one))]
    return f"{type(one).__name__} at {id(one)}"


def digest(one: Any) -> str:
    return hashlib.sha256(pickle.dumps(_plain(one))).hexdigest()[:16]


def fingerprint(trainer: Any, module: Any, without: Any = ()) -> dict[str, str]:
    """Return a hash of each part of a run, between two of its steps."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    connector = trainer._logger_connector
    others = [callback for callback in trainer.callbacks if callback not in without]
    ordinary = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    parts = {
        "parameters": {name: parameter for name, parameter in module.named_parameters()},
        "identities": [id(parameter) for parameter in module.parameters()],
        "buffers": dict(module.named_buffers()),
        "gradients": [parameter.grad for parameter in module.parameters()],
        "modes": [(name, part.training) for name, part in module.named_modules()],
        "attributes": ordinary,
        "metrics": [vars(part) for part in module.modules() if hasattr(part, "_computed")],
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "optimizer_attributes": [sorted(vars(optimizer)) for optimizer in trainer.optimizers],
        "optimizer_hooks": [len(optimizer._optimizer_step_post_hooks) for optimizer in trainer.optimizers],
        "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
        "scaler": None
        if scaler is None
        else (scaler.state_dict(), str(scaler._scale), len(scaler._per_optimizer_states)),
        "python": random.getstate(),
        "numpy": list(np.random.get_state()),  # noqa: NPY002
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None,
        "callback_metrics": dict(trainer.callback_metrics),
        "logged_metrics": dict(trainer.logged_metrics),
        "progress_bar_metrics": dict(trainer.progress_bar_metrics),
        "connector": {name: value for name, value in vars(connector).items() if name != "trainer"},
        "results": trainer.fit_loop.epoch_loop._results,
        "loggers": [(id(logger), getattr(logger, "calls", None)) for logger in trainer.loggers],
        "callbacks": [(id(callback), callback.state_dict(), vars(callback)) for callback in others],
        "profiler": id(trainer.profiler),
        "trainer": {name: id(value) for name, value in vars(trainer).items()},
        "strategy": {name: id(value) for name, value in vars(trainer.strategy).items()},
        "global_step": trainer.global_step,
        "loops": trainer.fit_loop.state_dict(),
        "current_hook": module._current_fx_name,
        "grad_enabled": torch.is_grad_enabled(),
    }
    return {name: digest(part) for name, part in parts.items()}


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    return [name for name in one if one[name] != other[name]]


class Tracer:
    """A module of which each training step changes whatever can be changed; mix it into a LightningModule.

    Dropout, batch normalization, a torchmetrics metric, counters, lists, generators, random numbers of all kinds, logs
    of all kinds, a frozen part in evaluation mode.
    """

    def __init__(self, optimizer: Any = None, scheduler: bool = True) -> None:
        import torchmetrics

        super().__init__()
        torch.manual_seed(7)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 6), torch.nn.BatchNorm1d(6), torch.nn.Dropout(0.3), torch.nn.Linear(6, 1)
        )
        self.tied = torch.nn.Linear(6, 1)
        self.tied.weight = self.net[3].weight
        self.frozen = torch.nn.Linear(3, 3).requires_grad_(False)
        self.unused = torch.nn.Parameter(torch.zeros(2))
        self.error = torchmetrics.MeanSquaredError()
        self.make_optimizer = optimizer
        self.with_scheduler = scheduler
        self.n_batches = 0
        self.losses: list[float] = []
        self.seen: list[Any] = []
        self.history: dict[str, Any] = {"means": np.zeros(4), "set": {1}, "nested": [{"n": 0}]}
        self.own = torch.Generator().manual_seed(3)
        self.numpy_own = np.random.default_rng(4)
        self.hidden: Tensor | None = None

    def on_train_epoch_start(self) -> None:
        # Training steps depend on what the hooks before them set up.
        self.outputs: list[float] = []
        self.frozen.eval()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        noise = random.random() * 1e-3 + float(np.random.rand()) * 1e-3 + float(self.numpy_own.random()) * 1e-3  # noqa: NPY002
        noisy = x + noise + 1e-3 * torch.randn(x.shape) + 1e-3 * torch.randn(x.shape, generator=self.own)
        predicted = self.net(noisy.to(self.net[0].weight.dtype) + self.frozen(x).sum() * 0)
        loss = torch.nn.functional.mse_loss(predicted.to(y.dtype), y)
        self.error(predicted.detach().to(y.dtype), y)
        self.n_batches += 1
        self.losses.append(float(loss.detach()))
        self.outputs.append(float(loss.detach()))
        self.seen.append(x.sum().item())
        self.history["means"][self.n_batches % 4] = float(loss.detach())
        self.history["set"].add(self.n_batches)
        self.history["nested"][0]["n"] += 1
        self.hidden = predicted.detach()
        self.log("loss", loss, prog_bar=True, on_step=True, on_epoch=True, sync_dist=True, batch_size=len(x))
        self.log("error", self.error, on_step=False, on_epoch=True, batch_size=len(x))
        if self.logger is not None and hasattr(self.logger, "calls"):
            self.logger.log_metrics({"direct": float(loss.detach())}, step=self.n_batches)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.outputs.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        make = self.make_optimizer or (lambda them: torch.optim.SGD(them, lr=0.05, momentum=0.9))
        optimizer = make(parameters)
        if not self.with_scheduler:
            return optimizer
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
