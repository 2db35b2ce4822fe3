"""How does training survive its first steps? By a learning rate that rises from zero, before the schedule begins.

Playbook: "How can optimization failures be debugged and mitigated?", "Learning rate warmup": prepend a schedule that
ramps up the learning rate from 0 to some stable base_learning_rate over warmup_steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import DEEPSPEED, inform, refuse, warn

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from torch.optim import Optimizer

# No batch or epoch index is a multiple of it: a scheduler with this frequency stands still.
_NEVER = 2**62
_ADVISED_SHARE = 0.05
# The attribute of a trainer under which its limits are kept.
_KEPT = "_playbook_warmup_limits"


class LearningRateWarmup(CallbackBase):
    """Raise the learning rate linearly from 0 to its base rate, then run the user's own schedule, shifted.

    With W = ``warmup_steps``, step k = 0, ..., W - 1 of an optimizer trains at ``base * k / W`` and step W at the base
    rate, where base is what the optimizer holds when training starts, in every parameter group. A step-wise schedule
    goes on from there bit-equal to the run without warmup, W steps later, and ``max_steps`` grows by W (in
    ``on_fit_start``, so that a schedule built from ``trainer.estimated_stepping_batches`` keeps its own length).

    Parameters
    ----------
    warmup_steps
        W, in optimizer steps, at least 0; 0 changes nothing.
    extend_max_steps
        Whether training grows by W steps, so that the schedule runs to its end.
    max_share
        The largest share of training, before it grows, that warmup may take, in [0, 1]. Above 5% it warns.

    Notes
    -----
    - A schedule that steps once an epoch, ReduceLROnPlateau included, does not step at the end of an epoch that lies
      wholly inside the warmup, and then counts epochs as ever: a warmup of whole epochs shifts it by as many.
    - A scheduler with ``frequency`` above 1 stands still during warmup, and then steps at Lightning's own count, which
      is by batches of the epoch.
    - ``max_epochs`` is converted: with S optimizer steps an epoch, E epochs become ``max_steps = E * S + W``, and
      ``max_epochs`` grows to hold them. A training loader without a length is refused there. An endless run
      (``max_steps=-1, max_epochs=-1``) stays endless.
    - Under manual optimization each optimizer warms up by its own steps. Lightning's ``max_steps`` counts the steps of
      all optimizers together, so it grows by W for each. Schedulers stepped by the user stand still meanwhile.
    - Warmup happens once in a run: a resumed run goes on where it was, and a second `fit` of the same trainer neither
      warms up nor grows again unless ``max_steps`` (or ``max_epochs``) was raised in between.

    Warmup takes no part in a dry run (``fast_dev_run``), which keeps its length. L-BFGS, which evaluates the loss
    several times a step, is refused.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed; a step that the scaler skips counts, as in max_steps
      accumulation         yes: optimizer steps are counted, not batches
      manual optimization  yes: two optimizers, each by its own steps
      ddp                  yes: every rank sets the same rates
      ddp_spawn            yes: every rank sets the same rates
      FSDP                 yes: FSDP1 and FSDP2, resumed too
      DeepSpeed            refused: it counts optimizer steps itself
      compile              yes: the rates lie outside the graph
    """

    def __init__(self, warmup_steps: int, extend_max_steps: bool = True, max_share: float = 0.10) -> None:
        if warmup_steps < 0:
            raise ValueError(
                f"`warmup_steps` is {warmup_steps}: it must be at least 0, in optimizer steps. Pass 0 for no warmup."
            )
        if not 0 <= max_share <= 1:
            raise ValueError(f"`max_share` is {max_share}: it must lie between 0 and 1. The default is 0.1.")
        self.warmup_steps = warmup_steps
        self.extend_max_steps = extend_max_steps
        self.max_share = max_share
        # The optimizer steps taken, and the base rate of each parameter group, by optimizer.
        self._n_steps: list[int] = []
        self._bases: list[list[float]] = []
        self._stage: str | None = None
        self._restored = False
        self._frequencies: list[tuple[Any, int]] = []
        self._suspended: list[tuple[Any, type]] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage = stage
        self._restored = False
        if stage == "fit" and self.warmup_steps:
            refuse(
                trainer,
                self,
                DEEPSPEED,
                "it counts optimizer steps itself",
                "Use DeepSpeed's WarmupLR, or ddp instead.",
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.warmup_steps:
            return
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise ValueError(
                "`optimizer` is LBFGS, and LearningRateWarmup does not support it: it evaluates the loss several times "
                "a step. Remove the warmup, or use a first-order optimizer."
            )
        limits = _Limits.of(trainer)
        # A second fit with raised limits begins with new optimizers: it is warmed up like the first.
        if not self._restored and (trainer.global_step == 0 or not limits.are_extended):
            self._n_steps, self._bases = [], []
        if limits.are_extended or getattr(trainer, "fast_dev_run", False):
            return
        planned = self._check_share(trainer, _planned_steps(trainer, limits))
        if self.extend_max_steps and planned is not None:
            self._extend(trainer, planned, limits)
        limits.keep(trainer)

    def _check_share(self, trainer: Trainer, planned: int | None) -> int | None:
        if planned is None:
            return None
        # Lightning counts the steps of all optimizers together.
        share = self.warmup_steps * len(trainer.optimizers) / max(planned, 1)
        if share > self.max_share:
            raise ValueError(
                f"`warmup_steps` is {self.warmup_steps}, {share:.0%} of the {planned} steps of training: warmup may "
                f"take at most {self.max_share:.0%}. Warm up for fewer steps, train longer, or pass a larger max_share."
            )
        if share > _ADVISED_SHARE:
            warn(
                trainer,
                f"LearningRateWarmup takes {share:.0%} of the {planned} steps of training, more than 5%: tune "
                "warmup_steps down once training is stable.",
            )
        return planned

    def _extend(self, trainer: Trainer, planned: int, limits: _Limits) -> None:
        extra = self.warmup_steps * len(trainer.optimizers)
        if limits.max_epochs not in (None, -1):
            is_sized = not math.isinf(trainer.num_training_batches)
            more = math.ceil(extra / max(_steps_per_epoch(trainer), 1)) if is_sized else extra
            trainer.fit_loop.max_epochs = int(limits.max_epochs or 0) + more
        trainer.fit_loop.epoch_loop.max_steps = planned + extra
        inform(
            trainer,
            f"LearningRateWarmup: the learning rate rises from 0 over {self.warmup_steps} steps, then the schedule "
            f"runs; training takes {planned + extra} steps instead of {planned}.",
        )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restored = False
        if not self.warmup_steps:
            return
        if not self._bases:
            self._n_steps = [0] * len(trainer.optimizers)
            self._bases = [[float(group["lr"]) for group in known.param_groups] for known in trainer.optimizers]
        for place, optimizer in enumerate(trainer.optimizers):
            if self._n_steps[place] <= self.warmup_steps:
                self._set_rates(place, optimizer)
                self._hold_schedulers(trainer, place, optimizer, pl_module.automatic_optimization)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._is_warming:
            return
        # Callbacks that read the rate at the start of a batch see the one that trains on it.
        for place, optimizer in enumerate(trainer.optimizers):
            if self._n_steps[place] <= self.warmup_steps:
                self._set_rates(place, optimizer)
                if pl_module.automatic_optimization and self._n_steps[place] == self.warmup_steps:
                    self._release_schedulers(optimizer)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self._is_warming:
            return
        place = next(place for place, known in enumerate(trainer.optimizers) if known is optimizer)
        if self._n_steps[place] > self.warmup_steps:
            return
        self._set_rates(place, optimizer)
        self._n_steps[place] += 1
        if self._n_steps[place] > self.warmup_steps:
            self._release_schedulers(optimizer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._release_schedulers(None)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release_schedulers(None)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"n_steps": list(self._n_steps), "bases": [list(rates) for rates in self._bases]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stage not in (None, "fit"):
            return  # A file that is only tested is no run to go on with.
        self._n_steps = list(state_dict["n_steps"])
        self._bases = [list(rates) for rates in state_dict["bases"]]
        self._restored = True

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the schedulers that stand still: they belong to the fit under way, not to a copy."""
        return self.__dict__ | {"_frequencies": [], "_suspended": []}

    @property
    def _is_warming(self) -> bool:
        return self.warmup_steps > 0 and min(self._n_steps, default=0) <= self.warmup_steps

    def _set_rates(self, place: int, optimizer: Optimizer) -> None:
        done = self._n_steps[place]
        for group, base in zip(optimizer.param_groups, self._bases[place], strict=True):
            # The last rate is the base itself: base * (W / W) could round.
            rate = base if done >= self.warmup_steps else base * done / self.warmup_steps
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _hold_schedulers(self, trainer: Trainer, place: int, optimizer: Optimizer, automatic: bool) -> None:
        for config in trainer.lr_scheduler_configs:
            if config.scheduler.optimizer is not optimizer:
                continue
            if automatic:
                if self._n_steps[place] < self.warmup_steps:
                    self._frequencies.append((config, config.frequency))
                    config.frequency = _NEVER
            else:
                # The user holds the scheduler and steps it, so the object itself has to stand still.
                kind = type(config.scheduler)
                self._suspended.append((config.scheduler, kind))
                config.scheduler.__class__ = type(kind.__name__, (kind,), {"step": _stand_still})

    def _release_schedulers(self, optimizer: Optimizer | None) -> None:
        """Let the schedulers of one optimizer, or of all, go on."""
        for config, frequency in self._frequencies:
            if optimizer is None or config.scheduler.optimizer is optimizer:
                config.frequency = frequency
        for scheduler, kind in self._suspended:
            if optimizer is None or scheduler.optimizer is optimizer:
                scheduler.__class__ = kind
        self._frequencies = [
            pair for pair in self._frequencies if optimizer is not None and pair[0].scheduler.optimizer is not optimizer
        ]
        self._suspended = [
            pair for pair in self._suspended if optimizer is not None and pair[0].optimizer is not optimizer
        ]


def _stand_still(scheduler: Any, *_: Any, **__: Any) -> None:
    """Take the place of a scheduler's ``step`` during warmup."""


@dataclass(frozen=True)
class _Limits:
    """How long the user wants to train; kept with the trainer, so that pickling both keeps it too."""

    max_steps: int
    max_epochs: int | None
    are_extended: bool = False

    @classmethod
    def of(cls, trainer: Trainer) -> _Limits:
        """Return the limits asked for: where one is still as warmup left it, what it was before."""
        asked = (trainer.max_steps, trainer.max_epochs)
        kept = getattr(trainer, _KEPT, None)
        if kept is None:
            return cls(asked[0], asked[1])
        was, left = kept
        if left == asked:
            return cls(was[0], was[1], are_extended=True)
        return cls(was[0] if left[0] == asked[0] else asked[0], was[1] if left[1] == asked[1] else asked[1])

    def keep(self, trainer: Trainer) -> None:
        """Remember what was asked for, beside what the trainer now has."""
        setattr(trainer, _KEPT, ((self.max_steps, self.max_epochs), (trainer.max_steps, trainer.max_epochs)))


def _planned_steps(trainer: Trainer, limits: _Limits) -> int | None:
    """Return the steps that the user asked for, None for an endless run.

    Raises
    ------
    ValueError
        When ``max_epochs`` cannot be converted to steps.
    """
    max_steps = None if limits.max_steps == -1 else limits.max_steps
    if limits.max_epochs in (None, -1):
        return max_steps
    fit_loop = trainer.fit_loop
    is_loaded = fit_loop._combined_loader is not None
    fit_loop.setup_data()
    if trainer.ckpt_path is not None and not is_loaded:
        # The state of a resumable loader is restored after this hook, while the loaders are set up.
        fit_loop._combined_loader = None
    if math.isinf(trainer.num_training_batches):
        if max_steps is None:
            raise ValueError(
                f"`max_epochs` is {limits.max_epochs} and the training loader has no length: LearningRateWarmup "
                "counts training in optimizer steps and cannot convert it. Pass max_steps to the Trainer."
            )
        return max_steps
    by_epochs = _steps_per_epoch(trainer) * int(limits.max_epochs or 0)
    return by_epochs if max_steps is None else min(by_epochs, max_steps)


def _steps_per_epoch(trainer: Trainer) -> int:
    """Return the optimizer steps of an epoch, those of several optimizers together, as Lightning counts them."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches) * len(trainer.optimizers)
