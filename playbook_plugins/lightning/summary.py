"""How did the run end, in a few flat keys that any logger can hold? For tables and charts over many runs.

Playbook: "Setting up experiment tracking".
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from playbook_plugins.analysis.infeasible import InfeasibleError, is_out_of_memory
from playbook_plugins.analysis.records import Status, TrialRecord
from playbook_plugins.analysis.records import summary_keys as summary_keys
from playbook_plugins.lightning._support import warn

if TYPE_CHECKING:
    from pytorch_lightning import Trainer


def classify(exception: BaseException) -> tuple[Status, str]:
    """Return how a run that ended by this exception is to be counted, and why.

    `InfeasibleError` and out of memory (CUDA, MPS, XPU, the CPU allocator, Python) mean that the point itself cannot
    be trained; Optuna's ``TrialPruned`` that it was not worth finishing; anything else is a failure.
    """
    text = str(exception)
    if isinstance(exception, InfeasibleError):
        return Status.INFEASIBLE, exception.reason
    if is_out_of_memory(exception):
        return Status.INFEASIBLE, f"out of memory: {text.partition(chr(10))[0][:300]}" if text else "out of memory"
    if any(cls.__name__ == "TrialPruned" for cls in type(exception).__mro__):
        return Status.PRUNED, text or "pruned"
    return Status.FAILED, repr(exception)[:500]


def log_summary(trainer: Trainer, record: TrialRecord) -> None:
    """Log the flat keys of a record to every logger of the trainer, on rank zero.

    Numbers go through ``log_metrics``, one call a logger, at the trainer's step. ``log_metrics`` of most loggers takes
    numbers only, so text goes to the run's summary in W&B, to ``add_text`` in TensorBoard, and to the hyperparameters
    in any other. The summary in W&B gets the numbers too, under these names even where the logger has a prefix.

    A logger that fails is warned of and left out: the run, and whatever exception has ended it, matter more.
    """
    if not trainer.is_global_zero:
        return
    keys = summary_keys(record)
    numbers = {name: float(value) for name, value in keys.items() if not isinstance(value, str)}
    for logger in trainer.loggers:
        # A logger that takes no infinity still learns the status.
        for log in (partial(logger.log_metrics, numbers), partial(_log_text, logger, keys)):
            try:
                log(step=trainer.global_step)
            except Exception as error:
                warn(trainer, f"{type(logger).__name__} could not log the summary of the run: {error!r}")


def _log_text(logger: Any, keys: dict[str, float | int | str], step: int) -> None:
    text = {name: value for name, value in keys.items() if isinstance(value, str)}
    # By name: the loggers of both packages match, and neither W&B nor TensorBoard is imported.
    kinds = {cls.__name__ for cls in type(logger).__mro__}
    if "WandbLogger" in kinds:
        logger.experiment.summary.update(keys)
    elif "TensorBoardLogger" in kinds:
        for name, value in text.items():
            logger.experiment.add_text(name, value, step)
    else:
        logger.log_hyperparams(text)
