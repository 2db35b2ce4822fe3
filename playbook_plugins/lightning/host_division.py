"""Do the hosts read different examples, in one division of the data? Reports in, faults out.

Playbook: "Considerations for multi-host pipelines": hosts should read different shards of the data.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from playbook_plugins.lightning.host_reports import LoaderReport, TrainingReport, grouped, listed


def find_data_faults(reports: Sequence[TrainingReport]) -> list[str]:
    """Return how the training examples of the ranks overlap, or are divided in different ways."""
    if any(report.loaders is None for report in reports):
        return []
    loaders = [report.loaders or () for report in reports]
    if len({len(one) for one in loaders}) > 1:
        return [
            f"examples: the ranks have {[len(one) for one in loaders]} training loaders. Give every rank the same "
            "number."
        ]
    faults: list[str] = []
    is_known = True
    for place, rows in enumerate(zip(*loaders, strict=True)):
        title = "" if len(loaders[0]) == 1 else f"training loader {place}: "
        found, is_divided = _Division(reports, rows).judge()
        faults += [fault.replace(": ", f": {title}", 1) for fault in found]
        is_known &= is_divided or bool(found)
    if not is_known:
        for batch, ranks in grouped([report.batch for report in reports]):
            if batch is not None and len({reports[rank].part for rank in ranks}) > 1:
                faults.append(
                    f"examples: {listed(ranks)} train on the same first batch. Divide the data by rank: an iterable "
                    "data set in its __iter__, by the rank and by the worker; any other by a DistributedSampler."
                )
    return faults


class _Division:
    """How one training loader divides the examples among the ranks."""

    def __init__(self, reports: Sequence[TrainingReport], rows: Sequence[LoaderReport]) -> None:
        self.rows = rows
        self.parts = [report.part for report in reports]
        self.n_parts = reports[0].n_parts

    def judge(self) -> tuple[list[str], bool]:
        """Return the faults, and whether the examples are known to be divided."""
        rows = self.rows
        faults = self._settings() if any(row.settings is not None for row in rows) else []
        faults += self._files()
        is_same_data = len({(row.data, row.n_examples) for row in rows}) == 1
        draws = [row.draws for row in rows]
        if faults or not is_same_data or any(one is None for one in draws):
            is_distributed = all(row.settings is not None for row in rows)
            return faults, is_distributed
        return self._draws([one for one in draws if one is not None]), True

    def _settings(self) -> list[str]:
        rows = self.rows
        settings = [row.settings or {} for row in rows]
        if not all(settings):
            with_one = [rank for rank, one in enumerate(settings) if one]
            return [
                f"examples: a distributed sampler is on {listed(with_one)} only. Give every rank the same loader, and "
                "leave `use_distributed_sampler` True."
            ]
        faults = []
        for name in ("seed", "shuffle", "drop_last", "epoch"):
            values = [one.get(name) for one in settings]
            if len(set(values)) > 1:
                faults.append(
                    f"sampler: `{name}` is {values} by rank, and must be the same on all: they divide different "
                    "orders, and so overlap. Call seed_hosts(seed) with one seed on every rank, and build the sampler "
                    "in the same way."
                )
        if len({row.n_examples for row in rows}) > 1:
            faults.append(
                f"examples: the data sets have {[row.n_examples for row in rows]} examples by rank, and a distributed "
                "sampler divides each of them. Give every rank the whole data set, or set "
                "`use_distributed_sampler=False`."
            )
        elif len({row.subset for row in rows}) > 1:
            faults.append(
                "examples: each rank was given a part of the data set, and a distributed sampler divides that once "
                "more: most examples are never seen. Give every rank the whole data set, or set "
                "`use_distributed_sampler=False`."
            )
        places = [(one["num_replicas"], one["rank"]) for one in settings]
        expected = [(self.n_parts, part) for part in self.parts]
        if places != expected:
            faults.append(
                f"sampler: (`num_replicas`, `rank`) are {places} by rank, and the run has {expected}. Leave them to "
                "Lightning, or pass trainer.world_size and trainer.global_rank."
            )
        return faults

    def _files(self) -> list[str]:
        named = [row.files for row in self.rows]
        if any(files is None for files in named):
            return []
        is_declared = all(row.is_declared for row in self.rows)
        if not is_declared and len(set(named)) == 1:
            # Each rank may hold the whole list, and read its part.
            return []
        readers = _readers([files or () for files in named], self.parts)
        if readers:
            name, ranks = next(iter(readers.items()))
            return [
                f"files: {len(readers)} file(s) are read by more than one rank, such as {name!r} by {listed(ranks)}. "
                "Give each rank files of its own, files[rank::world_size]."
            ]
        if all(row.settings is not None for row in self.rows):
            return [
                "files: each rank reads files of its own, and a distributed sampler divides their examples once more: "
                "most are never seen. Set `use_distributed_sampler=False`, or give every rank all files."
            ]
        return []

    def _draws(self, draws: Sequence[NDArray[np.int64]]) -> list[str]:
        is_repeating = any(row.is_repeating for row in self.rows)
        if is_repeating:
            for _, ranks in grouped([one.tobytes() for one in draws]):
                if len({self.parts[rank] for rank in ranks}) > 1 and len(draws[ranks[0]]) > 1:
                    return [f"examples: {listed(ranks)} draw the same examples in the same order. {self._remedy()}"]
            return []
        readers = _readers(_common_draws(draws), self.parts)
        n_repeats = sum(len({self.parts[rank] for rank in ranks}) - 1 for ranks in readers.values())
        # As many as DistributedSampler may add, so that all ranks have the same number.
        if n_repeats < self.n_parts:
            return []
        shown = ", ".join(str(number) for number in list(readers)[:3])
        number, ranks = next(iter(readers.items()))
        return [
            f"examples: {len(readers)} examples are drawn by more than one rank ({shown}, ...; {number} by "
            f"{listed(ranks)}). {self._remedy()}"
        ]

    def _remedy(self) -> str:
        if all(row.settings is not None for row in self.rows):
            return (
                f"{self.rows[0].sampler} draws a different order on each rank before it is divided: give the sampler a "
                "`generator` with one seed for all ranks."
            )
        return (
            f"{self.rows[0].sampler} does not divide them: leave `use_distributed_sampler` True, or use a "
            "DistributedSampler."
        )


def _readers(named: Sequence[Sequence[Hashable]], parts: Sequence[int]) -> dict[Hashable, list[int]]:
    """Return what occurs in several parts, in the order of the first rank that has it, with its ranks."""
    owners: dict[Hashable, list[int]] = {}
    for rank, names in enumerate(named):
        for name in dict.fromkeys(names):
            owners.setdefault(name, []).append(rank)
    return {name: ranks for name, ranks in owners.items() if len({parts[rank] for rank in ranks}) > 1}


def _common_draws(draws: Sequence[NDArray[np.int64]]) -> list[list[int]]:
    """Return of each rank's draws those that another rank has too; there may be a million in all."""
    values, counts = np.unique(np.concatenate([np.unique(one) for one in draws]), return_counts=True)
    common = values[counts > 1]
    return [one[np.isin(one, common)].tolist() for one in draws]
