"""Where do the random number generators stand? Captured for a checkpoint, and put back when a run is resumed from it.

Playbook: "Saving checkpoints and retrospectively selecting the best checkpoint". Dropout, the order of the examples and
augmentation draw from generators that a checkpoint of Lightning leaves out; without them a resumed run is another run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import override

from playbook_plugins.lightning._base import CallbackBase
from playbook_plugins.lightning._support import warn

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer

# In a checkpoint: a list by process with its generators and, where there are several, its places in the loaders.
_KEY = "playbook_random_state"


def capture(cuda: bool = True) -> dict[str, Any]:
    """Return the state of the global generators of Python, NumPy and torch, as tensors and Python primitives.

    Parameters
    ----------
    cuda
        Include the generators of the CUDA devices, where CUDA is in use.

    Returns
    -------
    dict
        About 15 KB, which ``torch.load(weights_only=True)`` reads.
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": _pack(np.random.get_state(legacy=False)),  # noqa: NPY002
        "torch": torch.get_rng_state(),
    }
    if cuda and torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore(state: Mapping[str, Any]) -> None:
    """Put the global generators into a state that `capture` returned; devices that are not there are passed over."""
    python = state["python"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(_unpack(state["numpy"]))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        for device, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(one, device)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let the global generators go on afterwards as if nothing had been drawn inside."""
    state = capture()
    try:
        yield
    finally:
        restore(state)


class RandomState(CallbackBase):
    """Keep the random number generators in every checkpoint, and resume with them.

    With `ResumableDataLoader` a resumed run is then the run that was interrupted, bit for bit: the same examples, the
    same dropout. The generators are captured when a file is written, and put back after all that is done at the start
    of training and before the first batch, wherever this callback stands among the others. A file written before
    the first batch is resumed with its generators in ``on_train_start``, as the hooks that follow draw again.

    It also lets the loaders resume where Lightning forgets to: when ``estimated_stepping_batches`` was asked for in
    ``configure_optimizers``, or when a run without ``max_steps`` is resumed from a file written before its first batch.
    A run resumed from a file written between two epochs draws the order of the next epoch from the restored generators.

    Notes
    -----
    Files hold the generators, and the place in the loader, of every process. A save that one process makes alone,
    after an exception, has no collective, and holds its own. With another number of processes nothing is restored,
    and a warning says so.

    Generators: those of Python, NumPy, torch on the CPU, and CUDA. Exact on the CPU; on CUDA as far as its kernels are
    deterministic.

    Exact are the files of `BestCheckpoints` with `PeriodicEvaluation`, and those of the ends of epochs. Two others are
    not: a file written while gradients are being accumulated, which are in no checkpoint, and one that Lightning's
    `ModelCheckpoint` writes after a training step at which an evaluation is due but not yet made, as Lightning takes
    the evaluation for done, and draws for its loader.

    Support
      precision            yes: 32, 64, bf16-mixed
      accumulation         yes: files written between two optimizer steps
      manual optimization  yes: two optimizers
      ddp                  yes: each process has its own generators, one collective a file
      ddp_spawn            not tested
      FSDP                 not tested
      DeepSpeed            not tested
      compile              yes: on the CPU
    """

    def __init__(self) -> None:
        super().__init__()
        self._stage: str | None = None
        self._alone = False
        # The generators of this process in the checkpoint, until they are put back.
        self._pending: dict[str, Any] | None = None
        self._withdraw: Callable[[], None] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin without anything to put back."""
        self._stage = stage
        if stage == "fit":
            self._alone, self._pending = False, None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the loaders and the generators back."""
        if self._pending is None:
            return
        _resume_loaders(trainer)
        restore(self._pending)
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready == 0:
            self._pending = None
            return
        # Callbacks that come later, and the module, may draw in their on_train_start too, which the run that is resumed
        # did before this checkpoint: what comes next there is the first thing after all of them.
        loop: Any = trainer.fit_loop
        start = loop.on_advance_start

        def start_exactly() -> None:
            if self._pending is not None:
                restore(self._pending)
            self._release()
            start()

        loop.on_advance_start = start_exactly
        self._withdraw = lambda: vars(loop).pop("on_advance_start", None)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the training loop go."""
        self._release()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the generators back where nothing remained to train, so that what follows the fit draws the same."""
        if self._pending is not None:
            restore(self._pending)
            self._pending = None

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the training loop go; the other processes may be gone, so that no collective follows."""
        self._alone = True
        self._release()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the generators of every process, and its place in the loaders, into the file that one of them writes."""
        mine: dict[str, Any] = {"generators": capture() if self._pending is None else self._pending}
        processes = [mine]
        if trainer.world_size > 1 and not self._alone:
            mine["loaders"] = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
            processes = [{} for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(processes, mine)
        checkpoint[_KEY] = processes

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take this process' part of a file to resume from; a file that is only tested changes nothing."""
        if self._stage != "fit" or _KEY not in checkpoint:
            return
        processes = checkpoint[_KEY]
        if len(processes) != trainer.world_size:
            warn(
                trainer,
                f"The checkpoint holds the random number generators of {len(processes)} process(es), and this run has "
                f"{trainer.world_size}: they are not restored, so that dropout differs from the run that is resumed.",
            )
            return
        mine = processes[trainer.global_rank]
        self._pending = mine["generators"]
        if "loaders" in mine:
            # Lightning reads the places a moment later, and has saved those of rank 0.
            checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = mine["loaders"]

    def _release(self) -> None:
        self._pending = None
        if self._withdraw is not None:
            self._withdraw()
            self._withdraw = None


def _resume_loaders(trainer: Trainer) -> None:
    """Do for the training loaders what Lightning leaves undone after a checkpoint was loaded."""
    loop: Any = trainer.fit_loop
    epochs = loop.epoch_progress.current
    if not loop.restarting and 0 < epochs.ready == epochs.processed:
        # Between two epochs: the iterator in place was begun with other generators. Lightning 2.5 begins the next epoch
        # with a new one, later versions do so except after a resume.
        loop._combined_loader_states_to_load = []
        loop._resuming_from_checkpoint = False
    elif loop._combined_loader_states_to_load:
        # The loaders were set up before the checkpoint was read, or Lightning takes the run for one that only begins.
        loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
        loop._combined_loader_states_to_load = []
        iter(loop._data_fetcher)


def _pack(value: Any) -> Any:
    """Return nested dictionaries with each array as its bytes and its type."""
    if isinstance(value, Mapping):
        return {name: _pack(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        return {"bytes": torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8), "dtype": str(value.dtype)}
    return value.item() if isinstance(value, np.generic) else value


def _unpack(value: Any) -> Any:
    """Return what `_pack` was given."""
    if not isinstance(value, Mapping):
        return value
    if "bytes" in value:
        return np.frombuffer(value["bytes"].numpy().tobytes(), dtype=value["dtype"])
    return {name: _unpack(one) for name, one in value.items()}
