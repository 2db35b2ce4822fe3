"""Which trials does a W&B project hold? Its runs as the table of a study, whoever logged them.

Playbook: "Extracting insight from experimental results".
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.analysis.records import Curve, Direction
from playbook_plugins.analysis.trials import Trials
from playbook_plugins.wandb.clients import start_wandb
from playbook_plugins.wandb.retrying import WandbUnavailableError, with_retries
from playbook_plugins.wandb.run_curves import check_curve_keys, check_curves_found, gather_curve
from playbook_plugins.wandb.run_layout import (
    FIRST_ROW_KEY,
    NUMBER_KEY,
    OBJECTIVE_KEY,
    STEP_KEY,
    STUDY_NAME_KEY,
    read_number,
)
from playbook_plugins.wandb.run_outcomes import ReadRun
from playbook_plugins.wandb.run_tables import Question, add_curves, check_n_curves, rows_to_read, tabulate_runs

_T = TypeVar("_T")

# Runs a request; W&B answers with no more than a thousand.
_PER_PAGE = 500
_N_THREADS = 8
# Seconds for one request, the client's own retries included.
_REQUEST_SECONDS = 40
# Seconds without any curve, after which reading is given up: the client sets no limit to the pages of a history.
_STALL_SECONDS = 240.0


def trials_from_runs(
    entity: str,
    project: str,
    *,
    study: str | None = None,
    filters: Mapping[str, Any] | None = None,
    sweep: str | None = None,
    objective: str = OBJECTIVE_KEY,
    direction: Direction | None = None,
    parameters: Sequence[Parameter] | None = None,
    curves: Mapping[str, str] | None = None,
    n_curves: int | None = None,
    api: Any = None,
) -> Trials:
    """Return the runs of a W&B project as the table of a study, logged with this package or not.

    Parameters
    ----------
    entity, project
        Where the runs are.
    study
        Which study, where the runs of `log_trial` belong to several. Where no run names a study, the runs of the
        group of this name.
    filters
        Which runs, in W&B's query language; ``{"group": "..."}`` or ``{"created_at": {"$gt": "2026-01-01"}}``.
    sweep
        The id of a sweep: only its runs, and the search space and the direction from its config.
    objective
        A key of the runs' summary. It may hold slashes or dots; parts of nested entries are joined by dots, as in
        ``"val_loss.min"``. By default the one that `log_trial` and `TrialRecorder` log.
    direction
        In which it gets better. By default that of the study or of the sweep's metric.
    parameters
        The search space. By default that of the study; without one that of the sweep; without one what the configs
        of the runs say: see `find_space` of wandb/found_space.py for its rules.
    curves
        Which keys of the history make the curves, where `log_trial` has not written them:
        ``{"validation": "val_loss", "train": "train_loss", "step": "trainer/global_step"}``, and as
        `gather_curve` of wandb/run_curves.py says.
    n_curves
        How many curves to read, those of the best trials: each costs three requests. None reads all, 0 none.
    api
        A ``wandb.Api`` to ask; by default a new one.

    Returns
    -------
    Trials
        The trials in the order of their numbers, or of the creation of their runs. Runs of several studies are not
        mixed, and runs of reports are left out. Of a run that says no status itself: one that finished with a finite
        objective is COMPLETE; with NaN or an infinity INFEASIBLE; without the key FAILED; one that goes on is
        RUNNING; one that crashed, failed or was killed is FAILED, but INFEASIBLE where the last objective that it
        logged is not finite. The longest training (`max_steps`) of such runs is unknown.

    Raises
    ------
    ValueError
        When there is no run, several studies and none is named, no run has the objective, its direction is unknown,
        or ``curves`` does not fit.
    WandbUnavailableError
        When W&B does not answer.
    ImportError
        When the extra ``wandb`` is not installed.

    Notes
    -----
    The table takes two requests for 1,000 runs. Curves are read exactly, never sampled.
    """
    check_curve_keys(curves)
    check_n_curves(n_curves)
    path = f"{entity}/{project}"

    def read_table() -> tuple[list[Any], Mapping[str, Any] | None]:
        own = start_wandb().Api(timeout=_REQUEST_SECONDS) if api is None else api
        config = None if sweep is None else dict(own.sweep(f"{path}/{sweep}").config)
        conditions = [dict(filters)] if filters else []
        conditions += [] if sweep is None else [{"sweep": sweep}]
        condition = {"$and": conditions} if len(conditions) > 1 else conditions[0] if conditions else {}
        # The client keeps lists of runs, however old.
        own.flush()
        found = own.runs(
            path, filters=condition, order="+created_at", per_page=_PER_PAGE, include_sweeps=False, lazy=False
        )
        return list(found), config

    found, config = with_retries(f"read the runs of {path}", read_table)
    question = Question(
        source=f"sweep {path}/{sweep}" if sweep is not None else path,
        study=study,
        objective=objective,
        direction=direction,
        parameters=parameters,
        sweep=config,
    )
    runs = {run.id: run for run in found}
    chosen, trials = tabulate_runs([_read(run) for run in found], question)
    # A run that never logged an evaluation of ours has no curve, and is not asked for one.
    rows = [row for row in rows_to_read(trials, n_curves) if curves is not None or STEP_KEY in chosen[row].summary]

    def read_curve(row: int) -> Curve | None:
        run = runs[chosen[row].id]
        first = read_number(chosen[row].summary.get(FIRST_ROW_KEY, 0))

        def scan() -> list[Mapping[str, Any]]:
            # With keys, the scan would leave out rows that lack one of them.
            return list(run.scan_history(min_step=int(first)))

        return gather_curve(with_retries(f"read the history of the run {path}/{run.id}", scan), curves)

    read = dict(zip(rows, _in_threads(read_curve, rows, path), strict=True))
    check_curves_found(curves, read.values())
    return add_curves(trials, chosen, read)


def numbers_of_runs(entity: str, project: str, study: str) -> set[int]:
    """Return the numbers of the trials of a study that have a run in a project; none where there is no project.

    Raises
    ------
    WandbUnavailableError
        When W&B does not answer.
    """

    def read() -> set[int]:
        api = start_wandb().Api(timeout=_REQUEST_SECONDS)
        runs = api.runs(
            f"{entity}/{project}",
            filters={f"config.{STUDY_NAME_KEY}": study},
            per_page=_PER_PAGE,
            include_sweeps=False,
            lazy=False,
        )
        try:
            return {run.config[NUMBER_KEY] for run in runs if NUMBER_KEY in run.config}
        except ValueError as error:
            if "Could not find project" in str(error):
                return set()
            raise

    return with_retries(f"read the runs of {entity}/{project}", read)


def _read(run: Any) -> ReadRun:
    return ReadRun(
        id=run.id,
        name=run.name or "",
        state=run.state,
        config=run.config,
        summary=run.summary_metrics,
        job_type=run.job_type or "",
        group=run.group or "",
    )


def _in_threads(call: Callable[[int], _T], rows: Sequence[int], path: str) -> Iterator[_T]:
    """Return ``call(row)`` of every row, in their order; the first error ends it.

    The threads are daemons: one that hangs in the client must not keep the program from ending.
    """
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, _T | None, BaseException | None]] = queue.SimpleQueue()
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            try:
                row = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((row, call(row), None))
            except BaseException as error:
                done.put((row, None, error))

    for row in rows:
        waiting.put(row)
    for _ in range(min(_N_THREADS, len(rows))):
        threading.Thread(target=work, name="playbook-curves", daemon=True).start()
    results: dict[int, Any] = {}
    try:
        while len(results) < len(rows):
            row, result, error = done.get(timeout=_STALL_SECONDS)
            if error is not None:
                raise error
            results[row] = result
    except queue.Empty:
        raise WandbUnavailableError(
            f"could not read the curves of {path}: W&B sent none for {_STALL_SECONDS:.0f} s, after {len(results)} of "
            f"{len(rows)}. Run this again when W&B answers (https://status.wandb.com), or pass n_curves= for the best "
            "trials only."
        ) from None
    finally:
        is_over.set()
    return iter([results[row] for row in rows])
