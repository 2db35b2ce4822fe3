"""Small fits for the cells of the support matrices, with one process or with two.

As a script, ``python support_runs.py STRATEGY FOLDER`` trains with two real processes, once in each cell that the
strategy has here, in the Trainers of both packages, and leaves what each rank saw in the folder.
"""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch
import process_groups  # noqa: F401  (leaves the process group at exit)
import pytorch_lightning
import torch
import torch.distributed.fsdp
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.lightning import (
    BatchNormSync,
    BestCheckpoints,
    LearningRateWarmup,
    PeriodicEvaluation,
    TrialRecorder,
    WeightEMA,
)

PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning": lightning.pytorch}
PRECISIONS = ["32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"]
CELLS = [*PRECISIONS, "accumulation", "manual optimization", "compile"]
N_STEPS, N_WARMUP, EVERY, DECAY, BASE, GAMMA = 12, 2, 4, 0.8, 0.1, 0.9
SAVED_AT = 8  # steps, the end of an epoch and an evaluation
# Whose loss is infinite under 16-mixed, so that the scaler passes over the step.
OVERFLOWING_BATCH = 3
# Inductor compiles C++ on the CPU.
COMPILER = "inductor" if shutil.which("g++") else "aot_eager"


class _Regression:
    """A network with batch normalization; by hand, each of its halves has an optimizer of its own."""

    def build(self, cell: str = "32-true") -> None:
        torch.manual_seed(0)
        # Sharding strategies leave the running statistics of each rank to itself, in their checkpoints too.
        norm = nn.Identity() if "fsdp" in cell else nn.BatchNorm1d(6)
        self.first = nn.Sequential(nn.Linear(3, 6), norm, nn.Tanh())
        self.second = nn.Linear(6, 1)
        self.cell = cell
        self.automatic_optimization = cell != "manual optimization"

    def configure_model(self) -> None:
        if self.cell == "fsdp2":
            for half in (self.first, self.second):
                torch.distributed.fsdp.fully_shard(half, mesh=self.device_mesh["data_parallel"])

    def loss(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(self.second(self.first(x)), y)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        if self.cell == "16-mixed" and batch_idx == OVERFLOWING_BATCH:
            loss = loss * torch.inf
        if self.automatic_optimization:
            return loss
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer, scheduler in zip(optimizers, self.lr_schedulers(), strict=True):
            optimizer.step()
            scheduler.step()
        return loss.detach()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        kept = [self.parameters()] if self.automatic_optimization else [half.parameters() for half in self.children()]
        optimizers = [torch.optim.SGD(parameters, lr=BASE, momentum=0.9) for parameters in kept]
        schedules = [torch.optim.lr_scheduler.ExponentialLR(optimizer, GAMMA) for optimizer in optimizers]
        return optimizers, [{"scheduler": schedule, "interval": "step"} for schedule in schedules]


class PytorchLightningRegression(_Regression, pytorch_lightning.LightningModule):
    def __init__(self, cell: str = "32-true") -> None:
        super().__init__()
        self.build(cell)


class LightningRegression(_Regression, lightning.pytorch.LightningModule):
    def __init__(self, cell: str = "32-true") -> None:
        super().__init__()
        self.build(cell)


def make_regression(package: Any, cell: str = "32-true") -> Any:
    return (PytorchLightningRegression if package is pytorch_lightning else LightningRegression)(cell)


def make_loaders(n_ranks: int = 1) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return 8 batches of 8 examples a rank, and the same examples in batches of 16 for evaluation."""
    x = torch.randn(64 * n_ranks, 3, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, x.prod(dim=1, keepdim=True))
    return DataLoader(data, batch_size=8), DataLoader(data, batch_size=16)


class Notes(lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Write down what one rank sees: rates, evaluations, and the weights before, in and after them."""

    def __init__(self, path: Path | None = None, save_to: Path | None = None) -> None:
        self.path, self.save_to = path, save_to
        self.rates: list[tuple[int, float]] = []  # the place of the optimizer, and its rate at a step
        self.losses: list[float] = []
        self.scores: dict[int, float] = {}
        self.trained: dict[int, Any] = {}  # weights by step: after it,
        self.seen: dict[int, Any] = {}  # in its evaluation,
        self.after: dict[int, Any] = {}  # and where training goes on

    def weights(self, module: Any) -> Any:
        if "fsdp" in module.cell:
            return sum(parameter.numel() for parameter in map(_local, module.parameters()))
        return {name: value.detach().clone() for name, value in module.state_dict().items()}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.trained.setdefault(trainer.global_step, self.weights(pl_module))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step in self.seen:
            self.after.setdefault(trainer.global_step, self.weights(pl_module))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        place = [known is optimizer for known in trainer.optimizers].index(True)
        self.rates.append((place, float(optimizer.param_groups[0]["lr"])))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.trained.setdefault(trainer.global_step, self.weights(pl_module))

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.sanity_checking and batch_idx == 0:
            self.seen[trainer.global_step] = self.weights(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        self.scores[trainer.global_step] = float(trainer.callback_metrics["val_loss"])
        if self.save_to is not None and trainer.global_step == SAVED_AT:
            trainer.save_checkpoint(self.save_to)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.final = self.weights(pl_module)
        self.limit = trainer.max_steps
        if self.path is not None:
            notes = {name: value for name, value in vars(self).items() if name in _WRITTEN}
            torch.save(notes, f"{self.path}-rank{trainer.global_rank}.pt")


_WRITTEN = ("rates", "losses", "scores", "trained", "seen", "after", "final", "limit")


def _local(parameter: Any) -> Tensor:
    return parameter.to_local() if hasattr(parameter, "to_local") else parameter


def make_stack(folder: Path) -> list[Any]:
    """Return the five callbacks together."""
    return [
        LearningRateWarmup(N_WARMUP, max_share=1.0),
        PeriodicEvaluation(EVERY),
        WeightEMA(decay=DECAY),
        BatchNormSync(),
        BestCheckpoints("val_loss", save_top_k=-1, dirpath=folder),
    ]


def fit(
    package: Any,
    callbacks: list[Any],
    cell: str = "32-true",
    notes: Notes | None = None,
    ckpt_path: Path | None = None,
    folder: Path | None = None,
    n_ranks: int = 1,
    **options: Any,
) -> tuple[Notes, Any]:
    """Train in one cell, and return what was noted and the trainer."""
    notes = notes or Notes()
    model = make_regression(package, cell)
    settings: dict[str, Any] = {
        "max_steps": N_STEPS,
        "max_epochs": -1,
        "accelerator": "cpu",
        "devices": n_ranks,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": any(isinstance(callback, BestCheckpoints) for callback in callbacks),
        "default_root_dir": folder,
        "num_sanity_val_steps": 0,
    }
    if not any(isinstance(callback, PeriodicEvaluation) for callback in callbacks):
        settings["val_check_interval"] = EVERY
    if cell == "16-mixed":
        # Without it, Lightning takes bfloat16 on the CPU; this one scales, and overflows, for real.
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        settings["plugins"] = [package.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler)]
    elif cell in PRECISIONS:
        settings["precision"] = cell
    elif cell == "accumulation":
        settings["accumulate_grad_batches"] = 2
    elif cell == "manual optimization":
        settings["max_steps"] = 2 * N_STEPS  # Lightning counts those of both
    elif cell == "compile":
        model = torch.compile(model, backend=COMPILER)
    trainer = package.Trainer(callbacks=[*callbacks, notes], **(settings | options))
    trainer.fit(model, *make_loaders(n_ranks), ckpt_path=ckpt_path)
    return notes, trainer


class _OnTheCPU(torch.distributed.fsdp.FullyShardedDataParallel):
    """FSDP1 as Lightning builds it, on the device where it then runs: the CPU."""

    def __init__(self, *arguments: Any, device_id: Any = None, **settings: Any) -> None:
        super().__init__(*arguments, device_id=torch.device("cpu"), **settings)


def make_host(package: Any, n_devices: int) -> Any:
    """Return the CPU in the role of the accelerator that Lightning demands for FSDP1."""

    class Host(package.accelerators.CUDAAccelerator):
        def setup_device(self, device: Any) -> None:
            pass

        def setup(self, trainer: Any) -> None:
            pass

        def teardown(self) -> None:
            pass

        @staticmethod
        def parse_devices(devices: Any) -> list[int]:
            return list(range(int(devices)))

        @staticmethod
        def get_parallel_devices(devices: Any) -> list[torch.device]:
            return [torch.device("cpu")] * len(devices)

        @staticmethod
        def auto_device_count() -> int:
            return n_devices

        @staticmethod
        def is_available() -> bool:
            return True

    return Host()


def fsdp_options(package: Any, kind: str, n_devices: int = 2) -> dict[str, Any]:
    """Return the trainer's options for FSDP1 or FSDP2 on the CPU."""
    if kind == "fsdp2":
        sizes = {"data_parallel_size": n_devices, "tensor_parallel_size": 1}
        return {"strategy": package.strategies.ModelParallelStrategy(process_group_backend="gloo", **sizes)}
    strategy = package.strategies.FSDPStrategy(
        process_group_backend="gloo", state_dict_type="sharded", auto_wrap_policy={nn.Linear}
    )
    return {"strategy": strategy, "accelerator": make_host(package, n_devices)}


def main(strategy: str, folder: Path) -> None:
    is_sharded = strategy.startswith("fsdp")
    cells = CELLS if strategy == "ddp" else [strategy if is_sharded else "32-true"]
    for name, package in PACKAGES.items():
        checkpoint = folder / f"{name}.ckpt"
        for cell, is_resumed in [(cells[0], False), (cells[0], True), *((cell, False) for cell in cells[1:])]:
            run = folder / (f"{name}-{cell}-resumed" if is_resumed else f"{name}-{cell}")
            recorder = TrialRecorder("val_loss", "min")
            stack = [*make_stack(run)[:2], recorder] if is_sharded else make_stack(run)
            options = fsdp_options(package, strategy) if is_sharded else {"strategy": strategy}
            notes = Notes(run, checkpoint if cell == cells[0] and not is_resumed else None)
            resumed_from = checkpoint if is_resumed else None
            _, trainer = fit(package, stack, cell, notes, resumed_from, folder, n_ranks=2, **options)
            if is_sharded:
                Path(f"{run}-rank{trainer.global_rank}.json").write_text(recorder.record.to_json())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.distributed.fsdp.FullyShardedDataParallel = _OnTheCPU
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
