from __future__ import annotations

import array
import random
import re
from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from playbook_plugins.lightning.probe_cutting import count_in_batch, join_batches
from playbook_plugins.lightning.probe_objects import ObjectMemory, reachable
from playbook_plugins.lightning.probe_search import Attempt, Measured, search_batch_sizes
from playbook_plugins.lightning.probe_steps import time_steps
from playbook_plugins.lightning.probe_streams import KeptIterator
from playbook_plugins.lightning.training_snapshot import RandomStates


class Thing:
    pass


class Slotted:
    __slots__ = ("value",)


@dataclass(slots=True)
class Counter:
    n: int = 0


def test_python_objects_come_back_in_place() -> None:
    root, inner, slotted, counter = Thing(), Thing(), Slotted(), Counter()
    slotted.value = [1]
    contents: dict[str, Any] = {
        "list": [1, [2, 3]],
        "dict": {"a": 1, "b": {"c": 2}},
        "set": {1, 2},
        "deque": deque([1, 2], maxlen=2),
        "array": array.array("d", [1.0, 2.0]),
        "bytes": bytearray(b"ab"),
        "numpy": np.array([1.0, np.nan]),
        "ordered": OrderedDict([("x", 1), ("y", 2)]),
        "default": defaultdict(list, {"k": [1]}),
        "own": inner,
        "bound": partial(inner.__setattr__, "z"),
        "slotted": slotted,
        "counter": counter,
    }
    vars(root).update(contents)
    inner.x = root
    memory = ObjectMemory([root])
    before = repr({name: value for name, value in contents.items() if name not in ("own", "bound", "slotted")})
    for _ in range(2):
        root.list[1].append(4)
        root.list = None
        root.new = 1
        contents["dict"]["b"]["c"] = 3
        del contents["dict"]["a"]
        contents["set"].add(3)
        contents["deque"].append(3)
        contents["array"][0] = 9
        contents["bytes"][0] = 99
        contents["numpy"][:] = 0
        contents["ordered"].move_to_end("x")
        contents["default"]["new"].append(1)
        inner.y = 1
        slotted.value.append(2)
        slotted.value = None
        counter.n = 5
        memory.restore()
        assert vars(root) == contents
        assert root.list is contents["list"]
        assert vars(inner) == {"x": root}
        assert slotted.value == [1]
        assert before == repr({name: contents[name] for name in contents if name not in ("own", "bound", "slotted")})


def test_random_generators_come_back() -> None:
    ours = [random.Random(1), np.random.default_rng(2), torch.Generator().manual_seed(3), np.random.RandomState(4)]

    def draw() -> list[float]:
        one, two, three, four = ours
        world = [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002
        mine = [one.random(), float(two.random()), float(torch.rand((), generator=three)), float(four.rand())]
        return [*world, *mine]

    memory, states = ObjectMemory(ours), RandomStates()
    first = draw()
    assert draw() != first
    memory.restore()
    states.restore()
    assert draw() == first


def test_tensors_come_back_bit_for_bit() -> None:
    payload = torch.tensor([0x7FC00123, 1], dtype=torch.int32).view(torch.float32)
    parameter = torch.nn.Parameter(torch.ones(3))
    with_gradient = torch.nn.Parameter(torch.ones(2))
    with_gradient.grad = gradient = torch.full((2,), 5.0)
    base = torch.arange(6.0)
    view, expanded = base[2:4], torch.ones(1).expand(4)
    sparse = torch.eye(2).to_sparse()
    empty = torch.empty(0)
    memory = ObjectMemory([[payload, parameter, with_gradient, view, base, expanded, sparse, empty]])
    for _ in range(2):
        payload.fill_(0)
        parameter.data = torch.zeros(5)
        parameter.grad = torch.ones(5)
        parameter.requires_grad_(False)
        with_gradient.grad = None
        gradient.zero_()
        base.zero_()
        expanded.untyped_storage().fill_(0)
        sparse.zero_()
        version = base._version
        memory.restore()
        assert payload.view(torch.int32).tolist() == [0x7FC00123, 1]
        assert (parameter.tolist(), parameter.grad, parameter.requires_grad) == ([1.0] * 3, None, True)
        assert with_gradient.grad is gradient
        assert gradient.tolist() == [5.0, 5.0]
        assert (view.tolist(), base.tolist()) == ([2.0, 3.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
        assert expanded.tolist() == [1.0] * 4
        assert torch.equal(sparse.to_dense(), torch.eye(2))
        # A graph that was built before may still be differentiated.
        assert base._version == version


def test_of_data_only_the_small_state_is_kept() -> None:
    data = Thing()
    data.tensor, data.position, data.many = torch.ones(2), 0, list(range(20_000))
    memory = ObjectMemory([], [data])
    data.tensor.zero_()
    data.position = 3
    data.many.append(1)
    memory.restore()
    assert (data.position, data.tensor.tolist(), len(data.many)) == (0, [0.0, 0.0], 20_001)


def test_what_a_stream_depends_on_is_found() -> None:
    state = Thing()

    def stream() -> Any:
        mine = [state]
        yield from mine

    running = stream()
    next(running)
    assert id(state) in reachable([running])
    memory = ObjectMemory([state], ignored=reachable([running]))
    state.n = 1
    memory.restore()
    assert state.n == 1


def test_an_iterator_that_looks_ahead() -> None:
    def three() -> Any:
        yield from (1, 2, 3)
        raise KeyError("broken")

    kept = KeptIterator(three())
    assert next(kept) == 1
    assert kept.look_ahead()
    assert kept.look_ahead()
    with pytest.raises(KeyError):
        kept.look_ahead()
    assert not kept.look_ahead()
    # Training meets the error where it would have met it.
    assert [next(kept), next(kept)] == [2, 3]
    with pytest.raises(KeyError):
        next(kept)
    with pytest.raises(StopIteration):
        next(kept)
    ended = KeptIterator(iter([1]))
    assert (ended.look_ahead(), ended.look_ahead(), ended.is_exhausted) == (True, False, True)
    assert list(ended) == [1]


class Pair(NamedTuple):
    x: torch.Tensor
    names: list[str]


def batch_of(n: int, start: int = 0) -> dict[str, Any]:
    x = torch.arange(start, start + n, dtype=torch.float32)
    return {
        "pair": Pair(x, [str(i) for i in range(start, start + n)]),
        "array": x.numpy(),
        "images": [torch.zeros(3, start + i + 1) for i in range(n)],
        "scalar": torch.tensor(2.0),
        "name": "train",
    }


def test_batches_are_cut_and_joined() -> None:
    one, other = batch_of(4), batch_of(4, start=4)
    assert count_in_batch(one) == 4
    for size in (1, 3, 4, 6, 8, 19):
        joined = join_batches([one, other], [4, 4], size)
        expected = [float(i % 8) for i in range(size)]
        assert joined["pair"].x.tolist() == expected
        assert joined["pair"].names == [str(int(i)) for i in expected]
        assert joined["array"].tolist() == expected
        assert [image.shape[1] - 1 for image in joined["images"]] == expected
        assert (joined["scalar"].item(), joined["name"]) == (2.0, "train")
        joined["pair"].x.zero_()
        joined["images"][0].fill_(1)
    assert one["pair"].x.tolist() == [0, 1, 2, 3]
    assert not one["images"][0].any()
    assert count_in_batch(["a", "b", "c"]) == 3
    assert join_batches([["a", "b"]], [2], 3) == ["a", "b", "a"]
    assert count_in_batch(([torch.zeros(3, 5)] * 4, [1] * 4), hint=4) == 4


def test_batches_of_unequal_examples_repeat_the_largest() -> None:
    short, long = torch.zeros(2, 3), torch.ones(2, 7)
    assert torch.equal(join_batches([short, long], [2, 2], 5), torch.ones(5, 7))


def test_what_cannot_be_cut_says_so() -> None:
    with pytest.raises(TypeError, match=r"^a batch of type Thing has no dimension of examples$"):
        count_in_batch(Thing())
    with pytest.raises(TypeError, match=r"^a batch that holds Thing cannot be cut$"):
        join_batches([{"x": torch.zeros(2), "y": Thing()}], [2], 1)


def measured(size: int) -> Measured:
    return Measured(seconds=0.01 * size, data_wait_share=0.0, peak_memory=8.0 * size)


@pytest.mark.parametrize(
    ("start", "largest", "outcomes", "rows", "limit", "failed"),
    [
        (2, 16, {}, [2, 4, 8, 16], "max_batch_size", None),
        (3, 13, {}, [3, 6, 12], "max_batch_size", None),
        (2, 64, {16: "memory"}, [2, 4, 8], "memory", 16),
        (2, 64, {8: "data"}, [2, 4], "data", None),
        (16, 64, {16: "memory", 8: "memory"}, [4], "memory", 8),
        (8, 64, {8: "data", 4: "data"}, [2], "data", None),
        (2, 64, {2: "memory", 1: "memory"}, [], "memory", 1),
    ],
)
def test_the_sizes_that_are_tried(
    start: int, largest: int, outcomes: dict[int, Any], rows: list[int], limit: str, failed: int | None
) -> None:
    def attempt(size: int) -> Attempt:
        return outcomes.get(size, measured(size))

    result = search_batch_sizes(attempt, start=start, max_batch_size=largest, n_devices=2)
    assert result.batch_size.tolist() == rows
    assert (result.limit, result.failed_batch_size, result.n_devices) == (limit, failed, 2)
    assert result.peak_memory.tolist() == [8.0 * size for size in rows]


def test_data_without_any_batch_are_refused() -> None:
    message = "`data` holds no batch: the loader gave nothing to train on. Pass a loader with at least one batch."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        search_batch_sizes(lambda size: "data", start=2, max_batch_size=8)


def timed(steps: list[float], waits: list[float], **options: Any) -> tuple[float, float, int]:
    now, n = [0.0], [0]

    def fetch() -> int:
        now[0] += waits[n[0] % len(waits)]
        return n[0]

    def step(batch: int) -> None:
        now[0] += steps[batch % len(steps)]
        n[0] += 1

    defaults: dict[str, Any] = {"n_warmup_steps": 1, "n_steps": 4, "max_seconds": 100.0}
    time = time_steps(fetch, step, clock=lambda: now[0], synchronize=lambda: None, **(defaults | options))
    return time.seconds, time.waiting_seconds, n[0]


def test_steps_are_timed_until_the_median_is_stable() -> None:
    assert timed([1.0], [0.5]) == (1.5, 0.5, 5)
    # The first one is left out, however slow.
    assert timed([9.0, 1, 1, 1, 1], [0.0], max_seconds=0.0) == (1.0, 0.0, 4)
    # Alternating steps need many of them, and time ends it.
    assert timed([1.0, 2.0], [0.0])[2] > 30
    assert timed([1.0, 2.0], [0.0], max_seconds=8.0)[2] < 10
    # Two workers deliver two batches at once: the wait is that of both.
    seconds, wait, _ = timed([1.0], [4.0, 0.0], n_workers=2)
    assert (seconds, wait) == (3.0, 2.0)
    assert timed([1.0], [5.0], is_fetch_timed=False)[:2] == (1.0, 0.0)
