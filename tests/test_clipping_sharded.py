"""Do two processes that share the gradients, or parts of them, clip as one process over all the data does?"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from averaging_toys import LIGHTNING_WARNINGS, loaders, restore, toy, trainer
from lightning_toys import PACKAGES, QUIET
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.gradient_norm import sharded_norm

pytestmark = [*QUIET, *(pytest.mark.filterwarnings(text) for text in LIGHTNING_WARNINGS)]

# Each rank reads its half of every batch, so that the gradient of both is that of one process on the whole batch.
SCRIPT = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
folder, package, strategy, nonfinite, tests = sys.argv[1:6]
sys.path.insert(0, tests)
import process_groups
package = importlib.import_module(package)
import numpy as np, torch
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.utils.data import DataLoader, TensorDataset
from playbook_plugins.lightning.clipping import PercentileGradientClipping

N_STEPS, BATCH = 24, 8

class Toy(package.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        # 5, 7 and 1 rows do not divide by two: the shards are uneven, and one rank has none of the last.
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 7))
        self.head = torch.nn.Linear(7, 1)
        self.automatic_optimization = strategy != "fsdp1 of two"

    def configure_model(self):
        if strategy == "fsdp2":
            for layer in (self.net, self.head):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = torch.nn.functional.mse_loss(self.head(self.net(x)), y)
        return loss * float("nan") if nonfinite == "skip" and batch_idx == 9 else loss

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(N_STEPS * BATCH, 3, generator=generator) * torch.linspace(3, 1, N_STEPS * BATCH)[:, None]
        y = x.prod(1, keepdim=True)
        rank, size = self.trainer.global_rank, self.trainer.world_size
        batches = [
            (xs.chunk(size)[rank], ys.chunk(size)[rank]) for xs, ys in zip(x.split(BATCH), y.split(BATCH))
        ]
        return DataLoader(batches, batch_size=None)

    def configure_optimizers(self):
        if strategy == "fsdp1 of two":
            return [torch.optim.SGD(part.parameters(), lr=1e-3) for part in (self.net, self.head)]
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

class Watch(package.Callback):
    def __init__(self):
        self.clipped, self.moved = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        parts = []
        for parameter in optimizer.param_groups[0]["params"]:
            gradient = parameter.grad
            if gradient is not None:
                gradient = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
                parts.append(gradient.detach().flatten().double())
        total = sum((part.square().sum() for part in parts), torch.zeros((), dtype=torch.float64))
        if strategy == "fsdp1":
            torch.distributed.all_reduce(total)
        self.clipped.append(float(total.sqrt()))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = self.state(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        after = self.state(trainer, pl_module)
        self.moved.append(len(after) != len(self.before) or any(
            not torch.equal(one, other) for one, other in zip(self.before, after)
        ))

    def state(self, trainer, pl_module):
        held = [parameter.detach() for parameter in pl_module.parameters()]
        for state in trainer.optimizers[0].state.values():
            held += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return [(value.to_local() if hasattr(value, "to_local") else value).clone() for value in held]

class FSDPOnCPU:
    # FSDPStrategy on its own hands no device to FSDP where that is the CPU.

    def _setup_model(self, model):
        if strategy == "fsdp1 in parts":
            model.head = FullyShardedDataParallel(model.head, device_id=torch.device("cpu"))
            return model
        return FullyShardedDataParallel(
            model, device_id=torch.device("cpu"), use_orig_params=True, sharding_strategy=self.sharding_strategy,
            auto_wrap_policy=ModuleWrapPolicy({torch.nn.Linear}),
        )

def choose():
    strategies = package.strategies
    if strategy == "fsdp2":
        return strategies.ModelParallelStrategy(2, 1, process_group_backend="gloo")
    if strategy.startswith("fsdp1"):
        return type("FSDPOnCPU", (FSDPOnCPU, strategies.FSDPStrategy), {})(process_group_backend="gloo")
    return strategy

clipping, watch = PercentileGradientClipping(70, min_steps=4, nonfinite=nonfinite), Watch()
trainer = package.Trainer(
    callbacks=[clipping, watch], max_steps=N_STEPS, accelerator="cpu", devices=1 if strategy == "auto" else 2,
    strategy=choose(), logger=False, enable_progress_bar=False, enable_model_summary=False,
    enable_checkpointing=False, use_distributed_sampler=False,
)
model, message = Toy(), ""
try:
    trainer.fit(model)
except ValueError as error:
    message = str(error)
told = {"message": message, "clipped": watch.clipped, "moved": watch.moved}
if clipping.windows:
    history = clipping.history()
    told |= {
        "update": history.update.tolist(), "norm": history.norm.tolist(),
        "threshold": [None if np.isnan(one) else one for one in history.threshold],
        "nonfinite": history.nonfinite.tolist(), "share": clipping.clipped_share,
    }
json.dump(told, open(f"{folder}/{strategy}-{nonfinite}-{trainer.global_rank}.json", "w"))
"""


def run(folder: Path, package: Any, strategy: str, nonfinite: str = "raise") -> list[dict[str, Any]]:
    """Train in processes of their own and return what each rank tells."""
    script = folder / "script.py"
    script.write_text(SCRIPT)
    n_ranks = 1 if strategy == "auto" else 2
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if n_ranks > 1 else []
    tests = str(Path(__file__).parent)
    subprocess.run(
        [sys.executable, *launcher, str(script), str(folder), package.__name__, strategy, nonfinite, tests],
        check=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return [json.loads((folder / f"{strategy}-{nonfinite}-{rank}.json").read_text()) for rank in range(n_ranks)]


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp1"])
def test_two_processes_clip_as_one_over_all_the_data(package: Any, strategy: str, tmp_path: Path) -> None:
    [alone] = run(tmp_path, package, "auto")
    one, other = run(tmp_path, package, strategy)
    assert one["message"] == other["message"] == alone["message"] == ""
    # Both ranks see the same numbers to the last bit.
    for name in ("update", "norm", "threshold", "share", "clipped"):
        assert one[name] == other[name], name
    np.testing.assert_allclose(one["norm"], alone["norm"], rtol=1e-6)
    thresholds = [np.array(told["threshold"], dtype=float) for told in (one, alone)]
    np.testing.assert_allclose(*thresholds, rtol=1e-6)
    assert np.isnan(thresholds[0]).sum() == 4
    np.testing.assert_allclose(one["clipped"], alone["clipped"], rtol=1e-6)
    # The clipped gradient has the threshold's length where the norm was above it, and its own elsewhere.
    norm, clipped = np.array(one["norm"]), np.array(one["clipped"])
    limits = np.where(norm > thresholds[0], thresholds[0], norm)
    np.testing.assert_allclose(clipped, limits, rtol=1e-6)
    assert 0 < one["share"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "fsdp1"])
def test_two_processes_skip_the_same_update(package: Any, strategy: str, tmp_path: Path) -> None:
    for told in run(tmp_path, package, strategy, nonfinite="skip"):
        assert told["nonfinite"] == [9]
        assert told["update"] == [*range(9), *range(10, 24)]
        assert [step for step, moved in enumerate(told["moved"]) if not moved] == [9]


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            "fsdp1 of two",
            "`configure_optimizers` returned 2 optimizers, and under FSDP PercentileGradientClipping supports one: "
            "FSDP measures the norm over the whole module. Use one optimizer, or ModelParallelStrategy (FSDP2).",
        ),
        (
            "fsdp1 in parts",
            "`configure_model` wraps parts of the module in FSDP, and PercentileGradientClipping needs the whole "
            "module wrapped: only its root knows the norm over all ranks. Leave the wrapping to "
            "FSDPStrategy(auto_wrap_policy=...), or use ModelParallelStrategy (FSDP2).",
        ),
    ],
)
def test_what_fsdp_cannot_measure_is_refused(package: Any, strategy: str, message: str, tmp_path: Path) -> None:
    assert [told["message"] for told in run(tmp_path, package, strategy)] == [message, message]


@pytest.mark.slow
@pytest.mark.parametrize("package", [pytorch_lightning, lightning.pytorch], ids=["pytorch_lightning", "lightning"])
def test_spawned_processes_clip_as_one_over_all_the_data(package: Any, tmp_path: Path) -> None:
    told = []
    # One batch holds all examples of a rank: however they were shuffled, both together read what one process reads.
    for n_batches, batch_size, options in ((2, 32, {"strategy": "ddp_spawn", "devices": 2}), (1, 64, {})):
        folder = tmp_path / str(batch_size)
        callbacks = [PercentileGradientClipping(threshold=1.0), package.callbacks.ModelCheckpoint(folder)]
        options |= {"max_steps": 8, "limit_val_batches": 0, "val_check_interval": 1.0}
        fitted = trainer(package, tmp_path, callbacks, **options)
        environment = dict(os.environ)
        try:
            fitted.fit(toy(package, batch_norm=False), loaders(n_batches, batch_size)[0])
        finally:
            restore(environment)
        [path] = folder.glob("*.ckpt")
        told.append(torch.load(path, weights_only=True)["callbacks"]["PercentileGradientClipping"])
    spawned, alone = told
    assert len(alone["norms"][0]) == 8
    torch.testing.assert_close(spawned["norms"], alone["norms"], rtol=1e-6, atol=0)
    assert spawned["n_clipped"] == alone["n_clipped"]
    assert alone["n_clipped"][0] == int((alone["norms"][0] > 1).sum()) > 0


@pytest.fixture
def lone_mesh() -> Iterator[Any]:
    """Return a device mesh of this process alone."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_sharded_and_plain_gradients_have_one_norm(lone_mesh: Any) -> None:
    parts = [torch.full((4, 3), 2.0), torch.full((11,), 4.0), torch.tensor([15.0])]
    whole = pytest.approx(math.sqrt(48 + 176 + 225), rel=1e-6)
    assert float(sharded_norm(parts)) == whole
    sharded = [distribute_tensor(part, lone_mesh, [Shard(0)]) for part in parts[:2]]
    norm = sharded_norm([*sharded, parts[2]])
    assert type(norm) is torch.Tensor
    assert float(norm) == whole
