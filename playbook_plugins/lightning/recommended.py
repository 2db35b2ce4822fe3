"""Which callbacks make one run train well and tell what happened? The recommended stack, in the recommended order.

Playbook: "Additional guidance for the training pipeline" and "How can optimization failures be debugged and
mitigated?".
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning.batch_norm import BatchNormSync
from playbook_plugins.lightning.batch_size_probe import BatchSizeProbe
from playbook_plugins.lightning.checkpoints import BestCheckpoints
from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.recorder import TrialRecorder
from playbook_plugins.lightning.warmup import LearningRateWarmup
from playbook_plugins.lightning.weight_ema import WeightEMA

# Enough evaluations for a smooth curve and a best step that is known to 2% of training.
_N_EVALUATIONS = 50


def playbook_callbacks(
    monitor: str,
    mode: Literal["min", "max"],
    max_steps: int,
    warmup_steps: int = 0,
    *,
    every_n_steps: int | None = None,
    clip_percentile: float | None = 90.0,
    clip_threshold: float | None = None,
    half_life: float | None = None,
    train: str = "loss",
    save_top_k: int = 3,
    dirpath: str | Path | None = None,
    probe: bool = False,
) -> list[CallbackBase]:
    """Return the recommended callbacks, in order: pass them to a Trainer as ``callbacks=[*playbook_callbacks(...)]``.

    They come in the order `BatchSizeProbe`, `LearningRateWarmup`, `PercentileGradientClipping`, `PeriodicEvaluation`,
    `WeightEMA`, `BatchNormSync`, `TrialRecorder`, `BestCheckpoints`; those that are not asked for are left out.
    Callbacks of your own may stand anywhere among them. Any other order gives the same run.

    Parameters
    ----------
    monitor
        The objective: a metric that is logged during validation.
    mode
        ``"min"`` or ``"max"``: which way it gets better.
    max_steps
        The planned length of training in optimizer steps, at least 1, as the Trainer gets it; without warmup.
    warmup_steps
        Optimizer steps of warmup that come before them; 0, the default, for none. Where training is unstable without:
        tune it over orders of magnitude and take the shortest that is stable.
    every_n_steps
        Optimizer steps between evaluations; by default a fiftieth of ``max_steps``, at least 1.
    clip_percentile
        Clip at this running percentile of the gradient norms, in [0, 100]; None leaves clipping out.
    clip_threshold
        Clip at this fixed norm instead, read off an earlier run by ``record.clip_threshold(90)``.
    half_life
        The half-life of the average of the weights, in optimizer steps; None, the default, for no average.
    train
        Which entry of what ``training_step`` returns is the training objective of the curve.
    save_top_k
        How many of the best checkpoints to keep.
    dirpath
        The folder of the checkpoints; by default where Lightning keeps them.
    probe
        Whether to measure the throughput over batch sizes once, before training starts.

    Returns
    -------
    list of Callback
        For the Trainer of either package. The `TrialRecorder` among them holds the record of the run:
        ``next(one for one in callbacks if isinstance(one, TrialRecorder)).record``.

    Raises
    ------
    ValueError
        When ``max_steps`` is below 1, or an argument of one of the callbacks is out of its range.

    Notes
    -----
    The playbook's remedies are not all on by default: warmup and averaging have a price (steps, and memory for a
    second set of weights), and the length of each is to be tuned. Clipping is on because it measures the norms that
    say whether it is needed; pass ``clip_threshold=`` for the playbook's fixed threshold once a run has shown it.
    """
    if max_steps < 1:
        raise ValueError(
            f"`max_steps` is {max_steps}: the recommended callbacks need the length of training, at least 1 optimizer "
            "step. Pass the same max_steps as to the Trainer, or build the callbacks one by one for an endless run."
        )
    if clip_percentile is None and clip_threshold is not None:
        raise ValueError(
            f"`clip_percentile` is None and `clip_threshold` is {clip_threshold}: the one leaves clipping out, the "
            "other asks for it. Pass clip_threshold alone to clip at a fixed norm."
        )
    stack: list[CallbackBase] = [BatchSizeProbe()] if probe else []
    if warmup_steps:
        stack.append(LearningRateWarmup(warmup_steps))
    if clip_percentile is not None:
        stack.append(PercentileGradientClipping(clip_percentile, threshold=clip_threshold))
    stack.append(PeriodicEvaluation(max(1, max_steps // _N_EVALUATIONS) if every_n_steps is None else every_n_steps))
    if half_life is not None:
        stack.append(WeightEMA(half_life=half_life))
    stack += [
        BatchNormSync(),
        TrialRecorder(monitor, mode, train=train),
        BestCheckpoints(monitor, mode, save_top_k=save_top_k, dirpath=dirpath),
    ]
    return stack
