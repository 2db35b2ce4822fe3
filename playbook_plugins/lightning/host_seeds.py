"""Which random numbers should hosts share? The same for building the model and dividing the data, others for dropout.

Playbook: "Considerations for multi-host pipelines": use different seeds by host for dropout and augmentation, and make
sure that all hosts build the same model and read different shards of the data.
"""

from __future__ import annotations

import os
import random

import numpy as np
import torch

# What Lightning reads: the seed of its samplers, which it also puts back when processes start, and whether the workers
# of a loader mix the rank into their seeds.
_SEED, _WORKERS = "PL_GLOBAL_SEED", "PL_SEED_WORKERS"
_STREAMS = "PLAYBOOK_HOST_SEED"
_LARGEST = 2**32 - 1


def seed_hosts(seed: int, rank: int | None = None) -> int:
    """Seed Python, NumPy and torch: alike on every rank until training starts, and differently by rank from then on.

    Call it on every rank with one seed, in place of Lightning's ``seed_everything``, before the model is built, and put
    `HostParity` among the callbacks. Then

    - every rank builds the same model, without relying on DDP's broadcast;
    - every `DistributedSampler` that Lightning puts in has this seed, so that the ranks divide one order;
    - when the fit starts, `HostParity` gives each rank a stream of its own, for dropout, noise and augmentation;
    - workers of a loader draw from that stream and mix the rank into their seeds.

    It sets ``PL_GLOBAL_SEED`` and ``PL_SEED_WORKERS`` as ``seed_everything(seed, workers=True)`` does, and
    ``PLAYBOOK_HOST_SEED`` for `HostParity` and for processes that are started later. A later ``seed_everything`` with
    another seed takes over: `HostParity` then leaves the generators alone.

    Parameters
    ----------
    seed
        From 0 to 4294967295; another seed gives another model, another order and other streams.
    rank
        None, the default, for what is described above. In a training loop without Lightning: call it again with the
        number of the rank, from 0, after the model is built; this process then draws from the stream of that rank.

    Returns
    -------
    int
        The seed.

    Raises
    ------
    ValueError
        When the seed or the rank is out of its range.

    Notes
    -----
    Ranks that share one part of the data, as in tensor parallelism, share one stream. The stream of a rank is
    ``numpy.random.SeedSequence(seed, spawn_key=(rank, step))``, where step counts the optimizer steps with which the
    fit starts: a resumed run draws new numbers instead of the first ones again. With `RandomState` among the callbacks
    it draws what the interrupted run would have drawn, whichever of the two comes first.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _LARGEST:
        raise ValueError(
            f"`seed` is {seed!r}: it must be a whole number from 0 to {_LARGEST}. Pass the same one on every rank, and "
            "leave the differences between ranks to seed_hosts."
        )
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
        raise ValueError(
            f"`rank` is {rank!r}: it must be a whole number, at least 0. Pass the number of this process among all, or "
            "leave it out and use HostParity."
        )
    os.environ.update({_SEED: str(seed), _WORKERS: "1", _STREAMS: str(seed)})
    if rank is None:
        # As seed_everything does it: Lightning calls that one when processes start, and gets the same numbers.
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
    else:
        begin_stream(seed, rank)
    return seed


def shared_seed() -> int | None:
    """Return the seed that `seed_hosts` was given, in this process or in the one that started it.

    None without any, and where ``seed_everything`` was called with another seed since.
    """
    seed = os.environ.get(_STREAMS)
    return int(seed) if seed is not None and seed == os.environ.get(_SEED) else None


def begin_stream(seed: int, rank: int, step: int = 0) -> None:
    """Put the global generators at the start of a stream; see `seed_hosts`."""
    sequence = np.random.SeedSequence(seed, spawn_key=(rank, step))
    words = [int(word) for word in sequence.generate_state(3, np.uint64)]
    torch.manual_seed(words[0])
    random.seed(words[1] << 64 | words[2])
    np.random.seed(sequence.generate_state(10)[6:])  # noqa: NPY002
