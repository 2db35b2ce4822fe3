"""Is a distributed evaluation the mean over the data set? A loader that gives every example to one rank, once.

Playbook: "Setting up periodic evaluations": padded examples must not bias the result; they can be given a weight of
zero. Lightning's own sampler repeats examples until every rank has the same number: 33 are evaluated as 34.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sized
from types import FrameType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset
from torchmetrics import Metric
from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_OURS = ("sampler", "batch_sampler", "shuffle", "drop_last")


def exact_validation_loader(dataset: Dataset[Any], batch_size: int = 1, **options: Any) -> DataLoader[Any]:
    """Return a loader for validation and test whose means over all ranks are those over the data set.

    Every example is evaluated once, by one rank: rank r of W takes the examples r, r + W, r + 2 W, ... Nothing is
    padded, and the Trainer leaves the sampler alone. Exact are, in ``validation_step`` and ``test_step``,

    - ``self.log(name, value, batch_size=b, sync_dist=True)`` with ``value`` the mean over the b examples of the batch,
      logged once an epoch (``on_epoch=True``, the default there), and the reductions sum, min and max;
    - torchmetrics objects that the module updates, logged or computed at the end of the epoch.

    Without ``batch_size=`` Lightning reads it off the batch, which is as exact if it finds the right one. Not exact
    are values that the module averages by itself, and what ``on_step=True`` logs at each step.

    Parameters
    ----------
    dataset
        Map-style, of at least one example, the same on all ranks.
    batch_size
        In examples on each rank, at least 1.
    **options
        Further arguments of torch.utils.data.DataLoader: num_workers, persistent_workers, collate_fn, pin_memory, ...

    Returns
    -------
    DataLoader
        For `Trainer.fit`, `validate` and `test`, also in a list, and from ``val_dataloader`` or a LightningDataModule.
        It asks for rank and number of ranks when it is iterated, so that it can be made before processes are started.

    Raises
    ------
    ValueError
        When the data set is empty or iterable-style, ``batch_size`` is less than 1, or an option is one that the
        loader decides; and, when several ranks iterate it, when it stands in a CombinedLoader that is not sequential.

    Notes
    -----
    All ranks run the same number of batches, because every step may hold a collective (DistributedDataParallel sends
    buffers before each forward pass). Where one rank's examples fill a batch less than another's, its last batch is
    cut in two. Only where that cannot be, with fewer examples than ranks, or batches of one example whose number the
    ranks do not divide, a rank without an example runs one that another rank counts: what that step added to
    ``self.log`` and to torchmetrics objects is taken away again, the weight of zero of the playbook. A module that
    keeps lists of its own asks ``trainer.val_dataloaders.is_filler(batch_idx)``. Outside of a Trainer's evaluation
    there are no such batches.

    Lightning itself divides the number of examples by the number of ranks as whole numbers, so that with 33 examples
    on 2 ranks its means are 33/32 of the right ones. To correct that and to remove fillers, iterating the loader adds
    a callback to the Trainer for the time of the evaluation. Lightning does not tell a loader who iterates it, so that
    the Trainer is found on the call stack: hand the loader itself to Lightning, without another iterable around it.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed
      accumulation         yes: no difference
      manual optimization  yes: two optimizers
      ddp                  yes: in fit, validate and test
      ddp_spawn            yes: in fit, validate and test
      FSDP                 not tested: all ranks must be data-parallel, without tensor parallelism
      DeepSpeed            not tested
      compile              yes: a compiled module
    """
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise ValueError(
            f"`dataset` is {type(dataset).__name__}, which has no examples by number: they cannot be given to the "
            "ranks once each. Pass a map-style data set, with __len__ and __getitem__."
        )
    if len(dataset) == 0:
        raise ValueError("`dataset` has no examples: there is no mean of nothing. Pass at least one.")
    if batch_size < 1:
        raise ValueError(f"`batch_size` is {batch_size}: it must be at least 1, in examples on each rank. Raise it.")
    refused = [name for name in _OURS if options.get(name)]
    if refused:
        raise ValueError(
            f"`{refused[0]}` is {options[refused[0]]!r}: exact_validation_loader gives every example to one rank, in "
            "order. Leave it out."
        )
    options = {name: value for name, value in options.items() if name not in _OURS}
    return ExactLoader(dataset, batch_sampler=ShardBatches(Shard(dataset), batch_size), **options)


class Shard(DistributedSampler[int]):
    """The examples of this rank, each example of the data set on one rank; Lightning leaves such a sampler alone.

    Parameters
    ----------
    dataset
        Map-style.
    processes
        Returns the number of ranks and this one's. It is asked each time: the loader may be older than the processes.
    """

    def __init__(self, dataset: Dataset[Any], processes: Callable[[], tuple[int, int]] | None = None) -> None:
        super().__init__(dataset, num_replicas=1, rank=0, shuffle=False)
        self.processes = processes or _processes

    @override
    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    @override
    def __len__(self) -> int:
        return len(self.indices)

    @property
    def indices(self) -> range:
        """Which of the data set's examples are of this rank."""
        n_ranks, rank = self.processes()
        return range(rank, len(cast(Sized, self.dataset)), n_ranks)

    @property
    def n_most(self) -> int:
        """The examples of the rank that has the most of them."""
        n_ranks, _ = self.processes()
        return -(-len(cast(Sized, self.dataset)) // n_ranks)


class ShardBatches(BatchSampler):
    """The batches of this rank, as many as any other rank has, if need be with one that does not count.

    Parameters
    ----------
    sampler
        The examples of this rank.
    batch_size
        At least 1.
    drop_last
        Always False: an argument that Lightning passes when it builds samplers anew.
    """

    sampler: Any

    def __init__(self, sampler: Any, batch_size: int, drop_last: bool = False) -> None:
        super().__init__(sampler, batch_size, False)
        self.fills = False

    @override
    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches() + [[0]] * (self.fills and self.n_fillers))

    @override
    def __len__(self) -> int:
        # `overfit_batches` puts another sampler in.
        n_most = int(getattr(self.sampler, "n_most", len(self.sampler)))
        return -(-n_most // self.batch_size)

    @property
    def n_fillers(self) -> int:
        """The batches that this rank runs for the company of the others: 0 or 1."""
        return max(0, len(self) - len(self.sampler))

    def batches(self) -> list[list[int]]:
        """Return the indices of this rank's examples in batches, each example once."""
        indices, size = list(self.sampler), self.batch_size
        batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        if batches and len(batches) < len(self) and len(batches[-1]) > 1:
            last = batches.pop()
            middle = (len(last) + 1) // 2
            batches += [last[:middle], last[middle:]]
        return batches


class ExactLoader(DataLoader[Any]):
    """What `exact_validation_loader` returns."""

    def __init__(self, dataset: Dataset[Any], **options: Any) -> None:
        super().__init__(dataset, **options)

    # A loader of a batch sampler shows neither its sampler nor its batch size, which Lightning and others ask for.
    @property
    def sampler(self) -> Any:
        """The examples of this rank."""
        return getattr(self.batch_sampler, "sampler", None)

    @sampler.setter
    def sampler(self, sampler: Any) -> None:
        """Is decided by the batch sampler."""

    @property
    def batch_size(self) -> int | None:
        """In examples on each rank."""
        return getattr(self.batch_sampler, "batch_size", None)

    @batch_size.setter
    def batch_size(self, batch_size: int | None) -> None:
        """Is decided by the batch sampler."""

    @override
    def __iter__(self) -> Any:
        if isinstance(self.batch_sampler, ShardBatches):
            loop = _evaluation_loop()
            self.batch_sampler.fills = loop is not None
            if loop is not None and _processes()[0] > 1:
                _Correction.attach(loop)
        return super().__iter__()

    def is_filler(self, batch_idx: int) -> bool:
        """Return whether a batch of this rank only keeps the others company and does not count."""
        batches = self.batch_sampler
        return isinstance(batches, ShardBatches) and batch_idx >= len(batches) - batches.n_fillers


class _Correction(CallbackBase):
    """Lives in a Trainer for one evaluation: forgets what fillers logged, and counts examples in floating point."""

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._before: dict[int, tuple[Metric, dict[str, Any]]] | None = None

    @classmethod
    def attach(cls, loop: Any) -> None:
        """Add one to the Trainer of an evaluation loop, unless it is there."""
        combined = loop._combined_loader
        if len(combined.flattened) > 1 and combined._mode != "sequential":
            raise ValueError(
                f"`mode` of the CombinedLoader is {combined._mode!r}: it mixes the batches of several loaders, which "
                "then cannot be counted apart. Pass mode='sequential', or a list of loaders."
            )
        trainer = loop.trainer
        if not any(isinstance(callback, cls) for callback in trainer.callbacks):
            # A new list: the old one may just be gone through.
            trainer.callbacks = [*trainer.callbacks, cls(loop)]

    def _start(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int, dataloader_idx: int) -> None:
        if batch_idx == 0:
            for metric in _metrics(trainer, pl_module):
                _unshare(metric)
        loader = self._loop._combined_loader.flattened[dataloader_idx]
        if isinstance(loader, ExactLoader) and loader.is_filler(batch_idx):
            metrics = _metrics(trainer, pl_module)
            self._before = {id(metric): (metric, _state(metric)) for metric in metrics}

    def _end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        before, self._before = self._before, None
        if before is not None:
            for metric in _metrics(trainer, pl_module):
                _restore(metric, before[id(metric)][1] if id(metric) in before else None)
        for result in _results(trainer):
            count = getattr(result, "cumulated_batch_size", None)
            if isinstance(count, Tensor) and not count.is_floating_point():
                # Lightning divides the sum over ranks by their number, and cuts a whole number off.
                result.cumulated_batch_size = count.to(result.value.dtype)

    def _detach(self, trainer: Any) -> None:
        trainer.callbacks = [callback for callback in trainer.callbacks if callback is not self]

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start(trainer, pl_module, batch_idx, dataloader_idx)

    @override
    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._start(trainer, pl_module, batch_idx, dataloader_idx)

    @override
    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._end(trainer, pl_module)

    @override
    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self._end(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach(trainer)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._detach(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._detach(trainer)


def _processes() -> tuple[int, int]:
    """Return the number of ranks and this one's; one where no process group runs (yet)."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank()
    return 1, 0


def _evaluation_loop() -> Any:
    """Return the Lightning evaluation loop that is fetching batches from here, or None for any other caller."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name != __name__ and not name.endswith((".utilities.combined_loader", ".loops.fetchers")):
            caller = frame.f_locals.get("self")
            kinds = {kind.__name__ for kind in type(caller).__mro__}
            return caller if "_EvaluationLoop" in kinds else None
        frame = frame.f_back
    return None


def _results(trainer: Any) -> list[Any]:
    """Return what the module has logged in this evaluation."""
    return list((trainer._results or {}).values())


def _metrics(trainer: Any, pl_module: LightningModule) -> list[Metric]:
    """Return all that a step can add to: what was logged, each a metric to Lightning, and torchmetrics objects."""
    results = _results(trainer)
    held = [result.value for result in results if not result.is_tensor]
    found = [*results, *held, *(module for module in pl_module.modules())]
    return list({id(metric): metric for metric in found if isinstance(metric, Metric)}.values())


def _unshare(metric: Metric) -> None:
    """Give this process a state of its own: spawned ones are handed the same memory, and add up in it twice."""
    for name in metric._defaults:
        value = getattr(metric, name)
        if isinstance(value, Tensor) and value.device.type == "cpu" and value.is_shared():  # type: ignore[no-untyped-call]
            setattr(metric, name, value.clone())


def _state(metric: Metric) -> dict[str, Any]:
    values = {name: getattr(metric, name) for name in metric._defaults}
    return {name: list(value) if isinstance(value, list) else value.clone() for name, value in values.items()}


def _restore(metric: Metric, state: dict[str, Any] | None) -> None:
    """Give a metric its state back; one that was made in between begins as if it had seen nothing."""
    for name, value in (metric._defaults if state is None else state).items():
        new = getattr(metric, name)
        if isinstance(value, Tensor):
            # A reset metric takes up the precision of what it sees, and all ranks must reduce the same.
            setattr(metric, name, value.clone().to(new))
        elif value:
            setattr(metric, name, value)
        else:
            # Of no examples, but of the same kind: an empty list does not fit with what the other ranks gathered.
            setattr(metric, name, [part.reshape(1)[:0] if part.dim() == 0 else part[:0] for part in new[:1]])
    metric._computed = None
