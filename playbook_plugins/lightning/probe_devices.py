"""What does the device need for an honest measurement? Waiting for it, its peak memory, and giving memory back.

Playbook: "Determining the feasible batch sizes and estimating training throughput".
"""

from __future__ import annotations

import gc
import math
import traceback
from typing import Any

import torch

from playbook_plugins.analysis.infeasible import is_out_of_memory

# Other ways in which libraries say that a batch of this size cannot be held.
_WORDS = (
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "out of shared memory",
    "is killed by signal: killed",
    "is killed by signal: bus error",
    "32-bit indexing",
    "canuse32bitindexmath",
)


class Device:
    """An accelerator or the CPU, while one batch size is measured.

    Parameters
    ----------
    device
        The device of this rank.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._module: Any = getattr(torch, device.type, None) if device.type != "cpu" else None

    def synchronize(self) -> None:
        """Wait until the device has done all its work."""
        if self._device.type == "mps":
            self._module.synchronize()
        elif self._module is not None and hasattr(self._module, "synchronize"):
            self._module.synchronize(self._device)

    def begin(self) -> None:
        """Free what the size before has left, and begin to watch the peak of allocated memory."""
        self.give_memory_back()
        if hasattr(self._module, "reset_peak_memory_stats"):
            self._module.reset_peak_memory_stats(self._device)

    def peak_memory(self) -> float:
        """Return the peak of allocated memory since `begin` in bytes; NaN where the device does not tell.

        CPU memory is not told: what a process holds says little about what one step needs.
        """
        if not hasattr(self._module, "max_memory_allocated"):
            return math.nan
        return float(self._module.max_memory_allocated(self._device))

    def give_memory_back(self, *, is_urgent: bool = False) -> None:
        """Free what nobody refers to any more; on the CPU, whose memory needs no such help, only when it is urgent."""
        if self._module is not None or is_urgent:
            gc.collect()
        if hasattr(self._module, "empty_cache"):
            self._module.empty_cache()


def lacks_memory(error: BaseException) -> bool:
    """Return whether an exception says that a batch is too large for the memory."""
    text = str(error).lower()
    return is_out_of_memory(error) or (isinstance(error, RuntimeError) and any(words in text for words in _WORDS))


def forget(error: BaseException) -> None:
    """Drop what the frames of an exception hold: the activations of the step that failed are among it."""
    chain: BaseException | None = error
    while chain is not None:
        traceback.clear_frames(chain.__traceback__)
        chain.__traceback__ = None
        chain = chain.__cause__ or chain.__context__
