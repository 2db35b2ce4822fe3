"""Small fits with two real processes, healthy ones and one for each fault that HostParity finds.

``python host_parity_run.py STRATEGY PACKAGE FOLDER`` trains with the Trainer of one package, and leaves what each rank
was told in the folder, in one file for each fit and rank.
"""

from __future__ import annotations

import os
import random
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import process_groups  # noqa: F401  (leaves the process group at exit)
import pytorch_lightning
import torch
from torch import nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    Subset,
    WeightedRandomSampler,
)

from playbook_plugins.lightning.host_parity import HostParity
from playbook_plugins.lightning.host_seeds import seed_hosts
from playbook_plugins.lightning.random_state import RandomState
from playbook_plugins.lightning.resumable_loader import ResumableDataLoader

PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning": lightning.pytorch}
# 18 for each of two ranks: no batch of one example, of which batch normalization knows no variance.
N_EXAMPLES, BATCH, SEED = 35, 4, 5


class Examples(Dataset[Any]):
    """Numbered examples, with noise that is drawn by Python, NumPy and torch when they are read."""

    def __init__(self, first: int = 0) -> None:
        self.x = torch.randn(N_EXAMPLES, 3, generator=torch.Generator().manual_seed(first))
        self.first = first

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        noise = torch.tensor([random.random(), np.random.random(), torch.rand(()).item()])  # noqa: NPY002
        return self.first + index, self.x[index], noise


class Stream(IterableDataset[Any]):
    """Numbered examples in a row, divided by rank or not."""

    def __init__(self, divided: bool = False, files: list[str] | None = None) -> None:
        self.divided = divided
        if files is not None:
            self.files = files

    def __len__(self) -> int:
        return N_EXAMPLES // 2 - 1

    def __iter__(self) -> Iterator[Any]:
        first, step = (torch.distributed.get_rank(), 2) if self.divided else (0, 1)
        data = Examples()
        numbers = range(first, first + step * len(self), step)
        return ((number, data.x[number], torch.zeros(3)) for number in numbers)


class OwnOrder(Sampler[int]):
    """An order drawn from torch's global generator, or from one of its own."""

    def __init__(self, seed: int | None = None) -> None:
        self.generator = None if seed is None else torch.Generator().manual_seed(seed)
        self.n_epochs = 0

    def __len__(self) -> int:
        return N_EXAMPLES

    def __iter__(self) -> Iterator[int]:
        self.n_epochs += 1
        return iter(torch.randperm(N_EXAMPLES, generator=self.generator).tolist())


class _Model:
    """A linear model whose dropout mask is kept; its data are named by the options."""

    def build(self, **options: Any) -> None:
        self.net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh())
        self.head = nn.Linear(8, 1)
        self.register_buffer("scale", torch.ones(2))
        self.options = options
        self.automatic_optimization = not options.get("manual")
        self.masks: list[Any] = []

    def configure_model(self) -> None:
        if self.options.get("sharded"):
            for part in (self.net, self.head):
                torch.distributed.fsdp.fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def train_dataloader(self) -> Any:
        data = self.options.get("data", "examples")
        rank, size = self.trainer.global_rank, self.trainer.world_size
        halves = [list(range(part, N_EXAMPLES - 3, size)) for part in range(size)]
        settings: dict[str, Any] = {"batch_size": BATCH, "num_workers": self.options.get("workers", 0)}
        if data in ("examples", "random"):
            kind = ResumableDataLoader if self.options.get("resumable") else DataLoader
            return kind(Examples(), shuffle=True, **settings)
        if data == "in order":
            return DataLoader(Examples(), **settings)
        if data == "global order":
            return DataLoader(Examples(), sampler=OwnOrder(), **settings)
        if data == "own order":
            return DataLoader(Examples(), sampler=OwnOrder(3), **settings)
        if data == "weighted":
            return DataLoader(Examples(), sampler=WeightedRandomSampler(torch.ones(N_EXAMPLES), N_EXAMPLES), **settings)
        if data == "subset":
            return DataLoader(Subset(Examples(), halves[rank]), shuffle=True, **settings)
        if data == "own data":
            return DataLoader(Examples(first=100 * rank), **settings)
        if data == "other seeds":
            sampler = DistributedSampler(Examples(), size, rank, seed=rank)
            return DataLoader(Examples(), sampler=sampler, **settings)
        if data == "one for all":
            return DataLoader(Examples(), sampler=DistributedSampler(Examples(), size, 0), **settings)
        if data == "stream":
            return DataLoader(Stream(), **settings)
        if data == "divided stream":
            return DataLoader(Stream(divided=True, files=["a", "b"]), **settings)
        if data == "files":
            return DataLoader(Stream(divided=True, files=[["a", "b"], ["b", "c"]][rank]), **settings)
        raise ValueError(data)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        _, x, _ = batch
        x = x.to(self.head.weight.dtype)
        mask = nn.functional.dropout(torch.ones(32), 0.5)
        self.masks.append(mask.bool().tolist())
        loss = (self.head(self.net(x)) * mask.mean().to(x) * self.scale.sum()).square().mean()
        if self.automatic_optimization:
            return loss
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        if self.automatic_optimization:
            return torch.optim.SGD(self.parameters(), lr=0.01)
        return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.net, self.head)]


class PytorchLightningModel(_Model, pytorch_lightning.LightningModule):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.build(**options)


class LightningModel(_Model, lightning.pytorch.LightningModule):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.build(**options)


class _TwoWriters:
    """A strategy that takes every process for the first one."""

    @property
    def is_global_zero(self) -> bool:
        return True


class PytorchLightningTwoWriters(_TwoWriters, pytorch_lightning.strategies.DDPStrategy):
    pass


class LightningTwoWriters(_TwoWriters, lightning.pytorch.strategies.DDPStrategy):
    pass


class _Everywhere:
    """A logger that forgets that there are other processes."""

    name, version = "everywhere", 0

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any) -> None:
        pass


class PytorchLightningEverywhere(_Everywhere, pytorch_lightning.loggers.Logger):
    pass


class LightningEverywhere(_Everywhere, lightning.pytorch.loggers.Logger):
    pass


CLASSES: dict[str, Any] = {
    "pytorch_lightning": (PytorchLightningModel, PytorchLightningTwoWriters, PytorchLightningEverywhere),
    "lightning": (LightningModel, LightningTwoWriters, LightningEverywhere),
}


class Notes(lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Write down what a rank is told, does one thing wrong on rank 1 when asked to, and can save."""

    def __init__(self, path: Path, wrong: str | None = None, save_to: Path | None = None) -> None:
        self.path, self.wrong, self.save_to = path, wrong, save_to
        self.told: dict[str, Any] = {"message": None, "warnings": [], "examples": [], "noise": [], "order": 0}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self.wrong == "all":
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: self.told["warnings"].append(str(message))
        self.told["built"] = self.weights(pl_module)

    def weights(self, pl_module: Any) -> int:
        kept = [getattr(one, "to_local", lambda one=one: one)() for one in pl_module.parameters()]
        return zlib.crc32(b"".join(one.detach().float().numpy().tobytes() for one in kept))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_rank == 1 and self.wrong in ("weights", "buffer", "all"):
            changed = pl_module.scale if self.wrong == "buffer" else pl_module.head.bias
            changed.data.add_(1e-6)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.told["examples"].append(batch[0].tolist())
        self.told["noise"].append(batch[2].tolist())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.wrong == "drift" and trainer.global_rank == 1 and trainer.global_step >= 5:
            pl_module.net[0].weight.data[2, 1] += 1e-6
        if self.save_to is not None and trainer.global_step == 4:
            trainer.save_checkpoint(self.save_to)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        sampler = trainer.train_dataloader.sampler
        self.told["sampler"] = [getattr(sampler, name, None) for name in ("seed", "num_replicas", "rank")]

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.told["message"] = f"{type(exception).__name__}: {exception}"
        self.write(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.write(trainer, pl_module)

    def write(self, trainer: Any, pl_module: Any) -> None:
        self.told["step"], self.told["masks"] = trainer.global_step, pl_module.masks
        sampler = getattr(trainer.train_dataloader, "sampler", None)
        inner = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)
        self.told["n_epochs"] = getattr(inner, "n_epochs", None)
        torch.save(self.told, f"{self.path}-rank{trainer.global_rank}.pt")


def files_of(data: Any) -> list[str]:
    return ["a", "b"] if torch.distributed.get_rank() == 0 else ["c", "d"]


def files_or_error(data: Any) -> list[str]:
    if torch.distributed.get_rank() == 1:
        raise OSError("no such disk")
    return ["a"]


def fit(
    name: str,
    folder: Path,
    case: str,
    *,
    strategy: Any = "ddp",
    seed: Any = seed_hosts,
    wrong: str | None = None,
    parity: Any = None,
    more: Any = (),
    save_to: Path | None = None,
    ckpt_path: Path | None = None,
    model: Any = None,
    **options: Any,
) -> None:
    """Train a few steps on two ranks; what a rank is told lies in the folder afterwards."""
    package = PACKAGES[name]
    if seed is not None:
        seed(SEED)
    module = CLASSES[name][0](**(model or {}))
    if options.pop("compile", False):
        module = torch.compile(module, backend="aot_eager")
    parities = [HostParity()] if parity is None else parity
    notes = Notes(folder / case, wrong, save_to)
    settings = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
        "accelerator": "cpu", "devices": 2, "max_steps": 8, "max_epochs": -1,
    }  # fmt: skip
    trainer = package.Trainer(callbacks=[notes, *parities, *more], strategy=strategy, **(settings | options))
    try:
        trainer.fit(module, ckpt_path=ckpt_path)
    except Exception as error:
        # What is meant to be found, and is told by the ranks themselves.
        if "HostParity" not in str(error):
            raise
        (folder / f"{case}.txt").write_text(str(error))


def seed_everything(seed: int) -> None:
    # Another seed than that of the fit before, which went to seed_hosts.
    pytorch_lightning.seed_everything(seed + 10, workers=True, verbose=False)


def seed_apart(seed: int) -> None:
    rank = int(os.environ.get("LOCAL_RANK", 0))
    pytorch_lightning.seed_everything(seed + 20 + rank, workers=True, verbose=False)


def run_ddp(name: str, folder: Path) -> None:
    """Fit once for each thing to be found, or not to be."""
    package = PACKAGES[name]
    saver = package.callbacks.ModelCheckpoint

    def run(case: str, **options: Any) -> None:
        fit(name, folder, case, **options)

    run("healthy", parity=[HostParity(every_n_steps=2)], model={"workers": 2})
    run("unseen", seed=seed_everything, parity=[])
    run("streams", seed=seed_everything)
    run("weights", wrong="weights")
    run("buffer", wrong="buffer")
    run("drift", wrong="drift", parity=[HostParity(every_n_steps=2)])
    for case in ("global order", "own order", "other seeds", "one for all", "stream", "divided stream", "files"):
        run(case, model={"data": case}, use_distributed_sampler=case in ("global order", "own order"))
    for case in ("random", "in order", "own data"):
        run(case, model={"data": case}, use_distributed_sampler=False)
    run("seeds apart", seed=seed_apart)
    run("weighted", model={"data": "weighted"})
    run("weighted alike", model={"data": "weighted"}, seed=seed_everything, use_distributed_sampler=False)
    run("weighted apart", model={"data": "weighted"}, use_distributed_sampler=False)
    run("subset", model={"data": "subset"}, use_distributed_sampler=False)
    run("subset divided", model={"data": "subset"})
    run("files divided", parity=[HostParity(files=files_of)])
    run("error", parity=[HostParity(files=files_or_error)])
    run("two writers", strategy=CLASSES[name][1]())
    run("loggers", logger=CLASSES[name][2]())
    run("other run", enable_checkpointing=True, more=[saver(folder / "taken")])
    run("saved", enable_checkpointing=True, more=[saver(folder / "free")], logger=package.loggers.CSVLogger(folder))
    run("warned", wrong="all", seed=seed_everything, parity=[HostParity(action="warn")])
    # Resuming: with the stream of the step, and with the generators that were saved.
    path = folder / "whole.ckpt"
    exact = {"resumable": True}
    run("whole", more=[RandomState()], save_to=path, model=exact)
    run("plain", save_to=folder / "plain.ckpt")
    run("resumed", ckpt_path=folder / "plain.ckpt")
    run("restored", more=[RandomState()], ckpt_path=path, model=exact)
    run("restored first", parity=[RandomState(), HostParity()], ckpt_path=path, model=exact)
    for precision in ("64-true", "bf16-true", "bf16-mixed", "16-mixed"):
        scaler = {"plugins": [package.plugins.MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}
        options: dict[str, Any] = scaler if precision == "16-mixed" else {"precision": precision}
        run(precision, parity=[HostParity(every_n_steps=2)], **options)
    run("accumulation", wrong="drift", parity=[HostParity(every_n_steps=2)], accumulate_grad_batches=2)
    run("manual", wrong="drift", parity=[HostParity(every_n_steps=3)], model={"manual": True})
    run("compile", wrong="weights", compile=True)
    run("compiled", parity=[HostParity(every_n_steps=2)], compile=True)


def run_spawn(name: str, folder: Path) -> None:
    fit(name, folder, "healthy", strategy="ddp_spawn", parity=[HostParity(every_n_steps=2)])
    fit(name, folder, "weights", strategy="ddp_spawn", wrong="weights")
    fit(
        name, folder, "all", strategy=CLASSES[name][1](start_method="spawn"), parity=[HostParity(action="warn")],
        seed=seed_everything, wrong="all", model={"data": "in order"}, use_distributed_sampler=False,
    )  # fmt: skip


def run_fsdp2(name: str, folder: Path) -> None:
    cases = {"healthy": (2, 1), "resumed": (2, 1), "buffer": (2, 1), "streams": (2, 1), "tensor": (1, 2)}
    for case, sizes in cases.items():
        fit(
            name,
            folder,
            case,
            strategy=PACKAGES[name].strategies.ModelParallelStrategy(*sizes, process_group_backend="gloo"),
            seed=seed_everything if case == "streams" else seed_hosts,
            wrong=case,
            parity=[HostParity(every_n_steps=2)],
            model={"sharded": case != "tensor"},
            save_to=folder / "whole.ckpt" if case == "healthy" else None,
            ckpt_path=folder / "whole.ckpt" if case == "resumed" else None,
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    {"ddp": run_ddp, "ddp_spawn": run_spawn, "fsdp2": run_fsdp2}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
