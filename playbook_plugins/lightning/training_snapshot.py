"""What does a few steps of training change? A snapshot of all of it, which can be put back.

Playbook: none; it lets the batch size probe train for a few steps and leave no trace.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from playbook_plugins.lightning.probe_objects import ObjectMemory
from playbook_plugins.lightning.random_state import capture, restore

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class RandomStates:
    """The states of the random number generators of Python, numpy and torch, those of all devices included."""

    def __init__(self) -> None:
        self._state = capture()
        self._mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        self._xpu = torch.xpu.get_rng_state_all() if torch.xpu.is_initialized() else None  # type: ignore[no-untyped-call]

    def restore(self) -> None:
        """Put all states back."""
        restore(self._state)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
        if self._xpu is not None:
            torch.xpu.set_rng_state_all(self._xpu)


class TrainingSnapshot:
    """Everything that training steps could change, taken between two steps of a running `fit`.

    The module with its parameters, buffers, gradients, modes, metrics and plain attributes; optimizers, schedulers and
    the gradient scaler; the trainer's attributes, loops, counters and metrics; all callbacks; all random number
    generators; and of the data the plain attributes and generators. Restored in place.

    Parameters
    ----------
    trainer
        Inside `fit`.
    pl_module
        The module that it trains.
    data
        Objects of the user's data that the steps will use.
    ignored
        Ids of objects that are to keep what happens to them.
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        data: Iterable[Any] = (),
        ignored: Iterable[int] = (),
    ) -> None:
        strategy: Any = trainer.strategy
        self._random = RandomStates()
        # These refer to everything else: only their own attributes are kept.
        self._owners = [(owner, dict(vars(owner))) for owner in {id(o): o for o in _owners(trainer)}.values()]
        roots = [pl_module, *strategy.optimizers, *strategy._lightning_optimizers, *strategy.lr_scheduler_configs]
        roots += [strategy.precision_plugin, trainer.fit_loop, trainer._logger_connector]
        roots += trainer.callbacks  # type: ignore[attr-defined]
        self._objects = ObjectMemory(roots, data, ignored)

    def restore(self) -> None:
        """Put everything back; may be called any number of times."""
        for owner, attributes in self._owners:
            now = vars(owner)
            if now.keys() != attributes.keys() or any(now[name] is not kept for name, kept in attributes.items()):
                now.clear()
                now.update(attributes)
        self._objects.restore()
        self._random.restore()


def _owners(trainer: Trainer) -> list[Any]:
    strategy: Any = trainer.strategy
    is_wrapped = strategy.model is not None and strategy.model is not strategy.lightning_module
    return [trainer, strategy, *([strategy.model] if is_wrapped else [])]
