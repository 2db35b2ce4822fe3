"""What does this process hold and write? Read off the Trainer, to be compared with the other hosts.

Playbook: "Considerations for multi-host pipelines".
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from playbook_plugins.lightning.host_folders import FolderClaims
from playbook_plugins.lightning.host_hashes import hash_batch, hash_generators, hash_names, hash_tensors
from playbook_plugins.lightning.host_loaders import Files, read_loader
from playbook_plugins.lightning.host_reports import TrainingReport, WriterReport
from playbook_plugins.lightning.weight_average import running_statistics

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

# Draws of all ranks together that are compared: 8 MB of numbers.
_N_DRAWS = 1_000_000
_RANK_ZERO = "lightning_utilities.core.rank_zero"


@dataclass(frozen=True)
class _Held:
    """A tensor of the model, and the part of it that this rank holds."""

    name: str
    tensor: Tensor
    local: Tensor
    shard: int


def part_of_data(trainer: Trainer) -> tuple[int, int]:
    """Return which part of the data this rank trains on, from 0, and how many parts there are."""
    known = trainer.distributed_sampler_kwargs or {}
    return int(known.get("rank", trainer.global_rank)), int(known.get("num_replicas", trainer.world_size))


def report_writer(trainer: Trainer, claims: FolderClaims) -> WriterReport:
    """Return what this process logs and saves; the one that writes claims its folders."""
    savers: list[Any] = list(trainer.checkpoint_callbacks)
    loggers = [logger for logger in trainer.loggers if _is_writing(logger)]
    folders = [getattr(saver, "dirpath", None) for saver in savers]
    folders += [getattr(logger, "log_dir", None) for logger in loggers]
    local = {os.path.realpath(one): None for one in folders if isinstance(one, str | Path) and "://" not in str(one)}
    is_first = trainer.world_size == 1 or torch.distributed.get_rank() == 0
    owners = []
    if is_first and trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
        owners = [(folder, claims.take(Path(folder))) for folder in local]
    return WriterReport(
        rank=trainer.global_rank,
        is_writer=trainer.is_global_zero,
        checkpoints=tuple(f"{type(saver).__name__} in {getattr(saver, 'dirpath', None)}" for saver in savers),
        loggers=tuple(type(logger).__name__ for logger in loggers),
        owners=tuple((folder, owner) for folder, owner in owners if owner is not None),
    )


def report_weights(trainer: Trainer, with_buffers: bool) -> tuple[list[str], TrainingReport]:
    """Return the names of the tensors that are compared, and the report of this rank without its data."""
    held = list(_tensors(trainer, with_buffers))
    part, n_parts = part_of_data(trainer)
    report = TrainingReport(
        part=part,
        n_parts=n_parts,
        layout=hash_names(f"{one.name} {tuple(one.tensor.shape)} {one.tensor.dtype}" for one in held),
        hashes=np.array(hash_tensors([one.local for one in held]), dtype=np.int64),
        shards=np.array([one.shard for one in held], dtype=np.int64),
        generators=hash_generators(trainer.strategy.root_device),
    )
    return [one.name for one in held], report


def add_data(report: TrainingReport, trainer: Trainer, batch: Any, files: Files | None) -> TrainingReport:
    """Return the report with the loaders and the first batch in it."""
    combined: Any = trainer.fit_loop._combined_loader
    n_most = max(1000, _N_DRAWS // trainer.world_size)
    pairs = zip(combined.flattened, combined.limits, strict=True)
    loaders = tuple(read_loader(loader, limit, n_most, files) for loader, limit in pairs)
    return replace(report, loaders=loaders, batch=hash_batch(batch))


def _tensors(trainer: Trainer, with_buffers: bool) -> Iterator[_Held]:
    """Yield the tensors that should be the same on all ranks that hold the same part of them."""
    module = trainer.lightning_module
    # What DDP was told to leave alone belongs to its rank.
    ignored = set(getattr(trainer.strategy.model, "parameters_to_ignore", ()))
    for prefix, layer in module.named_modules():
        ignored |= {f"{prefix}.{name}" if prefix else name for name, _ in running_statistics(layer)}
    named = [module.named_parameters(), module.named_buffers() if with_buffers else ()]
    for name, tensor in itertools.chain(*named):
        if name in ignored or tensor.layout != torch.strided:
            continue
        shared: Any = tensor.detach()
        shard = 0
        if hasattr(shared, "placements"):
            mesh = shared.device_mesh
            for place, size, kind in zip(mesh.get_coordinate(), mesh.shape, shared.placements, strict=True):
                shard = shard * size + place if kind.is_shard() else shard
            shared = shared.to_local()
        yield _Held(name, tensor, shared, shard)


def _is_writing(logger: Any) -> bool:
    """Return whether a logger's metrics go anywhere from this process."""
    function = getattr(type(logger), "log_metrics", None)
    while function is not None:
        # Behind Lightning's @rank_zero_only it runs on one rank, whatever the experiment is elsewhere.
        known = getattr(function, "__globals__", {})
        if known.get("__name__") == _RANK_ZERO:
            return bool(known["rank_zero_only"].rank == 0)
        function = getattr(function, "__wrapped__", None)
    kinds = {kind.__name__ for kind in type(getattr(logger, "experiment", None)).__mro__}
    return kinds.isdisjoint({"_DummyExperiment", "DummyExperiment"})
