"""By how much must gradients be clipped? At a percentile of their norms, measured while training.

Playbook: "How can optimization failures be debugged and mitigated?", "Gradient clipping": clip at the 90th percentile
of the gradient norms; if more than half of the updates are clipped, lower the learning rate instead.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from playbook_plugins.analysis.gradient_norms import GradientNorms, norm_histogram, norm_quantiles
from playbook_plugins.analysis.infeasible import InfeasibleError
from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import DEEPSPEED, is_strategy, refuse, warn
from playbook_plugins.lightning.gradient_norm import check_fsdp, fsdp_norm, sharded_norm, total_norm
from playbook_plugins.lightning.norm_window import NormWindow, ThresholdRule, concatenate, replay_thresholds

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer
    from torch.optim import Optimizer

# So many updates are seen before their clipped share is judged.
_MIN_JUDGED = 100
_NONFINITE = ("raise", "skip")


class PercentileGradientClipping(CallbackBase):
    """Clip the gradient's norm at a percentile of the norms seen so far, or at a fixed threshold.

    The norm is the L2 norm over all parameters of one optimizer, unscaled and after accumulation. A gradient g whose
    norm exceeds the threshold becomes ``threshold / norm * g``. The threshold of a step equals ``numpy.percentile``
    of the finite norms of the steps before it.

    Parameters
    ----------
    percentile
        In [0, 100]. The playbook recommends 90.
    threshold
        A fixed threshold instead, positive: the playbook's advice, read off an earlier run by
        ``record.clip_threshold(90)``.
    window
        How many of the latest norms the percentile looks at; all of them by default.
    min_steps
        How many norms must have been seen before the running percentile clips; at least 1.
    nonfinite
        What a NaN or infinite norm does. ``"raise"``, the default, ends the run with `InfeasibleError`: the update
        would destroy the weights, so that nothing after it is worth its cost, and the trial is to be known as
        diverged. ``"skip"`` leaves the weights and the optimizer's state bit-equal and goes on with the next batch
        (for optimizers that leave parameters without gradient alone, as all of torch's but L-BFGS do). Under a
        gradient scaler (16-mixed) the scaler skips such a step itself and nothing is raised.

    Attributes
    ----------
    windows
        One `NormWindow` an optimizer.

    Notes
    -----
    - Logs ``gradient_norm`` (unclipped), ``gradient_clip_threshold`` and ``gradient_clipped_share`` at the trainer's
      ``log_every_n_steps`` where it has a logger, with ``_1``, ``_2``, ... for further optimizers.
    - One host synchronisation a step, for the norm. Every rank decides alike; FSDP alone adds a collective.
    - `history` gives each norm with the threshold in force, for `playbook_plugins.charts.gradient_norms`.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed (fused optimizers too, whose gradients are scaled)
      accumulation         yes: the norm is that of the accumulated gradient, once an update
      manual optimization  yes: two optimizers, a window each; one with toggled or missing gradients is passed over
      ddp                  yes: gradients are equal on all ranks, so that no collective is added
      ddp_spawn            yes: the callback of the main process stays empty, as all state does there
      FSDP                 yes: FSDP2 (ModelParallelStrategy) with any optimizers, FSDP1 with one and wrapped as a whole
      DeepSpeed            refused: it clips inside its engine, after the hooks
      compile              yes: a compiled network; gradients must be dense
    """

    def __init__(
        self,
        percentile: float = 90.0,
        threshold: float | None = None,
        window: int | None = None,
        min_steps: int = 100,
        nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        if not 0 <= percentile <= 100:
            raise ValueError(
                f"`percentile` is {percentile}: it must lie between 0 and 100. The playbook recommends 90."
            )
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(
                f"`threshold` is {threshold}: it must be positive and finite. Pass a norm, for instance "
                "record.clip_threshold(90) of an earlier run, or None for the running percentile."
            )
        if window is not None and window < 1:
            raise ValueError(f"`window` is {window}: it must be at least 1. Pass None to look at all steps before.")
        if min_steps < 1:
            raise ValueError(f"`min_steps` is {min_steps}: the percentile needs at least 1 norm. Pass 1 or more.")
        if window is not None and threshold is None and window < min_steps:
            raise ValueError(
                f"`window` is {window} and `min_steps` {min_steps}: a window smaller than min_steps would never clip. "
                "Pass a larger window or fewer min_steps."
            )
        if nonfinite not in _NONFINITE:
            raise ValueError(
                f"`nonfinite` is {nonfinite!r}: it must be one of {list(_NONFINITE)}. Pass 'raise' or 'skip'."
            )
        self.percentile = percentile
        self.threshold = threshold
        self.window = window
        self.min_steps = min_steps
        self.nonfinite = nonfinite
        self.windows: list[NormWindow] = []
        self._n_clipped: list[int] = []
        # The settings, and from which norm of each optimizer on they held: a run may be resumed with others.
        self._rules: list[tuple[ThresholdRule, list[int]]] = []
        self._warned = False
        self._restored = False
        self._is_fsdp = self._is_sharded = False

    @property
    def clipped_share(self) -> float:
        """The share of all updates that were clipped, in [0, 1]; NaN before the first."""
        n_norms = sum(len(window.history) for window in self.windows)
        return sum(self._n_clipped) / n_norms if n_norms else math.nan

    @property
    def norms(self) -> NDArray[np.float64]:
        """All finite unclipped norms, shape (n_norms,), in the order of training, one optimizer after the other."""
        return concatenate([window.history for window in self.windows])

    def quantiles(self) -> NDArray[np.float64]:
        """Return the 0th, 1st, ..., 100th percentile of the norms of the run, shape (101,); empty without norms."""
        return norm_quantiles(self.norms)

    def histogram(self, n_bins: int = 50) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return edges, shape (n_bins + 1,), and counts, shape (n_bins,), of the norms of the run."""
        return norm_histogram(self.norms, n_bins)

    def history(self, optimizer: int = 0) -> GradientNorms:
        """Return every norm of one optimizer (by its place) with the threshold that was in force, to the last bit."""
        window = self.windows[optimizer]
        norms = np.array(window.history)
        # The thresholds follow from the norms: replaying 10^6 of them takes some 4 seconds, once, for a picture.
        # Kept, they would add 8 MB to the 4 MB that every checkpoint carries.
        starts = [begins[optimizer] if optimizer < len(begins) else 0 for _, begins in self._rules]
        parts = [
            replay_thresholds(norms[:end], rule, start)
            for (rule, _), start, end in zip(self._rules, starts, [*starts[1:], len(norms)], strict=True)
        ]
        return GradientNorms(
            update=window.updates(),
            norm=norms,
            threshold=np.concatenate([np.empty(0), *parts]),
            nonfinite=np.array(window.nonfinite, dtype=np.int64),
        )

    def current_threshold(self, optimizer: int = 0) -> float | None:
        """Return the threshold of the next step of one optimizer (by its place), None while nothing is clipped."""
        if self.threshold is not None:
            return self.threshold
        window = self.windows[optimizer]
        return window.value() if len(window) >= self.min_steps else None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.gradient_clip_val:
            raise ValueError(
                f"`gradient_clip_val` of the Trainer is {trainer.gradient_clip_val}: beside PercentileGradientClipping "
                "it would clip a second time. Remove it, or pass it here as threshold=."
            )
        refuse(
            trainer,
            self,
            DEEPSPEED,
            "it clips inside its engine, after the hooks",
            "Use ddp or FSDP, or set gradient_clipping in DeepSpeed's own configuration without this callback.",
        )
        self._is_fsdp = is_strategy(trainer, "FSDPStrategy")
        self._is_sharded = is_strategy(trainer, "ModelParallelStrategy")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_fsdp:
            check_fsdp(trainer, self)
        if not self._restored and trainer.global_step == 0:
            self.windows, self._n_clipped, self._rules, self._warned = [], [], [], False
        self._restored = False
        while len(self.windows) < len(trainer.optimizers):
            self.windows.append(NormWindow(self.percentile, self.window))
            self._n_clipped.append(0)
        rule = ThresholdRule(self.percentile, self.threshold, self.window, self.min_steps)
        if not self._rules or self._rules[-1][0] != rule:
            self._rules.append((rule, [len(window.history) for window in self.windows]))

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        gradients = [
            gradient
            for group in optimizer.param_groups
            for parameter in group["params"]
            if (gradient := parameter.grad) is not None
        ]
        place = trainer.optimizers.index(optimizer)
        window = self.windows[place]
        if self._is_fsdp:
            total = fsdp_norm(trainer)
        elif gradients:
            total = sharded_norm(gradients) if self._is_sharded else total_norm(gradients)
        else:
            window.pass_over()
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            # Divided on the device, so that the host waits once.
            total = total / scaler._get_scale_async().to(total.device)
        norm = float(total)
        threshold = self.current_threshold(place)
        window.add(norm)
        if not math.isfinite(norm):
            # A scaler skips such a step itself.
            if scaler is None:
                self._meet_nonfinite(trainer, optimizer)
            return
        if threshold is not None and norm > threshold > 0:
            if gradients:
                torch._foreach_mul_(gradients, threshold / norm)
            self._n_clipped[place] += 1
            if not self._warned and len(window.history) >= _MIN_JUDGED and self.clipped_share > 0.5:
                self._warned = True
                warn(
                    trainer,
                    f"PercentileGradientClipping has clipped {self.clipped_share:.0%} of the updates up to step "
                    f"{trainer.global_step}, more than half: the playbook's advice is to lower the learning rate "
                    "instead.",
                )
        if trainer.loggers and trainer._logger_connector.should_update_logs:
            self._log(pl_module, place, norm, threshold)

    def _meet_nonfinite(self, trainer: Trainer, optimizer: Optimizer) -> None:
        step = trainer.global_step
        if self.nonfinite == "raise":
            raise InfeasibleError(f"non-finite gradient norm at step {step}")
        # An optimizer leaves a parameter without gradient alone, and its own state with it.
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _log(self, pl_module: LightningModule, place: int, norm: float, threshold: float | None) -> None:
        suffix = f"_{place}" if place else ""
        values = {
            f"gradient_norm{suffix}": norm,
            f"gradient_clipped_share{suffix}": self._n_clipped[place] / len(self.windows[place].history),
        }
        if threshold is not None:
            values[f"gradient_clip_threshold{suffix}"] = threshold
        pl_module.log_dict(values, on_step=True, on_epoch=False, rank_zero_only=True)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "norms": [torch.from_numpy(window.packed()) for window in self.windows],
            "nonfinite": [torch.tensor(window.nonfinite, dtype=torch.int64) for window in self.windows],
            "without": [torch.tensor(window.without, dtype=torch.int64) for window in self.windows],
            "n_clipped": list(self._n_clipped),
            "rules": [(tuple(rule), list(begins)) for rule, begins in self._rules],
            "warned": self._warned,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.windows = []
        gaps = zip(state_dict["norms"], state_dict["nonfinite"], state_dict["without"], strict=True)
        for norms, nonfinite, without in gaps:
            window = NormWindow(self.percentile, self.window)
            window.load(norms.cpu().numpy(), nonfinite.tolist(), without.tolist())
            self.windows.append(window)
        self._n_clipped = list(state_dict["n_clipped"])
        self._rules = [(ThresholdRule(*rule), list(begins)) for rule, begins in state_dict["rules"]]
        self._warned = state_dict["warned"]
        self._restored = True
