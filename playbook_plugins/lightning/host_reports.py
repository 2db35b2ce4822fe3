"""What does each host say of itself? The reports that are gathered from all ranks and compared.

Playbook: "Considerations for multi-host pipelines".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

R = TypeVar("R")
_MOST_RANKS = 8


@dataclass(frozen=True)
class WriterReport:
    """What one process says of its part in logging and saving.

    Attributes
    ----------
    rank
        Its number among all, as the Trainer has it.
    is_writer
        Whether the Trainer takes it for the one that writes checkpoints.
    checkpoints
        Each checkpoint callback and its folder.
    loggers
        The loggers that write here.
    owners
        Folders to which another run writes, and who that is.
    """

    rank: int
    is_writer: bool
    checkpoints: tuple[str, ...] = ()
    loggers: tuple[str, ...] = ()
    owners: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class LoaderReport:
    """What one rank says of one of its training loaders.

    Attributes
    ----------
    sampler
        The class of the sampler, or of the loader where it has none.
    settings
        Of a distributed sampler: seed, shuffle, drop_last, epoch, num_replicas and rank; None for another one.
    n_examples
        The length of the data set; None where it has none.
    draws
        The examples of this rank at the start of an epoch, int64 of shape (n_draws,), numbered in the innermost data
        set; None where that is not known.
    is_repeating
        Whether the sampler draws with replacement.
    subset
        A hash of the part of the data set that the loader was given; 0 for all of it.
    data
        A hash of what the data set holds, as far as it can be seen without reading an example.
    files
        The files from which this rank reads; None where they are not named.
    is_declared
        Whether the user has named the files, and not an attribute of the data set.
    """

    sampler: str
    settings: dict[str, int | bool | None] | None = None
    n_examples: int | None = None
    draws: NDArray[np.int64] | None = None
    is_repeating: bool = False
    subset: int = 0
    data: int = 0
    files: tuple[str, ...] | None = None
    is_declared: bool = False


@dataclass(frozen=True)
class TrainingReport:
    """What one rank says of its training.

    Attributes
    ----------
    part
        The part of the data that this rank reads, from 0; ranks that share a part, as in tensor parallelism, have the
        same number.
    n_parts
        The number of parts.
    layout
        A hash of the names, shapes and data types of the tensors.
    hashes
        Of the bits of each tensor, int64 of shape (n_tensors,).
    shards
        Which shard of each tensor the rank holds, int64 of shape (n_tensors,); ranks are compared where they hold
        the same one.
    generators
        A hash of the state of each random number generator before a training step.
    drawn
        The generators from which the first training step drew.
    loaders
        The training loaders; None where they are not looked at.
    batch
        A hash of the first batch; None where it says nothing.
    """

    part: int
    n_parts: int
    layout: int
    hashes: NDArray[np.int64]
    shards: NDArray[np.int64]
    generators: dict[str, int] = field(default_factory=dict)
    drawn: frozenset[str] = frozenset()
    loaders: tuple[LoaderReport, ...] | None = None
    batch: int | None = None


def grouped(values: Sequence[R]) -> list[tuple[R, list[int]]]:
    """Return each value with the ranks that have it."""
    groups: dict[R, list[int]] = {}
    for rank, value in enumerate(values):
        groups.setdefault(value, []).append(rank)
    return list(groups.items())


def listed(ranks: Sequence[int]) -> str:
    """Return "rank 3", "ranks 0 and 1", or of many the first few."""
    if len(ranks) < 2:
        return f"rank {ranks[0]}" if ranks else "no rank"
    most, last = [str(rank) for rank in ranks[:-1]], str(ranks[-1])
    if len(ranks) > _MOST_RANKS:
        most, last = most[: _MOST_RANKS - 1], f"{len(ranks) - _MOST_RANKS + 1} more"
    return f"ranks {', '.join(most)} and {last}"
