"""Do all hosts train one model on different data? A callback that asks them as the fit starts, and stops it where not.

Playbook: "Considerations for multi-host pipelines": the same initialization, different shards of the data, different
seeds for dropout and augmentation, and logging and checkpoints by one host only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor
from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import DEEPSPEED, refuse, warn
from playbook_plugins.lightning.host_comparison import find_stream_faults, find_weight_faults, find_writer_faults
from playbook_plugins.lightning.host_division import find_data_faults
from playbook_plugins.lightning.host_folders import FolderClaims
from playbook_plugins.lightning.host_hashes import hash_generators
from playbook_plugins.lightning.host_loaders import Files
from playbook_plugins.lightning.host_reports import TrainingReport
from playbook_plugins.lightning.host_seeds import begin_stream, shared_seed
from playbook_plugins.lightning.host_state import add_data, part_of_data, report_weights, report_writer

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

T = TypeVar("T")

_FSDP1 = ("FSDPStrategy", "XLAFSDPStrategy")


class HostParity(CallbackBase):
    """Check, on all ranks together, that they train one model on different examples with different dropout.

    When the fit starts it raises on all ranks, in one message, what it finds:

    - **writers**: a checkpoint writer other than rank 0 alone, different folders, a logger that writes on several
      ranks, or another run that writes to the same folder at the same time (found with one process too);
    - **weights**: a parameter or a buffer whose bits are not the same on all ranks;
    - **sampler** and **examples**: distributed samplers with different seeds or settings, and examples that several
      ranks train on;
    - **files**: files that several ranks read, or data that is divided twice, by file and by example;
    - **dropout streams**: a generator that training draws from and whose state is the same on several ranks, which is
      what ``seed_everything`` leads to.

    It also gives each rank its own stream of random numbers, where `seed_hosts` was called in place of
    ``seed_everything``.

    Parameters
    ----------
    every_n_steps
        Also compare parameters and streams after every so many optimizer steps, at least 1; None, the default, does so
        at the start only.
    files
        A function that takes a training data set and returns the names of the files which this rank reads. By
        default a list of names in its attribute ``files``, ``file_names``, ``filenames``, ``urls`` or ``shards``
        counts, where it differs by rank: equal lists may be divided while reading.
    action
        ``"raise"``, or ``"warn"`` to warn on rank 0 and go on.

    Raises
    ------
    ValueError
        When an argument is out of its range, or the strategy cannot be checked.
    RuntimeError
        On all ranks, when a fault is found or one of them could not be looked at.

    Notes
    -----
    - **When.** Writers are checked in ``on_fit_start``, before anything is saved; all else in the first batch, after
      its forward pass and before any gradient. Each is one small collective, in which every rank takes part whatever
      it found by itself. The cost is a pass over the weights, and for samplers other than torch's DistributedSampler
      the start of an epoch. With one process only the folders are claimed.
    - **Weights.** Not compared: running statistics of batch normalization, what DDP was told to ignore, sparse tensors,
      and different shards of a tensor; replicas of one shard are. After the start only parameters are compared, as
      buffers may follow the data of their rank. Methods that let the ranks drift on purpose, such as local SGD, agree
      when they have just averaged.
    - **Examples.** The order of an epoch is drawn from a copy of the sampler, up to a million draws over all ranks, and
      compared where the data sets of the ranks look the same, in their attributes and their length; parts made by
      ``torch.utils.data.Subset`` are looked through. An overlap as small as the padding of DistributedSampler passes,
      and so does one by chance, of samplers that draw with replacement. Where that cannot be known, as for iterable
      data sets, the first batches must not be equal bit for bit, which augmentation may hide. Nothing is read from a
      data set.
    - **Streams.** What training draws is measured in the first forward pass, by random layers and functions alike. A
      model that draws nothing may have equal streams. Generators of the user's own, and those in workers, are not
      seen.
    - **Folders.** Rank 0 holds an advisory lock on the small file ``.playbook_writer`` during the fit, in the folders
      of the checkpoints and of the loggers' versions. It ends with the process.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed; bits are compared
      accumulation         yes: steps are Lightning's global_step
      manual optimization  yes: two optimizers, whose steps Lightning counts together
      ddp                  yes: two collectives as the fit starts, one for each later check
      ddp_spawn            yes: as ddp
      FSDP                 yes: FSDP2 (ModelParallelStrategy), replicas of shards are compared; refused: FSDP1
      DeepSpeed            refused: its partitioned weights cannot be compared here
      compile              yes: the network or the whole module
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        files: Files | None = None,
        action: Literal["raise", "warn"] = "raise",
    ) -> None:
        super().__init__()
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"`every_n_steps` is {every_n_steps}: it must be at least 1. Pass how many optimizer steps lie between "
                "two checks, or None to check as the fit starts only."
            )
        if files is not None and not callable(files):
            raise ValueError(
                f"`files` is {files!r}: it must be a function that takes the data set and returns the names of the "
                "files which this rank reads. Pass, for instance, lambda data: data.paths."
            )
        if action not in ("raise", "warn"):
            raise ValueError(f"`action` is {action!r}: it must be 'raise' or 'warn'. Pass what a fault should lead to.")
        self.every_n_steps = every_n_steps
        self.files = files
        self.action = action
        self._claims = FolderClaims()
        self._forget()

    def _forget(self) -> None:
        self._stage: str | None = None
        self._has_started = False
        # The optimizer steps of the run that is resumed, and those at the last check.
        self._resumed_step = 0
        self._checked_step = 0
        # The first batch's report before its forward pass, until it is compared, and what training then drew from.
        self._is_first = True
        self._names: list[str] = []
        self._pending: TrainingReport | None = None
        self._problem: Exception | None = None
        self._drawn: frozenset[str] = frozenset()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be checked."""
        self._claims.release()
        self._forget()
        self._stage = stage
        if stage == "fit":
            why = "whole parameters are on no rank, and flattened ones cannot be compared"
            refuse(trainer, self, _FSDP1, why, "Use ModelParallelStrategy (FSDP2), or ddp.")
            why = "its partitioned parameters cannot be compared"
            refuse(trainer, self, DEEPSPEED, why, "Use ddp, or ModelParallelStrategy.")

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Begin new streams at the step of a run that is resumed."""
        if self._stage == "fit":
            self._resumed_step = int(checkpoint["global_step"])
            if self._has_started:
                # Strategies that shard load a checkpoint late.
                self._begin_stream(trainer)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give each rank its stream, and check who writes."""
        if trainer.world_size > 1 and not torch.distributed.is_initialized():
            raise ValueError(
                f"`strategy` is {type(trainer.strategy).__name__}, which runs {trainer.world_size} processes without "
                "torch.distributed, through which HostParity compares them. Train with ddp or ModelParallelStrategy."
            )
        self._has_started = True
        self._begin_stream(trainer)
        reports = self._gather(trainer, lambda: report_writer(trainer, self._claims))
        self._judge(trainer, find_writer_faults(reports))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the steps from here."""
        self._checked_step = trainer.global_step

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the weights, the loaders and the generators before the first step."""
        if trainer.world_size == 1 or not self._is_first:
            return
        self._is_first = False
        try:
            self._names, report = report_weights(trainer, with_buffers=True)
            self._pending = add_data(report, trainer, batch, self.files)
        except Exception as error:  # raised in the collective, where no rank waits for this one
            self._problem = error

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Compare all ranks, before any gradient of the first step."""
        self._finish_first(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Compare all ranks at the steps that were asked for."""
        # Without Lightning's backward, as manual optimization may be.
        self._finish_first(trainer)
        every, step = self.every_n_steps, trainer.global_step
        if every is None or trainer.world_size == 1 or step // every == self._checked_step // every:
            return
        self._checked_step = step
        names: list[str] = []

        def collect() -> TrainingReport:
            found, report = report_weights(trainer, with_buffers=False)
            names.extend(found)
            return replace(report, drawn=self._drawn)

        reports = self._gather(trainer, collect)
        self._judge(trainer, find_weight_faults(reports, names) + find_stream_faults(reports))

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the folders back."""
        self._claims.release()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the folders back."""
        self._claims.release()

    def _begin_stream(self, trainer: Trainer) -> None:
        seed = shared_seed()
        if seed is not None and trainer.world_size > 1:
            begin_stream(seed, part_of_data(trainer)[0], max(self._resumed_step, trainer.global_step))

    def _finish_first(self, trainer: Trainer) -> None:
        """Compare what `on_train_batch_start` found, once."""
        pending, problem = self._pending, self._problem
        if pending is None and problem is None:
            return
        self._pending = self._problem = None

        def collect() -> TrainingReport:
            if problem is not None or pending is None:
                raise problem or RuntimeError
            after = hash_generators(trainer.strategy.root_device)
            self._drawn = frozenset(name for name in after if after[name] != pending.generators[name])
            return replace(pending, drawn=self._drawn)

        reports = self._gather(trainer, collect)
        faults = find_weight_faults(reports, self._names) + find_data_faults(reports) + find_stream_faults(reports)
        self._judge(trainer, faults)

    def _gather(self, trainer: Trainer, collect: Callable[[], T]) -> list[T]:
        """Return what each rank collects, on every rank; raise on all of them where one of them cannot."""
        error: Exception | None = None
        report: T | None = None
        try:
            report = collect()
        except Exception as caught:
            error = caught
        row = (report, None if error is None else f"{type(error).__name__}: {error}")
        rows: list[Any] = [row]
        if trainer.world_size > 1:
            rows = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(rows, row)
        failures = [f"rank {rank}: {failure}" for rank, (_, failure) in enumerate(rows) if failure is not None]
        if failures:
            raise RuntimeError(f"HostParity could not look at every rank. {'; '.join(failures)}") from error
        return [found for found, _ in rows]

    def _judge(self, trainer: Trainer, faults: list[str]) -> None:
        if not faults:
            return
        lines = "\n".join(f"- {fault}" for fault in faults)
        message = f"HostParity compared {trainer.world_size} rank(s) at step {trainer.global_step}:\n{lines}"
        if self.action == "raise":
            raise RuntimeError(message)
        warn(trainer, message)
