"""How do the predictions for the same few examples change over training? Saved at every evaluation, to look at.

Playbook: "Setting up periodic evaluations": a metric says how much a model errs, and predictions on a fixed set of
examples show how.
"""

from __future__ import annotations

import copy
import io
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import Metric
from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._saved_weights import refuse_sharded
from playbook_plugins.lightning._support import is_fitting
from playbook_plugins.lightning.atomic_files import remove_leftovers, write_atomically
from playbook_plugins.lightning.random_state import undisturbed
from playbook_plugins.lightning.untouched import random_sources, restore_sources

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

INDEX_NAME = "fixed_examples.json"
_PREDICTION = "prediction"
_RESERVED = ("step", "indices")


class FixedExamples(CallbackBase):
    """Save the predictions for the same examples of the validation set at every evaluation of a fit.

    At step 0 too (with `PeriodicEvaluation`), but not in the sanity check. The module predicts in evaluation mode,
    without gradients, in the Trainer's precision, and with the weights of the evaluation: under `WeightEMA` the
    average, wherever the two stand among the callbacks.

    - **Examples.** Read once, by index, and collated as the first validation loader does; the evaluation need not
      visit them (``limit_val_batches``). Random numbers, in reading as in predicting, are those of `seed`, so that
      predictions differ by the weights alone, in a resumed run too.
    - **Files.** ``step=120.npz`` holds ``step``, ``indices`` of shape (n,) and ``prediction`` of shape (n, ...), and
      ``fixed_examples.json`` lists the files of the run; `load_fixed_examples` reads all of them. Each is written
      beside its target and renamed onto it. No file of predictions is ever overwritten or deleted: a name that exists
      gets a ``-v1``, and the list of an earlier run in the folder is kept under ``earlier_runs``. A resumed run goes
      on with the list in its checkpoint, in the same folder or a moved one. Where a file cannot be written, a warning
      says so and training goes on.
    - **No trace.** Random number generators, the modes of the modules, logged values and torchmetrics objects are
      afterwards as if nothing had been predicted, also where `predict` logs or updates them.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed; bfloat16 is saved as float32
      accumulation         yes: steps are Lightning's global_step
      manual optimization  yes: two optimizers, whose steps Lightning counts together
      ddp                  yes: rank 0 alone predicts and writes, with the module that DDP wraps
      ddp_spawn            yes: as ddp; read the folder afterwards
      FSDP                 refused: FSDP1 and FSDP2, where no rank holds whole parameters
      DeepSpeed            refused: it may shard the parameters
      compile              yes: a compiled module predicts compiled

    Parameters
    ----------
    n
        How many examples, at least 1, drawn once from the validation set with `seed`; or their indices, each once.
        Not the first n: data sets are often sorted.
    dirpath
        A local folder. By default ``fixed_examples`` in the folder of the first logger's version, or in the Trainer's
        ``default_root_dir``.
    predict
        Takes the module and a batch on the module's device, and returns a tensor of shape (batch, ...), or several
        by name, for instance ``{"prediction": ..., "loss": ...}``. It must hold no collective of several ranks. By
        default ``predict_step(batch, 0)`` where the module defines one, otherwise ``module(x)``, x being the first
        part of a batch that is a tuple or list.
    dataset
        Map-style; by default that of the first validation loader.
    seed
        For the draw of the examples and for the random numbers of reading and predicting, >= 0.

    Raises
    ------
    ValueError
        When an argument is out of its range, the strategy shards the model, the examples or the predictions cannot be
        had, or the run that is resumed saved the predictions for other examples.
    """

    def __init__(
        self,
        n: int | Sequence[int],
        dirpath: str | Path | None = None,
        predict: Callable[[Any, Any], Any] | None = None,
        dataset: Dataset[Any] | None = None,
        seed: int = 0,
    ) -> None:
        given = [n] if isinstance(n, int) else list(n)
        if not given or isinstance(n, bool) or min(given) < isinstance(n, int) or len(set(given)) < len(given):
            raise ValueError(
                f"`n` is {n!r}: it must be a number of examples, at least 1, or their indices, at least 0 and each "
                "once. Pass for instance 16."
            )
        if dirpath is not None and "://" in str(dirpath):
            raise ValueError(
                f"`dirpath` is {str(dirpath)!r}: FixedExamples writes to local folders only. Pass a local path, and "
                "copy the folder afterwards."
            )
        self.n = n
        self.dirpath = dirpath
        self.predict = predict
        self.dataset = dataset
        self.seed = seed
        self.folder = Path(dirpath or "fixed_examples")  # settled when a fit begins
        self._stage: str | None = None
        self._indices: list[int] = []
        self._batches: list[tuple[int, Any]] | None = None  # the number of examples in a batch, and the batch
        self._rows: list[tuple[int, str]] = []  # the step and the file of every evaluation
        self._earlier_runs: list[Any] = []
        self._restored: dict[str, Any] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot predict; settle the folder."""
        self._stage = stage
        if stage != "fit":
            return
        refuse_sharded(trainer, "FixedExamples", "remove FixedExamples and predict from the checkpoints after training")
        if self.predict is None and not _overrides(pl_module, "predict_step") and not _overrides(pl_module, "forward"):
            raise ValueError(
                f"`predict` is None, and {type(pl_module).__name__} defines neither predict_step nor forward. Define "
                "one of them, or pass predict=lambda module, batch: ..."
            )
        self._restored = None
        self._batches = None
        self.folder = Path(trainer.strategy.broadcast(str(self.dirpath or _default_folder(trainer))))

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the list of a run that is resumed; a file that is only tested changes nothing."""
        if self._stage in (None, "fit"):
            self._restored = state_dict

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the indices, and the step and file of every evaluation."""
        return {"indices": list(self._indices), "evaluations": [list(row) for row in self._rows]}

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the list of the run."""
        restored, self._restored = self._restored, None
        if restored is not None:
            self._indices = list(restored["indices"])
            self._rows = [(step, file) for step, file in restored["evaluations"] if (self.folder / file).exists()]
        elif trainer.global_step == 0:
            self._rows = []
        if not trainer.is_global_zero or not self.folder.is_dir():
            return
        remove_leftovers(self.folder)
        if (self.folder / INDEX_NAME).exists():
            found = _read_index(self.folder)
            self._earlier_runs = found["earlier_runs"]
            if not {tuple(row) for row in found["evaluations"]} <= set(self._rows):
                self._earlier_runs.append({name: found[name] for name in ("indices", "evaluations")})

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Settle which examples, on every rank, so that all of them refuse alike; read them on rank 0."""
        if self._batches is not None or not is_fitting(trainer):
            return
        loader = trainer.fit_loop.epoch_loop.val_loop._combined_loader.flattened[0]  # type: ignore[union-attr]
        dataset = _find_dataset(self.dataset, loader)
        indices = _choose(self.n, len(dataset), self.seed)
        if self._rows and indices != self._indices:
            raise ValueError(
                f"`n` gives the examples {indices}, and the run that is resumed saved the predictions for "
                f"{self._indices}: they cannot be compared. Resume with the same n, seed and validation set, or pass "
                "another dirpath."
            )
        self._indices = indices
        self._batches = []
        if trainer.is_global_zero:
            with _seeded(self.seed, [dataset, loader]):
                self._batches = _read(dataset, indices, loader)

    # The last moment before callbacks may take the weights of the evaluation off again, in `on_validation_end`.
    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Predict, and write the file of this evaluation."""
        step = trainer.global_step
        if not is_fitting(trainer) or not trainer.is_global_zero or getattr(trainer, "fast_dev_run", False):
            return
        if self._rows and self._rows[-1][0] >= step:
            return  # an epoch's end after a step's evaluation, or a resumed run that repeats one
        precision = trainer.precision_plugin.val_step_context()
        with _seeded(self.seed, []), _untouched(pl_module), precision, torch.no_grad():
            values = self._predict(trainer, pl_module)
        self._write(step, values)

    def _predict(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, NDArray[Any]]:
        """Return the predictions by name, each of shape (n, ...)."""
        parts: list[dict[str, NDArray[Any]]] = []
        for n, kept in self._batches or []:
            batch = trainer.precision_plugin.convert_input(copy.deepcopy(kept))
            batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
            if self.predict is not None:
                predicted = self.predict(pl_module, batch)
            elif _overrides(pl_module, "predict_step"):
                predicted = pl_module.predict_step(batch, 0)
            else:
                predicted = pl_module(_inputs(batch))
            parts.append(_arrays(predicted, n))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _write(self, step: int, values: Mapping[str, NDArray[Any]]) -> None:
        path, version = self.folder / f"step={step}.npz", 1
        while os.path.lexists(path):
            path, version = path.with_name(f"step={step}-v{version}.npz"), version + 1
        buffer = io.BytesIO()
        np.savez(buffer, step=np.int64(step), indices=np.array(self._indices), **values)  # type: ignore[arg-type]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, buffer.getbuffer())
            self._rows.append((step, path.name))
            path = path.with_name(INDEX_NAME)
            index = self.state_dict() | {"earlier_runs": self._earlier_runs}
            write_atomically(path, json.dumps(index, indent=1).encode())
        except OSError as error:
            warnings.warn(
                f"{path} could not be written ({error.strerror or error}): training goes on, and the predictions saved "
                "before are intact. Make room or correct the folder's permissions before the next evaluation.",
                stacklevel=2,
            )


def load_fixed_examples(folder: str | Path) -> dict[str, NDArray[Any]]:
    """Return what `FixedExamples` saved in the last run of a folder.

    Parameters
    ----------
    folder
        The ``dirpath`` of the callback.

    Returns
    -------
    dict of array
        ``step`` of shape (n_evaluations,), in optimizer steps, rising; ``indices`` of shape (n,), into the validation
        set; ``prediction``, or the names that `predict` gave, of shape (n_evaluations, n, ...).

    Raises
    ------
    ValueError
        When the folder has no list of predictions, or their shape changed between evaluations.
    """
    rows = _read_index(Path(folder))["evaluations"]
    loaded: list[dict[str, NDArray[Any]]] = []
    for _, file in rows:
        with np.load(Path(folder) / file, allow_pickle=False) as arrays:
            loaded.append(dict(arrays))
    shapes = [{name: array.shape for name, array in one.items()} for one in loaded]
    for (_, file), shape in zip(rows, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"`folder` holds arrays of the shapes {shape} in {file} and {shapes[0]} in {rows[0][1]}: they cannot "
                "be stacked. Read the files one by one with numpy.load."
            )
    stacked = {name: np.stack([one[name] for one in loaded]) for name in shapes[0]}
    return stacked | {"indices": loaded[0]["indices"]}


def _read_index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX_NAME
    try:
        found = json.loads(path.read_text())
        return {name: found[name] for name in ("indices", "evaluations", "earlier_runs")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`folder` is {str(folder)!r}, which has no list of predictions to read ({type(error).__name__} of "
            f"{INDEX_NAME}). Pass the dirpath of a FixedExamples, and move files of that name from elsewhere away."
        ) from error


def _default_folder(trainer: Trainer) -> Path:
    root = Path(trainer.default_root_dir)
    if not trainer.loggers:
        return root / "fixed_examples"
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or root) / str(logger.name) / version / "fixed_examples"


def _overrides(pl_module: LightningModule, name: str) -> bool:
    """Whether a module defines a method itself; asked of its class, as a compiled module has its own on the object."""
    owner = next(cls for cls in type(pl_module).__mro__ if name in vars(cls))
    return owner.__name__ != "LightningModule"


def _find_dataset(dataset: Any, loader: Any) -> Any:
    found = getattr(loader, "dataset", None) if dataset is None else dataset
    batched = dataset is not None or getattr(loader, "batch_sampler", None) is not None
    if not batched or isinstance(found, IterableDataset) or not hasattr(found, "__len__"):
        raise ValueError(
            f"`dataset` is {dataset}, and the first validation loader is a {type(loader).__name__} of "
            f"{type(found).__name__}: examples cannot be read from it by number. Pass a map-style data set, with "
            "__len__ and __getitem__, as dataset=."
        )
    return found


def _choose(n: int | Sequence[int], size: int, seed: int) -> list[int]:
    """Return the indices of the examples, of a data set of some size."""
    if (n if isinstance(n, int) else max(n) + 1) > size:
        raise ValueError(f"`n` is {n}, and the validation set has {size} examples. Pass fewer, or smaller indices.")
    if not isinstance(n, int):
        return [int(index) for index in n]
    return sorted(np.random.default_rng(seed).choice(size, n, replace=False).tolist())


def _read(dataset: Any, indices: list[int], loader: Any) -> list[tuple[int, Any]]:
    """Return the examples in batches of the evaluation's size, collated as the loader does; and the batches' sizes."""
    size = getattr(loader, "batch_size", None) or len(indices)
    batches = [indices[start : start + size] for start in range(0, len(indices), size)]
    found = DataLoader(dataset, batch_sampler=batches, collate_fn=getattr(loader, "collate_fn", None))
    return [(len(one), batch) for one, batch in zip(batches, found, strict=True)]


def _inputs(batch: Any) -> Any:
    if isinstance(batch, (list, tuple)):
        return batch[0]
    if isinstance(batch, Tensor):
        return batch
    raise ValueError(
        f"`predict` is None, and the batch is a {type(batch).__name__}, of which the input is not known. Pass "
        "predict=lambda module, batch: ..., or define predict_step."
    )


def _arrays(predicted: Any, n: int) -> dict[str, NDArray[Any]]:
    """Return predictions as arrays of shape (n, ...)."""
    named = predicted if isinstance(predicted, Mapping) else {_PREDICTION: predicted}
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in named.items():
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != n or name in _RESERVED:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
            raise ValueError(
                f"`predict` returned {name!r} of {what}: for {n} examples it must return a tensor of shape ({n}, ...), "
                f"or a dictionary of them, with names other than {' and '.join(_RESERVED)}. Correct it."
            )
        value = value.detach().cpu()
        arrays[name] = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
    return arrays


@contextmanager
def _seeded(seed: int, things: list[Any]) -> Iterator[None]:
    """Draw the numbers of a seed inside; afterwards all generators, those in the things too, are as before."""
    sources = random_sources(things)
    with undisturbed():
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            restore_sources(sources)


@contextmanager
def _untouched(pl_module: LightningModule) -> Iterator[None]:
    """Put the module in evaluation mode, and let it keep nothing of what it logs and counts inside."""
    modes = [(module, module.training) for module in pl_module.modules()]
    metrics = [module for module in pl_module.modules() if isinstance(module, Metric)]
    with ExitStack() as stack:
        for metric in metrics:
            stack.callback(vars(metric).update, {name: _copied(value) for name, value in vars(metric).items()})
        for name in ("log", "log_dict"):
            # Not through the logger: a value that is synchronized at each step would wait for the other ranks.
            own = vars(pl_module).get(name)
            setattr(pl_module, name, lambda *_, **__: None)
            stack.callback(*((setattr, pl_module, name, own) if own else (delattr, pl_module, name)))
        for module, mode in modes:
            stack.callback(setattr, module, "training", mode)
        pl_module.eval()
        yield


def _copied(value: Any) -> Any:
    """Return a value that adding to the original does not change."""
    if isinstance(value, Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value
