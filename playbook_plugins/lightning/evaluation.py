"""At which steps is the model evaluated? Every n optimizer steps, before the first and after the last, never twice.

Playbook: "Setting up periodic evaluations": evaluate at regular step intervals, not regular time intervals, with a
batch size at least as large as the one for training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import DEEPSPEED, is_fitting, refuse, warn
from playbook_plugins.lightning.random_state import capture, restore

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

# No epoch index is a multiple of it: Lightning's own check for validation says no.
_NEVER = 2**62
# Settings of the trainer while this callback decides.
_OFF = {
    "val_check_interval": 1.0,
    "check_val_every_n_epoch": _NEVER,
    "num_sanity_val_steps": 0,
    "_val_check_time_interval": None,
}


class PeriodicEvaluation(CallbackBase):
    """Evaluate before the first update, after every ``every_n_steps`` optimizer steps and after the last one.

    Parameters
    ----------
    every_n_steps
        In optimizer steps, at least 1: the same budget between evaluations whatever the accumulation of gradients,
        the length of an epoch or the speed of the machine.

    Notes
    -----
    It replaces Lightning's own rule for when to validate: ``val_check_interval``, ``check_val_every_n_epoch`` and
    time-based checks have no effect beside it (it warns), and the evaluation at step 0 takes the place of the sanity
    check. Every evaluation is a whole validation run with all hooks of all callbacks. It leaves no trace in training:
    the random number generators continue as if it had not happened, and each module gets its mode back.

    Under manual optimization with several optimizers Lightning counts the steps of all of them; an evaluation then
    comes at the end of the first batch at which the next multiple is reached. Training that ends in a way that shows
    only afterwards (early stopping) is evaluated in ``on_train_end``. A run resumed from a checkpoint that was written
    before a due evaluation evaluates first.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed, 16-mixed; a step that the scaler skips counts, as in max_steps
      accumulation         yes: optimizer steps are counted, not batches
      manual optimization  yes: two optimizers, by the end of the batch that reaches a multiple
      ddp                  yes: all ranks evaluate at the same steps
      ddp_spawn            yes: all ranks evaluate at the same steps
      FSDP                 yes: FSDP1 and FSDP2, resumed too
      DeepSpeed            refused: it counts optimizer steps itself
      compile              yes: compiled modules are evaluated
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(
                f"`every_n_steps` is {every_n_steps}: it must be at least 1, in optimizer steps. Pass for instance a "
                "hundredth of max_steps."
            )
        self.every_n_steps = every_n_steps
        self._stage: str | None = None
        self._last_step = -1
        self._restored = False
        self._rng: dict[str, Any] | None = None
        self._settings: dict[str, Any] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stage = stage
        self._restored = False
        if stage != "fit":
            return
        refuse(
            trainer,
            self,
            DEEPSPEED,
            "it counts optimizer steps itself",
            "Use val_check_interval of the Trainer, or ddp instead.",
        )
        if not trainer.enable_validation:
            raise ValueError(
                "`validation_step` or the validation data is missing, or `limit_val_batches` is 0: PeriodicEvaluation "
                "has nothing to evaluate. Define validation_step and pass a validation loader to fit."
            )
        # Lacking where validation goes by the clock; and the integer 1 is one batch, the default 1.0 one epoch.
        interval = getattr(trainer, "val_check_interval", None)
        if interval != 1.0 or isinstance(interval, int) or trainer.check_val_every_n_epoch != 1:
            warn(
                trainer,
                f"PeriodicEvaluation evaluates every {self.every_n_steps} optimizer steps: val_check_interval and "
                "check_val_every_n_epoch of the Trainer have no effect.",
            )
        self._settings = {name: getattr(trainer, name) for name in _OFF if hasattr(trainer, name)}
        # So early that callbacks which ask when validation comes (early stopping, checkpoints) see it.
        for name, value in _OFF.items():
            setattr(trainer, name, value)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._restored and trainer.global_step == 0:
            self._last_step = -1
        self._restored = False
        loop: Any = trainer.fit_loop
        run = loop.run

        def run_and_evaluate() -> None:
            run()
            # A run resumed after its last step: Lightning trains nothing, and leaves the hooks of training out.
            if trainer.global_step > max(self._last_step, 0):
                self._evaluate(trainer)

        loop.run = run_and_evaluate

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step, loop = trainer.global_step, trainer.fit_loop.epoch_loop
        if self._is_due(step):
            self._evaluate(trainer)
            # Of an epoch whose batches are all done, Lightning runs the end only where no evaluation has run yet.
            loop.val_loop._has_run = False
        if step and loop.restarting and (step == self._last_step or loop._num_ready_batches_reached()):
            # The checkpoint was written after the batch: Lightning passes over its end, this evaluation included, when
            # it finds one due there; otherwise it would train on one more batch.
            self._open(trainer)
        _compare_batch_sizes(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step != self._last_step and (self._is_due(step) or _is_last(trainer)):
            self._rng = capture()
            self._open(trainer)
        else:
            trainer.check_val_every_n_epoch = _NEVER

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer):
            return
        self._last_step = trainer.global_step
        trainer.check_val_every_n_epoch = _NEVER
        if self._rng is not None:
            restore(self._rng)
            self._rng = None

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step != self._last_step:
            self._evaluate(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._give_back(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._give_back(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self._last_step}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stage not in (None, "fit"):
            return  # A file that is only tested is no run to go on with.
        self._last_step = state_dict["last_step"]
        self._restored = True

    def _is_due(self, step: int) -> bool:
        return step // self.every_n_steps > self._last_step // self.every_n_steps

    def _open(self, trainer: Trainer) -> None:
        """Let Lightning validate after this batch: with None, at every multiple of val_check_batch."""
        trainer.check_val_every_n_epoch = None
        trainer.val_check_batch = 1

    def _evaluate(self, trainer: Trainer) -> None:
        """Run the validation loop as the training loop does, between two batches."""
        self._rng = capture()
        connector = trainer._logger_connector
        first_loop_iter = connector._first_loop_iter
        val_loop = trainer.fit_loop.epoch_loop.val_loop
        # After a resume it would go on where the evaluation inside the checkpoint ended: behind its last batch.
        val_loop.restarting = False
        trainer.validating = True
        val_loop.run()
        trainer.training = True
        connector._first_loop_iter = first_loop_iter

    def _give_back(self, trainer: Trainer) -> None:
        vars(trainer.fit_loop).pop("run", None)
        if self._settings is not None:
            for name in _OFF:
                if name in self._settings:
                    setattr(trainer, name, self._settings[name])
                else:
                    delattr(trainer, name)
        self._settings = None
        self._rng = None


def _is_last(trainer: Trainer) -> bool:
    """Return whether the batch that has just been trained on is the last one of the run."""
    if trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps:
        return True
    last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= int(trainer.max_epochs or 0)
    return bool(last_epoch and trainer.is_last_batch)


def _compare_batch_sizes(trainer: Trainer) -> None:
    training = _batch_sizes(trainer.train_dataloader)
    evaluation = _batch_sizes(trainer.val_dataloaders)
    if training and evaluation and min(evaluation) < max(training):
        warn(
            trainer,
            f"The evaluation batch size is {min(evaluation)}, smaller than the training batch size {max(training)}: "
            "evaluation needs less memory than training, so that a batch at least as large is faster. Raise it.",
        )


def _batch_sizes(loaders: Any) -> list[int]:
    if isinstance(loaders, dict):
        loaders = list(loaders.values())
    if not isinstance(loaders, (list, tuple)):
        loaders = [loaders]
    sizes = (
        getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None)
        for loader in loaders
    )
    return [size for size in sizes if isinstance(size, int)]
