"""How long is the whole gradient? Its L2 norm, also where each rank holds only a part of it.

Playbook: "Gradient clipping".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

_LOW_PRECISION = (torch.float16, torch.bfloat16)


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the L2 norm over all gradients, without waiting for the device, accumulated in float32 at least."""
    norms: Sequence[Tensor]
    dtypes = {gradient.dtype for gradient in gradients}
    if dtypes.isdisjoint(_LOW_PRECISION):
        norms = torch._foreach_norm(gradients)
    else:
        # The norms come out in the wider type at once: no gradient is copied.
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        norms = torch._foreach_norm(gradients, 2, wide)
    if len({norm.device for norm in norms}) > 1:
        norms = [norm.to(norms[0].device) for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def sharded_norm(gradients: list[Tensor]) -> Tensor:
    """Return the L2 norm over gradients that may be DTensors, as under FSDP2: a plain tensor, equal on all ranks.

    Every rank must call it: it takes one collective for each device mesh.
    """
    # Tensors of several meshes, or of none, cannot be stacked with each other.
    groups: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        groups.setdefault(getattr(gradient, "device_mesh", None), []).append(gradient)
    totals: list[Any] = [total_norm(group) for group in groups.values()]
    plain = [total if mesh is None else total.full_tensor() for mesh, total in zip(groups, totals, strict=True)]
    return plain[0] if len(plain) == 1 else total_norm(plain)


def fsdp_norm(trainer: Trainer) -> Tensor:
    """Return the L2 norm over all gradients under FSDP1, by its own method; every rank must call it.

    It has the widest type among the gradients, so that it is rounded to bfloat16 where all of them are.
    """
    module: Any = trainer.strategy.model
    # Nothing is longer than the infinite limit, so that nothing is clipped.
    norm: Tensor = module.clip_grad_norm_(math.inf)
    return norm


def check_fsdp(trainer: Trainer, callback: object) -> None:
    """Refuse the uses of FSDP1 whose gradient's norm its own method does not give.

    Raises
    ------
    ValueError
        When there are several optimizers, or the module is not wrapped as a whole.
    """
    name = type(callback).__name__
    if len(trainer.optimizers) > 1:
        raise ValueError(
            f"`configure_optimizers` returned {len(trainer.optimizers)} optimizers, and under FSDP {name} supports "
            "one: FSDP measures the norm over the whole module. Use one optimizer, or ModelParallelStrategy (FSDP2)."
        )
    if not hasattr(trainer.strategy.model, "clip_grad_norm_"):
        raise ValueError(
            f"`configure_model` wraps parts of the module in FSDP, and {name} needs the whole module wrapped: only its "
            "root knows the norm over all ranks. Leave the wrapping to FSDPStrategy(auto_wrap_policy=...), or use "
            "ModelParallelStrategy (FSDP2)."
        )
