"""Does instability hold the learning rate down? Short runs at multiples of the best rate, judged at every step.

Playbook: "How can optimization failures be debugged and mitigated?", "Identifying unstable workloads": train
for about 500 steps at twice the best learning rate and evaluate at every step, because an early blow-up with a slow
recovery is missed by the usual evaluations; look at the training loss at 5 and 10 times the best rate.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from typing_extensions import override

from playbook_plugins.analysis.findings import Finding, Verdict
from playbook_plugins.analysis.infeasible import InfeasibleError
from playbook_plugins.analysis.learning_rate_limit import check_learning_rate_limit
from playbook_plugins.analysis.records import TrialRecord
from playbook_plugins.analysis.stability import check_stability
from playbook_plugins.lightning._support import inform
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.random_state import capture, restore
from playbook_plugins.lightning.rate_scaling import RateScaling
from playbook_plugins.lightning.step_watch import StepWatch
from playbook_plugins.lightning.untouched import (
    copy_datamodule,
    copy_loaders,
    copy_model,
    is_kept_out,
    quiet,
    random_sources,
    restore_sources,
)

if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule


@dataclass(frozen=True, eq=False)
class InstabilityProbe(Sequence[Finding]):
    """What `probe_instability` found; a sequence of its findings.

    Attributes
    ----------
    findings
        The ``"learning rate limit"`` of all runs, then the six findings of `check_stability` for each run, subjects
        ``"learning rate x 2"`` and so on.
    records
        The record of each run by factor. A curve has a row a step: the training loss and gradient norm of the update
        that led to this step, and the evaluation after it.
    """

    findings: tuple[Finding, ...]
    records: Mapping[float, TrialRecord]

    def __len__(self) -> int:
        """Return the number of findings."""
        return len(self.findings)

    @overload
    def __getitem__(self, place: int) -> Finding: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Finding, ...]: ...
    @override
    def __getitem__(self, place: int | slice) -> Finding | tuple[Finding, ...]:
        """Return the findings at a place."""
        return self.findings[place]


def probe_instability(
    model: LightningModule,
    data: Any = None,
    *,
    validation: Any = None,
    max_steps: int = 500,
    factors: Sequence[float] = (1.0, 2.0, 5.0, 10.0),
    monitor: str | None = None,
    training_steps: int | None = None,
    limit_val_batches: int = 1,
    callbacks: Sequence[Callback] = (),
    accelerator: str = "auto",
    devices: Any = 1,
    precision: Any = None,
    accumulate_grad_batches: int = 1,
) -> InstabilityProbe:
    """Train short runs at multiples of the best learning rate, and say whether instability keeps it from being larger.

    Parameters
    ----------
    model
        Configured with the best learning rate of a sweep, and untrained. Each run trains a copy of it.
    data
        The training loader(s) or a LightningDataModule; None for the model's own ``train_dataloader``.
    validation
        The validation loader(s), evaluated before the first step and after every step; None for those of the
        datamodule or the model, if there are any. A model without ``validation_step`` is judged by its training loss.
    max_steps
        The length of each run, at least 1; the playbook takes about 500. Lightning counts the steps of several
        optimizers together. Below 50 too little is seen to judge.
    factors
        What the best learning rate is multiplied with; 1 serves as the reference of what ends worse.
    monitor
        The validation loss, lower is better. By default ``"val_loss"``, or the only logged metric with "loss" in its
        name; otherwise the validation is kept in the records and not judged.
    training_steps
        The length of the training that the model is configured for, where it is longer than the probe: a schedule
        built from ``trainer.estimated_stepping_batches`` then keeps its length, and a warmup its share.
    limit_val_batches
        How many validation batches an evaluation takes; 0 turns evaluation off.
    callbacks
        Of training, for instance `LearningRateWarmup` or `PercentileGradientClipping`, to see whether they cure the
        instability. Each run has its own copies.
    accelerator, devices, precision, accumulate_grad_batches
        As of the Trainer; one device.

    Returns
    -------
    InstabilityProbe
        A sequence of findings, with the records of the runs. A run that diverges ends at once and is a result.

    Raises
    ------
    ValueError
        When an argument is out of its range, when data can be read only once, or when a schedule cannot be scaled.

    Notes
    -----
    All runs start from the same weights and random states, on the same batches in the same order. Rates are scaled
    as a whole: every parameter group, and the base, peak and least rates of schedules, so that they keep their shape.
    A schedule that the optimizer does not know from ``configure_optimizers`` is not seen. The raw weights are judged:
    callbacks of the model that average weights, stop early or write checkpoints are left out.

    The model, its mode, the loaders and their generators, and the random states of Python, numpy and torch are as
    before afterwards, also after an exception. Data sets are shared by the runs, not copied.

    Support
      precision            yes: 32, 64, bf16, bf16-mixed; not tested: 16-mixed
      accumulation         yes: the loss of a step is the mean over its batches
      manual optimization  yes: two optimizers; the gradient norm is that of both together
      ddp                  refused: it trains on one device
      ddp_spawn            refused: it trains on one device
      FSDP                 refused: it trains on one device
      DeepSpeed            refused: it trains on one device
      compile              yes: what torch.compile wraps is probed without it; refused once it was trained through it
    """
    _check_arguments(max_steps, factors, training_steps, callbacks)
    package, model = _package_of(model)
    is_module = any(cls.__name__ == "LightningDataModule" for cls in type(data).__mro__)
    if is_module and validation is not None:
        raise ValueError(
            "`validation` is given beside a LightningDataModule, which brings its own. Leave one of them out."
        )
    for name, one in (("data", data), ("validation", validation)):
        if isinstance(one, Iterator):
            raise ValueError(
                f"`{name}` is a {type(one).__name__}, which can be read only once, but every run begins at the same "
                "batch. Pass a DataLoader, or any object whose __iter__ begins anew."
            )
    evaluates = limit_val_batches > 0 and (
        validation is not None or _has_validation(package, model, data if is_module else None)
    )
    options: dict[str, Any] = {
        "max_steps": max(max_steps, training_steps or 0),
        "accelerator": accelerator,
        "devices": devices,
        "precision": precision,
        "accumulate_grad_batches": accumulate_grad_batches,
        "limit_val_batches": limit_val_batches if evaluates else 0,
    }
    if accelerator != "cpu" and torch.cuda.is_available():
        # Only then does the device have a random state that every run can start from.
        torch.cuda.init()  # type: ignore[no-untyped-call]
    start, sources = capture(), random_sources([data, validation])
    records: dict[float, TrialRecord] = {}
    try:
        for factor in factors:
            restore(start)
            restore_sources(sources)
            watch = StepWatch(monitor)
            stack = [RateScaling(factor, max_steps, training_steps), watch, *(copy.deepcopy(one) for one in callbacks)]
            stack += [PeriodicEvaluation(1)] * evaluates
            loaders = (
                {"datamodule": copy_datamodule(data)}
                if is_module
                else {"train_dataloaders": copy_loaders(data), "val_dataloaders": copy_loaders(validation)}
            )
            with quiet():
                trainer = package.Trainer(callbacks=stack, **options, **_SILENT)
                if trainer.world_size > 1:
                    raise ValueError(
                        f"`devices` is {devices!r}, which makes {trainer.world_size} processes: probe_instability "
                        "trains on one device. Pass devices=1, and accumulate_grad_batches="
                        f"{trainer.world_size} for the same batch size in all."
                    )
                with contextlib.suppress(InfeasibleError):
                    trainer.fit(copy_model(model), **loaders)
            records[factor] = watch.record()
            inform(trainer, _line(len(records), len(factors), factor, records[factor]))
    finally:
        restore(start)
        restore_sources(sources)
    found = check_learning_rate_limit(records)
    for factor, record in records.items():
        found += check_stability(record, subject=_subject(factor))
    return InstabilityProbe(tuple(found), records)


_SILENT: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def _check_arguments(
    max_steps: int, factors: Sequence[float], training_steps: int | None, callbacks: Sequence[Any]
) -> None:
    if max_steps < 1:
        raise ValueError(
            f"`max_steps` is {max_steps}: each run needs at least 1 step, and 50 to be judged. The playbook takes 500."
        )
    if not factors or len(set(factors)) < len(factors) or not all(0 < factor < math.inf for factor in factors):
        raise ValueError(
            f"`factors` is {list(factors)}: it must hold different positive numbers, which multiply the best learning "
            "rate. The default is (1, 2, 5, 10)."
        )
    if training_steps is not None and training_steps < max_steps:
        raise ValueError(
            f"`training_steps` is {training_steps}, less than the {max_steps} steps of each run: it is the length of "
            "the whole training. Pass that, or None."
        )
    for callback in callbacks:
        if is_kept_out(callback) or isinstance(callback, PeriodicEvaluation):
            raise ValueError(
                f"`callbacks` holds {type(callback).__name__}: a probe evaluates every step by itself, judges the raw "
                "weights, runs to its end and keeps no checkpoints. Leave it out."
            )


def _subject(factor: float) -> str:
    return f"learning rate x {factor:g}"


def _line(place: int, n_runs: int, factor: float, record: TrialRecord) -> str:
    """Return what is printed after a run."""
    loss = record.curve.train[~np.isnan(record.curve.train)]
    flags = [
        f"{one.check} at step {one.numbers['step']}" for one in check_stability(record) if one.verdict is Verdict.FLAG
    ]
    steps = int(record.curve.step[-1]) if len(record.curve) else 0
    course = f", training loss {loss[0]:.4g} to {loss[-1]:.4g}" if len(loss) else ""
    found = "; ".join(flags) or "no instability seen"
    return f"probe_instability: run {place} of {n_runs}, {_subject(factor)}: {steps} steps{course}; {found}."


def _package_of(model: Any) -> tuple[Any, Any]:
    """Return the Lightning package of a module, and the module itself, without what torch.compile put around it."""
    module = getattr(model, "_orig_mod", model)
    for cls in type(module).__mro__:
        if cls.__name__ == "LightningModule":
            if getattr(module, "_compiler_ctx", None) is not None:
                raise ValueError(
                    "`model` was trained through torch.compile, and a copy of it would train the original. Pass a "
                    "module that was not compiled: its instability is the same."
                )
            return importlib.import_module(
                "lightning.pytorch" if cls.__module__.startswith("lightning.") else "pytorch_lightning"
            ), module
    raise ValueError(
        f"`model` is a {type(model).__name__}: it must be a LightningModule, whose configure_optimizers sets the best "
        "learning rate. Wrap it in one."
    )


def _has_validation(package: Any, model: Any, datamodule: Any) -> bool:
    def overrides(thing: Any, name: str, base: Any) -> bool:
        return getattr(getattr(thing, name), "__func__", None) is not getattr(base, name)

    return overrides(model, "validation_step", package.LightningModule) and (
        overrides(model, "val_dataloader", package.LightningModule)
        or (datamodule is not None and overrides(datamodule, "val_dataloader", package.LightningDataModule))
    )
