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
from torch import Tensor
from typing_extensions import override

from playbook_plugins.analysis.infeasible import InfeasibleError
from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import DEEPSPEED, SHARDED, refuse, warn
from playbook_plugins.lightning.norm_window import NormWindow, concatenate, norm_histogram, norm_quantiles

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
    Logs ``gradient_norm`` (unclipped), ``gradient_clip_threshold`` and ``gradient_clipped_share`` at the trainer's
    ``log_every_n_steps`` where it has a logger, with ``_1``, ``_2``, ... for further optimizers.

    Support: 32, 64 and bf16 precision, bf16-mixed; 16-mixed (fused optimizers too, whose gradients are still scaled);
    gradient accumulation; manual optimization with several optimizers; ddp and ddp_spawn (gradients are equal on all
    ranks, so no collective is needed); torch.compile. FSDP, model parallelism and DeepSpeed are refused: each rank
    holds only a part of the norm. Gradients must be dense. One host synchronisation a step.
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
        self._n_steps: list[int] = []
        self._n_clipped: list[int] = []
        self._warned = False
        self._restored = False

    @property
    def clipped_share(self) -> float:
        """The share of all updates that were clipped, in [0, 1]; NaN before the first."""
        n_steps = sum(self._n_steps)
        return sum(self._n_clipped) / n_steps if n_steps else math.nan

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
            (*DEEPSPEED, *SHARDED),
            "each rank holds only a part of the gradient's norm",
            "Use ddp, or the strategy's own clipping without this callback.",
        )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._restored and trainer.global_step == 0:
            self.windows, self._n_steps, self._n_clipped, self._warned = [], [], [], False
        self._restored = False
        while len(self.windows) < len(trainer.optimizers):
            self.windows.append(NormWindow(self.percentile, self.window))
            self._n_steps.append(0)
            self._n_clipped.append(0)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        gradients = [
            parameter.grad
            for group in optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        if not gradients:
            return
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        norm = float(total_norm(gradients))
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            norm /= float(scaler.get_scale())
        if not math.isfinite(norm):
            if scaler is None:
                self._meet_nonfinite(trainer, optimizer)
            return
        place = next(place for place, known in enumerate(trainer.optimizers) if known is optimizer)
        threshold = self.current_threshold(place)
        if threshold is not None and norm > threshold > 0:
            torch._foreach_mul_(gradients, threshold / norm)
            self._n_clipped[place] += 1
        self._n_steps[place] += 1
        self.windows[place].add(norm)
        if not self._warned and self._n_steps[place] >= _MIN_JUDGED and self.clipped_share > 0.5:
            self._warned = True
            warn(
                trainer,
                f"PercentileGradientClipping has clipped {self.clipped_share:.0%} of the updates up to step "
                f"{trainer.global_step}, more than half: the playbook's advice is to lower the learning rate instead.",
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
            f"gradient_clipped_share{suffix}": self._n_clipped[place] / self._n_steps[place],
        }
        if threshold is not None:
            values[f"gradient_clip_threshold{suffix}"] = threshold
        pl_module.log_dict(values, on_step=True, on_epoch=False, rank_zero_only=True)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "norms": [torch.from_numpy(window.packed()) for window in self.windows],
            "n_steps": list(self._n_steps),
            "n_clipped": list(self._n_clipped),
            "warned": self._warned,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.windows = []
        for norms in state_dict["norms"]:
            window = NormWindow(self.percentile, self.window)
            window.load(norms.cpu().numpy())
            self.windows.append(window)
        self._n_steps = list(state_dict["n_steps"])
        self._n_clipped = list(state_dict["n_clipped"])
        self._warned = state_dict["warned"]
        self._restored = True


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the L2 norm over all gradients, without waiting for the device, accumulated in float32 at least."""
    if not {gradient.dtype for gradient in gradients}.isdisjoint((torch.float16, torch.bfloat16)):
        norms = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients]
    else:
        norms = list(torch._foreach_norm(gradients))
    if len({norm.device for norm in norms}) > 1:
        norms = [norm.to(norms[0].device) for norm in norms]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
