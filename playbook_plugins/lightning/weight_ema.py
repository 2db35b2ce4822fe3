"""Which weights should be evaluated when the last steps are noisy? An exponential moving average of them.

Playbook: "Examining the training curves" names Polyak averaging among the remedies for step-to-step variance late in
training; "Saving checkpoints and retrospectively selecting the best checkpoint" for what the files hold.
Method: Polyak and Juditsky (1992), "Acceleration of stochastic approximation by averaging".
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._saved_weights import add_view, refuse_sharded, remove_view
from playbook_plugins.lightning.weight_average import WeightAverage, automatic_interval, averageable

if TYPE_CHECKING:
    import pytorch_lightning as pl

_DEFAULT_SHARE = 0.05  # the half-life as a share of training, where neither `decay` nor `half_life` is given


class WeightEMA(CallbackBase):
    """Keep an exponential moving average of the weights, and evaluate and save that average.

    The first update copies the weights, later ones interpolate. It counts real optimizer steps: a step that mixed
    precision skipped, or in which no parameter had a gradient, is none. Evaluation during the fit, checkpoints and the
    model after the fit use the average; training goes on from the raw weights, whatever interrupts an evaluation.

    - **Buffers.** The running statistics of normalization layers (buffers named ``running_mean`` and
      ``running_var``) are averaged with the weights' own factors: to first order, the statistics of the averaged
      network are the average of the statistics along the path. Every other buffer, floating-point ones included,
      stays as training left it: a counter, a mask or a table of codes has no mean.
    - **Files.** In every file ``state_dict`` is the average. A full file, ``last.ckpt`` included, also holds the raw
      weights among this callback's state, and resuming continues from both, bit for bit. A weights-only file holds
      the average alone; nothing can be resumed from one anyway.
    - **Interval.** With `decay`, the factor of one update in the usual convention, every step is followed by an update.
      Where a half-life sets the memory, every n-th step is, n being 5 from a half-life of 500 steps on, 3 from 300 and
      1 below; that costs an n-th. Each update has the share that its n steps would have had together, so after an
      update the result lies no farther from the average of every step than the weights move in n - 1 steps; in
      between it is older by less than 1% of the half-life. Of noise that each step draws anew, an average with decay d
      a step leaves (1 - d^n) / (1 + d^n) of the variance, which stays below 0.35% for n of 3 and 5. An even n would be
      unsafe: of a weight that overshoots at every step, it would see one side only.
    - **Before the first update** there is no average: evaluation and files use the raw weights. A start that training
      never reaches therefore loses nothing.
    - **After the fit** the module holds the average, and a later ``validate`` or ``test`` uses what the module holds.
      A second fit of the same Trainer goes on from the raw weights, unless the weights were changed in between.
      After an exception or an interrupt the module holds the raw weights.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed; see `full_precision`
      accumulation         yes: optimizer steps are counted, not batches
      manual optimization  yes: two optimizers, each with its own count and the average of its own parameters
      ddp                  yes: every rank keeps the same average
      ddp_spawn            yes: the trained module comes back with the average; the counts stay in the processes
      FSDP                 refused: FSDP1 and FSDP2, where no rank holds whole parameters
      DeepSpeed            refused: it may shard the parameters
      compile              yes: values are copied instead of storages exchanged, as for recurrent networks on CUDA

    Parameters
    ----------
    decay
        The share of the average that one optimizer step keeps, in (0, 1). At most one of `decay` and `half_life`.
    half_life
        After so many optimizer steps the weights of today count half; positive. By default 5% of the planned steps,
        so that it carries over between lengths of training.
    update_every_n_steps
        Update after every n-th step only, n >= 1; the factors are scaled, so that the half-life stays. By default 1
        with `decay`, otherwise 1, 3 or 5 by the half-life, as said above.
    update_starting_at_step
        Let so many optimizer steps pass before the first update, >= 0.
    full_precision
        Keep the average of 16-bit weights in float32, where small updates are not rounded away.
    warmup
        Start with a shorter memory: the decay of the n-th update is at most (1 + n) / (10 + n), n = 1, 2, ...

    Raises
    ------
    ValueError
        When an argument is out of its range, both `decay` and `half_life` are given, or the model is sharded.
    """

    def __init__(
        self,
        decay: float | None = None,
        half_life: float | None = None,
        update_every_n_steps: int | None = None,
        update_starting_at_step: int = 0,
        full_precision: bool = True,
        warmup: bool = False,
    ) -> None:
        super().__init__()
        if decay is not None and half_life is not None:
            raise ValueError(
                f"`decay` is {decay} and `half_life` is {half_life}: both say how long the average remembers. Pass one "
                "of them, or neither for a half-life of 5% of training."
            )
        if decay is not None and not 0 < decay < 1:
            raise ValueError(
                f"`decay` is {decay}: it must lie between 0 and 1, both excluded. Pass the share of the average that "
                "one step keeps, for instance 0.999."
            )
        if half_life is not None and not 0 < half_life < math.inf:
            raise ValueError(
                f"`half_life` is {half_life}: it must be a positive number of optimizer steps. Pass for instance 5% "
                "of max_steps, which is the default."
            )
        if update_every_n_steps is not None and update_every_n_steps < 1:
            raise ValueError(
                f"`update_every_n_steps` is {update_every_n_steps}: it must be at least 1. Pass 1 to update after "
                "every optimizer step."
            )
        if update_starting_at_step < 0:
            raise ValueError(
                f"`update_starting_at_step` is {update_starting_at_step}: it must be at least 0. Pass 0 to average "
                "from the first optimizer step on."
            )
        self.decay = decay
        self.half_life = half_life
        self.update_every_n_steps = update_every_n_steps
        self.update_starting_at_step = update_starting_at_step
        self.full_precision = full_precision
        self.warmup = warmup
        self._stage: str | None = None
        self._handles: list[RemovableHandle] = []
        self._forget()

    def _forget(self) -> None:
        self._n_steps: list[int] = []
        self._n_updates: list[int] = []
        self._step_decay: float | None = None
        self._interval = 1
        self._average: WeightAverage | None = None
        # Averages and, from a checkpoint, raw weights, until the module has its final type and device.
        self._pending: dict[str, tuple[Tensor, Tensor | None]] = {}
        self._finished = False
        self._left_at: int | None = None
        self._checksum: Tensor | None = None

    @property
    def n_steps(self) -> tuple[int, ...]:
        """The real optimizer steps seen, one count an optimizer."""
        return tuple(self._n_steps)

    @property
    def n_updates(self) -> tuple[int, ...]:
        """The updates of the average, one count an optimizer."""
        return tuple(self._n_updates)

    @property
    def n_steps_per_update(self) -> int:
        """The optimizer steps from one update to the next: `update_every_n_steps`, or what it was settled to."""
        return self._interval

    @property
    def average(self) -> WeightAverage | None:
        """The average and the raw weights of the module in training; None before a fit."""
        return self._average

    @property
    @override
    def state_key(self) -> str:
        """The same key whatever the arguments, so that a run can be resumed with others."""
        return "WeightEMA"

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse sharded models; take up the raw weights of an earlier fit of this Trainer."""
        self._stage = stage
        if stage != "fit":
            return
        refuse_sharded(trainer, "WeightEMA", "remove WeightEMA and average in the strategy's own way")
        if self._average is not None and self._continues(trainer, pl_module):
            self._average.take_off()
            self._pending = {name: (values.clone(), None) for name, values in self._average.average_by_name().items()}
            self._average = None
        else:
            self._forget()
        self._finished = False
        self._left_at = None
        add_view(trainer, self._saved_weights)

    def _continues(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether this fit goes on where the fit before stopped, with the weights that it left."""
        average, left = self._average, self._checksum
        if average is None or average.module is not pl_module or self._left_at != trainer.global_step:
            return False
        return left is None or torch.allclose(left, average.checksum(), rtol=1e-9, atol=0, equal_nan=True)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the averages of a checkpoint to the module's type and device."""
        self._begin(trainer, pl_module)

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._average = WeightAverage(pl_module, self.full_precision)
        tensors = averageable(pl_module)
        for name, (values, raw) in self._pending.items():
            self._average.insert(name, values)
            if raw is not None:
                tensors[name].data.copy_(raw)
        self._pending = {}
        n_optimizers = len(trainer.optimizers)
        if self._n_steps and len(self._n_steps) != n_optimizers:
            raise ValueError(
                f"`optimizers` has {n_optimizers} entries, but the checkpoint was averaged over {len(self._n_steps)}: "
                "WeightEMA counts the steps of each. Resume with the optimizers of the run that wrote the file."
            )
        self._n_steps = self._n_steps or [0] * n_optimizers
        self._n_updates = self._n_updates or [0] * n_optimizers

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Settle the decay, now that every other callback has had its say about the length of training, and listen.

        Steps before this moment, of a search for the learning rate for instance, are not training.
        """
        if self.decay is not None:
            self._step_decay = self.decay
        elif self.half_life is not None:
            self._step_decay = 0.5 ** (1 / self.half_life)
        elif self._step_decay is None:  # a resumed run keeps the decay that it began with
            n_steps = float(trainer.estimated_stepping_batches)
            if not 0 < n_steps < math.inf:
                raise ValueError(
                    f"`half_life` is None and the planned length of training is {n_steps} steps: the default half-life "
                    "is 5% of it, which needs a finite length. Pass `half_life` or `decay`, or give the Trainer "
                    "max_steps."
                )
            # max_steps counts the steps of all optimizers together.
            self._step_decay = 0.5 ** (max(1, len(self._n_steps)) / (_DEFAULT_SHARE * n_steps))
        self._interval = self._settle_interval()
        self._listen_no_more()
        for index, optimizer in enumerate(trainer.optimizers):
            hook = partial(self._after_step, list(trainer.optimizers), index)
            self._handles.append(optimizer.register_step_post_hook(hook))

    def _settle_interval(self) -> int:
        if self.update_every_n_steps is not None:
            return self.update_every_n_steps
        if self.decay is not None or self._step_decay is None:
            return 1
        return automatic_interval(self._step_decay)

    def _after_step(
        self, optimizers: list[Optimizer], index: int, optimizer: Optimizer, args: Any, kwargs: Any
    ) -> None:
        if self._average is None or self._step_decay is None or not _has_stepped(optimizer):
            return
        self._n_steps[index] += 1
        n_since_start = self._n_steps[index] - self.update_starting_at_step
        if n_since_start < 1 or (n_since_start - 1) % self._interval:
            return
        self._n_updates[index] += 1
        decay = self._step_decay**self._interval
        if self.warmup:
            n = self._n_updates[index] - 1
            decay = min(decay, (1 + n) / (10 + n))
        # The first update is a copy, whatever the share.
        self._average.update(index, optimizers, 1 - decay)

    @contextmanager
    def _saved_weights(self) -> Iterator[bool]:
        average = self._average
        if average is None or average.worn or average.empty:
            yield False
            return
        average.wear()
        try:
            yield average.in_place
        finally:
            average.take_off()

    @override
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the average during the fit."""
        if self._stage == "fit" and self._average is not None:
            self._average.wear()

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on training from the raw weights; an evaluation after the last step leaves the average in place."""
        if self._stage == "fit" and self._average is not None and not self._finished:
            self._average.take_off()

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the average in the module."""
        self._finished = True
        if self._average is not None:
            self._average.wear()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Put the raw weights back, whatever ended the fit."""
        if self._stage == "fit" and self._average is not None:
            self._average.take_off()
            self._listen_no_more()
            self._left_at = trainer.global_step
            self._checksum = None

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let the optimizers go; keep the raw weights where the module is, for a further fit."""
        if stage == "fit" and self._average is not None:
            self._listen_no_more()
            remove_view(trainer, self._saved_weights)
            self._average.move_to_module()
            # Nothing was left to train, as in a finished run that is resumed: Lightning then skips on_train_end.
            if not self._finished:
                self._finished = True
                self._average.wear()
            self._left_at = trainer.global_step
            self._checksum = self._average.checksum()

    def _listen_no_more(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the counts, the decay, the raw weights by name, and the averages kept in a wider type."""
        average = self._average
        return {
            "n_steps": list(self._n_steps),
            "n_updates": list(self._n_updates),
            "step_decay": self._step_decay,
            "raw": {} if average is None else average.raw_by_name(),
            "wide_average": {} if average is None else average.average_by_name(wide_only=True),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts; `on_load_checkpoint` restores the weights. A file that is only tested changes nothing."""
        if self._stage in (None, "fit"):
            self._n_steps = list(state_dict["n_steps"])
            self._n_updates = list(state_dict["n_updates"])
            self._step_decay = state_dict["step_decay"]

    @override
    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average from the weights that Lightning has just loaded, and put the raw ones in their place."""
        if self._stage != "fit":
            return
        has_begun = self._average is not None and not self._finished
        step_decay = self._step_decay if has_begun else None
        self._forget()
        self._step_decay = step_decay
        # Without a state, the file was written without WeightEMA: averaging begins with this fit.
        state = checkpoint.get("callbacks", {}).get(self.state_key) or {"raw": {}}
        tensors = averageable(pl_module)
        if unknown := sorted(state["raw"].keys() - tensors.keys()):
            raise ValueError(
                f"`ckpt_path` holds raw weights that the model lacks ({', '.join(unknown[:5])}): a run is resumed with "
                "the model that wrote the file. Build the same model, or load its weights without resuming."
            )
        # From the file where it has them: the module, which Lightning converts later, may hold a narrower type.
        averages = checkpoint["state_dict"] | state.get("wide_average", {})
        with torch.no_grad():
            for name, raw in state["raw"].items():
                self._pending[name] = (averages.get(name, tensors[name]).detach().clone(), raw)
                tensors[name].data.copy_(raw)
        if has_begun:  # loaded in the middle of a fit, as a search for the learning rate does at its end
            self._begin(trainer, pl_module)


def _has_stepped(optimizer: Optimizer) -> bool:
    """Whether the step that just returned could change a parameter."""
    # A fused optimizer is called even when a gradient overflowed, and skips the update itself.
    found_inf = getattr(optimizer, "found_inf", None)
    if isinstance(found_inf, Tensor) and bool(found_inf):
        return False
    return any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"])
