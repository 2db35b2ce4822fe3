"""How many examples of a rare class are right? Logged as counts, because a rate of few examples jumps.

Playbook: "Choosing a sample for periodic evaluation": for imbalanced data a metric of a class with few examples is
noisy, so log the number of correct predictions: +0.05 of sensitivity may be a single example more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import DEEPSPEED, refuse

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

_CORRECT = "val_correct"
_EXAMPLES = "val_examples"
# The standard error of a rate is at most 0.5 / sqrt(n): with 100 examples, 0.05.
_FEW = 100


class ClassCounts(CallbackBase):
    """Log, for each class with few examples, how many there are and how many are predicted correctly.

    Two lines: this callback, and in the module ``return {"predictions": scores, "targets": y}`` at the end of
    ``validation_step``, among whatever else it returns. Every evaluation then logs the whole numbers
    ``val_correct/class_3`` and ``val_examples/class_3``, to the loggers and to ``trainer.callback_metrics``.

    The counts are exact and the same on all ranks: integers, summed over all batches, validation loaders and ranks in
    one collective an evaluation. With several ranks use `exact_validation_loader`: Lightning's own sampler repeats
    examples until the ranks have equally many, and they are counted as often as they are evaluated. Batches that only
    fill up a rank there are left out.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed; the counts are integers
      accumulation         yes: no difference
      manual optimization  yes: no difference
      ddp                  yes: exact with `exact_validation_loader`
      ddp_spawn            yes: as ddp; the logged counts come back to the main process, the properties do not
      FSDP                 yes: FSDP2 (ModelParallelStrategy); refused: FSDP1
      DeepSpeed            refused: not tried there
      compile              yes: a compiled module returns the same

    Parameters
    ----------
    classes
        The number of classes, at least 1, logged as ``class_0``, ``class_1``, ...; or their names, in the order of
        the targets.
    max_examples
        Log the classes with at most so many examples in the evaluation, at least 1; None logs all. By default 100:
        the rate of more examples has a standard error below 0.05. A class without any example is not logged.

    Raises
    ------
    ValueError
        When an argument is out of its range, ``validation_step`` does not return predictions and targets that fit
        together, or a target is not a class.
    """

    def __init__(self, classes: int | Sequence[str], max_examples: int | None = _FEW) -> None:
        self.classes = classes
        self.max_examples = max_examples
        self.names = [f"class_{place}" for place in range(classes)] if isinstance(classes, int) else list(classes)
        if not self.names or isinstance(classes, (bool, str)) or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"`classes` is {classes!r}: it must be the number of classes, at least 1, or a list of their names, "
                "each once. Pass for instance 10."
            )
        if max_examples is not None and max_examples < 1:
            raise ValueError(
                f"`max_examples` is {max_examples}: it must be at least 1, or None to log every class. Pass for "
                "instance 100."
            )
        # Examples and correct predictions of each class, shape (2, n_classes): on this rank, and of all ranks.
        self._counts = torch.zeros(2, len(self.names), dtype=torch.int64)
        self._total = self._counts

    @property
    def n_examples(self) -> dict[str, int]:
        """How many examples of each class the last evaluation had, on all ranks together."""
        return dict(zip(self.names, self._total[0].tolist(), strict=True))

    @property
    def n_correct(self) -> dict[str, int]:
        """How many of them were predicted correctly."""
        return dict(zip(self.names, self._total[1].tolist(), strict=True))

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what has not been tried."""
        why = "its evaluation has not been tried with counts over ranks"
        refuse(trainer, self, DEEPSPEED, why, "Use ddp, or ModelParallelStrategy (FSDP2).")
        refuse(trainer, self, ["FSDPStrategy"], why, "Use ddp, or ModelParallelStrategy (FSDP2).")

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count, where the targets are: one copy to the host is enough for an evaluation."""
        self._counts = torch.zeros(2, len(self.names), dtype=torch.int64, device=pl_module.device)

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch, unless it only fills up this rank."""
        # In the fit and in `trainer.validate`: the loop that runs.
        loop: Any = trainer._active_loop
        loader = loop._combined_loader.flattened[dataloader_idx]
        if not (hasattr(loader, "is_filler") and loader.is_filler(batch_idx)):
            self._counts += count_classes(outputs, self.names).to(self._counts.device)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the ranks, and log."""
        if trainer.sanity_checking:
            return
        self._total = trainer.strategy.reduce(self._counts, reduce_op="sum").cpu()
        counts: dict[str, float] = {}
        for name, n_examples, n_correct in zip(self.names, *self._total.tolist(), strict=True):
            if 0 < n_examples <= (self.max_examples or n_examples):
                counts |= {f"{_CORRECT}/{name}": n_correct, f"{_EXAMPLES}/{name}": n_examples}
        # Not through `pl_module.log`, which makes them floating-point, and synchronizes each by itself; and not through
        # `trainer.callback_metrics`, which computes here what the module may still add to in its own hook.
        found = {name: torch.tensor(count) for name, count in counts.items()}
        trainer._logger_connector._callback_metrics.update(found)
        for logger in trainer.loggers if counts else []:
            logger.log_metrics(counts, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def count_classes(outputs: Any, names: Sequence[str]) -> Tensor:
    """Return the examples and the correct predictions of each class in one batch.

    Parameters
    ----------
    outputs
        A mapping with ``targets``, integers of any shape (batch, ...), and ``predictions``: classes of the same
        shape, or scores of shape (batch, n_classes, ...), of which the highest counts. An example with a negative
        target (``ignore_index``) is none.
    names
        Of the classes.

    Returns
    -------
    Tensor
        Shape (2, n_classes), integers, on the device of the targets.

    Raises
    ------
    ValueError
        When the outputs are something else, or a target is no class.
    """
    n_classes = len(names)
    if not isinstance(outputs, Mapping) or not {"predictions", "targets"} <= outputs.keys():
        what = sorted(map(str, outputs)) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise ValueError(
            f"`validation_step` returned {what}: ClassCounts needs what was predicted and what is right. Return "
            '{"predictions": scores, "targets": y}, among others.'
        )
    predictions, targets = outputs["predictions"], outputs["targets"]
    if predictions.dim() == targets.dim() + 1 and predictions.dim() > 1 and predictions.shape[1] == n_classes:
        predictions = predictions.argmax(1)
    if predictions.shape != targets.shape or predictions.is_floating_point() or targets.is_floating_point():
        raise ValueError(
            f"`predictions` has shape {tuple(predictions.shape)} and type {predictions.dtype}, `targets` "
            f"{tuple(targets.shape)} and {targets.dtype}: they must be classes of one shape, or the predictions scores "
            f"of shape (batch, {n_classes}, ...). For two classes, return for instance probability > 0.5."
        )
    chosen = targets >= 0
    targets = targets[chosen].long()
    if targets.numel() and int(targets.max()) >= n_classes:
        raise ValueError(
            f"`targets` holds {int(targets.max())}, and `classes` gives {n_classes}, numbered from 0. Pass all classes "
            "to ClassCounts."
        )
    correct = targets[predictions[chosen].long() == targets]
    return torch.stack([torch.bincount(found, minlength=n_classes) for found in (targets, correct)])
