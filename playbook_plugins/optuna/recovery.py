"""Which trials did a killed worker leave behind, and how are they done again without doing any twice?

A trial whose worker was killed stays RUNNING for ever. Here each worker signs the trials that it runs; a signature of
a process that is gone proves that the trial is lost. Of other machines, Optuna's heartbeat tells the same, where the
storage has one. The trial is told as FAIL and queued again at its own point, by Optuna's own convention for retries.
"""

from __future__ import annotations

import datetime
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from playbook_plugins.optuna.attempts import NOT_NEEDED_KEY, group_attempts
from playbook_plugins.optuna.indices import sequence_indices
from playbook_plugins.optuna.trials import ERROR_KEY

WORKER_KEY = "playbook:worker"
# Between its creation and its worker's signature a trial is unsigned for some milliseconds.
_UNSIGNED_SECONDS = 30.0


def redo_lost(
    study: optuna.Study, older_than: datetime.timedelta | None = None, *, n_indices: int | None = None
) -> list[int]:
    """Queue again every trial of a study that will never finish.

    A RUNNING trial is lost when the process that signed it is known to be gone (same machine), when its worker has
    missed the beats of Optuna's heartbeat (any machine, where the storage has a heartbeat), when nobody signed it
    within 30 seconds of its creation, or when it is older than ``older_than``. Lost trials are told as FAIL. Then each
    trial without a finished or running attempt is added once more as a waiting trial at its own point, with the
    attempts before it in Optuna's system attributes ``failed_trial`` and ``retry_history``. Calling it twice, or from
    several workers, trains nothing twice: `Round.optimize` drops an attempt that another one has overtaken.

    Parameters
    ----------
    study
        A study whose workers run `Round.objective`, which signs.
    older_than
        The age from which a RUNNING trial is lost whoever signed it; by default no age, so that a long trial on
        another machine is never taken away. Give it for workers on machines that are gone, on storages without
        heartbeat: a journal, the gRPC proxy.
    n_indices
        Queue only trials whose index in the sequence is below this; by default all.

    Returns
    -------
    list of int
        The numbers of the trials that were queued again (of their first attempts), ascending.
    """
    return queue_lost(study, older_than, n_indices=n_indices)


def queue_lost(
    study: optuna.Study,
    older_than: datetime.timedelta | None,
    *,
    n_indices: int | None,
    errors_too: bool = True,
) -> list[int]:
    """Queue again what is lost, as `redo_lost`; without ``errors_too`` none whose last attempt ended by an error."""
    with warnings.catch_warnings():
        # Optuna's own optimize calls it, and hushes it, too.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        optuna.storages.fail_stale_trials(study)
    now = datetime.datetime.now()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_lost(trial, now, older_than):
            _fail(study, trial.number)
    trials = study.get_trials(deepcopy=False)
    queued = []
    for root, attempts in _groups(trials, n_indices).items():
        if all(attempt.state is TrialState.FAIL for attempt in attempts) and (errors_too or _is_lost_last(attempts)):
            _queue_again(study, root, attempts)
            queued.append(root)
    return queued


def is_lost(trial: FrozenTrial, now: datetime.datetime, older_than: datetime.timedelta | None) -> bool:
    """Return whether a RUNNING trial will never finish, as `redo_lost` defines it."""
    if trial.state is not TrialState.RUNNING or trial.datetime_start is None:
        return False
    age = now - trial.datetime_start
    if older_than is not None and age >= older_than:
        return True
    signature = _signature(trial)
    if signature is None:
        return age.total_seconds() >= _UNSIGNED_SECONDS
    return signature.get("machine") == _machine() and not _is_alive(signature.get("process"))


def is_unsigned(trial: FrozenTrial) -> bool:
    """Return whether a trial's worker has not signed it: it was killed before it could, or will do so at once."""
    return trial.state is TrialState.RUNNING and _signature(trial) is None


def sign(trial: optuna.Trial) -> None:
    """Write into a running trial which process of which machine runs it."""
    trial.set_user_attr(WORKER_KEY, {"trial": trial.number, "machine": _machine(), "process": _process(os.getpid())})


def _groups(trials: Sequence[FrozenTrial], n_indices: int | None) -> Mapping[int, list[FrozenTrial]]:
    """Return all attempts by the number of the first one, of the trials with an index below ``n_indices``."""
    groups = group_attempts(trials)
    if n_indices is None:
        return groups
    indices = sequence_indices(trials)
    return {root: attempts for root, attempts in groups.items() if (indices.get(root) or 0) < n_indices}


def _is_lost_last(attempts: Sequence[FrozenTrial]) -> bool:
    """Return whether the last attempt that ran was lost: nothing that it raised is kept."""
    ran = [attempt for attempt in attempts if NOT_NEEDED_KEY not in attempt.user_attrs]
    return not ran or ERROR_KEY not in ran[-1].user_attrs


def _fail(study: optuna.Study, number: int) -> None:
    try:
        study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
    except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
        # Another worker ended or took it between our look and our word.
        return


def _queue_again(study: optuna.Study, root: int, attempts: Sequence[FrozenTrial]) -> None:
    first = next(attempt for attempt in attempts if attempt.number == root)
    kept = {name: value for name, value in first.system_attrs.items() if name == "fixed_params"}
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=first.params,
            distributions=first.distributions,
            system_attrs={
                **kept,
                "failed_trial": root,
                "retry_history": sorted(attempt.number for attempt in attempts),
            },
        )
    )


def _signature(trial: FrozenTrial) -> Mapping[str, Any] | None:
    """Return who signed this attempt; a signature copied from an earlier attempt does not count."""
    signature = trial.user_attrs.get(WORKER_KEY)
    return signature if isinstance(signature, dict) and signature.get("trial") == trial.number else None


def _machine() -> str:
    """Name the machine, its boot and its process namespace: only within them does a process id mean anything."""
    parts = [platform.node()]
    sources: tuple[Callable[[], str], ...] = (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        lambda: os.readlink("/proc/self/ns/pid"),
    )
    for source in sources:
        try:
            parts.append(source())
        except OSError:
            parts.append("")
    return "/".join(parts)


def _process(pid: int) -> list[int]:
    """Return a process id with the time of its start, because ids are used again; 0 where the time is unknown."""
    fields = _stat(pid)
    return [pid, int(fields[19]) if fields else 0]


def _stat(pid: int) -> list[str]:
    """Return what Linux tells of a process, from its state on; nothing elsewhere."""
    try:
        # The name before the state may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _is_alive(process: Any) -> bool:
    """Return whether a signed process still runs; True in any doubt."""
    if not (isinstance(process, list) and len(process) == 2):
        return True
    pid, started = process
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    fields = _stat(pid)
    # A killed process that its parent has not yet reaped still answers.
    is_zombie = bool(fields) and fields[0] in ("Z", "X")
    return not is_zombie and (not started or not fields or int(fields[19]) == started)
