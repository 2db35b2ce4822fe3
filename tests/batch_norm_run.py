"""Train with two real processes whose data lie apart, and leave what each of them saw in a folder.

``python batch_norm_run.py STRATEGY PACKAGE FOLDER`` starts the second process by itself, as Lightning's strategies do.
Under ``ddp`` the last fit fails on purpose, and the script with it.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytorch_lightning
import torch
from averaging_toys import trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.lightning.batch_norm import BatchNormSync
from playbook_plugins.lightning.checkpoints import BestCheckpoints
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.ghost_batch_norm import GhostBatchNorm1d
from playbook_plugins.lightning.weight_ema import WeightEMA

PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning.pytorch": lightning.pytorch}
N_STEPS, EVERY, SAVED_AT, FAILS_AT = 8, 2, 4, 4
LONG = 60  # steps, so that the running statistics have forgotten where they began
N_FEATURES, BATCH, GHOST = 8, 128, 32


class _Shifted:
    """Layers side by side, each with inputs of its own scale; the data of a rank are shifted by its number."""

    def build(self, n_layers: int, rate: float, fails: str = "") -> None:
        torch.manual_seed(0)
        self.inputs = nn.Linear(4, N_FEATURES)
        self.norms = nn.ModuleList(
            GhostBatchNorm1d(N_FEATURES, GHOST) if place % 2 else nn.BatchNorm1d(N_FEATURES)
            for place in range(n_layers)
        )
        self.outputs = nn.Linear(N_FEATURES, 1)
        # DDP goes on broadcasting the other buffers of rank 0.
        self.register_buffer("position", torch.zeros(1))
        self.rate = rate
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inputs(x)
        normed = [norm((place + 1) * hidden) for place, norm in enumerate(self.norms)]
        return self.outputs(torch.relu(torch.stack(normed).mean(dim=0)))

    def data(self, rank: int) -> Tensor:
        x = torch.randn(4 * BATCH, 4, generator=torch.Generator().manual_seed(rank))
        return x + 3.0 * rank

    def train_dataloader(self) -> DataLoader[Any]:
        ranks = [self.trainer.global_rank] if self.trainer.world_size > 1 else [0, 1]
        # In batches of one rank each, then interleaved, so that batch i of the union is batch i of both.
        parts = [self.data(rank).split(BATCH) for rank in ranks]
        x = torch.cat([part for batch in zip(*parts, strict=True) for part in batch])
        return DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=BATCH * len(ranks))

    def val_dataloader(self) -> DataLoader[Any]:
        x = self.data(5)[:8]
        return DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True)), batch_size=8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.position += 1 + self.trainer.global_rank
        if self.fails == "training" and self.trainer.global_step == FAILS_AT + 1 and self.trainer.global_rank == 0:
            raise RuntimeError("on purpose")
        x, y = batch
        return nn.functional.mse_loss(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        if self.fails == "validation" and self.trainer.global_step == FAILS_AT:
            raise RuntimeError("on purpose")
        self.log("val_loss", loss, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.rate, momentum=0.9)


class PytorchLightningShifted(_Shifted, pytorch_lightning.LightningModule):
    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.build(*arguments)


class LightningShifted(_Shifted, lightning.pytorch.LightningModule):
    def __init__(self, *arguments: Any) -> None:
        super().__init__()
        self.build(*arguments)


def make_shifted(package: Any, *arguments: Any) -> Any:
    return (PytorchLightningShifted if package is pytorch_lightning else LightningShifted)(*arguments)


class Probe(lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Write down the running statistics at every stage of an evaluation, and how many collectives it took."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: dict[str, Any] = {"own": {}, "seen": {}, "after": {}, "n_collectives": []}
        self.at: int | None = None  # the step of the evaluation after which no batch came yet
        self.n_before = 0

    def raw(self, trainer: Any, module: Any) -> dict[str, Tensor]:
        average = next((c.average for c in trainer.callbacks if hasattr(c, "average")), None)
        buffers = {name: buffer for name, buffer in module.named_buffers() if "running_" in name}
        return {
            name: (buffer if average is None else average.raw_values(buffer)).detach().clone()
            for name, buffer in buffers.items()
        }

    def all(self, trainer: Any, module: Any) -> dict[str, Tensor]:
        """Return raw statistics and those in the module or, before it wears them, the average's."""
        average = next((c.average for c in trainer.callbacks if hasattr(c, "average")), None)
        found = {name: buffer for name, buffer in module.named_buffers() if "running_" in name}
        if average is not None and not average.worn:
            averages = {name: average.average_values(buffer) for name, buffer in found.items()}
            found |= {name: value for name, value in averages.items() if value is not None}
        kept = {name: buffer.detach().clone() for name, buffer in found.items()}
        return kept | {f"raw {name}": value for name, value in self.raw(trainer, module).items()}

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.n_before = n_collectives()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.notes["own"][trainer.global_step] = self.all(trainer, pl_module)

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.at = trainer.global_step
        self.notes["seen"][self.at] = self.all(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if self.at is not None:
            self.notes["n_collectives"].append(n_collectives() - self.n_before)
            self.notes["after"][self.at] = self.raw(trainer, pl_module)
            self.at = None

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self.notes["end"] = {name: value.clone() for name, value in pl_module.state_dict().items()}
        torch.save(self.notes, f"{self.path}-rank{trainer.global_rank}.pt")


class SaveAlone(lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Save on rank 0 only when the fit fails, and check that this took no collective."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        # Under ddp_spawn the main process, which trained nothing, ends with the exception too.
        if trainer.global_rank == 0 and torch.distributed.is_initialized():
            n_before = n_collectives()
            # The save without Lightning's own barrier, which would wait for the other rank.
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            checkpoint["n_collectives"] = n_collectives() - n_before
            torch.save(checkpoint, self.path)


class SaveBeforeLastEvaluation(lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Save after the last step, before the evaluation that is due there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.save_checkpoint(self.path)


def n_collectives() -> int:
    """Return how many collectives this process has begun, whoever called them; torch itself counts."""
    return int(torch.distributed.group.WORLD._get_sequence_number_for_group())


def run(
    package: Any,
    strategy: str,
    folder: Path,
    name: str,
    model: Any,
    *,
    average: bool = False,
    sync: bool = True,
    steps: int = N_STEPS,
    resume: Path | None = None,
    more: Sequence[Any] = (),
) -> Any:
    """Train with two processes, or with one where the strategy is ``auto``."""
    callbacks = [
        *more,
        SaveAlone(folder / f"{name}-first.ckpt"),
        *([] if strategy == "auto" else [Probe(folder / name)]),
        *([WeightEMA(decay=0.8)] if average else []),
        *([BatchNormSync()] if sync else []),
        SaveAlone(folder / f"{name}-last.ckpt"),
        BestCheckpoints("val_loss", save_top_k=-1, dirpath=folder / name),
    ]
    n_devices = 1 if strategy == "auto" else 2
    fitted = trainer(
        package, folder, callbacks, strategy=strategy, devices=n_devices, max_steps=steps, val_check_interval=EVERY,
        use_distributed_sampler=False, max_epochs=-1,
    )  # fmt: skip
    fitted.fit(model, ckpt_path=resume)
    return fitted


def main(strategy: str, package: Any, folder: Path) -> None:
    def start(name: str, model: Any, **options: Any) -> Any:
        return run(package, strategy, folder, name, model, **options)

    model = make_shifted(package, 7, 0.01)
    fitted = start("averaged", model, average=True)
    if fitted.global_rank == 0:
        # Under ddp_spawn what came back to the process that trained nothing.
        torch.save(model.state_dict(), folder / "came back.pt")
    file = folder / "averaged" / f"step={SAVED_AT}.ckpt"
    start("resumed", make_shifted(package, 7, 0.01), average=True, resume=file)
    # Without learning the statistics depend on the data only, and evaluating often must not wear them down.
    start("union", make_shifted(package, 7, 0.0), average=True, steps=LONG)
    if strategy != "ddp":
        return  # where Lightning calls on_exception in the main process only, and each fit takes seconds to start
    due = folder / "due.ckpt"
    for name, resume in (("due", None), ("due resumed", due)):
        more = [PeriodicEvaluation(EVERY), SaveBeforeLastEvaluation(due)]
        model = make_shifted(package, 7, 0.01)
        fitted = start(name, model, average=True, more=more, resume=resume)
        torch.save(model.state_dict(), folder / f"{name} model-rank{fitted.global_rank}.pt")
    for n_layers in (1, 7):
        start(f"{n_layers} layers", make_shifted(package, n_layers, 0.01))
        start(f"{n_layers} layers without", make_shifted(package, n_layers, 0.01), sync=False)
    for name, average in (("raw", False), ("averaged", True)):
        with contextlib.suppress(RuntimeError):
            start(f"{name} validation", make_shifted(package, 7, 0.01, "validation"), average=average)
    # One rank fails and the other waits for it.
    start("training", make_shifted(package, 7, 0.01, "training"), average=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1], PACKAGES[sys.argv[2]], Path(sys.argv[3]))
