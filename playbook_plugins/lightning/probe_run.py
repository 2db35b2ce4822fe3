"""How fast does training go at each batch size? The probe itself, inside of a running `fit`.

Playbook: "Determining the feasible batch sizes and estimating training throughput".
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from playbook_plugins.analysis.throughput import Throughput
from playbook_plugins.lightning.probe_batches import Source, find_source, stream_of
from playbook_plugins.lightning.probe_devices import Device, forget, lacks_memory
from playbook_plugins.lightning.probe_objects import reachable
from playbook_plugins.lightning.probe_ranks import Ranks
from playbook_plugins.lightning.probe_search import Attempt, Measured, search_batch_sizes
from playbook_plugins.lightning.probe_silence import silence
from playbook_plugins.lightning.probe_steps import TrainingStep, time_steps
from playbook_plugins.lightning.probe_streams import KeptSource
from playbook_plugins.lightning.training_snapshot import RandomStates, TrainingSnapshot

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule, Trainer


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """What is tried, and how long; the arguments of `BatchSizeProbe`."""

    max_batch_size: int
    start: int
    n_warmup_steps: int
    n_steps: int
    max_seconds: float
    clock: Callable[[], float]


def measure_throughput(
    trainer: Trainer,
    pl_module: LightningModule,
    settings: ProbeSettings,
    *,
    tell: Callable[[int, Attempt], None],
    ignored: Sequence[object] = (),
    seen: Sequence[Any] = (),
) -> Throughput:
    """Train for a few steps at each batch size, and put everything back.

    Parameters
    ----------
    trainer
        Inside `fit`, between two steps.
    pl_module
        The module that it trains.
    settings
        What is tried.
    tell
        Is told each batch size and its outcome.
    ignored
        Objects that are not put back.
    seen
        Batches that training has read, but not changed.
    """
    random = RandomStates()
    try:
        ranks, device = Ranks(trainer), Device(trainer.strategy.root_device)
        source = find_source(trainer, settings.clock, settings.max_seconds, seen)
        # A stream that was read ahead goes on from there: training will see what was kept of it.
        streams = reachable(stream_of(trainer)) if isinstance(source, KeptSource) else {}
        left_alone = {*streams, *map(id, ignored)}
        n_bytes = sum(one.numel() * one.element_size() for one in pl_module.parameters() if one.requires_grad)
        reduction = ranks.reduction_seconds(n_bytes, settings.clock, device.synchronize)
        snapshot = TrainingSnapshot(trainer, pl_module, source.data, left_alone)
        step = TrainingStep(trainer, pl_module)
        is_compiled = _is_compiled(pl_module)

        def attempt(batch_size: int) -> Attempt:
            outcome: Attempt | None = None
            try:
                if is_compiled:
                    _forget_compiled()
                with silence(trainer, pl_module):
                    outcome = _attempt(batch_size, source, step, device, settings, reduction)
            except Exception:
                # The other ranks are told, or they would wait for this one.
                with contextlib.suppress(RuntimeError):
                    ranks.agree(None)
                raise
            finally:
                device.give_memory_back(is_urgent=outcome == "memory")
                snapshot.restore()
                if is_compiled:
                    _forget_compiled()
            outcome = ranks.agree(outcome)
            tell(batch_size, outcome)
            return outcome

        return search_batch_sizes(
            attempt, start=settings.start, max_batch_size=settings.max_batch_size, n_devices=ranks.n_ranks
        )
    finally:
        random.restore()


def _attempt(
    batch_size: int, source: Source, step: TrainingStep, device: Device, settings: ProbeSettings, reduction: float
) -> Attempt:
    """Measure one batch size on this rank."""
    device.begin()
    try:
        fetch = source.open(batch_size)
        if fetch is None:
            return "data"
        time = time_steps(
            fetch,
            step,
            clock=settings.clock,
            synchronize=device.synchronize,
            n_warmup_steps=settings.n_warmup_steps,
            n_steps=settings.n_steps,
            max_seconds=settings.max_seconds,
            n_workers=source.n_workers,
            is_fetch_timed=source.is_fetch_timed,
        )
    except Exception as error:
        if not lacks_memory(error):
            raise
        forget(error)
        return "memory"
    finally:
        source.close()
    waiting = time.waiting_seconds + source.waiting_seconds(batch_size, time.seconds + reduction)
    waiting_known = 0.0 if math.isnan(waiting) else waiting
    seconds = time.seconds + reduction + (0.0 if source.is_fetch_timed else waiting_known)
    return Measured(seconds=seconds, data_wait_share=waiting / seconds, peak_memory=device.peak_memory())


def _is_compiled(pl_module: Any) -> bool:
    """Return whether `torch.compile` is at work in a module, as far as the module tells."""
    if getattr(pl_module, "_compiler_ctx", None) is not None:
        return True
    return any(
        type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None
        for module in pl_module.modules()
    )


def _forget_compiled() -> None:
    """Drop compiled code: each batch size is compiled as if training had begun with it, and training afterwards too.

    Otherwise the compiler would take the batch size for variable, and after eight sizes compile nothing any more.
    """
    if "torch._dynamo" in sys.modules:
        sys.modules["torch._dynamo"].reset()
