"""Do all hosts evaluate with the same batch-normalization statistics? Pool them before evaluations and checkpoints.

Playbook: "Batch normalization implementation details" and "Considerations for multi-host pipelines": batch-norm
statistics must be synchronized across hosts before evaluation and before a checkpoint is saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._saved_weights import add_view, refuse_sharded, remove_view
from playbook_plugins.lightning.weight_average import needs_copies, running_statistics

if TYPE_CHECKING:
    import pytorch_lightning as pl


class _Average(Protocol):
    """What pooling needs of an average of the weights, whichever callback keeps it."""

    def raw_values(self, tensor: Tensor) -> Tensor: ...

    def average_values(self, tensor: Tensor) -> Tensor | None: ...

    def replace_values(self, tensor: Tensor, raw: Tensor, average: Tensor | None) -> None: ...


def pool_moments(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance over the data of all ranks, from those of each rank.

    Two moments are pooled, the mean and E[x²]. The mean of the variances would leave out how far the ranks' means lie
    apart: E[x²] - mean² = mean(v) + mean((m - mean(m))²), which loses no digits.

    Parameters
    ----------
    means
        Shape (n_ranks, ...).
    variances
        Shape (n_ranks, ...), non-negative.

    Returns
    -------
    tuple of Tensor
        The pooled mean and variance, shape (...) each; every rank has the same weight.
    """
    mean = means.mean(dim=0)
    return mean, variances.mean(dim=0) + (means - mean).square().mean(dim=0)


class BatchNormSync(CallbackBase):
    """Give every rank the pooled running statistics, for each evaluation, each checkpoint and the model after the fit.

    The running statistics are buffers named ``running_mean`` and ``running_var``, of the raw model and of the average
    that `WeightEMA` keeps. One collective, however many layers, gathers them from all ranks; each rank computes the
    same pooled moments from that. They are in place for evaluations (the sanity check too) and in saved files; in
    between every rank goes on with its own. Statistics that were left pooled would forget, at the rate of the
    layers' momentum, how far the ranks lie apart: the oftener evaluated, the smaller the variance would become.

    Files hold the statistics of each rank in this callback's state, so that a resumed run continues exactly; with
    another number of ranks it begins with the pooled ones. A save that a rank makes alone, after an exception, has no
    collective: it holds what was pooled last, if training did not go on since, else the rank's own statistics.

    DDP broadcasts the buffers of rank 0 before each forward pass, which would overwrite the other ranks' statistics
    all the time: running statistics are taken out of that broadcast; other buffers stay in it.

    A further fit begins with the pooled statistics. With one process there is nothing to pool.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed; pooled in float64
      accumulation         yes: no difference
      manual optimization  yes: two optimizers, no difference
      ddp                  yes: one collective an evaluation; other strategies with several processes are refused
      ddp_spawn            yes: as ddp
      FSDP                 refused: FSDP1 and FSDP2; use the strategy's own synchronized batch normalization
      DeepSpeed            refused: use the strategy's own synchronized batch normalization
      compile              yes: values are copied instead of storages exchanged

    Raises
    ------
    ValueError
        When the strategy shards the model, or runs several processes in another way than DDP.
    """

    def __init__(self) -> None:
        super().__init__()
        self._stage: str | None = None
        self._trainer: pl.Trainer | None = None
        self._gathered: Tensor | None = None  # (n_ranks, n_values); None when training went on since
        self._restored: Tensor | None = None
        self._in_place = False
        self._alone = False
        self._finished = False
        self._worn = False

    @property
    @override
    def state_key(self) -> str:
        """One key: a run has one such callback."""
        return "BatchNormSync"

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot be pooled."""
        self._stage = stage
        if stage == "fit":
            refuse_sharded(trainer, "BatchNormSync", "use the strategy's own synchronized batch normalization")
            self._trainer = None
            self._gathered = self._restored = None
            self._alone = self._finished = self._worn = False

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the running statistics out of DDP's broadcast."""
        self._trainer = trainer
        self._in_place = needs_copies(pl_module)
        if trainer.world_size == 1:
            return
        wrapped = trainer.strategy.model
        if not isinstance(wrapped, DistributedDataParallel):
            raise ValueError(
                f"`strategy` is {type(trainer.strategy).__name__}, which runs {trainer.world_size} processes without "
                "DistributedDataParallel: BatchNormSync does not know how it treats buffers. Train with DDP or a "
                "single device."
            )
        wrapped.parameters_to_ignore |= {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in pl_module.named_modules()
            for name, _ in running_statistics(module)
        }
        add_view(trainer, self._saved_weights)

    @override
    def on_sanity_check_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue with this rank's own statistics of the checkpoint."""
        self._restore_own()

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue with this rank's own statistics of the checkpoint."""
        self._restore_own()

    @override
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Forget what was gathered, as the statistics are about to change."""
        self._gathered = None

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate with the pooled statistics during the fit."""
        if self._stage == "fit":
            self._restore_own()
            self._pool()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on training with this rank's own statistics; after the last step the pooled ones stay."""
        if self._stage == "fit" and not self._finished:
            self._unpool()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the pooled statistics in the module."""
        self._finished = True
        self._pool()

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the pooled statistics in the module where nothing was left to train, and an evaluation may follow."""
        self._finished = True
        if self._gathered is not None:
            self._pool()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put this rank's own statistics back; the other ranks may be gone, so that no collective follows."""
        self._alone = True
        self._unpool()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the strategy go."""
        if stage == "fit":
            remove_view(trainer, self._saved_weights)
            self._trainer = None

    def _average(self) -> _Average | None:
        """Return the average that another callback keeps, if one has begun; by its methods, not by its class."""
        callbacks = getattr(self._trainer, "callbacks", [])
        averages = (getattr(callback, "average", None) for callback in callbacks)
        return next((average for average in averages if hasattr(average, "replace_values")), None)

    def _buffers(self) -> list[Tensor]:
        """Return the running statistics of the module: mean and variance of each layer in turn, shared ones once."""
        if self._trainer is None:
            return []
        modules = self._trainer.lightning_module.modules()
        found = [buffer for module in modules for _, buffer in running_statistics(module)]
        return list({id(buffer): buffer for buffer in found}.values())

    def _own(self) -> Tensor:
        """Return this rank's statistics, float64 of shape (n_versions, n_values): raw and, where begun, averaged."""
        average, buffers = self._average(), self._buffers()
        versions = [[buffer.data if average is None else average.raw_values(buffer) for buffer in buffers]]
        if average is not None:
            averages = [average.average_values(buffer) for buffer in buffers]
            if any(values is not None for values in averages):
                # With several optimizers some layers may have begun and others not.
                pairs = zip(averages, versions[0], strict=True)
                versions.append([raw if values is None else values for values, raw in pairs])
        return torch.stack([torch.cat([part.detach().double().flatten() for part in parts]) for parts in versions])

    def _replace(self, values: Tensor) -> None:
        """Replace all statistics by values of shape (n_versions, n_values), in the order of `_own`."""
        average, offset = self._average(), 0
        with torch.inference_mode(False), torch.no_grad():
            for buffer in self._buffers():
                at = slice(offset, offset + buffer.numel())
                offset += buffer.numel()
                raw = values[0, at].view_as(buffer).to(buffer, copy=True)
                if average is not None:
                    old = average.average_values(buffer) if len(values) > 1 else None
                    new = None if old is None else values[1, at].view_as(old).to(old, copy=True)
                    average.replace_values(buffer, raw, new)
                elif self._in_place:
                    buffer.data.copy_(raw)
                else:
                    buffer.data = raw

    def _pooled(self, gathered: Tensor) -> Tensor:
        """Return pooled moments, (n_versions, n_values), of gathered ones, (n_ranks, n_versions, n_values)."""
        pooled, offset = torch.empty_like(gathered[0]), 0
        for mean in self._buffers()[::2]:
            n = mean.numel()
            means, variances = slice(offset, offset + n), slice(offset + n, offset + 2 * n)
            pooled[:, means], pooled[:, variances] = pool_moments(gathered[..., means], gathered[..., variances])
            offset += 2 * n
        return pooled

    def _pool(self) -> bool:
        """Put the pooled statistics in place, and say whether they are newly there."""
        if self._trainer is None or self._trainer.world_size == 1 or self._worn or not self._buffers():
            return False
        if self._gathered is None:
            # Callbacks that save in on_exception may come before this one.
            if self._alone or self._trainer.interrupted:
                return False
            own = self._own()
            rows = [torch.empty_like(own) for _ in range(self._trainer.world_size)]
            torch.distributed.all_gather(rows, own)
            self._gathered = torch.stack(rows)
        self._worn = True
        self._replace(self._pooled(self._gathered))
        return True

    def _unpool(self) -> None:
        if self._trainer is not None and self._worn and self._gathered is not None:
            self._replace(self._gathered[self._trainer.global_rank])
        self._worn = False

    @contextmanager
    def _saved_weights(self) -> Iterator[bool]:
        if self._worn:
            yield False
            return
        pooled = self._pool()
        try:
            yield pooled and self._in_place
        finally:
            self._unpool()

    def _restore_own(self) -> None:
        """Take up this rank's statistics of a checkpoint; the pooled ones where the number of ranks has changed."""
        restored, self._restored = self._restored, None
        if restored is None or self._trainer is None:
            return
        n_values = sum(buffer.numel() for buffer in self._buffers())
        if restored.shape[-1] != n_values:
            raise ValueError(
                f"`ckpt_path` holds {restored.shape[-1]} running statistics, the model {n_values}: a run is resumed "
                "with the model that wrote the file. Build the same model, or load its weights without resuming."
            )
        if len(restored) == self._trainer.world_size:
            self._replace(restored[self._trainer.global_rank])
        else:
            self._replace(self._pooled(restored))

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return all ranks' statistics, float64, (n_ranks, n_versions, n_values); nothing if training went on since."""
        return {} if self._gathered is None else {"statistics": self._gathered.cpu()}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the trainer: it belongs to the fit under way, not to a copy of this callback."""
        return self.__dict__ | {"_trainer": None}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the statistics of every rank until training starts."""
        if self._stage in (None, "fit"):
            self._restored = state_dict["statistics"]
