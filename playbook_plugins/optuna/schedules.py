"""What is the learning rate at each step? Warmup, then a constant, linear or cosine schedule, by the step.

Playbook: "How to apply learning rate warmup"; "Which learning rate decay should I use as a default?" (linear or
cosine); "Round 2" for what becomes of a schedule when training gets longer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Family: TypeAlias = Literal["constant", "linear", "cosine"]
# Rates that differ by less are one: they were computed in floating point.
_SAME = 1e-9


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate as a function of the optimizer step, counted from 0.

    With W = ``warmup_steps``, T = ``max_train_steps`` and D = ``decay_steps``: ``base * k / W`` at the steps
    k = 0, ..., W - 1 (as `LearningRateWarmup` of playbook_plugins.lightning has it), the base rate from step W to step
    T - D, then the decay, which ends at step T, after the last update, with ``base * final_fraction``. Beyond T the
    rate stays what it is there.

    Attributes
    ----------
    base_learning_rate
        The peak, positive.
    max_train_steps
        T, the length of training in optimizer steps, warmup included.
    family
        The form of the decay: ``"constant"`` (none), ``"linear"`` or ``"cosine"`` (half a period).
    warmup_steps
        W, from 0 to T - 1.
    decay_steps
        D, from 1 to T - W; by default all that follows warmup.
    final_fraction
        What is left of the base rate at the end, in [0, 1].

    Raises
    ------
    ValueError
        When a number is out of its range, or a constant schedule is given a decay.
    """

    base_learning_rate: float
    max_train_steps: int
    family: Family = "constant"
    warmup_steps: int = 0
    decay_steps: int | None = None
    final_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Check that warmup and decay fit into training."""
        if not 0 < self.base_learning_rate < math.inf:
            raise ValueError(
                f"`base_learning_rate` is {self.base_learning_rate}: a learning rate must be positive and finite. Pass "
                "the peak of the schedule, for instance 0.1."
            )
        if self.max_train_steps < 1:
            raise ValueError(
                f"`max_train_steps` is {self.max_train_steps}: training has at least 1 optimizer step. Pass the number "
                "of steps, warmup included."
            )
        if self.family not in get_args(Family):
            raise ValueError(
                f"`family` is {self.family!r}: no schedule of this name is known. Pass one of {list(get_args(Family))}."
            )
        if not 0 <= self.warmup_steps < self.max_train_steps:
            raise ValueError(
                f"`warmup_steps` is {self.warmup_steps}: it must be at least 0 and below max_train_steps = "
                f"{self.max_train_steps}, which includes it. Warm up for fewer steps, or train longer."
            )
        if not 0 <= self.final_fraction <= 1:
            raise ValueError(
                f"`final_fraction` is {self.final_fraction}: it is a share of the base rate and must lie between 0 and "
                "1. Pass 0 to decay to nothing."
            )
        if self.decay_steps is None:
            return
        if self.family == "constant":
            raise ValueError(
                f"`decay_steps` is {self.decay_steps}, but a constant schedule has no decay. Leave it out, or pass "
                "family='linear' or family='cosine'."
            )
        longest = self.max_train_steps - self.warmup_steps
        if not 1 <= self.decay_steps <= longest:
            raise ValueError(
                f"`decay_steps` is {self.decay_steps}: it must lie between 1 and {longest}, the steps after warmup. "
                "Leave it out to decay over all of them."
            )

    @overload
    def __call__(self, step: int) -> float: ...
    @overload
    def __call__(self, step: Sequence[int] | NDArray[Any]) -> NDArray[np.float64]: ...
    def __call__(self, step: int | Sequence[int] | NDArray[Any]) -> float | NDArray[np.float64]:
        """Return the learning rate of a step, or of each of an array of steps, in its shape.

        Raises
        ------
        ValueError
            When a step is negative.
        """
        rates = self.base_learning_rate * self._factors(step)
        return float(rates) if np.ndim(rates) == 0 else np.asarray(rates, dtype=np.float64)

    def factor(self, step: int) -> float:
        """Return the share of the base rate at a step, in [0, 1]: the form that torch's LambdaLR asks for."""
        return float(self._factors(step))

    def to_torch(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the schedule for a torch optimizer, to be stepped once an optimizer step.

        It multiplies the rate that each parameter group has now, so that groups keep their proportions.

        Raises
        ------
        ValueError
            When no parameter group has the base rate.
        """
        from torch.optim.lr_scheduler import LambdaLR

        # A scheduler that was there before has left the optimizer's own rate under this name; LambdaLR reads it too.
        rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        if not any(math.isclose(rate, self.base_learning_rate, rel_tol=_SAME) for rate in rates):
            raise ValueError(
                f"`optimizer` has the learning rates {rates}, but the schedule's base rate is "
                f"{self.base_learning_rate}: it multiplies what the optimizer holds. Build the optimizer with "
                f"lr={self.base_learning_rate}."
            )
        return LambdaLR(optimizer, self.factor)

    def with_warmup(self, warmup_steps: int) -> Schedule:
        """Return the schedule with warmup prepended: all else as it is, later and no shorter.

        Training grows by as many steps. A warmup that the schedule had is replaced.
        """
        unwarmed = self.max_train_steps - self.warmup_steps
        return replace(self, warmup_steps=warmup_steps, max_train_steps=unwarmed + warmup_steps)

    def extended(self, n_more_steps: int, *, stretch: bool = False) -> Schedule:
        """Return the schedule for longer training, as in a second round with the hyperparameters of the first.

        The additional steps are trained at the base rate; the decay stays as long as it was, and ends with training.
        Stretching a decay would spend the additional steps at rates that are too small.

        Parameters
        ----------
        n_more_steps
            By how much training grows, in optimizer steps; at least 1.
        stretch
            Only for cosine: keep the base rate and let the decay take the additional steps. That is the playbook's
            suggestion for this family (after the Chinchilla paper, arXiv:2203.15556); the other one it makes for
            linear decay.

        Raises
        ------
        ValueError
            When there are no more steps, or another family is to be stretched.
        """
        if n_more_steps < 1:
            raise ValueError(
                f"`n_more_steps` is {n_more_steps}: a schedule can only be made longer. Pass the number of additional "
                "optimizer steps, at least 1."
            )
        if stretch and self.family != "cosine":
            raise ValueError(
                f"`stretch` is True, but the schedule is {self.family}: only a cosine decay may be stretched. Leave it "
                "out to train the additional steps at the base rate."
            )
        decay = None if self.family == "constant" else self._decay_steps + (n_more_steps if stretch else 0)
        return replace(self, max_train_steps=self.max_train_steps + n_more_steps, decay_steps=decay)

    @property
    def _decay_steps(self) -> int:
        return self.max_train_steps - self.warmup_steps if self.decay_steps is None else self.decay_steps

    def _factors(self, step: int | Sequence[int] | NDArray[Any]) -> NDArray[np.float64]:
        steps = np.asarray(step, dtype=np.float64)
        if steps.size and steps.min() < 0:
            raise ValueError(f"`step` is {steps.min():g}: steps are counted from 0. Pass a step of training.")
        factors = np.ones_like(steps)
        if self.family != "constant":
            done = (steps - (self.max_train_steps - self._decay_steps)) / self._decay_steps
            left = 1.0 - done if self.family == "linear" else 0.5 * (1.0 + np.cos(np.pi * np.clip(done, 0.0, 1.0)))
            factors = self.final_fraction + (1.0 - self.final_fraction) * left
            # Exact at both ends, whatever the rounding between.
            factors = np.where(done <= 0, 1.0, np.where(done >= 1, self.final_fraction, factors))
        if self.warmup_steps:
            factors = np.where(steps < self.warmup_steps, steps / self.warmup_steps, factors)
        return factors
