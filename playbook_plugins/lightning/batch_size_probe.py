"""Which batch size does the hardware use best? A callback that tries them all before training, and leaves no trace.

Playbook: "Choosing the batch size", "Determining the feasible batch sizes and estimating training throughput".
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from playbook_plugins.analysis.throughput import Throughput
from playbook_plugins.analysis.throughput_text import describe_throughput
from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import DEEPSPEED, SHARDED, SPAWNED, inform, refuse, warn
from playbook_plugins.lightning.probe_batches import prefetched
from playbook_plugins.lightning.probe_run import ProbeSettings, measure_throughput
from playbook_plugins.lightning.probe_search import Attempt, Measured

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


class BatchSizeProbe(CallbackBase):
    """Time training steps at doubling batch sizes, before the first step of `fit`, and recommend one.

    The playbook determines the feasible batch sizes by training jobs of doubling batch size for a few steps each, until
    one exceeds the memory, and then compares their throughput: while the accelerator is not saturated, the throughput
    doubles with the batch size. Lightning's `BatchSizeFinder` measures memory only, and sets the largest size that
    fits, which is often far beyond the one from which on nothing is gained. This callback recommends the largest size
    that is at least 10% faster, in examples per second, than half of it.

    It changes nothing, neither the batch size nor the run: everything that its steps touch is put back bit for bit.
    Set the recommended size yourself, and tune the other hyperparameters at that size: most of them, above all those
    of the optimizer and of regularization, have to be tuned again when the batch size changes.

    Parameters
    ----------
    max_batch_size
        The largest batch size to try, per device. On a CPU choose it so that memory suffices: some systems end a
        process rather than refuse it memory.
    start
        The first batch size; each further one is twice the one before. Where it does not fit, smaller ones are tried.
        The default is 2, since batch normalization cannot train on a single example.
    n_warmup_steps
        Steps at each batch size before any is timed.
    n_steps
        Steps that are timed at least; more follow until the standard error of their median is below 2%.
    max_seconds
        No further step of a batch size is timed after so many seconds, once there are three.
    every_fit
        Whether it runs again in each further `fit` and after a resume. By default it runs once.
    clock
        Returns the time in seconds.

    Attributes
    ----------
    result
        A `playbook_plugins.analysis.throughput.Throughput`; None until it has run.

    Notes
    -----
    A step is the fetching of a batch, its transfer, the forward and backward pass, and one update of the optimizer,
    with the module's own hooks and without those of callbacks. It runs before the first step of training, once the
    module's hooks that begin the epoch have run.

    Batches come from a loader of its own over a map-style data set. A loader over a stream, or any other iterable, is
    read ahead instead: its batches are kept, cut and joined to the size wanted, and training sees them afterwards. So
    a stream that draws from Python's, numpy's or torch's global generators in the process of training draws some
    numbers earlier than it would have. Batches that cannot be cut are made by the hook ``train_dataloader`` after the
    attribute ``batch_size`` of the module, its hparams or the data module was set; the attribute is set back.

    A copy of parameters and optimizer state is kept in CPU memory meanwhile. What code outside of the module, the
    callbacks, the optimizers and the data does in a training step (writing a file, say) is not taken back; the peak
    memory that the device counts is reset. Code compiled by torch.compile is compiled anew.

    At the end of `fit` the numbers at the recommended size go to the loggers, as ``playbook_probe_batch_size``,
    ``playbook_probe_examples_per_second``, ``playbook_probe_seconds_per_step``, ``playbook_probe_data_wait_share``,
    ``playbook_probe_peak_memory`` and ``playbook_probe_largest_batch_size``.

    Under ddp each rank runs its steps by itself and all agree after each size, so that a rank that runs out of memory
    leaves no other one waiting; the slowest rank counts. The sum of the gradients over the ranks is timed apart and
    added in full, which is an upper bound: DDP hides part of it behind the backward pass. A training step must not
    communicate with other ranks by ``torch.distributed`` itself.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed (the scaler is warmed up and put back)
      accumulation         yes: one batch and one update are timed; accumulation brings no throughput
      manual optimization  yes: two optimizers, which the training step itself steps
      ddp                  yes: all ranks agree on each size; SyncBatchNorm is refused
      ddp_spawn            refused: the result would stay behind in the worker process
      FSDP                 refused: every step communicates, so that one rank's failure would hang the others
      DeepSpeed            refused: it takes the optimizer step itself
      compile              yes: each size is compiled anew, and training afterwards too
    """

    def __init__(
        self,
        max_batch_size: int = 8192,
        start: int = 2,
        n_warmup_steps: int = 3,
        n_steps: int = 10,
        max_seconds: float = 2.0,
        every_fit: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if start < 1:
            raise ValueError(f"`start` is {start}: a batch holds at least 1 example. Pass a power of two, such as 2.")
        if max_batch_size < start:
            raise ValueError(
                f"`max_batch_size` is {max_batch_size} and `start` {start}: the search goes up from start. Pass a "
                "larger max_batch_size or a smaller start."
            )
        if n_warmup_steps < 1:
            raise ValueError(
                f"`n_warmup_steps` is {n_warmup_steps}: it must be at least 1, for the first step also allocates "
                "memory. Pass 1 or more."
            )
        if n_steps < 3:
            raise ValueError(f"`n_steps` is {n_steps}: a median needs at least 3 steps. Pass 3 or more.")
        if not 0 <= max_seconds < math.inf:
            raise ValueError(
                f"`max_seconds` is {max_seconds}: it must be finite and not negative. Pass the time that each batch "
                "size may take, in seconds."
            )
        self.max_batch_size = max_batch_size
        self.start = start
        self.n_warmup_steps = n_warmup_steps
        self.n_steps = n_steps
        self.max_seconds = max_seconds
        self.every_fit = every_fit
        self.clock = clock
        self.result: Throughput | None = None
        self._is_due = False
        self._seen: list[Any] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            _refuse_strategies(trainer, self)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_due = (self.result is None or self.every_fit) and not getattr(trainer, "fast_dev_run", False)
        self._seen = prefetched(trainer) if self._is_due else []

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if not self._is_due:
            return
        # Only now have all hooks run on which a training step may depend, and nothing has been trained.
        self._is_due = False
        try:
            self.run(trainer, pl_module)
        finally:
            self._seen = []

    def run(self, trainer: Trainer, pl_module: LightningModule) -> Throughput:
        """Measure now, inside of a running `fit` and between two steps, and return the result.

        Raises
        ------
        ValueError
            When the trainer is not training, or trains in a way that is not supported.
        """
        if not trainer.training:
            stage = getattr(trainer.state.stage, "value", None)
            raise ValueError(
                f"`trainer` is in stage {stage}: the probe runs training steps. Call run from a hook of "
                "training between two steps, such as on_train_batch_end."
            )
        _refuse_strategies(trainer, self)
        _refuse_synchronized_norms(trainer, pl_module)
        inform(
            trainer,
            f"BatchSizeProbe: timing training steps from batch size {self.start} on, up to {self.max_batch_size}. "
            "It changes nothing: afterwards training goes on as if it had not run.",
        )
        if trainer.accumulate_grad_batches > 1:
            inform(
                trainer,
                f"BatchSizeProbe: accumulate_grad_batches is {trainer.accumulate_grad_batches}. Gradient accumulation "
                "simulates a larger batch and brings no throughput: the playbook advises to avoid it.",
            )
        settings = ProbeSettings(
            max_batch_size=self.max_batch_size,
            start=self.start,
            n_warmup_steps=self.n_warmup_steps,
            n_steps=self.n_steps,
            max_seconds=self.max_seconds,
            clock=self.clock,
        )
        result = measure_throughput(
            trainer,
            pl_module,
            settings,
            tell=lambda batch_size, outcome: inform(trainer, f"BatchSizeProbe: {_line(batch_size, outcome)}"),
            ignored=[self],
            seen=self._seen,
        )
        self.result = result
        inform(trainer, f"BatchSizeProbe:\n{describe_throughput(result)}")
        if not len(result):
            warn(trainer, "BatchSizeProbe: not even a batch of one example fits into memory.")
        return result

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._log(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._log(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self.result is None else {"result": self.result.to_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "result" in state_dict:
            self.result = Throughput.from_dict(state_dict["result"])

    def _log(self, trainer: Trainer) -> None:
        """Log at the end, so that the probe itself leaves the loggers alone."""
        if self.result is None:
            return
        values = _summary(self.result)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)


def _summary(result: Throughput) -> dict[str, float]:
    """Return the numbers at the recommended size under flat names; what is unknown is left out."""
    row = result.recommended_row
    if row is None:
        return {}
    values = {
        "batch_size": float(result.batch_size[row]),
        "examples_per_second": float(result.examples_per_second[row]),
        "seconds_per_step": float(result.seconds_per_step[row]),
        "data_wait_share": float(result.data_wait_share[row]),
        "peak_memory": float(result.peak_memory[row]),
        "largest_batch_size": float(result.batch_size[-1]),
    }
    return {f"playbook_probe_{name}": value for name, value in values.items() if not math.isnan(value)}


def _line(batch_size: int, outcome: Attempt) -> str:
    if isinstance(outcome, Measured):
        rate = batch_size / outcome.seconds
        return f"batch size {batch_size}: {outcome.seconds * 1e3:,.3g} ms a step, {rate:,.0f} examples a second"
    return f"batch size {batch_size}: " + ("out of memory." if outcome == "memory" else "more than the data hold.")


def _refuse_strategies(trainer: Trainer, probe: BatchSizeProbe) -> None:
    refuse(trainer, probe, SPAWNED, "the result would stay behind in the worker process", "Use strategy='ddp'.")
    refuse(
        trainer,
        probe,
        SHARDED,
        "every step communicates, so that a rank that runs out of memory would leave the others waiting",
        "Probe with strategy='ddp' or on one device, if the model fits there.",
    )
    refuse(trainer, probe, DEEPSPEED, "it takes the optimizer step itself", "Probe with strategy='ddp'.")


def _refuse_synchronized_norms(trainer: Trainer, pl_module: LightningModule) -> None:
    if trainer.world_size > 1 and any("SyncBatchNorm" in type(module).__name__ for module in pl_module.modules()):
        raise ValueError(
            "`model` has SyncBatchNorm layers, and BatchSizeProbe does not support them on several devices: their "
            "forward communicates, so that a rank that runs out of memory would leave the others waiting. Probe on "
            "one device, or use ordinary batch normalization, with BatchNormSync for the running statistics."
        )
