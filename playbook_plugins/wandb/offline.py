"""Which trials stand in folders on this machine? Offline runs as the table of a study, without a network.

Playbook: "Extracting insight from experimental results". The files are read by the client's own side process, as
``wandb leet inspect --json`` does, without a Python interpreter a file.
"""

from __future__ import annotations

import json
import subprocess
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.analysis.records import Direction
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.wandb.clients import import_wandb
from playbook_plugins.wandb.run_curves import check_curve_keys, check_curves_found, gather_curve
from playbook_plugins.wandb.run_layout import OBJECTIVE_KEY, STEP_KEY
from playbook_plugins.wandb.run_outcomes import ReadRun
from playbook_plugins.wandb.run_tables import Question, add_curves, check_n_curves, rows_to_read, tabulate_runs

_N_THREADS = 4
_FILE_SECONDS = 300
# A run whose file was written to within so many seconds goes on; the client writes more often than that.
_LIVE_SECONDS = 600
_HEAD_BYTES = 7
# A file that was written to within so many seconds may get its end any moment: so many looks, so many seconds apart.
_FRESH_SECONDS, _N_LOOKS, _LOOK_SECONDS = 3.0, 6, 0.25


def trials_from_offline(
    folder: str | Path,
    *,
    study: str | None = None,
    objective: str = OBJECTIVE_KEY,
    direction: Direction | None = None,
    parameters: Sequence[Parameter] | None = None,
    curves: Mapping[str, str] | None = None,
    n_curves: int | None = None,
    now: float | None = None,
) -> Trials:
    """Return the W&B runs in a folder as the table of a study: offline runs, and the local files of online ones.

    Parameters
    ----------
    folder
        A run's folder, a folder ``wandb`` of many, or any folder above them; or one ``.wandb`` file.
    study, objective, direction, parameters, curves, n_curves
        As in `trials_from_runs`. There is no sweep on disk: without ``parameters`` and a study that tells them, the
        search space comes from the runs.
    now
        The time in seconds since 1970; for tests.

    Returns
    -------
    Trials
        As of `trials_from_runs`. A run whose file has no end is RUNNING where the file was written to in the last ten
        minutes, and FAILED otherwise: it was killed, or the machine stopped. A file that is cut off or damaged counts
        up to where it breaks, and does not keep the others from being read. Of a run that was resumed, all folders
        are read.

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    ValueError
        As in `trials_from_runs`; and when no run's folder lies in it.
    ImportError
        When the extra ``wandb`` is not installed.

    Warns
    -----
    UserWarning
        When a file is left out, because it does not even say which run it is of. (Empty ones, which attempts to start
        a run leave behind, are passed over.)
    """
    check_curve_keys(curves)
    check_n_curves(n_curves)
    wandb = import_wandb()
    files = find_run_files(folder)
    if not files:
        raise ValueError(
            f"`folder` is {str(folder)!r}: there is no W&B run in it, nor in the folders below. Pass the folder that "
            "holds offline-run-... folders, usually called wandb."
        )
    core = wandb.util.get_core_path()
    moment = time.time() if now is None else now
    with ThreadPoolExecutor(_N_THREADS) as pool:
        parts = list(pool.map(lambda path: _read_settled(core, path, moment), files))
    _warn_of_unread(files, parts)
    runs = _join([part for part in parts if part.is_known])
    question = Question(
        source=f"folder {folder}", study=study, objective=objective, direction=direction, parameters=parameters
    )
    chosen, trials = tabulate_runs([run.to_read_run() for run in runs.values()], question)
    rows = [row for row in rows_to_read(trials, n_curves) if curves is not None or STEP_KEY in chosen[row].summary]
    read = {row: gather_curve(runs[chosen[row].id].history, curves) for row in rows}
    check_curves_found(curves, read.values())
    return add_curves(trials, chosen, read)


def find_run_files(folder: str | Path) -> list[Path]:
    """Return the ``.wandb`` files in a folder and below it, in the order of their names.

    Raises
    ------
    FileNotFoundError
        When there is no such folder.
    """
    root = Path(folder)
    if not root.exists():
        raise FileNotFoundError(f"`folder` is {str(folder)!r}: there is no such folder. Pass one that holds W&B runs.")
    found = [root] if root.is_file() else list(root.rglob("run-*.wandb"))
    return sorted(set(found))


class _OfflineRun:
    """One run as the records of its file tell it."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.name = self.group = self.job_type = self.reason = ""
        self.state = "running"
        # Of two runs that began within a second only the file knows which was first.
        self.begun = ""
        self.is_known = False
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[Mapping[str, Any]] = []

    @classmethod
    def read(cls, core: str, path: Path, now: float) -> _OfflineRun:
        run = cls(path.stem.removeprefix("run-"))
        records, complaint = _inspect(core, path)
        for record in records:
            run._take(str(record.get("type")), record)
        if run.state == "running" and now - path.stat().st_mtime > _LIVE_SECONDS:
            run.state = "crashed"
        if complaint:
            run.reason = complaint
        elif not run.is_known:
            run.reason = "it is cut off at its beginning"
        elif run.state == "crashed":
            run.reason = "the run's file has no end: the run was killed, or the machine stopped"
        return run

    def continue_with(self, later: _OfflineRun) -> None:
        """Add what a later folder of the same run says."""
        self.config |= later.config
        self.summary |= later.summary
        self.history += later.history
        self.name, self.group, self.job_type = (
            later.name or self.name,
            later.group or self.group,
            later.job_type or self.job_type,
        )
        self.state, self.reason = later.state, later.reason

    def to_read_run(self) -> ReadRun:
        return ReadRun(
            id=self.id,
            name=self.name,
            state=self.state,
            config=self.config,
            summary=self.summary,
            job_type=self.job_type,
            group=self.group,
            reason=self.reason,
        )

    def _take(self, kind: str, record: Mapping[str, Any]) -> None:
        content = record.get(kind) or {}
        if kind == "run":
            self.is_known = True
            self.id = content.get("run_id") or self.id
            self.begun = content.get("start_time") or self.begun
            self.name = content.get("display_name") or self.name
            self.group = content.get("run_group") or self.group
            self.job_type = content.get("job_type") or self.job_type
            _change(self.config, content.get("config") or {})
            _change(self.summary, content.get("summary") or {})
        elif kind == "config":
            _change(self.config, content)
        elif kind == "summary":
            _change(self.summary, content)
        elif kind == "history":
            self.history.append(content.get("item") or {})
        elif kind == "exit":
            self.state = "failed" if content.get("exit_code") else "finished"
        elif kind == "preempting":
            self.state = "preempted"


def _read_settled(core: str, path: Path, now: float) -> _OfflineRun:
    """Return a run, read again for a moment where its file has no end yet.

    The end of an offline run returns before the client's side process has written the file out.
    """
    run = _OfflineRun.read(core, path, now)
    for _ in range(_N_LOOKS):
        if run.state != "running" or time.time() - path.stat().st_mtime > _FRESH_SECONDS:
            break
        time.sleep(_LOOK_SECONDS)
        run = _OfflineRun.read(core, path, now)
    return run


def _inspect(core: str, path: Path) -> tuple[Iterator[Mapping[str, Any]], str]:
    """Return the records of a file, up to where it breaks, and what is wrong with the file; "" if nothing."""
    command = [core, "leet", "inspect", "--no-observability", "--json", "--run-file", str(path), str(path.parent)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_FILE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return iter(()), f"the run's file could not be read: {type(error).__name__}"
    complaint = ""
    if done.returncode or b"corrupt" in done.stderr:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        complaint = f"the run's file is damaged: {said[-1][:300] if said else f'exit code {done.returncode}'}"
    return _parse(done.stdout.splitlines()), complaint


def _parse(lines: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            yield record


def _change(values: dict[str, Any], change: Mapping[str, Any]) -> None:
    values.update(change.get("update") or {})
    for entry in change.get("remove") or ():
        values.pop(entry.get("key"), None)


def _warn_of_unread(files: Sequence[Path], runs: Sequence[_OfflineRun]) -> None:
    # A file with its head alone is what an attempt to start a run leaves: there is nothing to miss.
    unread = [
        (file, run.reason)
        for file, run in zip(files, runs, strict=True)
        if not run.is_known and file.stat().st_size > _HEAD_BYTES
    ]
    if unread:
        file, reason = unread[0]
        others = " and others" if len(unread) > 1 else ""
        warnings.warn(
            f"{len(unread)} of {len(files)} files are left out, because they do not even say which run they are of: "
            f"{file}{others} ({reason}).",
            stacklevel=3,
        )


def _join(runs: Sequence[_OfflineRun]) -> dict[str, _OfflineRun]:
    """Return the runs by id, each with all its folders, in the order in which they began."""
    joined: dict[str, _OfflineRun] = {}
    for run in sorted(runs, key=lambda run: (not run.begun, run.begun.rstrip("Z"))):
        if run.id in joined:
            joined[run.id].continue_with(run)
        else:
            joined[run.id] = run
    return joined
