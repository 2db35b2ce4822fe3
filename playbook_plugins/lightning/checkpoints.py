"""Which checkpoints should be kept? The best by their own evaluation, and the last one, to resume from.

Playbook: "Saving checkpoints and retrospectively selecting the best checkpoint": save at intervals and, after
training, choose the best by its validation result, instead of stopping early.
"""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import proxy

import torch
from typing_extensions import override

from playbook_plugins.lightning._base import ModelCheckpointBase
from playbook_plugins.lightning._saved_weights import refuse_sharded
from playbook_plugins.lightning.atomic_files import flush_folder, remove_leftovers
from playbook_plugins.lightning.checkpoint_index import (
    INDEX_NAME,
    CheckpointIndex,
    Evaluation,
    load_best,
    select_checkpoint,
)
from playbook_plugins.lightning.checkpoint_plan import Plan, free_name, index_from_state, moments, plan_evaluation
from playbook_plugins.lightning.checkpoint_writer import CheckpointWriter, warn_of_failure

if TYPE_CHECKING:
    import pytorch_lightning as pl


class BestCheckpoints(ModelCheckpointBase):
    """Save after each evaluation; keep the best `save_top_k` files and always the last one.

    A `ModelCheckpoint` whose files carry the score of their own step: it saves in ``on_validation_end``, whatever
    triggered the evaluation, at step 0 and in the middle of an epoch too, but not after the sanity check. So
    ``trainer.test(ckpt_path="best")`` and ``trainer.fit(ckpt_path="last")`` work.

    - ``step=120.ckpt`` holds the state after 120 optimizer steps. An evaluation whose score is NaN or infinite is
      never kept. ``last.ckpt`` is replaced at every evaluation, good or bad: a second name of the file just written,
      where that is kept, so that an evaluation costs one file.
    - ``checkpoints.json`` lists all evaluations of the run: step, score, file or null, all metrics, time. It is
      enough to choose in retrospect, also by another metric: `select` here, `select_checkpoint` and `load_best` from
      the folder alone.
    - Files are written beside their target, flushed and renamed onto it; a run killed at any moment leaves whole
      files, and the index lists no others. When a file cannot be written, a warning says so and training goes on.
    - It deletes only files that it wrote itself (in the run that it resumes, too), and never the file that the run
      was resumed from. A name that exists already gets a ``-v1``; the index of an earlier run in the folder is kept,
      under ``earlier_runs``. A resumed run keeps its list, in the same folder or a moved one.
    - With `WeightEMA` before it, the files hold the average and the raw weights (see there).

    Remote folders and other checkpoint plugins are refused.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed
      accumulation         yes: steps are Lightning's global_step
      manual optimization  yes: two optimizers, whose steps Lightning counts together
      ddp                  yes: rank 0 decides and writes
      ddp_spawn            yes: rank 0 decides and writes; the main process reads the list from the folder
      FSDP                 refused: FSDP1 and FSDP2; use Lightning's ModelCheckpoint
      DeepSpeed            refused: use Lightning's ModelCheckpoint
      compile              yes: the files load into the model without compilation

    Parameters
    ----------
    monitor
        The logged validation metric to keep the best by.
    mode
        ``"min"`` or ``"max"``: which way it gets better.
    save_top_k
        How many of the best to keep, >= 0; -1 keeps all.
    dirpath
        A local folder. By default, as with `ModelCheckpoint`, ``checkpoints`` in the folder of the first logger's
        version, or in the Trainer's ``default_root_dir``.
    save_weights_only
        Leave out all that resuming needs.
    clock
        Returns seconds since the epoch, for the index.

    Raises
    ------
    ValueError
        When an argument is out of its range, the folder is remote or shared with another such callback, the strategy
        shards the model, the metric was not logged, or an index of another kind lies in the folder.
    """

    def __init__(
        self,
        monitor: str,
        mode: str = "min",
        save_top_k: int = 1,
        dirpath: str | Path | None = None,
        *,
        save_weights_only: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"`mode` is {mode!r}: it must be 'min' or 'max'. Pass which way {monitor} gets better.")
        if save_top_k < -1:
            raise ValueError(
                f"`save_top_k` is {save_top_k}: it must be at least 0, or -1 to keep every checkpoint. Pass how many "
                "of the best to keep."
            )
        _refuse_remote(dirpath)
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            monitor=monitor,
            mode=mode,
            save_top_k=save_top_k,
            save_last=True,
            save_weights_only=save_weights_only,
            save_on_train_epoch_end=False,
        )
        self._clock = clock
        self._stage: str | None = None
        self._restored: dict[str, Any] | None = None
        self._index = CheckpointIndex(monitor=monitor, mode=mode)

    @property
    @override
    def state_key(self) -> str:
        """One key for each metric and direction."""
        return f"BestCheckpoints{{'monitor': {self.monitor!r}, 'mode': {self.mode!r}}}"

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations so far, in the order of training."""
        return list(self._current().evaluations)

    @property
    def kept_checkpoints(self) -> list[str]:
        """The paths of the files kept, the best first."""
        return [os.path.join(self._folder(), str(row.file)) for row in self._current().ranked()]

    def select(self, metric: str | None = None, mode: str | None = None) -> str:
        """Choose in retrospect: return the path of the best kept file, also by another metric than the monitored one.

        Parameters
        ----------
        metric, mode
            As in `select_checkpoint`.

        Raises
        ------
        ValueError
            As `select_checkpoint`.
        """
        return select_checkpoint(self._folder(), metric, mode)

    def load_best(self, model: torch.nn.Module, metric: str | None = None, mode: str | None = None) -> str:
        """Load the weights of the best kept file into a model, and return its path; see `load_best` for a folder."""
        return load_best(model, self._folder(), metric, mode)

    def _folder(self) -> str:
        # Under ddp_spawn all that comes back from the workers is the path of the best file.
        return str(self.dirpath or os.path.dirname(self.best_model_path))

    def _current(self) -> CheckpointIndex:
        if not self._index.evaluations and self.best_model_path and os.path.isdir(self._folder()):
            return CheckpointIndex.read(self._folder())
        return self._index

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Settle the folder, and refuse what cannot be written."""
        # For the stage "fit" the base warns of a folder that is not empty; here nothing in it can be harmed.
        super().setup(trainer, pl_module, "validate")
        self._stage = stage
        _refuse_remote(self.dirpath)
        self.dirpath = os.path.abspath(str(self.dirpath))
        if stage != "fit":
            return
        self._restored = None
        refuse_sharded(trainer, "BestCheckpoints", "use Lightning's ModelCheckpoint")
        plugin = type(trainer.strategy.checkpoint_io).__name__
        if plugin != "TorchCheckpointIO":
            raise ValueError(
                f"`plugins` holds {plugin}: BestCheckpoints writes its files itself, so that they are replaced at once "
                "and on time. Remove the plugin, or use Lightning's ModelCheckpoint."
            )
        callbacks = getattr(trainer, "callbacks", [])
        for other in callbacks:
            if isinstance(other, BestCheckpoints) and other is not self and other.dirpath == self.dirpath:
                raise ValueError(
                    f"`dirpath` is {self.dirpath!r} for two BestCheckpoints: each needs a folder of its own for its "
                    "last.ckpt and its index. Pass another dirpath to one of them."
                )
        if trainer.is_global_zero and any("EarlyStopping" in _class_names(callback) for callback in callbacks):
            warnings.warn(
                "EarlyStopping is among the callbacks: a run that ends on a noisy evaluation biases the best step, "
                "which tells whether to train longer. The playbook's advice is to train for max_steps and to select "
                "the best checkpoint afterwards; remove EarlyStopping.",
                stacklevel=2,
            )

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up the list of the run, and make the folder ready."""
        if _is_dry_run(trainer):
            return
        found: CheckpointIndex | ValueError | None = None
        if trainer.is_global_zero:
            try:
                found = self._prepare(trainer)
            except ValueError as error:  # raised on all ranks, none waits for another
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, ValueError):
            raise found
        if found is not None:
            self._index = found
        self._restored = None
        self._publish()

    def _prepare(self, trainer: pl.Trainer) -> CheckpointIndex:
        """Return the index with which this fit begins, on rank 0."""
        folder = Path(self._folder())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
        except OSError as error:
            warn_of_failure(error, str(folder))
        old = CheckpointIndex.read(folder) if (folder / INDEX_NAME).exists() else None
        mine = self._index
        if self._restored is not None:
            mine = index_from_state(self._restored, mine, folder, old)
        elif mine.evaluations and trainer.global_step < mine.evaluations[-1].step:
            mine = replace(mine, evaluations=(), last=None)  # the same callback in a new run
        if old is not None:
            earlier = old.earlier_runs
            if not moments(old.evaluations) <= moments(mine.evaluations):
                earlier = (*earlier, old.evaluations)
            mine = replace(mine, earlier_runs=earlier)
        if mine.last is None:
            mine = replace(mine, last=free_name(folder, "last"))
        return mine

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save this evaluation, with its own score."""
        if self._stage != "fit" or _is_dry_run(trainer) or trainer.sanity_checking:
            return
        done = self._index.evaluations
        if done and done[-1].step >= trainer.global_step:
            return  # the same step again: an epoch's end after a step's evaluation, or a resumed run repeating one
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.monitor not in metrics:
            raise ValueError(
                f"`monitor` is {self.monitor!r}: no such metric was logged at step {trainer.global_step}. Log it in "
                f"validation_step, or pass one of {sorted(metrics)}."
            )
        plan: Plan | None = None
        if trainer.is_global_zero:  # whose metrics count
            row = Evaluation(
                step=trainer.global_step,
                score=metrics[self.monitor],
                file=None,
                metrics=metrics,
                time=self._clock(),
            )
            plan = plan_evaluation(self._index, row, self.save_top_k, Path(self._folder()))
        plan = trainer.strategy.broadcast(plan)
        if plan is not None:
            self._carry_out(trainer, plan)

    def _carry_out(self, trainer: pl.Trainer, plan: Plan) -> None:
        folder = Path(self._folder())
        before = self._index
        # Settled before the save, because the file holds the list with itself in it.
        self._index = plan.carried_out(before)
        self._publish(plan.row)
        writer = CheckpointWriter(folder, plan.row.file, str(self._index.last))
        usual = trainer.strategy.checkpoint_io
        trainer.strategy.checkpoint_io = writer  # type: ignore[assignment]
        try:
            trainer.save_checkpoint(folder / (plan.row.file or str(self._index.last)), self.save_weights_only)
        finally:
            trainer.strategy.checkpoint_io = usual
        written, problem = trainer.strategy.broadcast((writer.written, writer.problem))
        if not written:
            plan = plan.without_file()
            self._index = plan.carried_out(before)
            self._publish(plan.row)
        self._last_global_step_saved = trainer.global_step
        if trainer.is_global_zero:
            self._finish(trainer, plan.evicted, problem)

    def _finish(self, trainer: pl.Trainer, evicted: Evaluation | None, problem: str | None) -> None:
        """Write the index, and only then delete what it no longer lists."""
        folder = Path(self._folder())
        if problem is not None:
            warnings.warn(problem, stacklevel=2)
        try:
            self._index.write(folder)
            if evicted is not None and _may_delete(trainer, folder, str(evicted.file)):
                (folder / str(evicted.file)).unlink(missing_ok=True)
        except OSError as error:
            warn_of_failure(error, str(folder / INDEX_NAME))
        flush_folder(folder)
        for logger in trainer.loggers:
            logger.after_save_checkpoint(proxy(self))

    def _publish(self, newest: Evaluation | None = None) -> None:
        """Say it in the words of ModelCheckpoint, which loggers and the Trainer read."""
        folder = self._folder()
        ranked = self._index.ranked()
        self.best_k_models = {os.path.join(folder, str(row.file)): torch.tensor(row.score) for row in ranked}
        paths = list(self.best_k_models)
        self.best_model_path = paths[0] if paths else ""
        self.best_model_score = self.best_k_models[paths[0]] if paths else None
        self.kth_best_model_path = paths[-1] if paths else ""
        worst = math.inf if self.mode == "min" else -math.inf
        self.kth_value = self.best_k_models[paths[-1]] if paths else torch.tensor(worst)
        self.last_model_path = os.path.join(folder, self._index.last or "")
        if newest is not None:
            self.current_score = torch.tensor(newest.score)
            self._last_checkpoint_saved = os.path.join(folder, newest.file or self._index.last or "")

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the list of the run as plain values."""
        return {
            "dirpath": self._folder(),
            "last": self._index.last,
            "evaluations": [row.to_dict() for row in self._index.evaluations],
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the list of a run that is resumed; a file that is only tested does not change the list."""
        if self._stage in (None, "fit"):
            self._restored = state_dict

    # ModelCheckpoint would save here too, with the score of an earlier evaluation.
    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save nothing: no evaluation belongs to this moment."""

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save nothing: no evaluation belongs to this moment."""

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save nothing: no evaluation belongs to this moment."""


def _refuse_remote(dirpath: Any) -> None:
    if dirpath is not None and "://" in str(dirpath):
        raise ValueError(
            f"`dirpath` is {str(dirpath)!r}: BestCheckpoints writes to local folders only, where a file can be "
            "replaced at once. Pass a local path and copy the folder afterwards, or use Lightning's ModelCheckpoint."
        )


def _is_dry_run(trainer: pl.Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))


def _class_names(thing: object) -> set[str]:
    return {base.__name__ for base in type(thing).__mro__}


def _may_delete(trainer: pl.Trainer, folder: Path, file: str) -> bool:
    """Whether a file of the list lies in the folder, and the run was not resumed from it."""
    path = (folder / file).resolve()
    resumed = None if trainer.ckpt_path is None else Path(trainer.ckpt_path).resolve()
    return path.parent == folder.resolve() and path != resumed
