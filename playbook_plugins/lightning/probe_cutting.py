"""How is a batch of another size made of batches that are there? By cutting and joining along the examples.

Playbook: none; an iterable cannot be asked for batches of another size.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from playbook_plugins.analysis.infeasible import is_out_of_memory


def count_in_batch(batch: Any, hint: int | None = None) -> int:
    """Return the number of examples in a batch.

    Parameters
    ----------
    batch
        Nested tensors, arrays, mappings, tuples and lists; a list may hold one element an example.
    hint
        The batch size that the loader was asked for, where it is known.

    Raises
    ------
    TypeError
        When there is no part along which it could be cut.
    """
    if hint is not None and _has_count(batch, hint):
        return hint
    waiting, lengths = [batch], []
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, (Tensor, np.ndarray)) and part.ndim:
            return int(part.shape[0])
        if isinstance(part, Mapping):
            waiting.extend(part.values())
        elif isinstance(part, (list, tuple)):
            lengths.append(len(part))
            waiting.extend(part)
    if not lengths:
        raise TypeError(f"a batch of type {type(batch).__name__} has no dimension of examples")
    return lengths[-1]


def join_batches(batches: Sequence[Any], counts: Sequence[int], batch_size: int) -> Any:
    """Return a batch of so many examples; they are taken from the batches in turn, as often as needed, and copied.

    Batches whose examples differ in shape, such as those padded to their own longest example, cannot be joined: then
    the one with the largest examples is repeated.

    Parameters
    ----------
    batches
        At least one.
    counts
        The number of examples in each.
    batch_size
        At least 1.

    Raises
    ------
    TypeError
        When the batches hold something that cannot be cut.
    """
    parts: list[tuple[Any, int, int]] = []
    n_missing, place = batch_size, 0
    while n_missing > 0:
        batch, count = batches[place % len(batches)], counts[place % len(batches)]
        parts.append((batch, count, min(count, n_missing)))
        n_missing -= count
        place += 1
    try:
        return _join(parts)
    except (RuntimeError, ValueError) as error:
        if is_out_of_memory(error) or len(batches) == 1:
            raise
    sizes = [_n_elements(batch) / count for batch, count in zip(batches, counts, strict=True)]
    largest = max(range(len(batches)), key=sizes.__getitem__)
    return join_batches([batches[largest]], [counts[largest]], batch_size)


def _join(parts: list[tuple[Any, int, int]]) -> Any:
    """Join parts, each with its number of examples and how many of them to take."""
    first, count, _ = parts[0]
    if isinstance(first, Tensor):
        if not first.ndim or first.shape[0] != count:
            return first.clone()
        return torch.cat([part[:n_taken] for part, _, n_taken in parts])
    if isinstance(first, np.ndarray):
        if not first.ndim or first.shape[0] != count:
            return first.copy()
        return np.concatenate([part[:n_taken] for part, _, n_taken in parts])
    if isinstance(first, Mapping):
        joined = {key: _join([(part[key], n, n_taken) for part, n, n_taken in parts]) for key in first}
        return joined if type(first) is dict else type(first)(joined)  # type: ignore[call-arg]
    if isinstance(first, (list, tuple)):
        if _is_one_an_example(first, count):
            examples = [copy.deepcopy(example) for part, _, n_taken in parts for example in part[:n_taken]]
            return _like(first, examples)
        return _like(first, [_join([(part[i], n, k) for part, n, k in parts]) for i in range(len(first))])
    if isinstance(first, (str, bytes, int, float, complex, bool, type(None))):
        return first
    raise TypeError(f"a batch that holds {type(first).__name__} cannot be cut")


def _is_one_an_example(part: list[Any] | tuple[Any, ...], count: int) -> bool:
    """Return whether a list holds an element an example, rather than tensors of all examples."""
    return len(part) == count and not all(_has_count(element, count) for element in part)


def _has_count(part: Any, count: int) -> bool:
    """Return whether something holds so many examples."""
    if isinstance(part, (Tensor, np.ndarray)):
        return bool(part.ndim) and part.shape[0] == count
    if isinstance(part, Mapping):
        return any(_has_count(value, count) for value in part.values())
    if isinstance(part, (list, tuple)):
        return len(part) == count or any(_has_count(value, count) for value in part)
    return False


def _like(model: list[Any] | tuple[Any, ...], elements: list[Any]) -> Any:
    if isinstance(model, list):
        return elements
    # A named tuple takes its fields one by one.
    return type(model)(*elements) if hasattr(model, "_fields") else tuple(elements)


def _n_elements(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return batch.numel()
    if isinstance(batch, np.ndarray):
        return int(batch.size)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
    return sum(map(_n_elements, parts))
