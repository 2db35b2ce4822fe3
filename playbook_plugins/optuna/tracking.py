"""How was each study run, and how would one run it again? The playbook's spreadsheet, kept where the trials are.

Playbook: "Setting up experiment tracking": a study's name, a link to its config, notes, the number of trials, the best
validation result, and the reproduction command with the changes that were not committed.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from playbook_plugins.optuna.constraints import is_violated
from playbook_plugins.optuna.masking import mask_command, mask_text
from playbook_plugins.optuna.trials import final_trials, kept_design

NOTES_KEY = "playbook:notes"
CONFIG_KEY = "playbook:config"
# One attribute for each way in which the study was run, named by its content: workers that start together agree.
RUN_PREFIX = "playbook:run:"

# In bytes of JSON, because some databases end a text column at 64 KB.
MAX_DIFF_BYTES = 40_000
MAX_COMMAND_BYTES = 8_000
_MAX_FILES = 100
_GIT_SECONDS = 30.0


def track(
    study: optuna.Study,
    *,
    notes: str | None = None,
    config_url: str | None = None,
    repository: str | Path | None = None,
    command: Sequence[str] | None = None,
    now: datetime.datetime | None = None,
) -> dict[str, Any]:
    """Keep with a study how it is run: commit, uncommitted changes, command line and package versions.

    Call it in every worker, before the first trial. Runs that differ in anything but the time are kept side by side.
    Without git, or outside a repository, there is no commit and no diff. Secrets are masked by the rule of
    `playbook_plugins.optuna.masking`, in the command line, the diff, the notes and the link.

    Parameters
    ----------
    study
        The study.
    notes
        What the study is about; by default those given before, or else the goal of the study's round.
    config_url
        Where the study's configuration is stored; by default the one given before.
    repository
        A folder in the git repository of the training code, by default the working directory.
    command
        The command line as a list of arguments, by default this process's own.
    now
        The time of the run, by default now.

    Returns
    -------
    dict
        What was kept of this run: ``commit``; ``diff`` of the tracked files, whole lines up to 40,000 bytes of JSON,
        and ``diff_lines_left_out``; ``untracked``, the names of up to 100 new files, whose contents are not kept;
        ``command``, quoted for a shell, up to 8,000 bytes; ``versions`` of Python and of all installed packages; and
        ``time``.

    Examples
    --------
    >>> study = optuna.create_study()
    >>> run = track(study, notes="Which optimizer?", command=["python", "train.py", "--api-key", "abc"])
    >>> run["command"]
    "python train.py --api-key '***'"
    """
    for key, text in ((NOTES_KEY, notes), (CONFIG_KEY, config_url)):
        if text is not None:
            study.set_user_attr(key, mask_text(text))
    arguments = list(sys.orig_argv if command is None else command)
    run: dict[str, Any] = {
        **_read_git(Path.cwd() if repository is None else Path(repository)),
        "command": _cut(shlex.join(mask_command(arguments)), MAX_COMMAND_BYTES),
        "versions": _read_versions(),
    }
    name = hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()[:16]
    run["time"] = (now or datetime.datetime.now(datetime.UTC)).isoformat(timespec="seconds")
    if RUN_PREFIX + name not in study.user_attrs:
        study.set_user_attr(RUN_PREFIX + name, run)
    return run


def study_sheet(
    storage: str | optuna.storages.BaseStorage, study_names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Return the playbook's spreadsheet of the studies of a storage, one row a study.

    Parameters
    ----------
    storage
        As in `optuna.load_study`.
    study_names
        The studies to read; by default all of the storage.

    Returns
    -------
    list of dict
        Sorted by the studies' names, with the columns ``study``, ``config``, ``notes`` (the round's goal where `track`
        was given none), ``n_trials`` (finished ones; attempts at the same trial count once), ``best`` (the best finite
        value of a feasible trial; None for several objectives), ``command``, ``commit``, ``uncommitted_changes`` (new
        files by name, then the diff) and ``n_runs``. Command, commit and changes are those of the latest of n_runs
        different runs. What is not known is None.
    """
    opened = optuna.storages.get_storage(storage)
    names = sorted(optuna.study.get_all_study_names(opened) if study_names is None else study_names)
    return [_row(optuna.load_study(study_name=name, storage=opened)) for name in names]


def _row(study: optuna.Study) -> dict[str, Any]:
    attributes = study.user_attrs
    runs = sorted(
        (run for key, run in attributes.items() if key.startswith(RUN_PREFIX)),
        key=lambda run: datetime.datetime.fromisoformat(run["time"]).timestamp(),
    )
    latest: Mapping[str, Any] = runs[-1] if runs else {}
    trials = final_trials(study)
    return {
        "study": study.study_name,
        "config": attributes.get(CONFIG_KEY),
        "notes": attributes.get(NOTES_KEY, kept_design(attributes).get("goal")),
        "n_trials": sum(trial.state.is_finished() for trial in trials),
        "best": _best(study.directions, trials),
        "command": latest.get("command"),
        "commit": latest.get("commit"),
        "uncommitted_changes": _changes(latest),
        "n_runs": len(runs),
    }


def _best(directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial]) -> float | None:
    if len(directions) > 1:
        return None
    values = [
        trial.values[0]
        for trial in trials
        if trial.state is TrialState.COMPLETE and math.isfinite(trial.values[0]) and not is_violated(trial)
    ]
    choose = min if directions[0] is StudyDirection.MINIMIZE else max
    return choose(values, default=None)


def _changes(run: Mapping[str, Any]) -> str | None:
    if run.get("diff") is None:
        return None
    left_out = run["diff_lines_left_out"]
    new_files = "".join(f"new file: {name}\n" for name in run["untracked"])
    end = f"({left_out} more lines were not kept)\n" if left_out else ""
    return f"{new_files}{run['diff']}{end}"


def _read_git(folder: Path) -> dict[str, Any]:
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return {"commit": None, "diff": None, "diff_lines_left_out": 0, "untracked": []}
    # The options make the diff the same whatever the user's own settings are, for the whole repository.
    diff = _git(folder, "diff", "HEAD", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative") or ""
    root = _git(folder, "rev-parse", "--show-toplevel") or str(folder)
    new_files = _git(Path(root.strip()), "ls-files", "--others", "--exclude-standard") or ""
    lines = mask_text(diff).splitlines(keepends=True)
    n_kept = _n_fitting(lines, MAX_DIFF_BYTES)
    return {
        "commit": commit.strip(),
        "diff": "".join(lines[:n_kept]),
        "diff_lines_left_out": len(lines) - n_kept,
        "untracked": new_files.splitlines()[:_MAX_FILES],
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what a git command prints, or None where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            timeout=_GIT_SECONDS,
            encoding="utf-8",
            # Files in another encoding are shown all the same.
            errors="replace",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _read_versions() -> dict[str, str]:
    packages = {
        str(found.metadata["Name"]): found.version
        for found in importlib.metadata.distributions()
        if found.metadata["Name"]
    }
    return {"python": platform.python_version(), **dict(sorted(packages.items()))}


def _n_fitting(parts: Sequence[str], n_bytes: int) -> int:
    """Return how many of the first parts fit together into so many bytes of JSON."""
    total = 2
    for n_kept, part in enumerate(parts):
        total += len(json.dumps(part)) - 2
        if total > n_bytes:
            return n_kept
    return len(parts)


def _cut(text: str, n_bytes: int) -> str:
    n_kept = _n_fitting(text, n_bytes)
    return text if n_kept == len(text) else f"{text[:n_kept]} ... ({len(text) - n_kept} more characters were not kept)"
