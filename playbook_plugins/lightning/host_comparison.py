"""Do all hosts hold the same weights, draw different numbers, and leave writing to one? Reports in, faults out.

Playbook: "Considerations for multi-host pipelines". Nothing here asks a process: each rank writes a report, and what
all reports together say is decided alike on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from playbook_plugins.lightning.host_reports import TrainingReport, WriterReport, grouped, listed


def find_writer_faults(reports: Sequence[WriterReport]) -> list[str]:
    """Return what is wrong with logging and saving, a sentence or two each; empty where nothing is."""
    faults = []
    numbers = [report.rank for report in reports]
    if numbers != list(range(len(reports))):
        faults.append(
            f"writers: the processes call themselves ranks {numbers}, and they are {list(range(len(reports)))}. Let "
            "the cluster's environment, or Lightning's, give each process its own number."
        )
    writers = [rank for rank, report in enumerate(reports) if report.is_writer]
    if len(writers) != 1:
        faults.append(
            f"writers: {listed(writers)} would write the checkpoints, and it must be one. Make "
            "`trainer.is_global_zero` true on rank 0 only."
        )
    groups = grouped([report.checkpoints for report in reports])
    if len(groups) > 1:
        each = "; ".join(f"{listed(ranks)}: {', '.join(what) or 'nothing'}" for what, ranks in groups)
        faults.append(
            f"writers: the ranks save to different places ({each}). Give every rank the same checkpoint callbacks with "
            "the same dirpath; Lightning lets rank 0 write."
        )
    loggers = [rank for rank, report in enumerate(reports) if report.loggers]
    if len(loggers) > 1:
        names = sorted({name for report in reports for name in report.loggers})
        faults.append(
            f"loggers: {listed(loggers)} write to {', '.join(names)}, and only rank 0 should. Decorate the logger's "
            "`experiment` with @rank_zero_experiment and its `log_metrics` with @rank_zero_only."
        )
    for folder, owner in dict.fromkeys(pair for report in reports for pair in report.owners):
        faults.append(
            f"writers: {owner} writes to {folder} too. Give each run a folder of its own; if both processes were meant "
            "to be one run, start them as one, with `devices` and `num_nodes` or through torchrun."
        )
    return faults


def find_weight_faults(reports: Sequence[TrainingReport], names: Sequence[str]) -> list[str]:
    """Return which tensors differ; names of the tensors, in the order of the hashes."""
    groups = grouped([report.layout for report in reports])
    if len(groups) > 1:
        return [
            f"weights: {' and '.join(listed(ranks) for _, ranks in groups)} have different parameters or buffers, by "
            "name, shape or data type. Build the same model on every rank."
        ]
    hashes = np.stack([report.hashes for report in reports])
    shards = np.stack([report.shards for report in reports])
    differing: dict[str, list[list[int]]] = {}
    for place in np.flatnonzero((hashes != hashes[0]).any(axis=0)).tolist():
        for shard in np.unique(shards[:, place]):
            holders = np.flatnonzero(shards[:, place] == shard)
            values = grouped([int(value) for value in hashes[holders, place]])
            if len(values) > 1:
                differing[names[place]] = [[int(holders[one]) for one in ranks] for _, ranks in values]
    if not differing:
        return []
    first, sides = next(iter(differing.items()))
    others = list(differing)[1:3]
    more = f" (and so do {len(differing) - 1} more, such as {', '.join(others)})" if others else ""
    return [
        f"weights: {first} differs between {' and '.join(map(listed, sides))}{more}. Build, load and change the model "
        "in the same way on every rank: call seed_hosts(seed) before it is built, and draw no weights after the fit "
        "has started."
    ]


def find_stream_faults(reports: Sequence[TrainingReport]) -> list[str]:
    """Return which ranks draw the same random numbers in training, though they train on different examples."""
    faults = []
    for name in sorted({name for report in reports for name in report.drawn}):
        users = [rank for rank, report in enumerate(reports) if name in report.drawn and name in report.generators]
        for _, group in grouped([reports[rank].generators[name] for rank in users]):
            ranks = [users[place] for place in group]
            if len({reports[rank].part for rank in ranks}) > 1:
                faults.append(
                    f"dropout streams: training draws from {name} generator, whose state is the same on "
                    f"{listed(ranks)}: they use the same dropout masks, noise or augmentation. Call seed_hosts(seed) "
                    "instead of seed_everything(seed), before the model is built."
                )
    return faults
