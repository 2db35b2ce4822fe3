"""How does a finished trial get into W&B, whatever the network does? One run a trial, or a few keys in a live run.

Playbook: "Setting up experiment tracking": every trial is kept, the infeasible ones too.
"""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from playbook_plugins.analysis.records import Status, TrialRecord
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.wandb.clients import start_wandb
from playbook_plugins.wandb.outages import OUTAGE, OUTAGE_SECONDS
from playbook_plugins.wandb.retrying import describe, is_passing
from playbook_plugins.wandb.run_layout import (
    ALL_KEYS,
    FIRST_ROW_KEY,
    STEP_KEY,
    TRIAL_JOB,
    TrialEntry,
    enter_trial,
    find_row,
)

# Seconds. Long enough for the client's own retries to get over a short outage, short beside any training run.
INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0
_MAX_TAG = 64
_MAX_NAME = 128


def log_trial(
    record: TrialRecord | Trials,
    config: Mapping[str, Any],
    *,
    study: str | Trials,
    number: int | None = None,
    project: str | None = None,
    entity: str | None = None,
    group: str | None = None,
    job_type: str = TRIAL_JOB,
    tags: Sequence[str] = (),
    name: str | None = None,
    notes: str | None = None,
    run: Any = None,
    settings: Any = None,
) -> str:
    """Log one finished trial to W&B, as a run of its own or into the run that training logged to.

    `trials_from_runs` and `trials_from_offline` read it back without loss. Safe in several threads and processes at
    once: it neither uses nor changes the live ``wandb.run``.

    Parameters
    ----------
    record
        What training returned, of any status but RUNNING. Or a table of the trial, where there is no record: the
        table's only trial, or the one of this ``number``.
    config
        The configuration that training got, fixed hyperparameters included. Keys that begin with ``playbook_`` are
        ours.
    study
        The study's name. Or any table of it, such as `trials_from_study` returns: then its search space, fixed
        values, goal and caveats go with the run, so that they need not be guessed from many runs.
    number
        The trial's number in its study, from 0. Of several runs of one number the last finished one counts. Without
        numbers, trials count in the order of their runs.
    project, entity
        Where the run goes, as in ``wandb.init``.
    group
        By default the study's name.
    job_type, tags, name, notes
        As in ``wandb.init``; the study's name is added to the tags, and a run is called ``<study>-<number>``.
    run
        A live run, for instance the ``experiment`` of Lightning's ``WandbLogger``: the trial's keys are added to it,
        and it stays open. The arguments that describe a new run must be left out, but for ``tags``.
    settings
        ``wandb.Settings`` of a new run, or a dict of them, over ours: no console capture, no system metrics, no
        output, at most 30 s to start a run and 60 s to upload it.

    Returns
    -------
    str
        The path of the run, ``"entity/project/id"``; its id alone where the run is offline; "" where ``run`` is the
        stand-in that a logger of Lightning has on ranks other than 0, and nothing was to do.

    Raises
    ------
    ValueError
        When an argument does not fit; nothing was logged.
    ImportError
        When the extra ``wandb`` is not installed.

    Warns
    -----
    UserWarning
        When W&B cannot be reached. The trial is then in a folder on this machine, which the warning names together
        with the command that uploads it; training goes on.

    Notes
    -----
    A FAILED trial ends its run as failed. Infeasible and pruned trials are results: their runs finish normally, and
    the summary key ``playbook_status`` tells them apart. Other keys stand in the summary as `summary_keys` has them,
    in the config as ``playbook_study``, ``playbook_study_name`` and ``playbook_number``, and in the history under
    ``playbook/``.
    """
    entry = _checked_entry(record, config, study, number)
    if run is not None:
        _refuse_with_run(project, entity, group, name, notes, settings)
        # On the other ranks of a distributed training, Lightning's logger hands out a stand-in that takes any call.
        return _add_to_run(run, entry, tags) if isinstance(_id_of(run), str) else ""
    study_name = entry.header.name
    description = {
        "project": project,
        "entity": entity,
        "group": (study_name if group is None else group)[:_MAX_NAME],
        "job_type": job_type,
        "tags": _unique_tags((*tags, study_name)),
        "name": (name or (study_name if number is None else f"{study_name}-{number}"))[:_MAX_NAME],
        "notes": notes,
    }
    own, caveat = _start(description, entry, settings)
    exit_code = 1
    try:
        _write(own, entry)
        exit_code = 1 if entry.status is Status.FAILED else 0
    finally:
        lost = _finish(own, exit_code)
    if lost or caveat:
        _warn(own, lost or caveat)
    return _path(own)


def _checked_entry(
    record: TrialRecord | Trials, config: Mapping[str, Any], study: str | Trials, number: int | None
) -> TrialEntry:
    if not isinstance(record, TrialRecord | Trials):
        raise ValueError(
            f"`record` is {record!r}: it must be a TrialRecord. Pass the `.record` of a TrialRecorder, or build one "
            "from the evaluations."
        )
    if isinstance(number, bool) or not (number is None or (isinstance(number, int) and number >= 0)):
        raise ValueError(
            f"`number` is {number!r}: trials are numbered from 0. Pass the trial's number, or leave it out."
        )
    if not isinstance(study, Trials) and not (isinstance(study, str) and study):
        raise ValueError(f"`study` is {study!r}: it must be the study's name or a table of it. Pass one of them.")
    _check_config(config)
    if isinstance(study, Trials) and study.direction != record.direction:
        raise ValueError(
            f"`record` has the direction {record.direction!r}, but the study {study.name!r} is to {study.direction} "
            "its objective: both must agree. Record with the other mode."
        )
    if isinstance(record, Trials) and find_row(record, number) is None:
        raise ValueError(
            f"`record` is a table of {len(record)} trials, and `number` is {number!r}: the table does not tell which "
            "trial is meant. Pass the number of one of its trials."
        )
    entry = enter_trial(record, config, study, number)
    if entry.status is Status.RUNNING:
        raise ValueError(
            "`record` has the status 'running': only a finished trial is logged. Take the record after training."
        )
    return entry


def _check_config(config: Mapping[str, Any]) -> None:
    if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
        raise ValueError(
            f"`config` is {config!r}: it must map names of hyperparameters to values. Pass the configuration that "
            "training got."
        )
    own = sorted(key for key in config if key.startswith("playbook_"))
    if own:
        raise ValueError(
            f"`config` has the keys {own}: names that begin with 'playbook_' belong to this package. Give them other "
            "names."
        )


def _refuse_with_run(*described: Any) -> None:
    names = ("project", "entity", "group", "name", "notes", "settings")
    given = [name for name, value in zip(names, described, strict=True) if value is not None]
    if given:
        raise ValueError(
            f"`run` is a live run, and {given} are given too: they describe a new run. Leave them out, or leave out "
            "`run`."
        )


def _id_of(run: Any) -> Any:
    if not all(hasattr(run, part) for part in ("id", "log", "summary", "config")):
        raise ValueError(
            f"`run` is {run!r}: it must be a live run of W&B. Pass what wandb.init returned, or the `experiment` of a "
            "WandbLogger."
        )
    return run.id


def _start(description: dict[str, Any], entry: TrialEntry, settings: Any) -> tuple[Any, str]:
    """Return a new run, and why it is offline where W&B could not be reached."""
    own = {
        "console": "off",
        "silent": True,
        "x_disable_stats": True,
        "init_timeout": INIT_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "finish_timeout_raises": True,
    }
    given = (
        settings
        if isinstance(settings, Mapping)
        else {}
        if settings is None
        else settings.model_dump(exclude_unset=True)
    )
    options = {**description, "config": entry.write_config(), "reinit": "create_new"}

    def start(**more: Any) -> Any:
        wandb = start_wandb()
        return wandb.init(**options, settings=wandb.Settings(**{**own, **given, **more}))

    if OUTAGE.is_on():
        return start(mode="offline"), ""
    try:
        run = start()
    except Exception as error:
        if not is_passing(error):
            raise
        OUTAGE.begin()
        return start(mode="offline"), describe(error)
    OUTAGE.end()
    return run, ""


def _write(run: Any, entry: TrialEntry) -> None:
    run.define_metric(STEP_KEY, hidden=True)
    run.define_metric(ALL_KEYS, step_metric=STEP_KEY)
    for row in entry.write_history():
        run.log(row)
    run.summary.update(dict(entry.summary))


def _finish(run: Any, exit_code: int) -> str:
    """End a run; return why it could not be uploaded, "" where it was."""
    try:
        run.finish(exit_code=exit_code)
    except Exception as error:
        OUTAGE.begin()
        return describe(error)
    return ""


def _add_to_run(run: Any, entry: TrialEntry, tags: Sequence[str]) -> str:
    first_row = run.step
    run.config.update(entry.write_config(), allow_val_change=True)
    run.tags = _unique_tags((*(run.tags or ()), *tags, entry.header.name))
    _write(run, entry)
    run.summary.update({FIRST_ROW_KEY: first_row})
    return _path(run)


def _warn(run: Any, cause: str) -> None:
    folder = Path(run.settings.sync_dir)
    # Without the option, the command passes over runs that were begun online.
    command = ["wandb", "sync", *([] if run.offline else ["--include-online"]), str(folder)]
    warnings.warn(
        f"W&B could not be reached ({cause}): the trial {run.name!r} is kept in {folder}. Upload it later with: "
        f"{shlex.join(command)}. For the next {OUTAGE_SECONDS / 60:.0f} minutes trials go to disk without a word.",
        stacklevel=3,
    )


def _path(run: Any) -> str:
    return str(run.id) if run.offline or run.disabled else "/".join((run.entity, run.project, run.id))


def _unique_tags(tags: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(tag[:_MAX_TAG] for tag in tags))
