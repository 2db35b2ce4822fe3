"""What does averaging the weights cost, beside Lightning's EMAWeightAveraging, and what does a swap cost?

Run it with ``python tests/benchmarks/bench_weight_ema.py``; it takes about four minutes on one core.

Every block of three steps of one run holds, in random order, a step with WeightEMA, one with EMAWeightAveraging and one
with neither, in which both callbacks are called and return at once. The cost of each is what its step takes beyond the
third; where WeightEMA updates after every n-th of its steps, its cost is the mean over such n steps. The bounds are
about the ratio of the two costs. A swap is one exchange of the model's weights for the average, or back, right after a
step; its share is that of the step.

What limits it: an update reads the weights and reads and writes the average. Of 25 million parameters that are 300 MB
through the memory of one core, which takes more than a quarter of EMAWeightAveraging's time, however it is written. So
with an update after every step the bounds are out of reach, and the automatic interval of a half-life meets them.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from typing import Any

import lightning.pytorch
import numpy as np
import torch
from claims import claim
from lightning.pytorch.callbacks import EMAWeightAveraging
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from playbook_plugins.lightning.weight_ema import WeightEMA

N_WARM_BLOCKS = 10
# In steps: the memory of both callbacks, EMAWeightAveraging's default decay of 0.999.
HALF_LIFE = 693.0
_NEITHER, _OURS, _THEIRS = range(3)


class Turns:
    """Says which callback has the present step, and keeps the seconds of every step."""

    def __init__(self, n_blocks: int, seed: int) -> None:
        generator = np.random.default_rng(seed)
        self.order = np.concatenate([generator.permutation(3) for _ in range(n_blocks + N_WARM_BLOCKS)])
        self.now = -1
        self.was_update: list[bool] = []
        self.begun: list[float] = []
        self.ended: list[float] = []

    def costs(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
        """Return the seconds of bare steps, what WeightEMA and EMAWeightAveraging add, and where WeightEMA updated."""
        seconds = np.array(self.ended) - np.array(self.begun)
        blocks = np.empty((len(seconds) // 3, 3))
        blocks[np.repeat(np.arange(len(blocks)), 3), self.order] = seconds
        neither, ours, theirs = blocks[N_WARM_BLOCKS:].T
        return neither, ours - neither, theirs - neither, np.array(self.was_update)[N_WARM_BLOCKS:]


class Watch(lightning.pytorch.Callback):
    """First among the callbacks: the step begins with it, and the one before has ended."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_batch_start(self, *_: Any) -> None:
        self.turns.now += 1
        self.turns.begun.append(time.process_time())


class OursInTurn(WeightEMA):
    def __init__(self, turns: Turns, **options: Any) -> None:
        super().__init__(**options)
        self.turns = turns

    def _after_step(self, *hook: Any) -> None:
        if self.turns.order[self.turns.now] == _OURS:
            n_updates = self.n_updates
            super()._after_step(*hook)
            self.turns.was_update.append(self.n_updates != n_updates)


class TheirsInTurn(EMAWeightAveraging):
    def __init__(self, turns: Turns) -> None:
        super().__init__(decay=0.5 ** (1 / HALF_LIFE))
        self.turns = turns

    def on_train_batch_end(self, *hook: Any) -> None:
        if self.turns.order[self.turns.now] == _THEIRS:
            super().on_train_batch_end(*hook)


class Swaps(lightning.pytorch.Callback):
    """Last among the callbacks: ends the step; after the last step of a block swaps once there and back."""

    def __init__(self, turns: Turns, ema: WeightEMA) -> None:
        self.turns = turns
        self.ema = ema
        self.seconds: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.turns.ended.append(time.process_time())
        average = self.ema.average
        if self.turns.now % 3 < 2 or average is None:
            return
        begun = time.process_time()
        average.wear()
        worn = time.process_time()
        average.take_off()
        self.seconds.append((worn - begun, time.process_time() - worn))


class Network(lightning.pytorch.LightningModule):
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


def main(n_runs: int = 1, scale: float = 1.0) -> None:
    warnings.simplefilter("ignore")
    # The processor time of one thread: the time on the wall of an idle machine, which others hardly disturb.
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    costs: list[tuple[str, str]] = []
    print("Cost of WeightEMA: medians over blocks of adjacent steps, with their 95% intervals")
    for words, bound, n_layers, width, batch_size, n_blocks in (
        ("20-tensor MLP", "1/8", 10, 128, 128, 1000),
        ("160-tensor network of 25 million parameters", "1/4", 80, 560, 32, 80),
    ):
        print(f"{words}, batch {batch_size}; bounds: {bound} of EMAWeightAveraging's cost, 1% of a step for a swap")
        for interval, options in (
            ("automatic interval", {"half_life": HALF_LIFE}),
            ("every step", {"decay": 0.5 ** (1 / HALF_LIFE)}),
        ):
            for seed in range(n_runs):
                bare, ours, theirs, is_update, swaps = measure(
                    n_layers, width, batch_size, int(scale * n_blocks), seed, **options
                )
                ratio, low, high = bootstrap(ours, theirs, is_update)
                if interval == "automatic interval" and seed == 0:
                    costs.append((time_words(cost(ours, is_update)), time_words(float(np.median(theirs)))))
                print(
                    f"  {interval:<18} run {seed}: {ratio:.3f} [{low:.3f}, {high:.3f}] of EMAWeightAveraging's cost, "
                    f"{1e6 * cost(ours, is_update):.0f} and {1e6 * np.median(theirs):.0f} us beside a step of "
                    f"{1e3 * np.median(bare):.2f} ms"
                )
                for way, seconds in zip(("there", "back"), swaps.T, strict=True):
                    share, low, high = bootstrap(seconds, bare, np.ones(len(seconds), dtype=bool))
                    print(
                        f"    swap {way:<5} {share:.2%} [{low:.2%}, {high:.2%}] of a step, "
                        f"{1e6 * np.median(seconds):.1f} us"
                    )
    here, peer = ("; ".join(words) for words in zip(*costs, strict=True))
    claim("averaging", here, f"{peer}, Lightning's EMAWeightAveraging (every step)")


def time_words(seconds: float) -> str:
    """Return a time in microseconds or milliseconds, with two digits."""
    return f"{1e6 * seconds:.0f} µs" if seconds < 1e-3 else f"{1e3 * seconds:.2g} ms"


def measure(
    n_layers: int, width: int, batch_size: int, n_blocks: int, seed: int, **options: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Return what `Turns.costs` does, and the seconds of swaps there and back, of shape (n_blocks, 2)."""
    turns = Turns(n_blocks, seed)
    ema = OursInTurn(turns, **options)
    swaps = Swaps(turns, ema)
    n_steps = 3 * (n_blocks + N_WARM_BLOCKS)
    trainer = lightning.pytorch.Trainer(
        max_steps=n_steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[Watch(turns), ema, TheirsInTurn(turns), swaps],
    )
    generator = torch.Generator().manual_seed(seed)
    batches = [torch.randn(batch_size, width, generator=generator) for _ in range(50)]
    loader = DataLoader([batches[step % 50] for step in range(n_steps)], batch_size=None)
    trainer.fit(Network(n_layers, width), loader)
    return *turns.costs(), np.array(swaps.seconds)[N_WARM_BLOCKS:]


def cost(seconds: NDArray[np.float64], is_update: NDArray[np.bool_]) -> float:
    """Return the mean cost of a step: the medians of the steps with and without an update, each by its share."""
    share = is_update.mean()
    parts = ((share, seconds[is_update]), (1 - share, seconds[~is_update]))
    return float(sum(weight * np.median(part) for weight, part in parts if len(part)))


def bootstrap(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], is_update: NDArray[np.bool_]
) -> tuple[float, float, float]:
    """Return the ratio of our cost to the median of theirs, and its 95% interval from 2000 samples of whole blocks."""
    every = np.arange(len(theirs))[None]
    rows = np.random.default_rng(0).integers(len(theirs), size=(2000, len(theirs)))
    ratio, *ratios = (cost(ours[row], is_update[row]) / np.median(theirs[row]) for row in (*every, *rows))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(ratio), float(low), float(high)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:2]), *(float(argument) for argument in sys.argv[2:]))
