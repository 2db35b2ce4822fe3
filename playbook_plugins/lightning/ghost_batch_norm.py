"""How many examples normalize each other? Batch normalization over a virtual batch, whatever the training batch.

Playbook: "Batch normalization implementation details": statistics of about 64 examples often work better than those
of the whole batch, and a batch size can be compared with another only when both normalize over the same number of
examples. Ghost batch normalization: Hoffer, Hubara and Soudry 2017, "Train longer, generalize better", arXiv
1705.08741.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from typing_extensions import override

_MODES = ("chunks", "subsample")
# On a CPU, chunks of more values than this take longer to rearrange than to normalize one by one.
_SMALL = 8192

_Module = TypeVar("_Module", bound=nn.Module)


class _GhostBatchNorm(_BatchNorm):
    """What the three dimensions share: see `GhostBatchNorm1d`."""

    virtual_batch_size: int
    mode: str

    def __init__(
        self, num_features: int, virtual_batch_size: int, *args: Any, mode: str = "chunks", **kwargs: Any
    ) -> None:
        _check(virtual_batch_size, mode)
        super().__init__(num_features, *args, **kwargs)
        self.virtual_batch_size = virtual_batch_size
        self.mode = mode

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not self.training or len(input) <= self.virtual_batch_size:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        output, moments = self._chunks(input) if self.mode == "chunks" else self._subsample(input)
        if moments:
            self._track(*_pool(moments))
        return output

    @override
    def extra_repr(self) -> str:
        ghost = f"virtual_batch_size={self.virtual_batch_size}, mode={self.mode!r}"
        return f"{super().extra_repr()}, {ghost}"  # type: ignore[no-untyped-call]

    def _chunks(self, input: Tensor) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]]]:
        """Return the output and the moments of the chunks, for `_pool`."""
        size, n_examples = self.virtual_batch_size, len(input)
        n_tail = n_examples % size
        n_values = input[0, 0].numel()
        if n_tail * n_values == 1:
            n_tail += size
        n_chunks = (n_examples - n_tail) // size
        full = input[: n_chunks * size]
        large = input.device.type == "cpu" and size * input[0].numel() > _SMALL
        outputs, moments = [], []
        parts: list[tuple[Tensor, int]] = []
        if n_chunks and (large or not input.is_contiguous()):
            parts = [(chunk, 1) for chunk in torch.split(full, size)]
        elif n_chunks:
            # One call for all chunks: the channels of each chunk stand beside each other, as more channels.
            folded = full.reshape(n_chunks, size, *input.shape[1:]).transpose(0, 1)
            parts = [(folded.reshape(size, -1, *input.shape[2:]), n_chunks)]
        if n_tail:
            parts.append((input[n_chunks * size :], 1))
        for part, n_groups in parts:
            output, mean, variance = self._normalize(part, n_groups)
            if n_groups > 1:
                output = output.reshape(size, n_groups, *input.shape[1:]).transpose(0, 1)
                output = output.reshape(full.shape)
            outputs.append(output)
            if mean is not None and variance is not None:
                shape = (n_groups, -1)
                moments.append((len(part) * n_values, _widen(mean).view(shape), _widen(variance).view(shape)))
        return torch.cat(outputs), moments

    def _normalize(self, part: Tensor, n_groups: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the output of torch's own batch normalization and, if tracked, the moments that it used."""
        mean = variance = None
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if self.running_mean is not None and self.running_var is not None and self.track_running_stats:
            mean = self.running_mean.new_zeros(part.shape[1])
            variance = self.running_var.new_zeros(part.shape[1])
        if n_groups > 1:
            weight = weight if weight is None else weight.repeat(n_groups)
            bias = bias if bias is None else bias.repeat(n_groups)
        # Running statistics of momentum 1 are those of this batch.
        return functional.batch_norm(part, mean, variance, weight, bias, True, 1.0, self.eps), mean, variance

    def _subsample(self, input: Tensor) -> tuple[Tensor, list[tuple[int, Tensor, Tensor]]]:
        """Return the output, and the moments of the subsample as one chunk."""
        size, n_examples = self.virtual_batch_size, len(input)
        n_values = size * input[0, 0].numel()
        if n_values == 1:
            raise ValueError(
                f"`virtual_batch_size` is 1 and each example has one value a channel (input of shape "
                f"{tuple(input.shape)}): one value has no variance. Take at least 2."
            )
        values = _widen(input)
        sample = values.index_select(0, torch.arange(size, device=input.device) * n_examples // size)
        kept = [axis for axis in range(input.dim()) if axis != 1]
        variance, mean = torch.var_mean(sample, dim=kept, correction=0)
        shape = (1, -1, *[1] * (input.dim() - 2))
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        output = (values - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            output = output + self.bias.view(shape)
        tracked = self.track_running_stats and self.running_mean is not None
        unbiased = variance.detach() * (n_values / (n_values - 1))
        return output.to(input.dtype), [(n_values, mean.detach()[None], unbiased[None])] if tracked else []

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics once, by torch's rule."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), factor)
            self.running_var.lerp_(variance.to(self.running_var.dtype), factor)


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    """Batch normalization that takes its statistics from ``virtual_batch_size`` examples, for (N, C) or (N, C, L).

    The number of examples that normalize each other is then the same whatever the training batch, which a comparison
    of batch sizes needs. `convert_to_ghost_batch_norm` converts a whole model.

    Parameters
    ----------
    num_features
        The channels C, as in torch.nn.BatchNorm1d.
    virtual_batch_size
        In examples, at least 1; the playbook reports about 64.
    *args, **kwargs
        Further arguments of torch.nn.BatchNorm1d: eps, momentum, affine, track_running_stats, device, dtype.
    mode
        What happens while training when the batch that the layer sees on its device holds more examples than that:

        - ``"chunks"``: each ``virtual_batch_size`` consecutive examples (along dimension 0) are normalized by their
          own mean and biased variance (Hoffer et al., Algorithm 1). The remainder makes a smaller last chunk; only if
          it would be a single value a channel, which has no variance, it joins the chunk before it.
        - ``"subsample"``, the playbook's words: mean and variance come from ``virtual_batch_size`` evenly spaced
          examples of the batch, number floor(i N / virtual_batch_size) for i = 0, 1, ..., and all N examples are
          normalized by them. No random numbers are drawn. Gradients flow through the statistics.

    Raises
    ------
    ValueError
        When ``virtual_batch_size`` is less than 1 or ``mode`` is another; and, as torch does, when a forward pass
        in training finds a single value a channel.

    Notes
    -----
    A device's batch of at most ``virtual_batch_size`` examples is normalized as a whole, bit for bit as ordinary batch
    normalization does: statistics never cross devices, so that with a smaller batch on each device fewer examples
    normalize each other. Raise the batch size on the device, or lower ``virtual_batch_size``, for a fair comparison.

    Evaluation is that of torch.nn.BatchNorm1d, bit for bit. What it needs are the moments of the data, and those do
    not depend on how training grouped the examples: once a forward pass, by torch's rule (momentum, or the cumulative
    average for ``momentum=None``), the running statistics move to the pooled moments of all chunks. These are the mean
    and the unbiased variance of the whole batch, the variance within chunks and between their means together, so that
    the running statistics are those of ordinary batch normalization. (Hoffer et al. apply the momentum chunk by chunk,
    which makes the average forget faster the more chunks there are, and leaves out how far the means of chunks lie
    apart.) With ``mode="subsample"`` they move to the moments of the subsample.

    The state dict is that of torch.nn.BatchNorm1d, in both directions. ``Trainer(sync_batchnorm=True)`` replaces every
    batch normalization, this one too, by SyncBatchNorm: do not combine them.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed
      accumulation         yes: each micro-batch is a batch, as in ordinary batch normalization
      manual optimization  yes: no difference, two optimizers
      ddp                  yes: each device splits its own batch; pool the running statistics with BatchNormSync
      ddp_spawn            yes: the same
      FSDP                 not tested
      DeepSpeed            not tested
      compile              yes: with momentum=None, torch breaks the graph as for its own layer
    """


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    """Batch normalization over virtual batches of images (N, C, H, W): see `GhostBatchNorm1d`."""


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    """Batch normalization over virtual batches of volumes (N, C, D, H, W): see `GhostBatchNorm1d`."""


_GHOSTS: dict[type[nn.Module], type[_GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}


def convert_to_ghost_batch_norm(model: _Module, virtual_batch_size: int, mode: str = "chunks") -> _Module:
    """Turn every BatchNorm1d, 2d and 3d of a model into ghost batch normalization, in place, and return the model.

    The layers stay the same objects and change their class only. So do their parameters and buffers: optimizers built
    before, hooks, modules used in several places, names, device, dtype and mode all stay as they are. Layers that are
    ghost batch normalization already take the new ``virtual_batch_size`` and ``mode``.

    Parameters
    ----------
    model
        Any module, a single layer included.
    virtual_batch_size, mode
        As in `GhostBatchNorm1d`.

    Raises
    ------
    ValueError
        When an argument is out of range; and, with the model unchanged, when it holds a lazy layer, SyncBatchNorm, or
        another subclass of torch's batch normalization, whose forward pass would be lost.
    """
    _check(virtual_batch_size, mode)
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    for name, module in found:
        place = f"`model` holds {type(module).__name__}" + (f" at {name!r}" if name else "")
        if isinstance(module, LazyModuleMixin):
            raise ValueError(f"{place}, whose size is not known yet. Run one batch through the model first.")
        if type(module) not in _GHOSTS and not isinstance(module, _GhostBatchNorm):
            raise ValueError(
                f"{place}, and only BatchNorm1d, BatchNorm2d and BatchNorm3d themselves are converted: what the "
                "class adds would be lost. Replace that layer first, or convert the other parts of the model alone."
            )
    for _, module in found:
        module.__class__ = _GHOSTS.get(type(module), type(module))
        if isinstance(module, _GhostBatchNorm):
            module.virtual_batch_size = virtual_batch_size
            module.mode = mode
    return model


def _widen(values: Tensor) -> Tensor:
    """Return the values in single precision or more: half precision would lose the digits of sums."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _pool(moments: list[tuple[int, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance of all values, shape (C,) each, from those of chunks.

    The sum of squares around the common mean is the one within chunks, (n - 1) v, and the one between, n (m - mean)².

    Parameters
    ----------
    moments
        Of chunks of equal size: the number of values a channel, and means and unbiased variances of shape (chunks, C).
    """
    total = sum(n * len(means) for n, means, _ in moments)
    mean = torch.stack([n * means.sum(0) for n, means, _ in moments]).sum(0) / total
    squares = [(n - 1) * variances.sum(0) + n * (means - mean).square().sum(0) for n, means, variances in moments]
    return mean, torch.stack(squares).sum(0) / (total - 1)


def _check(virtual_batch_size: int, mode: str) -> None:
    if virtual_batch_size < 1:
        raise ValueError(
            f"`virtual_batch_size` is {virtual_batch_size}: it must be at least 1, in examples. The playbook reports "
            "that about 64 works well."
        )
    if mode not in _MODES:
        raise ValueError(
            f"`mode` is {mode!r}: it must be one of {', '.join(repr(choice) for choice in _MODES)}. Take 'chunks' to "
            "normalize every example by its own chunk, 'subsample' to normalize all by a part of the batch."
        )
