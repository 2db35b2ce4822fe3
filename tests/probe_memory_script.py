"""Run in a process of its own: real shortage of memory on the CPU, met by the probe and by no training step."""

from __future__ import annotations

import importlib
import json
import random
import resource
import sys
import warnings
from typing import Any

import numpy as np
import torch

warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])

from lightning_toys import make_loader, make_trainer  # noqa: E402
from probe_fingerprint import Tracer, digest  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from playbook_plugins.lightning.batch_size_probe import BatchSizeProbe  # noqa: E402

torch.set_num_threads(1)
package = importlib.import_module(sys.argv[2])
MIB = 2**20


class Model(Tracer, package.LightningModule):  # type: ignore[misc, name-defined]
    """Needs some 16 MiB of activations an example, and as much for their gradients."""

    wide = 2**22

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.wide:
            x = batch[0][:, :1] * self.net[0].weight[0, 0]
            loss = loss + 0 * x.expand(-1, self.wide).exp().mean()
        return loss


def collate(examples: list[Any]) -> Any:
    hog = bytearray(16 * MIB * len(examples))
    del hog
    return torch.utils.data.default_collate(examples)


told: dict[str, Any] = {}
with open("/proc/self/statm") as file:
    n_pages = int(file.read().split()[0])
limit = n_pages * resource.getpagesize() + 1024 * MIB
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for where in ("step", "collate"):
    for case in ("without", "with"):
        torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
        probe = BatchSizeProbe(1024, n_warmup_steps=1, n_steps=3, max_seconds=0.0)
        model = Model()
        model.wide = Model.wide if where == "step" else 0
        dataset = make_loader(256, 8).dataset
        loader: Any = DataLoader(dataset, 4, shuffle=True, collate_fn=collate if where == "collate" else None)
        trainer = make_trainer(package, [probe] if case == "with" else [], max_steps=6)
        trainer.fit(model, loader)
        told[f"{where} {case}"] = {
            "result": None if probe.result is None else probe.result.to_dict(),
            "losses": model.losses,
            "weights": digest(list(model.parameters())),
            "buffers": digest(list(model.buffers())),
            "random": [random.random(), float(np.random.rand()), float(torch.rand(()))],  # noqa: NPY002
        }
json.dump(told, sys.stdout)
