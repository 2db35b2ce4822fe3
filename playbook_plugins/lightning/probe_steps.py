"""How long does one training step take? It is run as Lightning runs it, and timed until the median is stable.

Playbook: "Determining the feasible batch sizes and estimating training throughput".
"""

from __future__ import annotations

import contextlib
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

# The median is stable once its standard error is below 2%: a doubling that gains 10% stands out.
_PRECISION = 0.02
_FEWEST = 3
_MOST_SCALER_STEPS = 40


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """The time of a training step at one batch size.

    Attributes
    ----------
    seconds
        Median over the steps, the wait for data included.
    waiting_seconds
        The median wait for data.
    """

    seconds: float
    waiting_seconds: float


class TrainingStep:
    """One training step on a batch from the loader: transfer, forward, backward and optimizer step, without logging.

    The module's own hooks around a batch are part of the step; those of callbacks are not. Under DDP the step is run
    on the module within the wrapper, whose hooks stay quiet, so that no rank waits for another.
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer: Any = trainer
        self._module: Any = pl_module
        self._loop: Any = trainer.fit_loop.epoch_loop
        self._index = max(0, self._loop.batch_idx)

    def __call__(self, batch: Any) -> None:
        """Train on one batch."""
        trainer, module, strategy = self._trainer, self._module, self._trainer.strategy
        batch = trainer.precision_plugin.convert_input(batch)
        batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = strategy.batch_to_device(batch, dataloader_idx=0)
        results = self._loop._results
        results.batch, results.batch_size = batch, None
        arguments = self._loop._build_kwargs(OrderedDict(), batch, self._index).values()
        outputs: dict[str, Any] = {}

        @torch.enable_grad()
        def closure() -> Tensor | None:
            loss = self._forward(arguments, outputs)
            with self._hook("on_before_zero_grad"):
                module.on_before_zero_grad(optimizer)
            with self._hook("optimizer_zero_grad"):
                module.optimizer_zero_grad(trainer.current_epoch, self._index, optimizer)
            if loss is None:
                return None
            with self._hook("backward"):
                strategy.backward(loss, optimizer)
            return loss.detach()

        with self._hook("on_train_batch_start"):
            module.on_train_batch_start(batch, self._index)
        if module.automatic_optimization:
            optimizer = strategy._lightning_optimizers[0]
            with self._hook("optimizer_step"):
                module.optimizer_step(trainer.current_epoch, self._index, optimizer, closure)
        else:
            self._forward(arguments, outputs)
        with self._hook("on_train_batch_end"):
            module.on_train_batch_end(outputs, batch, self._index)
        results.batch = None

    def warm_up_scaler(self, fetch: Callable[[], Any]) -> None:
        """Train until the gradient scaler skips no more steps: a skipped step is too fast and takes no memory."""
        scaler: Any = getattr(self._trainer.precision_plugin, "scaler", None)
        n_taken = 0
        for _ in range(0 if scaler is None else _MOST_SCALER_STEPS):
            before = scaler.get_scale()
            self(fetch())
            n_taken = n_taken + 1 if scaler.get_scale() >= before else 0
            if n_taken == _FEWEST:
                return

    def _forward(self, arguments: Any, outputs: dict[str, Any]) -> Tensor | None:
        with self._hook("training_step"), self._trainer.precision_plugin.train_step_context():
            output = self._module.training_step(*arguments)
        outputs.clear()
        if output is None:
            return None
        loss: Tensor | None = output.get("loss") if isinstance(output, Mapping) else output
        outputs.update(output if isinstance(output, Mapping) else {})
        if isinstance(loss, Tensor):
            outputs["loss"] = loss.detach()
        return loss

    @contextlib.contextmanager
    def _hook(self, name: str) -> Iterator[None]:
        """Tell the module which hook runs: what `self.log` may do depends on it."""
        before = self._module._current_fx_name
        self._module._current_fx_name = name
        try:
            yield
        finally:
            self._module._current_fx_name = before


def time_steps(
    fetch: Callable[[], Any],
    step: TrainingStep | Callable[[Any], None],
    *,
    clock: Callable[[], float],
    synchronize: Callable[[], None],
    n_warmup_steps: int,
    n_steps: int,
    max_seconds: float,
    n_workers: int = 0,
    is_fetch_timed: bool = True,
) -> StepTime:
    """Run steps until their median is stable.

    Workers that load data deliver in bursts, so one measurement is the mean over as many steps as there are workers.

    Parameters
    ----------
    fetch
        Returns the next batch.
    step
        Trains on it.
    clock
        Returns the time in seconds.
    synchronize
        Waits for the device.
    n_warmup_steps
        So many steps at least come before.
    n_steps
        So many measurements at least, unless `max_seconds` are over; then three suffice.
    max_seconds
        No further measurement begins after so many seconds.
    n_workers
        Processes that load data.
    is_fetch_timed
        Whether the fetching is part of the step.
    """
    if isinstance(step, TrainingStep):
        step.warm_up_scaler(fetch)
    for _ in range(max(n_warmup_steps, n_workers)):
        step(fetch())
    synchronize()
    begin = clock()
    totals: list[float] = []
    waits: list[float] = []
    n_block = max(1, n_workers)
    while not _is_enough(totals, n_steps, clock() - begin >= max_seconds):
        total = wait = 0.0
        for _ in range(n_block):
            asked = clock()
            batch = fetch()
            fetched = clock()
            step(batch)
            del batch
            synchronize()
            total += clock() - (asked if is_fetch_timed else fetched)
            wait += fetched - asked if is_fetch_timed else 0.0
        totals.append(total / n_block)
        waits.append(wait / n_block)
    seconds = float(np.median(totals))
    return StepTime(seconds=seconds, waiting_seconds=min(float(np.median(waits)), seconds))


def _is_enough(totals: list[float], n_steps: int, is_late: bool) -> bool:
    if len(totals) < _FEWEST:
        return False
    if is_late or len(totals) < n_steps:
        return is_late
    # The standard error of a median without any assumption: how far the values lie apart half a root of n up and down.
    middle, reach = (len(totals) - 1) / 2, len(totals) ** 0.5 / 2
    ordered = np.sort(totals)
    error = (ordered[math.ceil(middle + reach)] - ordered[math.floor(middle - reach)]) / 2
    return bool(error <= _PRECISION * np.median(totals))
