"""Which weights does a checkpoint call the model's? What averaging and statistics pooling share to answer that.

Playbook: "Saving checkpoints and retrospectively selecting the best checkpoint".

Lightning asks the strategy for the weights of every file it writes, and tells callbacks of full files only: a
weights-only file passes them by. So a callback whose model differs from the one in training takes part at the source:
while the strategy collects the state dict, the callback's view of the weights is in place.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from playbook_plugins.lightning._support import DEEPSPEED, SHARDED, is_strategy

if TYPE_CHECKING:
    import pytorch_lightning as pl

# Entered around the collection of a state dict. It yields whether it writes into the tensors of the module, so that
# what was collected must be copied before the view ends; a view that exchanges storages needs no copy.
View: TypeAlias = Callable[[], AbstractContextManager[bool]]

_METHOD = "lightning_module_state_dict"


class _ViewedStateDict:
    """The strategy's `lightning_module_state_dict`, taken while the views are in place; picklable with the trainer."""

    def __init__(self, original: Callable[[], dict[str, Any]]) -> None:
        self.original = original
        self.views: list[View] = []

    def __call__(self) -> dict[str, Any]:
        with ExitStack() as stack:
            in_place = [stack.enter_context(view()) for view in self.views]
            state = self.original()
            if any(in_place):
                state = {name: value.clone() if torch.is_tensor(value) else value for name, value in state.items()}
            return state


def add_view(trainer: pl.Trainer, view: View) -> None:
    """Put a view in place around every state dict that the trainer's strategy collects for a file."""
    viewed = vars(trainer.strategy).get(_METHOD)
    if not isinstance(viewed, _ViewedStateDict):
        viewed = _ViewedStateDict(trainer.strategy.lightning_module_state_dict)
        setattr(trainer.strategy, _METHOD, viewed)
    if view not in viewed.views:
        viewed.views.append(view)


def remove_view(trainer: pl.Trainer, view: View) -> None:
    """Take a view away again; without any left, the strategy is as it was."""
    viewed = vars(trainer.strategy).get(_METHOD)
    if isinstance(viewed, _ViewedStateDict) and view in viewed.views:
        viewed.views.remove(view)
        if not viewed.views:
            delattr(trainer.strategy, _METHOD)


def refuse_sharded(trainer: pl.Trainer, callback: str, remedy: str) -> None:
    """Raise where the strategy shards the model, so that no rank holds whole parameters.

    Raises
    ------
    ValueError
        For FSDP, DeepSpeed and model-parallel strategies.
    """
    name = type(trainer.strategy).__name__
    if is_strategy(trainer, *SHARDED, *DEEPSPEED):
        raise ValueError(
            f"`strategy` is {name}, which shards the model: {callback} needs the whole parameters on every rank. "
            f"Train with a single device or with DDP, or {remedy}."
        )
