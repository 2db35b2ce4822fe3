"""Small modules and helpers for the tests of averaging, batch-norm pooling and checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch
import process_groups  # noqa: F401  (leaves the process group at exit)
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

PACKAGES = [pytorch_lightning, lightning.pytorch]
MODULES = [pytorch_lightning.LightningModule, lightning.pytorch.LightningModule]

# Lightning's own advice, of no interest to these tests.
LIGHTNING_WARNINGS = [
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*dataloader is not resumable.*",
    "ignore:.*ended before the epoch ended and your dataloader is not resumable",
    "ignore:.*The number of training batches .* is smaller than the logging interval",
    "ignore:GPU available but not used",
    "ignore:.*callbacks used to create the checkpoint need to be provided.*",
    "ignore:.*isinstance.treespec, LeafSpec.. is deprecated.*",
]


class _Toy:
    """A regression with every kind of buffer; mixed into the LightningModule of either package."""

    def build(self, batch_norm: bool = True, learning_rate: float = 0.1, optimizer: str = "sgd") -> None:
        torch.manual_seed(0)
        self.inputs = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8) if batch_norm else nn.Identity()
        self.outputs = nn.Linear(8, 1)
        self.register_buffer("positions", torch.arange(512))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.learning_rate = learning_rate
        self.optimizer_name = optimizer
        self.seen: list[tuple[int, torch.Tensor]] = []  # the weights that evaluations used
        self.fail_at: int | None = None
        self.failure: type[BaseException] = RuntimeError

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outputs(torch.relu(self.norm(self.inputs(x))))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        if self.fail_at is not None and self.trainer.global_step >= self.fail_at:
            raise self.failure("on purpose")
        if batch_idx == 0:
            self.seen.append((self.trainer.global_step, self.outputs.weight.detach().clone()))
        self.log("val_loss", nn.functional.mse_loss(self(x), y))
        self.log("step_metric", float(self.trainer.global_step))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("test_loss", nn.functional.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        if self.optimizer_name == "adam":
            return torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


class PytorchLightningToy(_Toy, pytorch_lightning.LightningModule):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.build(**settings)


class LightningToy(_Toy, lightning.pytorch.LightningModule):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.build(**settings)


def toy(package: Any, **settings: Any) -> Any:
    return (PytorchLightningToy if package is pytorch_lightning else LightningToy)(**settings)


def loaders(n_batches: int = 8, batch_size: int = 4, shift: float = 0.0) -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n_batches * batch_size, 4, generator=generator) + shift
    y = x.sum(dim=1, keepdim=True) + 0.1 * torch.randn(len(x), 1, generator=generator)
    data = TensorDataset(x, y)
    return DataLoader(data, batch_size=batch_size), DataLoader(data, batch_size=2 * batch_size)


def trainer(package: Any, folder: Path, callbacks: list[Any], **settings: Any) -> Any:
    options: dict[str, Any] = {
        "max_steps": 12,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any("Checkpoint" in type(callback).__name__ for callback in callbacks),
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
        "val_check_interval": 4,
    }
    return package.Trainer(callbacks=callbacks, **(options | settings))


class Recorder:
    """Keep the weights after every optimizer step; mixed into the callbacks of both packages."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > len(self.weights):
            self.weights.append({name: value.clone() for name, value in pl_module.state_dict().items()})


class WeightRecorder(Recorder, lightning.pytorch.Callback, pytorch_lightning.Callback):
    pass


def restore(environment: dict[str, str]) -> None:
    """Forget the port and the ranks that Lightning leaves in the environment: the next run would take them over."""
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]


def refusal_of_sharding(package: Any, folder: Path, callback: Any) -> str:
    """Return the message with which a callback refuses a strategy that shards; leaves no process group behind."""
    environment = dict(os.environ)
    try:
        trainer(package, folder, [callback], strategy=package.strategies.ModelParallelStrategy()).fit(
            toy(package), *loaders()
        )
    except ValueError as error:
        return str(error)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        restore(environment)
    return "not refused"
