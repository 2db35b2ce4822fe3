"""Which examples does this rank train on? Read off its loaders, without taking an example from any.

Playbook: "Considerations for multi-host pipelines": hosts should read different shards of the data.
"""

from __future__ import annotations

import copy
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, Subset

from playbook_plugins.lightning.host_reports import LoaderReport
from playbook_plugins.lightning.random_state import undisturbed

Files = Callable[[Any], Iterable[Any]]

# Attributes of a data set that may name the files from which it reads.
FILE_ATTRIBUTES = ("files", "file_names", "filenames", "urls", "shards")
_SETTINGS = ("seed", "shuffle", "drop_last", "epoch", "num_replicas", "rank")
# What is looked at of a long list, and of a large tensor.
_N_LISTED, _N_ELEMENTS = 16, 256


def read_loader(loader: Any, n_batches: float, n_most: int, files: Files | None = None) -> LoaderReport:
    """Report what a rank trains on; the loader, its data set and all generators go on as if nothing had been asked.

    Parameters
    ----------
    loader
        A training loader, as the Trainer uses it.
    n_batches
        How many of its batches an epoch has, perhaps infinity.
    n_most
        The largest number of draws, and of files, to report.
    files
        Names the files of a data set that this rank reads.
    """
    if not isinstance(loader, DataLoader):
        return LoaderReport(sampler=type(loader).__name__)
    data, subset = loader.dataset, 0
    parts = []
    while isinstance(data, Subset):
        parts.append(np.asarray(data.indices, dtype=np.int64))
        data, subset = data.dataset, zlib.crc32(parts[-1].tobytes(), subset)
    named = _name_files(loader.dataset, data, files)
    report: dict[str, Any] = {
        "n_examples": _length(loader.dataset),
        "subset": subset,
        "data": _fingerprint(data),
        "files": None if named is None else named[:n_most],
        "is_declared": files is not None,
    }
    order: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if isinstance(loader.dataset, IterableDataset) or order is None:
        return LoaderReport(sampler=type(loader.dataset).__name__, **report)
    sampler: Any = getattr(order, "sampler", order)
    is_plain = type(sampler) is DistributedSampler
    draws = None
    # The plain sampler divides by its settings, and a large data set costs as much as the start of an epoch.
    if not is_plain or (report["n_examples"] or 0) <= n_most:
        draws = _draw(loader, order, n_batches, n_most)
    for indices in parts:
        draws = None if draws is None else indices[draws]
    return LoaderReport(
        sampler=type(sampler).__name__,
        settings=_settings(sampler),
        draws=draws,
        is_repeating=_is_repeating(order, sampler, draws, is_plain),
        **report,
    )


def _settings(sampler: Any) -> dict[str, Any] | None:
    if not hasattr(sampler, "num_replicas") or not hasattr(sampler, "rank"):
        return None
    found = {name: getattr(sampler, name, None) for name in _SETTINGS}
    # Around another sampler, as Lightning puts one, these two have no effect.
    return found | ({"seed": None, "shuffle": None} if _wrapped(sampler) is not None else {})


def _wrapped(sampler: Any) -> Any:
    return getattr(getattr(sampler, "dataset", None), "_sampler", None)


def _is_repeating(order: Any, sampler: Any, draws: NDArray[np.int64] | None, is_plain: bool) -> bool:
    """Return whether an example may be drawn more than once: by the sampler's word, or seen so."""
    if is_plain:
        return False
    if any(getattr(one, "replacement", False) for one in (order, sampler, _wrapped(sampler))):
        return True
    return draws is not None and len(np.unique(draws)) < len(draws) - 1


def _draw(loader: DataLoader[Any], order: Any, n_batches: float, n_most: int) -> NDArray[np.int64] | None:
    """Return the first examples of an epoch; None where the sampler cannot be copied, or draws no numbers."""
    samplers = [loader, order, getattr(order, "sampler", None), _wrapped(getattr(order, "sampler", order))]
    owned = [getattr(one, "generator", None) for one in samplers]
    generators = [one for one in owned if isinstance(one, torch.Generator)]
    states = [one.get_state() for one in generators]
    # A copy, as samplers may count what they gave; it shares the data and the generators, which are put back.
    kept = {id(one): one for one in (loader.dataset, *generators)}
    with undisturbed():
        try:
            batches = itertools.islice(copy.deepcopy(order, kept), int(min(n_batches, n_most)))
            numbers = (number for one in batches for number in (one if isinstance(one, Iterable) else [one]))
            found = list(itertools.islice(numbers, n_most))
            return np.array([_number(one) for one in found], dtype=np.int64)
        except Exception:
            # What cannot be copied, or gives no numbers, is not compared; training will say what is wrong with it.
            return None
        finally:
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _number(index: Any) -> int:
    if isinstance(index, Tensor):
        index = index.item()
    if isinstance(index, int | np.integer):
        return int(index)
    raise TypeError("not a number")


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _name_files(given: Any, data: Any, files: Files | None) -> tuple[str, ...] | None:
    if files is not None:
        return tuple(str(one) for one in files(given))
    for name in FILE_ATTRIBUTES:
        found = getattr(data, name, None)
        if isinstance(found, list | tuple) and found and all(isinstance(one, str | os.PathLike) for one in found):
            return tuple(str(one) for one in found)
    return None


def _fingerprint(data: Any) -> int:
    """Return a hash of the numbers, texts and arrays that a data set holds, samples of them where they are many.

    No example is read: that may open files, which workers must open for themselves.
    """
    return zlib.crc32(repr([type(data).__name__, _outline(getattr(data, "__dict__", {}), 0)]).encode())


def _outline(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | str | os.PathLike):
        return repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [value.shape, str(value.dtype), value.reshape(-1)[:: max(1, value.size // _N_ELEMENTS)].tolist()]
    if isinstance(value, Tensor) and value.layout == torch.strided:
        elements = value.detach().reshape(-1)[:: max(1, value.numel() // _N_ELEMENTS)]
        return [tuple(value.shape), str(value.dtype), elements.tolist()]
    if depth < 3 and isinstance(value, list | tuple):
        sample = value[:: max(1, len(value) // _N_LISTED)]
        return [len(value), [_outline(one, depth + 1) for one in sample]]
    if depth < 3 and isinstance(value, Mapping):
        items = itertools.islice(value.items(), _N_LISTED)
        return [len(value), [(_outline(key, depth + 1), _outline(one, depth + 1)) for key, one in items]]
    return type(value).__name__
