"""What is an average of the weights, and how does a model wear it? Pure torch; the callback around it is WeightEMA.

Playbook: "Examining the training curves" (Polyak averaging).

The average of a tensor is kept beside the module. To wear it, the storage of the module's tensor is exchanged for the
average's: no value is copied, no Parameter object replaced, so optimizers, DDP and tied weights notice nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

_STATISTICS = ("running_mean", "running_var")


@dataclass(slots=True, eq=False)
class _Averaged:
    """One tensor of the module and its average; `raw` holds the training values while the module wears the average."""

    name: str
    tensor: Tensor
    average: Tensor
    raw: Tensor | None = None


@dataclass(slots=True, eq=False)
class _Group:
    """The tensors that are updated together, as the lists that the grouped kernels take."""

    n_parameters: int
    averages: list[Tensor] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    wide_averages: list[Tensor] = field(default_factory=list)
    narrow: list[Tensor] = field(default_factory=list)


class WeightAverage:
    """The average of a module's floating-point parameters (tied ones once) and running statistics.

    Nothing is averaged, and no memory taken, before the first `update` of a tensor.

    Parameters
    ----------
    module
        The model in training.
    full_precision
        Keep the average of 16-bit tensors in float32.
    """

    def __init__(self, module: torch.nn.Module, full_precision: bool = True) -> None:
        self.module = module
        self.full_precision = full_precision
        self.in_place = needs_copies(module)
        self.worn = False
        self._tensors = averageable(module)
        self._entries: dict[int, _Averaged] = {}  # by the id of the module's tensor, which a tied weight has once
        self._groups: dict[int, _Group] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing has been averaged yet."""
        return not self._entries

    def insert(self, name: str, average: Tensor) -> None:
        """Begin with a given average of a tensor, as a checkpoint holds it."""
        tensor = self._tensors[name]
        self._entries[id(tensor)] = _Averaged(name, tensor, average.to(tensor.device))

    @torch.no_grad()
    def update(self, index: int, optimizers: Sequence[Optimizer], weight: float) -> None:
        """Move the averages of a group towards the tensors by a share of the way; a new average begins as a copy.

        Parameters
        ----------
        index
            Which group: that of the optimizer at `index`.
        optimizers
            All optimizers of the module. Running statistics follow the one that trains their layer, and the first
            where none does.
        weight
            The share of the way, in (0, 1].
        """
        group = self._groups.get(index)
        n_parameters = sum(len(entry["params"]) for entry in optimizers[index].param_groups)
        if group is None or group.n_parameters != n_parameters:
            group = self._groups[index] = self._gather(index, optimizers)
        if group.averages:
            torch._foreach_lerp_(group.averages, group.tensors, weight)
        if group.wide_averages:
            wide = [tensor.to(average.dtype) for tensor, average in zip(group.narrow, group.wide_averages, strict=True)]
            torch._foreach_lerp_(group.wide_averages, wide, weight)

    def _gather(self, index: int, optimizers: Sequence[Optimizer]) -> _Group:
        parameters = [[weight for entry in one.param_groups for weight in entry["params"]] for one in optimizers]
        group = _Group(len(parameters[index]))
        members = {id(parameter) for parameter in parameters[index]}
        others = {id(parameter) for number, them in enumerate(parameters) if number != index for parameter in them}
        for module in self.module.modules():
            own = {id(parameter) for parameter in module.parameters(recurse=False)}
            if own & members or (index == 0 and not own & others):
                members |= {id(buffer) for _, buffer in running_statistics(module)}
        for name, tensor in self._tensors.items():
            if id(tensor) not in members:
                continue
            entry = self._entries.get(id(tensor))
            if entry is None:
                average = tensor.detach().clone()
                if self.full_precision and tensor.dtype in (torch.float16, torch.bfloat16):
                    average = average.float()
                entry = self._entries[id(tensor)] = _Averaged(name, tensor, average)
            if entry.average.dtype == tensor.dtype:
                group.averages.append(entry.average)
                group.tensors.append(tensor)
            else:
                group.wide_averages.append(entry.average)
                group.narrow.append(tensor)
        return group

    def wear(self) -> None:
        """Put the average into the module."""
        # Lightning evaluates under inference mode; a tensor made there could not be trained afterwards.
        with torch.inference_mode(False), torch.no_grad():
            self.worn = bool(self._entries)
            for entry in self._entries.values():
                if entry.raw is None:
                    entry.raw = entry.tensor.detach().clone() if self.in_place else entry.tensor.data
                    self._show(entry.tensor, entry.average)

    def take_off(self) -> None:
        """Put the training values back; safe after an interrupt in the middle of `wear`."""
        with torch.inference_mode(False), torch.no_grad():
            for entry in self._entries.values():
                if entry.raw is not None:
                    self._show(entry.tensor, entry.raw)
                    entry.raw = None
            self.worn = False

    def _show(self, tensor: Tensor, values: Tensor) -> None:
        if self.in_place:
            tensor.data.copy_(values)
        else:
            tensor.data = values.data.to(tensor.dtype)  # the same storage where the types agree

    def raw_values(self, tensor: Tensor) -> Tensor:
        """Return the training values of a tensor of the module, whichever values it holds now."""
        entry = self._entries.get(id(tensor))
        return tensor.data if entry is None or entry.raw is None else entry.raw

    def average_values(self, tensor: Tensor) -> Tensor | None:
        """Return the average of a tensor of the module; None where it has none."""
        entry = self._entries.get(id(tensor))
        return None if entry is None else entry.average

    def replace_values(self, tensor: Tensor, raw: Tensor, average: Tensor | None) -> None:
        """Replace the training values and the average of a tensor of the module; the given tensors are kept."""
        entry = self._entries.get(id(tensor))
        if entry is None or entry.raw is None:
            self._show(tensor, raw)
        else:
            entry.raw = raw
        if entry is not None and average is not None:
            # The tensor object stays, because the lists of the grouped update hold it.
            entry.average.data = average
            if entry.raw is not None:
                self._show(tensor, average)

    def raw_by_name(self) -> dict[str, Tensor]:
        """Return the training values of all that is averaged."""
        return {entry.name: self.raw_values(entry.tensor).detach() for entry in self._entries.values()}

    def average_by_name(self, *, wide_only: bool = False) -> dict[str, Tensor]:
        """Return the averages; with `wide_only` those kept in a wider type than the module's."""
        return {
            entry.name: entry.average
            for entry in self._entries.values()
            if not wide_only or entry.average.dtype != entry.tensor.dtype
        }

    def move_to_module(self) -> None:
        """Move averages and training values to the device where the module is now."""
        for entry in self._entries.values():
            entry.average = entry.average.to(entry.tensor.device)
            entry.raw = None if entry.raw is None else entry.raw.to(entry.tensor.device)
        self._groups = {}

    def checksum(self) -> Tensor:
        """Return two sums a tensor of the module, float64: they betray weights that were loaded or edited since."""
        values: Iterable[Tensor] = (entry.tensor.detach().double().cpu() for entry in self._entries.values())
        sums = [total for value in values for total in (value.sum(), value.square().sum())]
        return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.float64)


def running_statistics(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """Return the running statistics of one layer by name: the mean, then the variance; empty where it keeps none."""
    buffers = dict(module.named_buffers(recurse=False))
    found = [(name, buffers[name]) for name in _STATISTICS if name in buffers and buffers[name].is_floating_point()]
    return found if len(found) == len(_STATISTICS) else []


def averageable(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return what can be averaged, by name: floating-point parameters, tied ones once, and running statistics."""
    found: dict[str, Tensor] = {
        name: parameter for name, parameter in model.named_parameters() if parameter.is_floating_point()
    }
    for prefix, module in model.named_modules():
        for name, buffer in running_statistics(module):
            found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def needs_copies(model: torch.nn.Module) -> bool:
    """Whether something remembers where the values lie: compiled graphs, and cuDNN's packed recurrent weights."""
    return getattr(model, "_compiler_ctx", None) is not None or any(
        getattr(module, "_compiled_call_impl", None) is not None
        or type(module).__name__ == "OptimizedModule"
        or (isinstance(module, torch.nn.RNNBase) and any(weight.is_cuda for weight in module.parameters()))
        for module in model.modules()
    )
