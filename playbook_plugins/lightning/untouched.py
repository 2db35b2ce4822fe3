"""How is a run made that leaves no trace? On copies of the model and the loaders, with their random states kept.

Playbook: none; what a probe needs in order to be free of consequences.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from playbook_plugins.lightning.probe_objects import Restore, remember_random

# By name, so that both packages match: what keeps files, ends a run early, averages weights or evaluates.
_KEPT_OUT = ("Checkpoint", "EarlyStopping", "WeightEMA", "WeightAveraging", "StochasticWeightAveraging")
# What Lightning and the evaluation say about every small trainer; none of it concerns a probe.
_CHATTER = (
    r"The '\w+_dataloader' does not have many workers",
    r"The number of training batches \(\d+\) is smaller than the logging interval",
    r"You defined a `validation_step` but have no `val_dataloader`",
    r"The evaluation batch size is \d+",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated",
)
_CHATTERING = ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning_fabric")


def is_kept_out(callback: object) -> bool:
    """Return whether a callback keeps files, ends a run early or averages weights."""
    return any(cls.__name__ in _KEPT_OUT for cls in type(callback).__mro__)


def copy_model(model: Any) -> Any:
    """Return a copy that trains alone, without the callbacks that have no place in a probe."""
    twin = copy.deepcopy(model)
    configure = twin.configure_callbacks

    def configure_callbacks() -> list[Any]:
        found = configure()
        return [one for one in (found if isinstance(found, Sequence) else [found]) if not is_kept_out(one)]

    twin.configure_callbacks = configure_callbacks
    return twin


def copy_loaders(loaders: Any) -> Any:
    """Return loaders that begin anew over the same data sets, so that the user's own stay where they are."""
    if isinstance(loaders, DataLoader):
        running = loaders._iterator
        return copy.deepcopy(
            loaders, {id(loaders.dataset): loaders.dataset, **({id(running): None} if running else {})}
        )
    if isinstance(loaders, Mapping):
        return {name: copy_loaders(one) for name, one in loaders.items()}
    if isinstance(loaders, (list, tuple)) and any(isinstance(one, DataLoader) for one in loaders):
        return [copy_loaders(one) for one in loaders]
    return loaders


def copy_datamodule(datamodule: Any) -> Any:
    """Return a datamodule of the same data sets; what its hooks and the trainer assign stays with the copy."""
    twin = copy.copy(datamodule)
    for name, value in list(vars(datamodule).items()):
        if isinstance(value, (DataLoader, Mapping, list, tuple)) and name not in ("_hparams", "_hparams_initial"):
            vars(twin)[name] = copy_loaders(value)
    twin.trainer = None
    return twin


def random_sources(things: list[Any]) -> list[Restore]:
    """Return what puts back the random generators that loaders and data sets hold for themselves."""
    found: list[Restore] = []
    seen: set[int] = set()
    level = things
    # A loader, its sampler, the sampler's data set, its transforms, their generator.
    for _ in range(5):
        deeper: list[Any] = []
        for thing in level:
            if id(thing) in seen or isinstance(thing, (Tensor, np.ndarray, torch.nn.Module, str)):
                continue
            seen.add(id(thing))
            restore = remember_random(thing)
            if restore is not None:
                found.append(restore)
            elif isinstance(thing, Mapping):
                deeper += list(thing.values())[:100]
            elif isinstance(thing, (list, tuple)):
                deeper += thing[:100]
            else:
                deeper += list(getattr(thing, "__dict__", {}).values())
        level = deeper
    return found


def restore_sources(sources: list[Restore]) -> None:
    """Give the random generators the states that they had."""
    for restore in sources:
        restore()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what a trainer says about itself from being said once a run; the callbacks' lines pass."""
    loggers = [logging.getLogger(f"{name}.utilities.rank_zero") for name in _CHATTERING]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for words in _CHATTER:
                warnings.filterwarnings("ignore", message=words)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
