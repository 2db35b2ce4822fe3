"""Evaluate data sets of many sizes with several real processes, and leave what each rank found in a folder.

``python exact_validation_run.py PACKAGE FOLDER`` starts its second process by itself, as Lightning's ``ddp`` does.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch
import process_groups  # noqa: F401  (leaves the process group at exit)
import pytorch_lightning
import torch
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.lightning.exact_validation import exact_validation_loader

SIZES, BATCH_SIZES = range(1, 41), (1, 7, 16)
CASES = [(n, size) for n in SIZES for size in BATCH_SIZES]
WORKERS = [(0, False), (2, False), (2, True)]
PRECISIONS = ["64-true", "bf16-true", "bf16-mixed", "16-mixed"]
SMALL = (3, 1)  # where one rank runs a batch that does not count
FITS = ["fit", "accumulation", "manual optimization", "compile"]
SEVERAL = [(3, 7), (1, 16), (33, 16), (5, 1)]


def examples(n: int) -> TensorDataset:
    """Return n values without a pattern, and the class of each."""
    generator = torch.Generator().manual_seed(n)
    values = torch.randn(n, 1, generator=generator, dtype=torch.float64) + 3
    return TensorDataset(values, torch.arange(n) % 3)


def expectation(n: int) -> dict[str, float]:
    """Return what a single process without batches finds."""
    values = examples(n).tensors[0]
    mean = float(values.mean())
    logged = dict.fromkeys(("mean", "inferred", "metric", "epoch"), mean) | dict.fromkeys(("sum", "total"), mean * n)
    return logged | {"min": float(values.min()), "max": float(values.max())}


class _Module:
    """Logs its inputs, whose mean is known, in every form that is to be exact."""

    def build(self) -> None:
        # With a buffer, DistributedDataParallel holds a collective before every forward pass.
        self.norm = nn.BatchNorm1d(1, affine=False).double()
        self.scale = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.metrics = nn.ModuleList(torchmetrics.MeanMetric().set_dtype(torch.float64) for _ in range(4))
        self.total = torchmetrics.SumMetric().set_dtype(torch.float64)
        self.at_end = torchmetrics.MeanMetric().set_dtype(torch.float64)
        self.values = torchmetrics.CatMetric().set_dtype(torch.float64)
        self.counts = torchmetrics.ConfusionMatrix(task="multiclass", num_classes=3)
        self.fails = False
        self.seen: list[int] = []
        self.table: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + 0 * self.norm(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = (self(batch[0]) - 1).square().mean()
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def evaluate(self, batch: Any, place: int) -> None:
        if self.fails:
            raise RuntimeError("on purpose")
        x, classes = batch
        y = self(x)
        self.seen.append(len(x))
        self.log("mean", y.mean(), batch_size=len(x), sync_dist=True)
        self.log("inferred", y.mean(), sync_dist=True)
        self.log("sum", y.sum(), reduce_fx="sum", sync_dist=True)
        self.log("min", y.min(), reduce_fx="min", sync_dist=True)
        self.log("max", y.max(), reduce_fx="max", sync_dist=True)
        self.metrics[place].update(y)
        self.log("metric", self.metrics[place])
        self.at_end.update(y)
        self.values.update(y.flatten())
        self.counts.update(classes, classes)
        if place == 0:
            self.total.update(y)
            self.log("total", self.total)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluate(batch, dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluate(batch, dataloader_idx)

    def end(self) -> None:
        self.log("epoch", self.at_end.compute(), sync_dist=True)
        self.table.append(
            (self.values.compute().flatten().sort().values.tolist(), self.counts.compute().diag().tolist())
        )
        for metric in (self.at_end, self.values, self.counts):
            metric.reset()

    def on_validation_epoch_end(self) -> None:
        self.end()

    def on_test_epoch_end(self) -> None:
        self.end()

    def configure_optimizers(self) -> Any:
        n_optimizers = 1 if self.automatic_optimization else 2
        return [torch.optim.SGD(self.parameters(), lr=0.0) for _ in range(n_optimizers)]


class PytorchLightningModule(_Module, pytorch_lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.build()


class LightningModule(_Module, lightning.pytorch.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.build()


class Keep:
    """Keep what one evaluation found, on this rank; mixed into the callback of a package."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def keep(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            self.found.append({"metrics": metrics, "seen": pl_module.seen, "table": pl_module.table})
        pl_module.seen, pl_module.table = [], []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.keep(trainer, pl_module)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self.keep(trainer, pl_module)


class PytorchLightningKeep(Keep, pytorch_lightning.Callback):
    pass


class LightningKeep(Keep, lightning.pytorch.Callback):
    pass


def parts(package: Any, folder: Path, **options: Any) -> tuple[Any, Any, Any]:
    """Return a trainer, a module and what it finds."""
    ours = package is pytorch_lightning
    keep = (PytorchLightningKeep if ours else LightningKeep)()
    trainer = package.Trainer(
        callbacks=[keep], accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=folder, **options,
    )  # fmt: skip
    return trainer, (PytorchLightningModule if ours else LightningModule)(), keep


def loaders(cases: Iterable[tuple[int, int]], **options: Any) -> list[DataLoader[Any]]:
    return [exact_validation_loader(examples(n), size, **options) for n, size in cases]


def evaluate_all(package: Any, folder: Path, found: dict[Any, Any], strategy: str = "ddp") -> None:
    """Fill in what this rank finds: of every case, with every setting and in every loop."""

    def start(name: Any, **options: Any) -> tuple[Any, Any]:
        trainer, module, keep = parts(package, folder, strategy=strategy, devices=2, **options)
        found[name] = keep.found
        return trainer, module

    for case in CASES:
        trainer, module = start(case)
        trainer.validate(module, *loaders([case]), verbose=False)
    for n_workers, lives_on in WORKERS:
        trainer, module = start(("workers", n_workers, lives_on))
        loader = exact_validation_loader(examples(1), 7, num_workers=n_workers, persistent_workers=lives_on)
        for _ in range(2):
            trainer.test(module, loader, verbose=False)
        found["callbacks"] = [type(callback).__name__ for callback in trainer.callbacks]
    for precision in PRECISIONS:
        half = {"precision": precision}
        if precision == "16-mixed":
            # Without it, Lightning takes bfloat16 on the CPU.
            scaler = torch.amp.GradScaler("cpu")
            half = {"plugins": [package.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler)]}
        trainer, module = start(precision, **half)
        trainer.validate(module, *loaders([SMALL]), verbose=False)
    train = DataLoader(examples(16), batch_size=4)
    for name in FITS:
        trainer, module = start(name, max_epochs=1, accumulate_grad_batches=2 if name == "accumulation" else 1)
        module.automatic_optimization = name != "manual optimization"
        trainer.fit(torch.compile(module, backend="eager") if name == "compile" else module, train, loaders(SEVERAL))
    # What Lightning does by itself: it evaluates 34 of 33 examples.
    trainer, module = start("plain")
    trainer.validate(module, DataLoader(examples(33), batch_size=16), verbose=False)
    # Outside of an evaluation no batch is there that does not count.
    found["alone"] = [len(batch[0]) for batch in exact_validation_loader(examples(5), 1)]
    mixed = package.utilities.CombinedLoader(loaders([SMALL, SMALL]), "max_size")
    for name, failing in (("failed", loaders([SMALL])), ("mixed", mixed)):
        trainer, module = start(name)
        module.fails = True
        try:
            trainer.validate(module, failing, verbose=False)
        except (RuntimeError, ValueError) as error:
            found[name] = [str(error), [type(callback).__name__ for callback in trainer.callbacks]]


def main() -> None:
    warnings.simplefilter("ignore")
    package, folder = importlib.import_module(sys.argv[1]), Path(sys.argv[2])
    found: dict[Any, Any] = {}
    evaluate_all(package, folder, found)
    torch.save(found, folder / f"rank{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main()
