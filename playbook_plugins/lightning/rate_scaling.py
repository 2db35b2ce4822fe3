"""How is a whole schedule trained at a multiple of its learning rate? By scaling every rate that it is made of.

Playbook: "How can optimization failures be debugged and mitigated?", "Identifying unstable workloads".
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

# What a parameter group and a scheduler hold in the unit of the learning rate; `_check_scaled` finds what is missing.
_GROUP_RATES = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
_SCHEDULER_RATES = ("base_lrs", "_last_lr", "max_lrs", "min_lrs", "default_min_lr", "eta_min")


class RateScaling(CallbackBase):
    """Multiplies every learning rate as soon as the optimizers exist, and ends the run where the probe does."""

    def __init__(self, factor: float, max_steps: int, training_steps: int | None) -> None:
        self.factor = factor
        self.max_steps = max_steps
        self.training_steps = training_steps

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        known = {id(parameter) for parameter in pl_module.parameters()}
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if any(id(parameter) not in known for group in groups for parameter in group["params"]):
            raise ValueError(
                "`model` has optimizers over parameters that are not its own: a copy of it would train another model. "
                "Build the optimizers from self.parameters(), without a reference to the model from outside."
            )
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        if self.factor != 1:
            _check_scaled(trainer.optimizers, schedulers, self.factor, self.max_steps)
        _scale(trainer.optimizers, schedulers, self.factor)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.training_steps is not None:
            # Warmup has made the training longer by its own steps.
            extra = trainer.max_steps - max(self.max_steps, self.training_steps)
            trainer.fit_loop.epoch_loop.max_steps = self.max_steps + extra


def _scale(optimizers: Sequence[Any], schedulers: Sequence[Any], factor: float) -> None:
    """Multiply all learning rates by a factor: those of the groups, and what schedules compute them from."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not isinstance(group.get("lr"), (int, float, Tensor)):
                raise ValueError(
                    f"`model` is optimized by {type(optimizer).__name__}, whose learning rate is {group.get('lr')}: "
                    "probe_instability multiplies the learning rate. Set it to a number."
                )
            group |= {name: _times(group[name], factor) for name in _GROUP_RATES if name in group}
        if isinstance(optimizer.defaults.get("lr"), (int, float, Tensor)):
            optimizer.defaults["lr"] = _times(optimizer.defaults["lr"], factor)
    waiting = list(schedulers)
    while waiting:
        scheduler = waiting.pop()
        for name in _SCHEDULER_RATES:
            if name in vars(scheduler):
                setattr(scheduler, name, _times(getattr(scheduler, name), factor))
        waiting += getattr(scheduler, "_schedulers", [])


def _times(rate: Any, factor: float) -> Any:
    if isinstance(rate, (list, tuple)):
        return [_times(one, factor) for one in rate]
    return rate * factor


def _check_scaled(optimizers: Sequence[Any], schedulers: Sequence[Any], factor: float, n_steps: int) -> None:
    """Step copies of the schedules, scaled and not, and raise where the rates are not in proportion.

    Raises
    ------
    ValueError
        That names the schedule.
    """
    for place, scheduler in enumerate(schedulers):
        name = type(scheduler).__name__
        twins = []
        for scale in (1.0, factor):
            shared = {id(p): p for one in optimizers for group in one.param_groups for p in group["params"]}
            twin_optimizers, twin_schedulers = copy.deepcopy((list(optimizers), list(schedulers)), shared)
            _scale(twin_optimizers, twin_schedulers, scale)
            twins.append(twin_schedulers[place])
        try:
            for step in range(n_steps):
                rates = [[float(group["lr"]) for group in twin.optimizer.param_groups] for twin in twins]
                if not np.allclose(np.asarray(rates[0]) * factor, rates[1], rtol=1e-4, atol=0.0):
                    raise ValueError(
                        f"`model` has the schedule {name}, whose rates at step {step} are {rates[0]}, and {rates[1]} "
                        f"after scaling by {factor:g}: it holds a rate of its own that probe_instability cannot scale. "
                        "Write it as a factor of the optimizer's rate, for instance by LambdaLR."
                    )
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    for twin in twins:
                        _step(twin)
        except _ScheduleEnded:
            continue


class _ScheduleEnded(Exception):
    """A schedule of a fixed length was stepped to its end."""


def _step(scheduler: Any) -> None:
    if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        # A loss that stands still makes it reduce the rate.
        scheduler.step(1.0)
        return
    try:
        scheduler.step()
    except ValueError as error:
        if re.match(r"Tried to step \d+ times", str(error)):
            raise _ScheduleEnded from error
        raise
