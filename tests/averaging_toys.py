"""Small modules and helpers for the tests of averaging, batch-norm pooling and checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch
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


class ShiftedToy(PytorchLightningToy):
    """Each rank trains on data of its own, shifted by its number; one process sees the union of two ranks."""

    def __init__(self, learning_rate: float, batch_size: int = 128, fail_at_step: int | None = None) -> None:
        super().__init__(learning_rate=learning_rate)
        self.batch_size = batch_size
        self.fail_at_step = fail_at_step

    def data(self, rank: int) -> torch.Tensor:
        x = torch.randn(4 * self.batch_size, 4, generator=torch.Generator().manual_seed(rank))
        return x + 3.0 * rank

    def train_dataloader(self) -> DataLoader[Any]:
        ranks = [self.trainer.global_rank] if self.trainer.world_size > 1 else [0, 1]
        # In batches of one rank each, then interleaved, so that batch i of the union is batch i of both.
        parts = [self.data(rank).split(self.batch_size) for rank in ranks]
        x = torch.cat([part for batch in zip(*parts, strict=True) for part in batch])
        return DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=self.batch_size * len(ranks))

    def val_dataloader(self) -> DataLoader[Any]:
        x = self.data(5)[:8]
        return DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=8)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self(x), y), sync_dist=True)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == self.fail_at_step and self.trainer.global_rank == 0:
            raise RuntimeError("on purpose")
        return super().training_step(batch, batch_idx)


class StatisticsProbe(pytorch_lightning.Callback):
    """Write down the running statistics of each rank at every stage of an evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes: dict[str, Any] = {"own": {}, "pooled": {}, "after": {}, "n_gathers": 0}
        self.finished_validation: int | None = None

    def now(self, module: Any) -> dict[str, torch.Tensor]:
        return {name: buffer.detach().clone() for name, buffer in module.named_buffers() if "running_" in name}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        original = torch.distributed.all_gather

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.notes["n_gathers"] += 1
            return original(*args, **kwargs)

        torch.distributed.all_gather = counted

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        average = next((c.average for c in trainer.callbacks if hasattr(c, "average")), None)
        own = self.now(pl_module)
        if average is not None:
            buffers = dict(pl_module.named_buffers())
            own = {name: average.average_values(buffers[name]).clone() for name in own}
            raw = {f"raw {name}": average.raw_values(buffers[name]).clone() for name in own}
            own |= raw
        self.notes["own"][trainer.global_step] = own

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.notes["pooled"][trainer.global_step] = self.now(pl_module)
        self.finished_validation = trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.finished_validation is not None:
            self.notes["after"][self.finished_validation] = self.now(pl_module)
            self.finished_validation = None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.notes["end"] = self.now(pl_module)
        self.notes["weights"] = {name: value.clone() for name, value in pl_module.state_dict().items()}
        torch.save(self.notes, self.folder / f"rank{trainer.global_rank}.pt")

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # Under ddp_spawn the main process, which trained nothing, ends with the exception too.
        if trainer.global_rank == 0 and torch.distributed.is_initialized():
            # The save without Lightning's own barrier, which would wait for the other rank.
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            torch.save(checkpoint, self.folder / "alone.ckpt")


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
