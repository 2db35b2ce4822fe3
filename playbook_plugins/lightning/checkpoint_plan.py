"""Which file does an evaluation add, and which does it free? Decided here, carried out by BestCheckpoints.

Playbook: "Saving checkpoints and retrospectively selecting the best checkpoint".
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from playbook_plugins.lightning.checkpoint_index import CheckpointIndex, Evaluation, rank

_EXTENSION = ".ckpt"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one evaluation changes.

    Attributes
    ----------
    row
        The evaluation; its file is None where it is not among the best.
    evicted
        The evaluation whose file makes room, if one does.
    lost
        The steps whose files are gone from the folder.
    """

    row: Evaluation
    evicted: Evaluation | None = None
    lost: frozenset[int] = frozenset()

    def without_file(self) -> Plan:
        """Return the plan for the case that the file could not be written: nothing makes room for it."""
        return replace(self, row=replace(self.row, file=None), evicted=None)

    def carried_out(self, index: CheckpointIndex) -> CheckpointIndex:
        """Return the index afterwards."""
        gone = self.lost if self.evicted is None else self.lost | {self.evicted.step}
        rows = _with_files(index.evaluations, dict.fromkeys(gone))
        return replace(index, evaluations=(*rows, self.row))


def plan_evaluation(index: CheckpointIndex, row: Evaluation, save_top_k: int, folder: Path) -> Plan:
    """Decide whether an evaluation is kept, under which name, and what makes room for it.

    Parameters
    ----------
    index
        The evaluations before it.
    row
        The evaluation, without a file.
    save_top_k
        How many to keep; -1 keeps all. Of equals the earlier one is kept, and a score that is not finite never.
    folder
        Where the files lie.
    """
    listed = [old for old in index.evaluations if old.file is not None]
    lost = frozenset(old.step for old in listed if not (folder / str(old.file)).is_file())
    kept = rank((old for old in listed if old.step not in lost), None, index.mode)
    evicted = kept[-1] if 0 < save_top_k <= len(kept) else None
    is_kept = math.isfinite(row.score) and save_top_k != 0
    if evicted is not None:
        is_kept = is_kept and rank([evicted, row], None, index.mode)[0] is row
    if not is_kept:
        return Plan(row=row, lost=lost)
    return Plan(row=replace(row, file=free_name(folder, f"step={row.step}")), evicted=evicted, lost=lost)


def free_name(folder: Path, stem: str) -> str:
    """Return the name of a checkpoint that no file of the folder bears."""
    name, version = f"{stem}{_EXTENSION}", 1
    while os.path.lexists(folder / name):
        name, version = f"{stem}-v{version}{_EXTENSION}", version + 1
    return name


def moments(rows: Iterable[Evaluation]) -> set[tuple[int, float]]:
    """Return what tells the evaluations of one run from those of another: when they were made."""
    return {(row.step, row.time) for row in rows}


def index_from_state(
    state: Mapping[str, Any], index: CheckpointIndex, folder: Path, found: CheckpointIndex | None
) -> CheckpointIndex:
    """Rebuild the list of a resumed run: in its own folder, which may have been moved, or in a new one.

    Parameters
    ----------
    state
        The callback's state in the checkpoint.
    index
        The index to fill: monitor and mode.
    folder
        Into which the resumed run writes.
    found
        The index that lies in the folder, if any. Where it shares evaluations with the state, the folder is the run's
        own; otherwise the files stay where they were, and are listed by their whole paths.
    """
    rows = tuple(Evaluation.from_dict(row) for row in state["evaluations"])
    is_own = found is not None and bool(moments(found.evaluations) & moments(rows))
    home = folder if is_own else Path(state["dirpath"])
    files: dict[int, str | None] = {}
    for row in rows:
        if row.file is not None:
            path = home / row.file
            inside = path.parent == folder
            files[row.step] = (path.name if inside else str(path)) if path.is_file() else None
    return replace(index, evaluations=_with_files(rows, files), last=state["last"] if is_own else None)


def _with_files(rows: Iterable[Evaluation], files: Mapping[int, str | None]) -> tuple[Evaluation, ...]:
    """Return the rows, with another file at the given steps."""
    return tuple(replace(row, file=files[row.step]) if row.step in files else row for row in rows)
