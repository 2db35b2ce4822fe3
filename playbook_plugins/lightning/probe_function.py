"""Which batch size does the hardware use best? Asked of a model and its data, without training anything.

Playbook: "Choosing the batch size", "Determining the feasible batch sizes and estimating training throughput".
"""

from __future__ import annotations

import importlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from playbook_plugins.analysis.throughput import Throughput
from playbook_plugins.lightning.batch_size_probe import BatchSizeProbe
from playbook_plugins.lightning.probe_objects import ObjectMemory
from playbook_plugins.lightning.probe_silence import package_name
from playbook_plugins.lightning.training_snapshot import RandomStates

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule


def probe_batch_sizes(
    model: LightningModule,
    data: Any,
    *,
    max_batch_size: int = 8192,
    start: int = 2,
    n_warmup_steps: int = 3,
    n_steps: int = 10,
    max_seconds: float = 2.0,
    clock: Callable[[], float] = time.perf_counter,
    **trainer_options: Any,
) -> Throughput:
    """Time training steps of a model at doubling batch sizes; nothing is trained and the model stays as it was.

    See `BatchSizeProbe`, which does the same inside of a `fit`, also on several devices.

    Parameters
    ----------
    model
        A LightningModule of either package; its parameters, buffers, modes, device and attributes are put back.
    data
        A DataLoader, a LightningDataModule, or an iterable of batches. An iterator is used up in part.
    max_batch_size, start, n_warmup_steps, n_steps, max_seconds, clock
        As for `BatchSizeProbe`.
    **trainer_options
        For the Trainer, such as ``accelerator`` and ``precision``. It has one device, no loggers and no checkpoints.

    Returns
    -------
    Throughput
        One row a batch size.

    Raises
    ------
    ValueError
        When the trainer has several devices.
    """
    probe = BatchSizeProbe(
        max_batch_size=max_batch_size,
        start=start,
        n_warmup_steps=n_warmup_steps,
        n_steps=n_steps,
        max_seconds=max_seconds,
        clock=clock,
    )
    package = importlib.import_module(package_name(model))
    end: type[Exception] = importlib.import_module(f"{package.__name__}.utilities.exceptions")._TunerExitException
    options: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "devices": 1,
        # Never reached; schedules that are built from the length of training need one.
        "max_steps": 10_000,
        "max_epochs": 1,
        "limit_val_batches": 0,
    }
    is_module = isinstance(data, package.LightningDataModule)
    random = RandomStates()
    memory = ObjectMemory([model], [data] if is_module else [])
    try:
        with warnings.catch_warnings():
            # They would be about a training that does not take place.
            warnings.filterwarnings("ignore", category=_possible_user_warning(package))
            warnings.filterwarnings("ignore", message=".*You defined a `validation_step`")
            trainer = package.Trainer(**(options | trainer_options))
            if trainer.world_size > 1:
                raise ValueError(
                    f"`devices` is {trainer.world_size}: probe_batch_sizes measures one device. Pass devices=1, or add "
                    "BatchSizeProbe to the callbacks of a Trainer with several."
                )
            trainer.callbacks = [*trainer.callbacks, probe, _leave_after(package, end)]
            loaders = {"datamodule": data} if is_module else {"train_dataloaders": _as_loader(data)}
            trainer.fit(model, **loaders)
    finally:
        memory.restore()
        random.restore()
    if probe.result is None:
        raise ValueError(
            "`data` holds no batch: the loader gave nothing to train on. Pass a loader with at least one batch."
        )
    return probe.result


def _leave_after(package: Any, end: type[Exception]) -> Any:
    """Return a callback that ends the fit before the first step, in the way of Lightning's own tuner."""

    def leave(*_: Any) -> None:
        raise end

    return type("LeaveBeforeTraining", (package.Callback,), {"on_train_batch_start": leave})()


def _possible_user_warning(package: Any) -> type[Warning]:
    fabric = "lightning_fabric" if package.__name__ == "pytorch_lightning" else "lightning.fabric"
    category: type[Warning] = importlib.import_module(f"{fabric}.utilities.warnings").PossibleUserWarning
    return category


class _Batches:
    """An iterable of batches; Lightning would take a list for a collection of loaders."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def _as_loader(data: Any) -> Any:
    return data if isinstance(data, DataLoader) else _Batches(data)
