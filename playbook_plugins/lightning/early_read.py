"""How is a number read from a device without making it wait? Its copy starts at once and is looked at later.

Playbook: none; it keeps watching a run from slowing it down.
"""

from __future__ import annotations

import torch
from torch import Tensor


class EarlyRead:
    """One number on its way to the host.

    On CUDA the copy stands in the device's queue behind what computes the number, and `value` waits for that copy
    alone: what was queued after it, such as the backward pass, goes on meanwhile. Elsewhere the number is read when
    it is asked for.

    Parameters
    ----------
    number
        A tensor of one element.
    """

    def __init__(self, number: Tensor) -> None:
        self._number = number.detach()
        self._arrival: torch.cuda.Event | None = None
        if number.device.type == "cuda":
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._number.copy_(number.detach().reshape(()), non_blocking=True)
            self._arrival = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrival.record(torch.cuda.current_stream(number.device))

    def value(self) -> float:
        """Return the number."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return float(self._number)


def widen(loss: Tensor) -> Tensor | float:
    """Return the loss in double precision where the device has it, without waiting for the device."""
    if loss.device.type == "cpu":
        return float(loss)
    return loss.float() if loss.device.type == "mps" else loss.double()
