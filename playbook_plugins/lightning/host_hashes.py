"""Are these tensors bit for bit the same on every host? Hashes that are exact, and computed where the tensors are.

Playbook: "Considerations for multi-host pipelines".
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# Small enough for a processor's cache, large enough to keep a GPU busy.
_CHUNK = 2**17
# Odd, so that multiplying by it loses no bit modulo 2^64; the fractional part of the golden ratio.
_ODD = -7046029254386353131
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def hash_tensors(tensors: Sequence[Tensor]) -> list[int]:
    """Return a 64-bit hash of each tensor's bits, the same on every kind of device.

    The elements' bit patterns are taken as integers and summed modulo 2^64 with odd weights that differ by position.
    Addition of integers is exact in any order, and a change of a single element always changes the sum; any other
    change goes unseen with a chance of about 2^-64. One wait for the device, however many tensors there are.

    Parameters
    ----------
    tensors
        Dense, of any shape, data type and device.
    """
    if not tensors:
        return []
    with torch.no_grad(), torch.inference_mode(False):
        # Two for each element of a complex tensor.
        n_weights = min(_CHUNK, 2 * max(tensor.numel() for tensor in tensors))
        weights: dict[torch.device, Tensor] = {}
        for device in {tensor.device for tensor in tensors}:
            weights[device] = (torch.arange(n_weights, dtype=torch.int64, device=device) * _ODD) | 1
        sums = [_sum(_bits(tensor), weights[tensor.device]) for tensor in tensors]
        # Nearly always one device: one transfer then.
        if len(weights) == 1:
            return [int(value) for value in torch.stack(sums).tolist()]
        return [int(value) for value in sums]


def hash_batch(batch: Any) -> int | None:
    """Return a hash of all tensors in a batch; None where every one of them is constant, and so says nothing."""
    tensors = [one for one in tree_leaves(batch) if isinstance(one, Tensor) and one.layout == torch.strided]
    if not any(bool((one != one.flatten()[0]).any()) for one in tensors if one.numel() > 1):
        return None
    shapes = [(tuple(one.shape), one.dtype) for one in tensors]
    return _digest([repr(shapes).encode(), repr(hash_tensors(tensors)).encode()])


def hash_generators(device: torch.device) -> dict[str, int]:
    """Return a hash of the state of each global generator from which a model on this device can draw."""
    kind, words, *rest = np.random.get_state()  # noqa: NPY002
    states = {
        "Python": [repr(random.getstate()).encode()],
        "NumPy": [repr((kind, rest)).encode(), np.asarray(words).tobytes()],
        "torch's CPU": [torch.get_rng_state().numpy().tobytes()],
    }
    if device.type == "cuda":
        states["torch's CUDA"] = [torch.cuda.get_rng_state(device).numpy().tobytes()]
    if device.type == "mps":
        states["torch's MPS"] = [torch.mps.get_rng_state().numpy().tobytes()]
    return {name: _digest(parts) for name, parts in states.items()}


def hash_names(names: Iterable[str]) -> int:
    """Return a hash of names in their order."""
    return _digest([name.encode() + b"\0" for name in names])


def _digest(parts: Iterable[bytes]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _bits(tensor: Tensor) -> Tensor:
    """Return the elements as integers of the same size, in one dimension."""
    values = tensor.detach().contiguous()
    if values.is_complex():
        values = torch.view_as_real(values)
    return values.view(-1).view(_INTEGERS[values.element_size()])


def _sum(bits: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        total = total * _ODD + (part * weights[: len(part)]).sum()
    return total
