"""What did these objects hold? A memory of Python objects and tensors that can be put back in place.

Playbook: none; it lets the batch size probe train for a few steps without a trace. Everything is restored in place, so
that whoever holds a reference to a list, a tensor or an optimizer still holds the right one.
"""

from __future__ import annotations

import array
import copyreg
import enum
import random
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from playbook_plugins.lightning.probe_tensors import TensorMemory

# Types that cannot change, or whose change nothing can take back.
_FIXED = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    enum.Enum,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.ModuleType,
    types.CodeType,
    torch.dtype,
    torch.device,
)
# Objects of these packages run threads or hold files; none of them belongs to the state of training.
_FOREIGN = frozenset(
    [
        *("_io", "_queue", "_thread", "_weakref", "asyncio", "concurrent", "contextlib", "io", "logging"),
        *("multiprocessing", "queue", "rich", "socket", "subprocess", "tensorboard", "threading", "tqdm", "wandb"),
        "weakref",
    ]
)
# By name, so that the classes of both Lightning packages match. What lies behind these is restored by its owner.
_TRAINING = ("Trainer", "Logger", "Strategy", "Profiler", "DistributedDataParallel")
_LOADING = ("DataLoader", "CombinedLoader", "_DataFetcher", "_DataLoaderSource", "_BaseDataLoaderIter", "_ModeIterator")
# A larger container inside of a data set is data, not state.
_LARGEST_STATE = 10_000

Restore: TypeAlias = Callable[[], Any]


class ObjectMemory:
    """Remembers everything that can be reached from some objects.

    Attributes, lists, dicts, sets, arrays, generators of random numbers, and tensors with their gradients are
    remembered; functions, files, threads and iterators are not.

    Parameters
    ----------
    roots
        Where to begin.
    data
        Where to begin in the user's data: there tensors, arrays and large containers are taken to be left alone, since
        a copy of a whole data set would not fit into memory.
    ignored
        The ids of objects that are left as they are.
    """

    def __init__(self, roots: Iterable[Any], data: Iterable[Any] = (), ignored: Iterable[int] = ()) -> None:
        self._tensors = TensorMemory()
        self._restores: list[Restore] = []
        # The objects themselves are kept, so that no id is given to another one meanwhile.
        self._known: dict[int, Any] = {}
        self._ignored = frozenset(ignored)
        self._walk(roots, is_data=False)
        self._walk(data, is_data=True)

    def restore(self) -> None:
        """Put everything back; may be called any number of times."""
        for restore in self._restores:
            restore()
        self._tensors.restore()

    def _walk(self, roots: Iterable[Any], *, is_data: bool) -> None:
        waiting = list(roots)
        while waiting:
            one = waiting.pop()
            if type(one) in weakref.ProxyTypes or isinstance(one, _FIXED):
                continue
            if id(one) in self._known or id(one) in self._ignored or _is_border(one):
                continue
            self._known[id(one)] = one
            if isinstance(one, Tensor):
                if not is_data:
                    self._tensors.add(one)
                    waiting.extend(vars(one).values())
                continue
            if is_data and _is_large(one):
                continue
            self._restores.extend(_remember(one, is_data))
            waiting.extend(_children(one))


def reachable(roots: Iterable[Any]) -> dict[int, Any]:
    """Return the objects, by id, on which running iterators depend: whatever they reach but neural networks."""
    known: dict[int, Any] = {}
    waiting = list(roots)
    while waiting:
        one = waiting.pop()
        if type(one) in weakref.ProxyTypes or isinstance(one, (*_FIXED, torch.nn.Module)):
            continue
        if id(one) in known or _is_border(one, _TRAINING):
            continue
        known[id(one)] = one
        if isinstance(one, types.GeneratorType):
            waiting.extend([] if one.gi_frame is None else one.gi_frame.f_locals.values())
        if not isinstance(one, Tensor) and not _is_large(one):
            waiting.extend(_children(one))
    return known


def _is_border(one: Any, borders: tuple[str, ...] = (*_TRAINING, *_LOADING)) -> bool:
    return any(
        cls.__name__ in borders or cls.__module__.partition(".")[0] in _FOREIGN for cls in type(one).__mro__[:-1]
    )


def _is_large(one: Any) -> bool:
    if isinstance(one, np.ndarray):
        return True
    return isinstance(one, (list, tuple, dict, set, frozenset, deque)) and len(one) > _LARGEST_STATE


def _attributes(one: Any) -> dict[str, Any] | None:
    try:
        attributes = object.__getattribute__(one, "__dict__")
    except (AttributeError, TypeError):
        return None
    return attributes if isinstance(attributes, dict) else None


def _slots(one: Any) -> list[str]:
    # This is how pickle finds them.
    names: list[str] = copyreg._slotnames(type(one))  # type: ignore[attr-defined]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _children(one: Any) -> Iterator[Any]:
    """Return what an object refers to, as a snapshot of the moment."""
    if isinstance(one, dict):
        yield from [*dict.keys(one), *dict.values(one)]
    elif isinstance(one, (list, tuple, set, frozenset, deque)):
        yield from list(one)
    elif isinstance(one, types.MethodType):
        yield one.__self__
    elif isinstance(one, partial):
        yield from (one.func, *one.args, *one.keywords.values())
    attributes = _attributes(one)
    if attributes is not None:
        yield attributes
    for name in _slots(one):
        if hasattr(one, name):
            yield getattr(one, name)


def _remember(one: Any, is_data: bool) -> list[Restore]:
    """Return what puts an object back; nothing where it has no state of its own."""
    found = (_remember_contents(one, is_data), _remember_slots(one), remember_random(one))
    return [restore for restore in found if restore is not None]


def _remember_contents(one: Any, is_data: bool) -> Restore | None:
    if isinstance(one, dict):
        # An OrderedDict keeps its order apart: a method of dict would miss it.
        base: Any = OrderedDict if isinstance(one, OrderedDict) else dict
        items = list(base.items(one))
        return partial(_refill, one, items, lambda: [*base.items(one)], base.clear, base.update)
    if isinstance(one, list):
        return partial(_refill, one, list(one), lambda: one, list.clear, list.extend)
    if isinstance(one, set):
        return partial(_refill, one, list(one), lambda: one, set.clear, set.update)
    if isinstance(one, deque):
        return partial(_refill, one, list(one), lambda: one, deque.clear, deque.extend)
    if isinstance(one, (array.array, bytearray)):
        return partial(one.__setitem__, slice(None), one[:])
    if isinstance(one, np.ndarray) and not isinstance(one, np.memmap) and one.flags.writeable and not is_data:
        return partial(np.copyto, one, one.copy())
    return None


def _refill(one: Any, before: list[Any], now: Callable[[], Iterable[Any]], clear: Any, fill: Any) -> None:
    """Fill a container again, by its base class's methods, where it no longer holds the same objects."""
    current = list(now())
    pairs = zip(current, before, strict=False)
    if len(current) != len(before) or not all(_is_same(mine, yours) for mine, yours in pairs):
        clear(one)
        fill(one, before)


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two elements, or items of a dict, are the same objects."""
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other) == 2:
        return (one[0] is other[0] and one[1] is other[1]) or one is other
    return one is other


def _remember_slots(one: Any) -> Restore | None:
    names = [] if isinstance(one, (Tensor, np.ndarray, np.generic)) else _slots(one)
    values = {name: getattr(one, name) for name in names if hasattr(one, name)}
    if not values:
        return None

    def restore() -> None:
        for name, value in values.items():
            if getattr(one, name, None) is not value:
                object.__setattr__(one, name, value)

    return restore


def remember_random(one: Any) -> Restore | None:
    """Return what puts a generator of random numbers back; None for anything else."""
    if isinstance(one, torch.Generator):
        return partial(one.set_state, one.get_state())
    if isinstance(one, random.Random):
        return partial(one.setstate, one.getstate())
    if isinstance(one, np.random.RandomState):
        return partial(one.set_state, one.get_state())
    if isinstance(one, np.random.Generator):
        return partial(setattr, one.bit_generator, "state", one.bit_generator.state)
    return None
