"""A small run with everything random in it, for the tests of resuming; as a script, to be killed and resumed.

``python resume_run.py options.json`` trains with the options in the file, see `train`, and writes what the run tells to
the path under the option ``told``.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning_toys import make_trainer
from torch.utils.data import DataLoader, Dataset

from playbook_plugins.lightning import (
    BestCheckpoints,
    LearningRateWarmup,
    PercentileGradientClipping,
    PeriodicEvaluation,
    TrialRecorder,
    WeightEMA,
)
from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning.resumable_loader import ResumableDataLoader

N_EXAMPLES = 29


class Examples(Dataset[Any]):
    """Numbered examples of a regression; `jitter` adds noise that is drawn when an example is read."""

    def __init__(self, jitter: float = 0.0) -> None:
        self.x = torch.randn(N_EXAMPLES, 3, generator=torch.Generator().manual_seed(5))
        self.jitter = jitter

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        x = self.x[index]
        return index, x + self.jitter * torch.randn(3) if self.jitter else x, x.sum().reshape(1)


class _Model:
    """A network with dropout and momentum that keeps the examples and the loss of each batch."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(3, 6), torch.nn.Tanh(), torch.nn.Dropout(0.5), torch.nn.Linear(6, 1)
        )
        self.options = options
        self.examples: list[list[int]] = []
        self.losses: list[float] = []

    def setup(self, stage: str) -> None:
        if self.trainer.world_size > 1:
            # Lightning gives every process the same seed.
            torch.manual_seed(self.options["seed"] + 1000 * self.trainer.global_rank)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        ids, x, y = batch
        loss = torch.nn.functional.mse_loss(self.net(x), y)
        self.examples.append(ids.tolist())
        self.losses.append(float(loss.detach()))
        if len(self.losses) == self.options.get("kill_at_batch"):
            os.kill(os.getpid(), signal.SIGKILL)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        _, x, y = batch
        # Evaluations that draw must not matter either.
        self.log("val_loss", torch.nn.functional.mse_loss(self.net(x), y) + 0 * torch.rand(()), sync_dist=True)

    def on_train_start(self) -> None:
        torch.rand(3)

    def configure_optimizers(self) -> Any:
        if self.options.get("asks_for_the_length"):
            assert self.trainer.estimated_stepping_batches > 0
        optimizer = torch.optim.SGD(self.net.parameters(), lr=0.02, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_callbacks(folder: str, every_n_steps: int, random_state: str = "last") -> list[Any]:
    """Return the stack of a run, with the recorder, which keeps the generators, first or last, or not keeping them."""
    stack = [
        LearningRateWarmup(2, max_share=1.0),
        PercentileGradientClipping(50, min_steps=4),
        PeriodicEvaluation(every_n_steps),
        WeightEMA(decay=0.8),
        BestCheckpoints("val_loss", "min", save_top_k=-1, dirpath=folder),
    ]
    recorder = TrialRecorder("val_loss", "min")
    if random_state == "none":
        # A callback that does nothing.
        recorder._random = CallbackBase()
    return [recorder, *stack] if random_state == "first" else [*stack, recorder]


def train(
    package: Any,
    folder: str,
    *,
    ckpt_path: str | None = None,
    seed: int = 1,
    accumulation: int = 1,
    loader: Any = ResumableDataLoader,
    every_n_steps: int = 3,
    random_state: str = "last",
    jitter: float = 0.0,
    trainer_options: dict[str, Any] | None = None,
    loader_options: dict[str, Any] | None = None,
    **model_options: Any,
) -> dict[str, Any]:
    """Train, from the beginning or from a file, and return what the run tells.

    Parameters
    ----------
    seed
        Of the global generators before the run; a resumed run must not depend on it.
    kill_at_batch
        End the process by SIGKILL in this batch of the process, counted from 1.
    """
    callbacks = make_callbacks(folder, every_n_steps, random_state)
    options = {"max_steps": 20} if trainer_options is None else trainer_options
    trainer = make_trainer(
        package,
        callbacks,
        **({"enable_checkpointing": True, "accumulate_grad_batches": accumulation} | options),
    )
    model = type("Model", (_Model, package.LightningModule), {})(seed=seed, **model_options)
    package.seed_everything(seed)
    data = loader(Examples(jitter), batch_size=4, **({"shuffle": True} if loader_options is None else loader_options))
    trainer.fit(model, data, DataLoader(Examples(), batch_size=N_EXAMPLES), ckpt_path=ckpt_path)
    clipping, average, recorder = (
        next(one for one in callbacks if isinstance(one, kind))
        for kind in (PercentileGradientClipping, WeightEMA, TrialRecorder)
    )
    return {
        "examples": model.examples,
        "losses": model.losses,
        "weights": {name: values.clone() for name, values in model.state_dict().items()},
        "raw": average.average.raw_by_name(),
        "optimizer": trainer.optimizers[0].state_dict(),
        "curve": {name: column.tolist() for name, column in recorder.record.curve.columns().items()},
        "norms": list(clipping.windows[0].history),
        "generator": torch.get_rng_state(),
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    chosen = json.loads(Path(sys.argv[1]).read_text())
    result = train(importlib.import_module(chosen.pop("package")), **{k: v for k, v in chosen.items() if k != "told"})
    torch.save(result, chosen["told"])
