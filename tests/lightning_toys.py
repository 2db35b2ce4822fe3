"""Small models, data and trainers that the tests of the Lightning callbacks share."""

from __future__ import annotations

import inspect
from typing import Any

import lightning.pytorch
import process_groups  # noqa: F401  (leaves the process group at exit)
import pytest
import pytorch_lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

PACKAGES = [pytest.param(pytorch_lightning, id="pytorch_lightning"), pytest.param(lightning.pytorch, id="lightning")]

# What Lightning says to everyone about small data on a small machine.
QUIET = [
    pytest.mark.filterwarnings(r"ignore:The '\w+_dataloader' does not have many workers"),
    pytest.mark.filterwarnings(r"ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings(r"ignore:The number of training batches \(\d+\) is smaller than the logging interval"),
    pytest.mark.filterwarnings(r"ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings(r"ignore:.*`isinstance\(treespec, LeafSpec\)` is deprecated"),
    pytest.mark.filterwarnings(r"ignore:Checkpoint directory .* exists and is not empty"),
]


# Lightning 2.5 has no such argument.
SAFE_LOADING: dict[str, Any] = (
    {"weights_only": True} if "weights_only" in inspect.signature(lightning.pytorch.Trainer.fit).parameters else {}
)


def make_trainer(package: Any, callbacks: list[Any], **options: Any) -> Any:
    """Return a quiet trainer on the CPU."""
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "accelerator": "cpu",
        "devices": 1,
    }
    return package.Trainer(callbacks=callbacks, **(quiet | options))


def make_loader(n_batches: int = 8, batch_size: int = 4, seed: int = 0, shuffle: bool = False) -> DataLoader[Any]:
    """Return a loader of a linear regression with noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n_batches * batch_size, 3, generator=generator)
    y = x.sum(1, keepdim=True) + 0.1 * torch.randn(len(x), 1, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=shuffle)


def make_model(package: Any, **options: Any) -> Any:
    """Return a toy LightningModule of one of the packages; see `_Toy`."""
    kind = type("Toy", (_Toy, package.LightningModule), {})
    return kind(**options)


class _Toy:
    """A small network; it keeps the rate of every step and the step and value of every evaluation.

    Parameters
    ----------
    configure
        Takes the module and returns what configure_optimizers returns.
    poison
        The batch (counted over the run) whose training loss is NaN, or -1.
    """

    def __init__(
        self, configure: Any = None, dropout: float = 0.0, poison: int = -1, scale: float = 1.0, dtype: Any = None
    ) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(5, 1)
        )
        self.configure = configure
        self.poison = poison
        self.scale = scale
        self.n_batches = 0
        self.rates: list[list[float]] = []
        self.evaluated: list[int] = []
        self.losses: list[float] = []
        if dtype is not None:
            self.to(dtype)

    def loss(self, batch: Any) -> Tensor:
        x, y = (part.to(next(self.net.parameters()).dtype) for part in batch)
        return self.scale * torch.nn.functional.mse_loss(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.n_batches == self.poison:
            loss = loss * float("nan")
        self.n_batches += 1
        self.losses.append(float(loss.detach()))
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)
        self.log("val_twice", 2 * self.loss(batch), sync_dist=True)

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.evaluated.append(self.trainer.global_step)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append([float(group["lr"]) for group in optimizer.param_groups])

    def configure_optimizers(self) -> Any:
        return self.configure(self) if self.configure else torch.optim.SGD(self.net.parameters(), lr=0.05)


def make_gan(package: Any, **options: Any) -> Any:
    """Return a toy module that steps two optimizers by hand."""
    kind = type("Gan", (_Gan, package.LightningModule), {})
    return kind(**options)


class _Gan:
    """Two linear models with an optimizer and a step-wise scheduler each, optimized by hand."""

    def __init__(self, stepped: bool = True) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.automatic_optimization = False
        self.first, self.second = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
        self.stepped = stepped
        self.rates: tuple[list[float], list[float]] = ([], [])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        total = torch.zeros(())
        pairs = zip(self.optimizers(), (self.first, self.second), self.lr_schedulers(), strict=True)
        for place, (optimizer, model, scheduler) in enumerate(pairs):
            optimizer.zero_grad()
            loss = (place + 1) * torch.nn.functional.mse_loss(model(x), y)
            self.manual_backward(loss)
            optimizer.step()
            if self.stepped:
                scheduler.step()
            total = total + loss.detach()
        return total

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        mine = optimizer.param_groups[0]["params"][0] is self.first.weight
        self.rates[0 if mine else 1].append(optimizer.param_groups[0]["lr"])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", torch.nn.functional.mse_loss(self.first(x), y))

    def configure_optimizers(self) -> Any:
        optimizers = [
            torch.optim.SGD(self.first.parameters(), lr=0.1),
            torch.optim.Adam(self.second.parameters(), lr=0.03),
        ]
        schedulers = [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9) for optimizer in optimizers]
        return optimizers, schedulers
