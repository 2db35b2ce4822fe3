"""What did these tensors hold? Copies of their memory on the CPU, bit for bit, and of their gradients.

Playbook: none; it lets the batch size probe train for a few steps without a trace. The copies are kept on the CPU, so
that the peak memory of the device is the one of training.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class TensorMemory:
    """Remembers tensors: their memory, on which memory they lie, `requires_grad`, and their gradients.

    Memory that several tensors share is kept once. The bytes are kept rather than the values, so that NaN payloads,
    overlapping views and all dtypes come back as they were.
    """

    def __init__(self) -> None:
        self._storages: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        self._sparse: list[tuple[Tensor, Tensor]] = []
        self._tensors: list[tuple[Tensor, Tensor]] = []
        self._leaves: list[tuple[Tensor, bool]] = []
        self._gradients: list[tuple[Tensor, _Gradient | Tensor | None]] = []

    def add(self, tensor: Tensor) -> None:
        """Remember one tensor as it is now."""
        self._tensors.append((tensor, tensor.data))
        self._copy(tensor)
        if not tensor.is_leaf:
            return
        self._leaves.append((tensor, tensor.requires_grad))
        gradient = tensor.grad
        if gradient is None or not _is_alone_on_device(gradient):
            self._gradients.append((tensor, gradient))
            if gradient is not None:
                self._copy(gradient)
        else:
            self._gradients.append((tensor, _Gradient(gradient)))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back; may be called any number of times."""
        for tensor, data in self._tensors:
            if not _is_on_same_memory(tensor, data):
                tensor.data = data
        for memory, kept in self._storages.values():
            # A write to memory that did not change would cost a copy of what forked processes share, and a crash
            # where the memory is a read-only file.
            if memory.device.type != "cpu" or not torch.equal(memory, kept):
                memory.copy_(kept)
        for tensor, values in self._sparse:
            tensor.copy_(values)
        for tensor, requires_grad in self._leaves:
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)
        for tensor, gradient in self._gradients:
            wanted = gradient.rebuild() if isinstance(gradient, _Gradient) else gradient
            if tensor.grad is not wanted:
                tensor.grad = wanted

    @torch.no_grad()
    def _copy(self, tensor: Tensor) -> None:
        if tensor.is_meta:
            return
        if tensor.layout != torch.strided:
            self._sparse.append((tensor, tensor.data.clone()))
            return
        storage = tensor.untyped_storage()
        key = (str(storage.device), storage.data_ptr())
        if storage.nbytes() and key not in self._storages:
            memory = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            self._storages[key] = (memory, memory.to("cpu", copy=True))


class _Gradient:
    """A gradient kept on the CPU only, so that its memory on the device is free as in training."""

    def __init__(self, gradient: Tensor) -> None:
        data = gradient.detach()
        self._values = data.to("cpu", copy=True)
        self._options: dict[str, Any] = {"dtype": data.dtype, "device": data.device}
        self._shape, self._stride = data.shape, data.stride()

    def rebuild(self) -> Tensor:
        """Return the gradient anew."""
        gradient = torch.empty_strided(self._shape, self._stride, **self._options)
        gradient.copy_(self._values)
        return gradient


def _is_alone_on_device(gradient: Tensor) -> bool:
    """Return whether a gradient owns memory of an accelerator; DDP's may be views of its buckets."""
    if gradient.device.type == "cpu" or gradient.layout != torch.strided:
        return False
    return gradient.untyped_storage().nbytes() <= gradient.numel() * gradient.element_size()


def _is_on_same_memory(tensor: Tensor, data: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta:
        return tensor.dtype == data.dtype and tensor.shape == data.shape and tensor.device == data.device
    return (
        tensor.device == data.device
        and tensor.dtype == data.dtype
        and tensor.shape == data.shape
        and tensor.stride() == data.stride()
        and tensor.data_ptr() == data.data_ptr()
        and tensor.untyped_storage().data_ptr() == data.untyped_storage().data_ptr()
    )
