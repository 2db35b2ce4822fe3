"""Which examples remain of this epoch? A loader that knows its place, so that a killed run goes on from there.

Playbook: "Saving checkpoints and retrospectively selecting the best checkpoint". A run that is resumed in the middle of
an epoch with an ordinary loader draws a new order: it sees some examples twice and others not at all.
"""

from __future__ import annotations

import itertools
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data.distributed import DistributedSampler
from typing_extensions import override

from playbook_plugins.lightning.random_state import capture, restore, undisturbed

T_co = TypeVar("T_co", covariant=True)


@dataclass
class _Place:
    """Where an epoch began, and how far it has come.

    Attributes
    ----------
    start
        The generators and the samplers' epochs as they were when it began.
    is_first
        Whether the epoch began with a new iterator, and so with a seed for the workers. Workers that persist get one
        in their first epoch only.
    n_batches
        Batches handed out.
    checksum
        Of the indices of these batches.
    drawn
        The checksums of the batches whose indices are drawn, and which are not handed out yet.
    """

    start: dict[str, Any]
    is_first: bool
    n_batches: int = 0
    checksum: int = 0
    drawn: deque[int] = field(default_factory=deque)

    def hand_out(self) -> None:
        """Count a batch."""
        self.n_batches += 1
        if self.drawn:
            self.checksum = self.drawn.popleft()


class _Order:
    """The index batches of an epoch, of which the first may be left out: the loader's sampler, with a memory."""

    def __init__(self, sampler: Iterable[Any]) -> None:
        self.sampler = sampler
        self.place: _Place | None = None
        self.n_skipped = 0
        self.before: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self.sampler)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        # A generator, as torch asks for two iterators where it starts workers, and uses the second only.
        place, n_skipped = self.place, self.n_skipped
        if self.before is not None:
            self.before()
        checksum = 0
        for n_drawn, indices in enumerate(self.sampler, start=1):
            checksum = zlib.crc32(repr(indices).encode(), checksum)
            if n_drawn <= n_skipped:
                if n_drawn == n_skipped and place is not None:
                    place.checksum = checksum
                continue
            if place is not None:
                place.drawn.append(checksum)
            yield indices


class _Batches(Iterator[T_co]):
    """The batches of an epoch, counted as they are handed out."""

    def __init__(self, batches: Any, place: _Place) -> None:
        self.batches = batches
        self.place = place

    def __next__(self) -> T_co:
        batch: T_co = next(self.batches)
        self.place.hand_out()
        return batch

    def __len__(self) -> int:
        return len(self.batches)


class ResumableDataLoader(DataLoader[T_co]):
    """A `torch.utils.data.DataLoader` that goes on in the middle of an epoch, with exactly the remaining examples.

    It takes the same arguments and gives the same batches. Its ``state_dict``, which Lightning keeps in every
    checkpoint, says how the generators stood when the epoch began and how many batches were handed out. After
    ``load_state_dict`` the next epoch is the rest of that one: the sampler draws the same order again, and what was
    seen is left out by its index, without loading it. Epochs after that are whole. The global generators are left as
    they were: `TrialRecorder` keeps them, and with both a resumed run equals the uninterrupted one bit for bit.

    Notes
    -----
    - **Order.** The order may come from torch's, NumPy's or Python's global generator, from the ``generator`` of the
      loader or its sampler, and from the sampler's ``set_epoch``. It is fixed when the epoch begins; a checksum over
      the indices tells whether the same order was drawn again, and resuming with another is refused: with other data,
      another batch size or number of processes, or a sampler that keeps a random state of its own.
    - **Workers.** The remaining batches are the same where the dataset is deterministic. One that draws random numbers
      in workers sees, after a resume, the numbers from the start of each worker's stream: let it derive them from
      the index of the example and the epoch instead, or use ``num_workers=0``, where a resumed run draws the same.
      ``in_order=False`` is refused.
    - **Iterable datasets** are resumed by reading, and throwing away, what was seen; they must give the same examples
      in the same order again. Without a length they are refused, like samplers without one: Lightning then fetches
      one batch ahead of training, and what was handed out is not what was trained on.

    Any precision, accumulation and manual optimization; under ddp `TrialRecorder` keeps the place of every process, of
    which Lightning itself saves that of rank 0 only.

    Raises
    ------
    ValueError
        When an epoch begins: without a length, with ``in_order=False``, or where another order than that of the
        checkpoint was drawn.
    """

    _order: _Order | None = None
    _place: _Place | None = None
    _resumed: Mapping[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the epoch, as tensors and Python primitives; empty before the first epoch."""
        if self._resumed is not None:
            return dict(self._resumed)
        if self._place is None:
            return {}
        return {
            "start": self._place.start,
            "is_first": self._place.is_first,
            "n_batches": self._place.n_batches,
            "length": len(self),
            "checksum": self._place.checksum,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue at this place with the next ``iter``."""
        self._resumed = state_dict or None

    @override
    def __iter__(self) -> _Batches[T_co]:  # type: ignore[override]
        self._refuse_what_cannot_be_resumed()
        state, self._resumed = self._resumed, None
        if state is not None:
            return self._continue(state)
        is_first = not self.persistent_workers or self._iterator is None
        self._place = _Place(start=self._start(), is_first=is_first)
        return _Batches(self._begin(), self._place)

    # What torch's iterators draw their indices from: the batch sampler, or the sampler where there is none.
    @property
    def _index_sampler(self) -> Any:
        usual = super()._index_sampler
        if isinstance(self.dataset, IterableDataset):
            return usual
        if self._order is None:
            self._order = _Order(usual)
        return self._order

    def _begin(self, n_skipped: int = 0, before: Callable[[], None] | None = None) -> Any:
        """Return torch's iterator of an epoch, with its order drawn."""
        order = self._index_sampler
        if isinstance(order, _Order):
            order.place, order.n_skipped, order.before = self._place, n_skipped, before
        iterator: Any = super().__iter__()
        if self.num_workers == 0:
            # Samplers draw with their first index. Others may draw before the first batch is asked for.
            indices = iterator._sampler_iter
            iterator._sampler_iter = itertools.chain(list(itertools.islice(indices, 1)), indices)
        if isinstance(order, _Order):
            order.before = None
        return iterator

    def _continue(self, state: Mapping[str, Any]) -> _Batches[T_co]:
        """Return the rest of the epoch to which the state belongs."""
        n_seen = int(state["n_batches"])
        place = self._place = _Place(start=state["start"], is_first=state["is_first"], n_batches=n_seen)
        # As in a new process: workers that persist would begin the epoch without drawing a seed.
        self._iterator = None
        is_iterable = isinstance(self.dataset, IterableDataset)
        with undisturbed():
            self._restart(state["start"])
            before = None if place.is_first else lambda: self._restart(state["start"])
            iterator = self._begin(0 if is_iterable else n_seen, before)
            if is_iterable:
                for _ in itertools.islice(iterator, n_seen):
                    pass
        n_left = int(state["length"]) - n_seen
        if not is_iterable and n_left and n_seen and place.checksum != state["checksum"]:
            raise ValueError(
                f"`sampler` gives other examples than the {n_seen} batches of the run that is resumed: the rest of its "
                "epoch cannot be found. Resume with the same data, batch size and number of processes, and let the "
                "sampler draw from a global generator as an epoch begins, or from a `generator`; or resume from a "
                "file of an epoch's end."
            )
        return _Batches(iterator, place)

    def _start(self) -> dict[str, Any]:
        """Return all that the order of an epoch may depend on, before anything is drawn."""
        return {
            "global": capture(cuda=False),
            "own": [generator.get_state() for generator in self._generators()],
            "epochs": [sampler.epoch for sampler in self._epoch_samplers()],
            "seeds": [sampler.seed for sampler in self._samplers() if isinstance(sampler, DistributedSampler)],
        }

    def _restart(self, start: Mapping[str, Any]) -> None:
        """Return to the moment before an epoch began."""
        restore(start["global"])
        for generator, own in zip(self._generators(), start["own"], strict=False):
            generator.set_state(own)
        # Lightning sets it a moment too late for workers that draw ahead.
        for sampler, epoch in zip(self._epoch_samplers(), start["epochs"], strict=False):
            sampler.set_epoch(epoch)
        distributed = [sampler for sampler in self._samplers() if isinstance(sampler, DistributedSampler)]
        for sampler, seed in zip(distributed, start["seeds"], strict=False):
            sampler.seed = seed

    def _samplers(self) -> list[Any]:
        """Return the sampler, the batch sampler and the sampler in it, each once."""
        found = (self.sampler, self.batch_sampler, getattr(self.batch_sampler, "sampler", None))
        return list({id(one): one for one in found if one is not None}.values())

    def _generators(self) -> list[torch.Generator]:
        """Return the generators of the loader and its samplers, each once."""
        found = (getattr(owner, "generator", None) for owner in (self, *self._samplers()))
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def _epoch_samplers(self) -> list[Any]:
        """Return the samplers whose order depends on an epoch."""
        has_epoch = [one for one in self._samplers() if callable(getattr(one, "set_epoch", None))]
        return [one for one in has_epoch if isinstance(getattr(one, "epoch", None), int)]

    def _refuse_what_cannot_be_resumed(self) -> None:
        is_iterable = isinstance(self.dataset, IterableDataset)
        sized: Any = self.dataset if is_iterable else super()._index_sampler
        try:
            len(sized)
        except (TypeError, NotImplementedError):
            name = "dataset" if is_iterable else "sampler"
            raise ValueError(
                f"`{name}` is {type(sized).__name__}, which has no length: Lightning then fetches one batch ahead of "
                "training, and ResumableDataLoader cannot know which batches were trained on. Define __len__, or use "
                "torch's DataLoader."
            ) from None
        if not getattr(self, "in_order", True):
            raise ValueError(
                "`in_order` is False: the workers' speed then decides which batches were seen, and "
                "ResumableDataLoader cannot continue from there. Leave it True, or use torch's DataLoader."
            )
