"""Where do batches of a given size come from? From the user's own data, without taking any from training.

Playbook: "Determining the feasible batch sizes and estimating training throughput": the input pipeline is part of what
is measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from playbook_plugins.lightning.probe_streams import KeptIterator, KeptSource

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_NAME = "batch_size"


class MapSource:
    """Batches of a map-style data set, through a loader of their own that differs in nothing but the batch size.

    The sampler is iterated anew, in its own order; its generator is the snapshot's to restore.
    """

    is_fetch_timed = True

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self.n_workers = loader.num_workers
        self._sampler = _indices(loader)
        self._iterator: Any = None

    @property
    def data(self) -> list[Any]:
        """What the steps will use of the user's data."""
        loader: Any = self._loader
        return [loader.dataset, loader.sampler, loader.batch_sampler, loader.collate_fn, loader.generator]

    def open(self, batch_size: int) -> Callable[[], Any] | None:
        """Return what fetches batches of this size, None where the data hold none."""
        if _n_indices(self._sampler, batch_size) < batch_size:
            return None
        loader = self._loader
        options: dict[str, Any] = {}
        if loader.num_workers:
            options["prefetch_factor"] = loader.prefetch_factor
            options["multiprocessing_context"] = loader.multiprocessing_context
            options["worker_init_fn"] = loader.worker_init_fn
            options["timeout"] = loader.timeout
        anew: DataLoader[Any] = DataLoader(
            loader.dataset,
            batch_sampler=_EndlessBatches(self._sampler, batch_size),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            generator=torch.Generator().manual_seed(0),
            **options,
        )
        self._iterator = iter(anew)
        fetch: Callable[[], Any] = self._iterator.__next__
        return fetch

    def waiting_seconds(self, batch_size: int, step_seconds: float) -> float:
        """Return the wait for data that is not part of the measured time: none."""
        return 0.0

    def close(self) -> None:
        """End the workers."""
        if hasattr(self._iterator, "_shutdown_workers"):
            self._iterator._shutdown_workers()
        self._iterator = None


class AttributeSource:
    """Batches that the user's own hook makes, once the attribute ``batch_size`` was set.

    Parameters
    ----------
    trainer
        Inside `fit`.
    holders
        What has the attribute: the module, its hparams, the data module.
    """

    is_fetch_timed = True
    n_workers = 0

    def __init__(self, trainer: Trainer, holders: list[Any]) -> None:
        self._trainer: Any = trainer
        self._holders = holders
        self._before = [_get(holder) for holder in holders]
        self.data: list[Any] = [trainer.fit_loop._data_source.instance]

    def open(self, batch_size: int) -> Callable[[], Any] | None:
        """Return what fetches batches of this size, None where the hook makes none."""
        for holder in self._holders:
            _set(holder, batch_size)
        loader = self._trainer.fit_loop._data_source.dataloader()
        self.n_workers = getattr(loader, "num_workers", 0)
        epoch = iter(loader)
        first = next(epoch, None)
        if first is None or _told_count(first, batch_size) != batch_size:
            return None
        return itertools.chain([first], epoch, itertools.chain.from_iterable(itertools.repeat(loader))).__next__

    def waiting_seconds(self, batch_size: int, step_seconds: float) -> float:
        """Return the wait for data that is not part of the measured time: none."""
        return 0.0

    def close(self) -> None:
        """Set the attribute back."""
        for holder, before in zip(self._holders, self._before, strict=True):
            _set(holder, before)


Source = MapSource | KeptSource | AttributeSource


def find_source(
    trainer: Trainer, clock: Callable[[], float], max_seconds: float = math.inf, seen: Sequence[Any] = ()
) -> Source:
    """Return where the batches of a running `fit` come from.

    Parameters
    ----------
    trainer
        Inside `fit`.
    clock
        Returns the time in seconds.
    max_seconds
        How long a stream may be read ahead for one batch size.
    seen
        Batches that training has read from its loader, but not changed.

    Raises
    ------
    ValueError
        When training reads several loaders, or batches of a kind that cannot be made in another size.
    """
    loop: Any = trainer.fit_loop
    combined = loop._combined_loader
    if type(loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher":
        raise ValueError(
            "`training_step` takes a dataloader_iter, and BatchSizeProbe does not support it: the batches are fetched "
            "where it cannot see them. Take a batch instead."
        )
    if len(combined.flattened) != 1:
        raise ValueError(
            f"`train_dataloaders` are {len(combined.flattened)} loaders, and BatchSizeProbe doubles one batch size. "
            "Pass one loader, or probe each of them by itself with probe_batch_sizes."
        )
    (loader,) = combined.flattened
    is_map_style = isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)
    if is_map_style and loader.batch_sampler is not None:
        return MapSource(loader)
    stream = _keep(combined)
    n_workers = getattr(loader, "num_workers", 0)
    hint = getattr(loader, _NAME, None)
    kept = KeptSource(
        stream,
        clock,
        n_allowed=_n_batches_left(trainer),
        hint=hint if isinstance(hint, int) else None,
        n_workers=n_workers,
        n_prefetched=n_workers * (getattr(loader, "prefetch_factor", None) or 0),
        max_seconds=max_seconds,
        seen=[*seen, *prefetched(trainer)],
    )
    if kept.can_be_cut():
        return kept
    holders = [one for one in (trainer.lightning_module, getattr(trainer, "datamodule", None)) if one is not None]
    holders = [holder for one in holders for holder in (one, getattr(one, "hparams", {})) if _get(holder) is not None]
    if not loop._data_source.is_module() or not holders or _is_iterator(loader):
        raise ValueError(
            f"`train_dataloaders` gives batches of type {type(kept.example).__name__}, which cannot be cut into "
            "batches of another size. Give the module or the data module an attribute `batch_size` that its "
            "train_dataloader uses, or pass a map-style data set in a DataLoader."
        )
    return AttributeSource(trainer, holders)


def prefetched(trainer: Trainer) -> list[Any]:
    """Return the batches that Lightning has read ahead of training, as it does where the length is unknown."""
    return [batch for batch, _, _ in getattr(trainer.fit_loop._data_fetcher, "batches", ())]


def stream_of(trainer: Trainer) -> list[Any]:
    """Return the running iterators that training reads: what they depend on must not be set back."""
    combined: Any = trainer.fit_loop._combined_loader
    return [*combined._iterator.iterators, *combined.flattened]


def _keep(combined: Any) -> KeptIterator:
    """Have training read its only loader through an iterator that can look ahead."""
    iterators = combined._iterator.iterators
    if not isinstance(iterators[0], KeptIterator):
        iterators[0] = KeptIterator(iterators[0])
    kept: KeptIterator = iterators[0]
    return kept


def _n_batches_left(trainer: Trainer) -> float:
    """Return how many batches training will still read from the running iterators."""
    loop: Any = trainer.fit_loop
    n_read = loop._data_fetcher.fetched
    left: float = math.inf
    limits = loop._combined_loader.limits
    if limits:
        left = min(left, *(limit - n_read for limit in limits))
    if trainer.max_steps >= 0:
        n_trained = loop.epoch_loop.batch_progress.current.processed
        n_steps = trainer.max_steps - trainer.global_step
        left = min(left, n_steps * trainer.accumulate_grad_batches - (n_read - n_trained))
    return left


class _EndlessBatches:
    """Indices for a loader: the sampler's, epoch after epoch, cut into batches."""

    def __init__(self, sampler: Iterable[Any], batch_size: int) -> None:
        self._sampler = sampler
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[list[Any]]:
        indices = itertools.chain.from_iterable(itertools.repeat(self._sampler))
        while True:
            yield list(itertools.islice(indices, self._batch_size))


class _Flattened:
    """The indices of a batch sampler, one by one."""

    def __init__(self, batch_sampler: Iterable[Iterable[Any]]) -> None:
        self._batch_sampler = batch_sampler

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self._batch_sampler)


def _indices(loader: DataLoader[Any]) -> Iterable[Any]:
    """Return what gives the indices of a loader, one epoch each time it is iterated."""
    batch_sampler: Any = loader.batch_sampler
    source: Any = getattr(batch_sampler, "sampler", None)
    if type(batch_sampler) is not torch.utils.data.BatchSampler or source is None:
        source = _Flattened(batch_sampler)
    if _is_iterator(source) or _is_iterator(batch_sampler):
        # To iterate it would take indices from training.
        return range(len(loader.dataset))  # type: ignore[arg-type]
    return source  # type: ignore[no-any-return]


def _n_indices(sampler: Iterable[Any], enough: int) -> int:
    try:
        return len(sampler)  # type: ignore[arg-type]
    except TypeError:
        return sum(1 for _ in itertools.islice(iter(sampler), enough))


def _is_iterator(iterable: Any) -> bool:
    """Return whether something can be iterated once only; a generator that its data set reads from counts too."""
    dataset = getattr(iterable, "dataset", None)
    return hasattr(iterable, "__next__") or (isinstance(dataset, IterableDataset) and hasattr(dataset, "__next__"))


def _told_count(batch: Any, hint: int) -> int:
    """Return the number of examples that a batch of the user's own type tells, the hint where it tells none."""
    for name in ("num_graphs", _NAME):
        told = getattr(batch, name, None)
        if isinstance(told, int):
            return told
    return len(batch) if hasattr(batch, "__len__") else hint


def _get(holder: Any) -> Any:
    return holder.get(_NAME) if isinstance(holder, dict) else getattr(holder, _NAME, None)


def _set(holder: Any, value: Any) -> None:
    if isinstance(holder, dict):
        holder[_NAME] = value
    else:
        setattr(holder, _NAME, value)
