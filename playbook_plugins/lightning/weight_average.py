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
_INTERVALS = (5, 3)  # odd, the longest first; a longer one would save little more
_HALF_LIFE_PER_INTERVAL = 100  # steps of half-life for each step between two updates


@dataclass(slots=True, eq=False)
class _Averaged:
    """One tensor of the module and its average."""

    name: str
    tensor: Tensor
    average: Tensor


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
        self._copies = self.in_place  # whether wearing makes tensors: copies, or casts of averages in a wider type
        self._tensors = averageable(module)
        self._entries: dict[int, _Averaged] = {}  # by the id of the module's tensor, which a tied weight has once
        self._raw: dict[int, Tensor] = {}  # the training values of what the module wears, by the same ids
        self._groups: dict[int, _Group] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing has been averaged yet."""
        return not self._entries

    def insert(self, name: str, average: Tensor) -> None:
        """Begin with a given average of a tensor, as a checkpoint holds it."""
        tensor = self._tensors[name]
        self._add(_Averaged(name, tensor, average.to(tensor.device)))

    def _add(self, entry: _Averaged) -> _Averaged:
        self._entries[id(entry.tensor)] = entry
        self._copies = self._copies or entry.average.dtype is not entry.tensor.dtype
        return entry

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
                entry = self._add(_Averaged(name, tensor, average))
            if entry.average.dtype == tensor.dtype:
                group.averages.append(entry.average)
                group.tensors.append(tensor)
            else:
                group.wide_averages.append(entry.average)
                group.narrow.append(tensor)
        return group

    def wear(self) -> None:
        """Put the average into the module; safe after an interrupt in the middle of another `wear`."""
        self.worn = bool(self._entries)
        if self._copies:
            # Lightning evaluates under inference mode; a tensor made there could not be trained afterwards.
            with torch.inference_mode(False), torch.no_grad():
                self._put_on()
        else:
            # The contexts would cost more than the exchange, which makes no tensor.
            self._put_on()

    def _put_on(self) -> None:
        worn = self._raw
        for key, entry in self._entries.items():
            if key in worn:
                continue
            # Noted before the exchange, so that an interrupt between the two loses nothing.
            if self._copies:
                worn[key] = entry.tensor.detach().clone() if self.in_place else entry.tensor.data
                self._show(entry.tensor, entry.average)
            else:
                worn[key] = entry.tensor.data
                entry.tensor.data = entry.average

    def take_off(self) -> None:
        """Put the training values back; safe after an interrupt in the middle of `wear` or of `take_off`."""
        for key, raw in self._raw.items():
            tensor = self._entries[key].tensor
            if self.in_place:
                tensor.data.copy_(raw)
            else:
                tensor.data = raw
        self._raw = {}
        self.worn = False

    def _show(self, tensor: Tensor, values: Tensor) -> None:
        if self.in_place:
            tensor.data.copy_(values)
        else:
            tensor.data = values.to(tensor.dtype)  # the same storage where the types agree

    def raw_values(self, tensor: Tensor) -> Tensor:
        """Return the training values of a tensor of the module, whichever values it holds now."""
        raw = self._raw.get(id(tensor))
        return tensor.data if raw is None else raw

    def average_values(self, tensor: Tensor) -> Tensor | None:
        """Return the average of a tensor of the module; None where it has none."""
        entry = self._entries.get(id(tensor))
        return None if entry is None else entry.average

    def replace_values(self, tensor: Tensor, raw: Tensor, average: Tensor | None) -> None:
        """Replace the training values and the average of a tensor of the module; the given tensors are kept."""
        worn = id(tensor) in self._raw
        if worn:
            self._raw[id(tensor)] = raw
        else:
            self._show(tensor, raw)
        entry = self._entries.get(id(tensor))
        if entry is not None and average is not None:
            # The tensor object stays, because the lists of the grouped update hold it.
            entry.average.data = average
            if worn:
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
        for key, entry in self._entries.items():
            entry.average = entry.average.to(entry.tensor.device)
            if key in self._raw:
                self._raw[key] = self._raw[key].to(entry.tensor.device)
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


def automatic_interval(decay: float) -> int:
    """Return after how many optimizer steps to update an average, so that it is hardly another: 1, 3 or 5.

    Parameters
    ----------
    decay
        The share of the average that one optimizer step keeps, in [0, 1].
    """
    for interval in _INTERVALS:
        if decay >= 0.5 ** (1 / (_HALF_LIFE_PER_INTERVAL * interval)):
            return interval
    return 1


def needs_copies(model: torch.nn.Module) -> bool:
    """Whether something remembers where the values lie: compiled graphs, and cuDNN's packed recurrent weights."""
    return getattr(model, "_compiler_ctx", None) is not None or any(
        getattr(module, "_compiled_call_impl", None) is not None
        or type(module).__name__ == "OptimizedModule"
        or (isinstance(module, torch.nn.RNNBase) and any(weight.is_cuda for weight in module.parameters()))
        for module in model.modules()
    )
