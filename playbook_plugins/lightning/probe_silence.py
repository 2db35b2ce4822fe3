"""How do steps of training stay unheard? While the probe trains, nothing is logged, called back or sent to other ranks.

Playbook: none; it lets the batch size probe train for a few steps without a trace.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


@contextlib.contextmanager
def silence(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Divert what training steps tell others, and put everything back at the end.

    Loggers are replaced by ones that do nothing, callbacks and the hooks on the optimizers' steps are left out, what
    the module logs goes to a collection of its own, and the strategy's collectives stay on this rank, so that a rank
    that fails leaves no other one waiting.
    """
    package = importlib.import_module(package_name(trainer))
    loop: Any = trainer.fit_loop.epoch_loop
    strategy: Any = trainer.strategy
    optimizers: list[Any] = list(strategy.optimizers)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(trainer, "callbacks", []))
        quiet: list[Any] = [package.loggers.logger.DummyLogger() for _ in trainer.loggers]
        stack.enter_context(_replaced(trainer, "loggers", quiet))
        stack.enter_context(_replaced(trainer, "profiler", package.profilers.PassThroughProfiler()))
        stack.enter_context(_replaced(loop, "_results", type(loop._results)(training=True)))
        for optimizer in optimizers:
            for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
                stack.enter_context(_replaced(optimizer, name, OrderedDict()))
        if trainer.world_size > 1:
            for name, local in _local_collectives(trainer.world_size).items():
                stack.enter_context(_replaced(strategy, name, local))
            stack.enter_context(_metrics_on_this_rank(pl_module))
            if hasattr(strategy.model, "no_sync"):
                stack.enter_context(strategy.model.no_sync())
        yield


def package_name(module_or_trainer: object) -> str:
    """Return which of the two Lightning packages a module or a trainer belongs to."""
    names = {cls.__module__.partition(".")[0] for cls in type(module_or_trainer).__mro__}
    return "lightning.pytorch" if "lightning" in names else "pytorch_lightning"


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute, and delete it at the end where only the class has it."""
    is_own = name in vars(owner) or isinstance(getattr(type(owner), name, None), property)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextlib.contextmanager
def _metrics_on_this_rank(pl_module: torch.nn.Module) -> Iterator[None]:
    """Keep torchmetrics from gathering their states over the ranks."""
    with contextlib.ExitStack() as stack:
        for module in pl_module.modules():
            for name in ("dist_sync_on_step", "sync_on_compute"):
                if name in vars(module):
                    stack.enter_context(_replaced(module, name, False))
        yield


def _local_collectives(world_size: int) -> dict[str, Any]:
    """Return what stands in for the strategy's collectives: each rank sees its own values."""

    def same(value: Any, *_: Any, **__: Any) -> Any:
        return value

    def all_gather(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.stack([tensor] * world_size)

    def barrier(*_: Any, **__: Any) -> None:
        return None

    return {
        "reduce": same,
        "broadcast": same,
        "reduce_boolean_decision": same,
        "all_gather": all_gather,
        "barrier": barrier,
    }
