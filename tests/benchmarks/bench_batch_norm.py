"""What does pooling batch-norm statistics cost in DDP? Per evaluation, and per step beside DDP's own broadcast.

Run it with ``python tests/benchmarks/bench_batch_norm.py``; it takes half a minute on two cores. Two processes train a
network of 50 batch-norm layers of 512 channels, about as many statistics as ResNet-50 has (53 layers, 26,560 channels),
with and without `BatchNormSync` in turn. Without it DDP broadcasts the statistics of rank 0 before each forward pass;
the callback takes them out of that broadcast and pools them for evaluations instead. Times are those of rank 0, on the
wall, as a collective waits for the other rank.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from claims import claim
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.lightning import BatchNormSync

N_LAYERS, N_CHANNELS, BATCH_SIZE = 50, 512, 32
N_ROUNDS, N_STEPS, EVERY = 6, 60, 10
# The first steps of a fit allocate.
N_WARM = 10


class TimedSync(BatchNormSync):
    """Times what an evaluation waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_validation_start(self, *hook: Any) -> None:
        begun = time.perf_counter()
        super().on_validation_start(*hook)
        self.seconds.append(time.perf_counter() - begun)

    def on_validation_end(self, *hook: Any) -> None:
        begun = time.perf_counter()
        super().on_validation_end(*hook)
        self.seconds[-1] += time.perf_counter() - begun


class Together(pl.Callback):
    """Lets the ranks begin an evaluation together, so that none waits in the pooling for the other's last step."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        trainer.strategy.barrier()


class Steps(pl.Callback):
    """Times every step, data and other callbacks left out."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begun)


class Network(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # Cheap layers between the normalizations: the smaller the step, the larger the share that is measured.
        layers = [part for _ in range(N_LAYERS) for part in (nn.BatchNorm1d(N_CHANNELS), nn.ReLU())]
        self.network = nn.Sequential(*layers, nn.Linear(N_CHANNELS, 1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.network(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.network(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fit(callbacks: list[pl.Callback]) -> pl.Trainer:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2 * BATCH_SIZE * N_STEPS, N_CHANNELS, generator=generator)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_steps=N_STEPS,
        val_check_interval=EVERY,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=callbacks,
    )
    training = DataLoader(TensorDataset(inputs), BATCH_SIZE)
    validation = DataLoader(TensorDataset(inputs[: 2 * BATCH_SIZE]), BATCH_SIZE)
    trainer.fit(Network(), training, validation)
    return trainer


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    steps: dict[bool, list[float]] = {True: [], False: []}
    pooling: list[float] = []
    is_first = True
    for _ in range(N_ROUNDS):
        for has_sync in (True, False):
            times, sync = Steps(), TimedSync()
            trainer = fit([Together(), times, *([sync] if has_sync else [])])
            is_first = trainer.is_global_zero
            steps[has_sync] += times.seconds[N_WARM:]
            pooling += sync.seconds[1:]
    if not is_first:
        return
    with_sync, without = (1e3 * float(np.median(steps[has_sync])) for has_sync in (True, False))
    each = 1e3 * float(np.median(pooling))
    print(f"{N_LAYERS} layers of {N_CHANNELS} channels, 2 processes, medians of {len(steps[True])} steps")
    print(f"  pooling and putting back, per evaluation: {each:.2f} ms")
    print(f"  step with BatchNormSync {with_sync:.2f} ms, with DDP's broadcast instead {without:.2f} ms")
    claim("batch norm", f"{each:.1f} ms; {with_sync:.0f} ms", f"none; {without:.0f} ms, DDP's broadcast of rank 0's")


if __name__ == "__main__":
    main()
