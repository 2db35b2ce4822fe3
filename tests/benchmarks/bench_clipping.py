"""What does percentile clipping cost? Steps of a real Trainer with it, beside torch's own clipping and a bare step.

Run it with ``python tests/benchmarks/bench_clipping.py``; it takes about seven minutes on one core.

Every block of three steps of one run holds, in random order, a step with the callback, one with torch's
``clip_grad_norm_`` at a fixed threshold, as Lightning's ``gradient_clip_val`` calls it, and one with neither.

What limits it: the norm has to read every gradient once. Of 25 million parameters that are 100 MB, some 10 ms for one
core, as much as their sum takes; the larger the batch, the smaller its share of a step.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from typing import Any

import numpy as np
import pytorch_lightning
import torch
from claims import claim, span
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from playbook_plugins.lightning.clipping import PercentileGradientClipping

# The running percentile has set in by then.
N_WARM_BLOCKS = 15
_NEITHER, _OURS, _TORCH = range(3)


class InTurn(PercentileGradientClipping):
    """Clips in one step of each block, lets torch clip in another, does nothing in the third, and times all."""

    def __init__(self, n_blocks: int, seed: int, **options: Any) -> None:
        super().__init__(min_steps=10, **options)
        generator = np.random.default_rng(seed)
        self.order = np.concatenate([generator.permutation(3) for _ in range(n_blocks + N_WARM_BLOCKS)])
        self.begun: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.begun.append(time.process_time())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, *optimizers: Any) -> None:
        turn = self.order[len(self.begun) - 1]
        if turn == _OURS:
            super().on_before_optimizer_step(trainer, pl_module, *optimizers)
        elif turn == _TORCH:
            torch.nn.utils.clip_grad_norm_(pl_module.parameters(), self.threshold or 1.0)

    def on_train_end(self, *_: Any) -> None:
        self.begun.append(time.process_time())

    def seconds(self) -> NDArray[np.float64]:
        """Return the seconds of the steps with neither, with the callback and with torch's clipping: (3, n_blocks)."""
        blocks = np.empty((len(self.order) // 3, 3))
        blocks[np.repeat(np.arange(len(blocks)), 3), self.order] = np.diff(self.begun)
        return blocks[N_WARM_BLOCKS:].T


class Network(pytorch_lightning.LightningModule):
    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [part for _ in range(n_layers) for part in (torch.nn.Linear(width, width), torch.nn.ReLU())]
        self.network = torch.nn.Sequential(*layers)
        for layer in layers[::2]:
            # Otherwise the gradients of a deep network vanish into denormal numbers, which cost many times over.
            torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return torch.nn.functional.mse_loss(self.network(batch), batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-5)


def main(n_runs: int = 2) -> None:
    warnings.simplefilter("ignore")
    # The processor time of one thread: the time on the wall of an idle machine, which others hardly disturb.
    torch.set_num_threads(1)
    for name in ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    print("Cost of PercentileGradientClipping, as a share of a step: the median of paired ratios less 1, 95% interval")
    spans: dict[int, list[str]] = {_OURS: [], _TORCH: []}
    for words, bound, n_layers, width, batch_size, n_blocks in (
        ("20-tensor MLP", 0.06, 10, 128, 128, 2000),
        ("160-tensor network of 25 million parameters", 0.02, 80, 560, 128, 20),
        ("160-tensor network of 25 million parameters", 0.02, 80, 560, 512, 20),
    ):
        print(f"{words}, batch {batch_size}, bound {bound:.0%}")
        for clips, options in (("90th percentile", {}), ("every step clipped", {"threshold": 1e-6})):
            shares: dict[int, list[float]] = {_OURS: [], _TORCH: []}
            for seed in range(n_runs):
                seconds = measure(n_layers, width, batch_size, n_blocks, seed, **options)
                without = seconds[_NEITHER]
                for which, name in ((_OURS, "callback"), (_TORCH, "torch's")):
                    share, low, high = paired_share(seconds[which], without)
                    shares[which].append(share)
                    mean = (seconds[which].sum() - without.sum()) / without.sum()
                    print(
                        f"  {clips:<20} run {seed}, {name:<8}: {share:6.2%} [{low:6.2%}, {high:6.2%}], by the means "
                        f"{mean:6.2%}, step {1e3 * np.median(without):.2f} ms, it "
                        f"{1e6 * np.median(seconds[which] - without):.0f} us"
                    )
            if not options:
                for which, values in shares.items():
                    spans[which].append(span(values, ".1%"))
    ours, theirs = ("; ".join(words) for words in spans.values())
    claim("clipping", ours, f"{theirs}, torch's `clip_grad_norm_` at a fixed threshold")


def measure(
    n_layers: int, width: int, batch_size: int, n_blocks: int, seed: int, **options: Any
) -> NDArray[np.float64]:
    clipping = InTurn(n_blocks, seed, **options)
    n_steps = 3 * (n_blocks + N_WARM_BLOCKS)
    trainer = pytorch_lightning.Trainer(
        max_steps=n_steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[clipping],
    )
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(batch_size, width, generator=generator) for _ in range(50)]
    loader = DataLoader([batches[step % 50] for step in range(n_steps)], batch_size=None)
    trainer.fit(Network(n_layers, width), loader)
    return clipping.seconds()


def paired_share(with_it: NDArray[np.float64], without: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the median of the paired ratios less 1 and its 95% interval from 2000 bootstrap samples."""
    ratios = with_it / without - 1
    rows = np.random.default_rng(0).integers(len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[rows], axis=1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
