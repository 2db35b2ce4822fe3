"""Run by torch.distributed.run: probes under DDP with two processes, and tells what each rank saw."""

from __future__ import annotations

import importlib
import json
import random
import sys
import warnings
from typing import Any

import numpy as np
import torch

warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])

from lightning_toys import make_loader, make_trainer  # noqa: E402
from probe_fingerprint import Tracer, differences, digest, fingerprint  # noqa: E402

from playbook_plugins.lightning.batch_size_probe import BatchSizeProbe  # noqa: E402

torch.set_num_threads(1)
package = importlib.import_module(sys.argv[3])
told: dict[str, Any] = {}


class Model(Tracer, package.LightningModule):  # type: ignore[misc, name-defined]
    """Runs out of memory on rank 1 alone above a batch size, before it has logged anything."""

    largest = 10_000
    kind: type[Exception] = torch.OutOfMemoryError
    is_synchronized = False

    def on_train_start(self) -> None:
        if self.is_synchronized:
            # DDP itself refuses them on the CPU, when it wraps the module.
            self.net[1] = torch.nn.SyncBatchNorm(6)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank == 1 and len(batch[0]) > self.largest:
            raise self.kind("out of memory on rank 1")
        # A collective of the strategy: the other rank would wait for it.
        self.all_gather(batch[0].sum())
        return super().training_step(batch, batch_idx)


class Watch(package.Callback):  # type: ignore[misc, name-defined]
    def __init__(self, probe: BatchSizeProbe) -> None:
        self.probe = probe
        self.changed: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 3:
            before = fingerprint(trainer, pl_module, [self])
            self.probe.run(trainer, pl_module)
            self.changed.append(differences(before, fingerprint(trainer, pl_module, [self])))


for case in ("without", "whole", "memory", "synchronized", "error"):
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    probe, later = (BatchSizeProbe(32, n_warmup_steps=1, n_steps=3, max_seconds=0.0) for _ in range(2))
    watch = Watch(later)
    model = Model()
    model.largest = 8 if case in ("memory", "error") else 10_000
    model.kind = KeyError if case == "error" else torch.OutOfMemoryError
    model.is_synchronized = case == "synchronized"
    message = ""
    trainer = make_trainer(
        package,
        [probe, watch] * (case != "without"),
        strategy="ddp_find_unused_parameters_true",
        devices=2,
        max_epochs=2,
    )
    try:
        trainer.fit(model, make_loader(16, shuffle=True))
    except (ValueError, KeyError, RuntimeError) as error:
        message = str(error)
    told[case] = {
        "message": message,
        "changed": watch.changed,
        "results": [None if one.result is None else one.result.to_dict() for one in (probe, later)],
        "losses": model.losses,
        "weights": digest([parameter for parameter in model.parameters()]),
        "buffers": digest(list(model.buffers())),
    }
with open(f"{sys.argv[2]}/{trainer.global_rank}.json", "w") as file:
    json.dump(told, file)
