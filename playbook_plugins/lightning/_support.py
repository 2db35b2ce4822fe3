"""Which strategies can a callback serve, and how does it speak? Shared by the callbacks of this folder."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

# By name: the strategies of both packages match, and none of their optional dependencies is imported.
SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "XLAFSDPStrategy")
DEEPSPEED = ("DeepSpeedStrategy",)
SPAWNED = ("_MultiProcessingLauncher",)


def refuse(trainer: Trainer, callback: object, names: Iterable[str], why: str, remedy: str) -> None:
    """Raise when the trainer's strategy or its launcher is one of those named.

    Raises
    ------
    ValueError
        That names the callback and the strategy, the reason and the remedy.
    """
    strategy = trainer.strategy
    classes = {cls.__name__ for source in (strategy, strategy.launcher) for cls in type(source).__mro__}
    if classes.intersection(names):
        raise ValueError(
            f"`strategy` is {type(strategy).__name__}, and {type(callback).__name__} does not support it: {why}. "
            f"{remedy}"
        )


def is_strategy(trainer: Trainer, *names: str) -> bool:
    """Return whether the trainer's strategy has one of these names or derives from one that has."""
    return any(cls.__name__ in names for cls in type(trainer.strategy).__mro__)


def is_fitting(trainer: Trainer) -> bool:
    """Return whether the trainer is inside `fit`, its sanity check left out."""
    return str(getattr(trainer.state.fn, "value", "")) == "fit" and not trainer.sanity_checking


def inform(trainer: Trainer, message: str) -> None:
    """Print one line on rank zero, through Lightning's own logger, so that silencing Lightning silences it too."""
    if trainer.is_global_zero:
        lightning = any(cls.__module__.startswith("lightning.") for cls in type(trainer).__mro__)
        logging.getLogger("lightning.pytorch" if lightning else "pytorch_lightning").info(message)


def warn(trainer: Trainer, message: str) -> None:
    """Warn once on rank zero."""
    if trainer.is_global_zero:
        warnings.warn(message, UserWarning, stacklevel=2)
