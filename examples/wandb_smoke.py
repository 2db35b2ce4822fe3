"""Does all of playbook_plugins.wandb work with a real account? One run of this script checks what only that can show.

It logs a few made-up trials as runs of a new project, publishes the presets and draft reports, reads the runs back and
compares them with what was logged, and deletes what it made. Log in first (``wandb login``); then::

    python examples/wandb_smoke.py --entity my-team

Each check prints a line with OK or FAILED. Look at the reports by eye while the script waits: no API tells whether a
chart is drawn. What W&B's API cannot delete stays: the presets, and the empty project.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optuna
import wandb
import wandb_workspaces.reports.v2 as reports
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from playbook_plugins.analysis import Curve, Status, TrialRecord, Trials
from playbook_plugins.optuna import Round, record_trial, trials_from_study
from playbook_plugins.wandb import log_trial, publish_presets, publish_report, report_template, trials_from_runs
from playbook_plugins.wandb.presets import PRESETS

N_TRIALS = 8
MAX_STEPS = 100
SECONDS_TO_WAIT = 60


class Checks:
    """Runs one check after the other and remembers whether any failed."""

    def __init__(self) -> None:
        self.n_failed = 0

    @contextlib.contextmanager
    def check(self, what: str) -> Iterator[Callable[[str], None]]:
        """Print OK or FAILED for the block, with the note that it makes."""
        notes: list[str] = []
        try:
            yield notes.append
        except Exception as error:
            self.n_failed += 1
            print(f"FAILED  {what}: {type(error).__name__}: {error}", flush=True)
            traceback.print_exc(file=sys.stderr)
        else:
            print(f"OK      {what}{''.join(f': {note}' for note in notes)}", flush=True)


def design_round() -> Round:
    """Return a round with every kind of hyperparameter: float, integer, categorical, and some of one branch only."""
    return Round(
        "Does W&B show what was logged?",
        scientific={"optimizer": ["adam", "nesterov"]},
        nuisance={"width": IntDistribution(16, 256, log=True), "activation": CategoricalDistribution(["relu", "tanh"])},
        conditional={
            "optimizer": {
                "adam": {"learning_rate": FloatDistribution(1e-4, 1e-1, log=True)},
                "nesterov": {
                    "learning_rate": FloatDistribution(1e-2, 1e1, log=True),
                    "one_minus_momentum": FloatDistribution(1e-2, 1.0, log=True),
                },
            }
        },
        fixed={"max_train_steps": MAX_STEPS},
        n_trials=N_TRIALS,
        seed=0,
    )


def make_record(config: dict[str, Any], *, diverges: bool) -> TrialRecord:
    """Return a made-up record: the closer the learning rate to its best value, the lower the curve."""
    best = 1e-2 if config["optimizer"] == "adam" else 1.0
    distance = abs(math.log10(config["learning_rate"] / best))
    steps = np.arange(0, MAX_STEPS + 1, 10)
    validation = 0.05 * (1 + distance) + 0.85 * np.exp(-steps / (10 * (1 + distance)))
    if diverges:
        steps, validation = steps[:4], np.array([0.9, 0.7, 0.8, math.nan])
    return TrialRecord(
        direction="minimize",
        objective_name="validation error",
        status=Status.INFEASIBLE if diverges else Status.COMPLETE,
        reason="diverged: validation error is nan at step 30" if diverges else "",
        max_steps=MAX_STEPS,
        seconds=1.5,
        curve=Curve.from_columns(
            steps,
            validation,
            0.9 * validation,
            learning_rate=np.full(len(steps), config["learning_rate"]),
            gradient_norm=np.where(steps == 0, math.nan, 1 / (1 + steps)),
            metrics={"loss": 2 * validation},
        ),
    )


def make_trials(study_name: str) -> tuple[Round, Trials, list[dict[str, Any]], list[TrialRecord]]:
    """Return a round, the table of its study, and the configuration and record of each trial; one is infeasible."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    design = design_round()
    with warnings.catch_warnings():
        # That there are few trials for so many hyperparameters: this is no search.
        warnings.simplefilter("ignore", UserWarning)
        study = design.create_study(study_name=study_name, direction="minimize")
    configs, records = [], []
    for number in range(N_TRIALS):
        trial = study.ask()
        configs.append(design.suggest(trial))
        records.append(make_record(configs[-1], diverges=number == N_TRIALS - 1))
        study.tell(trial, record_trial(trial, records[-1]))
    return design, trials_from_study(study), configs, records


def find_differences(logged: Trials, read: Trials) -> list[str]:
    """Return the names of what differs between two tables, down to the last digit of the last curve."""
    different = []
    for field in dataclasses.fields(Trials):
        first, second = getattr(logged, field.name), getattr(read, field.name)
        if field.name in ("values", "curves") or not field.init:
            continue
        # As texts, because the bounds of a categorical hyperparameter are NaN, which equals nothing.
        is_same = _is_equal(first, second) if isinstance(first, np.ndarray) else repr(first) == repr(second)
        if not is_same:
            different.append(f"{field.name} ({first!r} became {second!r})")
    for name in {**logged.values, **read.values}:
        column, other = logged.values.get(name), read.values.get(name)
        if not _is_equal(column, other):
            different.append(f"values of {name!r} ({column!r} became {other!r})")
    for number, first, second in zip(logged.number, logged.curves, read.curves, strict=True):
        if first is None or second is None:
            if first is not second:
                different.append(f"the curve of trial {number}, which only one table has")
            continue
        columns, others = ({"step": curve.step, **curve.columns()} for curve in (first, second))
        different += [
            f"{name!r} in the curve of trial {number} ({columns.get(name)!r} became {others.get(name)!r})"
            for name in {*columns, *others}
            if not _is_equal(columns.get(name), others.get(name))
        ]
    return different


def _is_equal(first: Any, second: Any) -> bool:
    if first is None or second is None or first.dtype.kind != second.dtype.kind:
        return False
    return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def read_back(entity: str, project: str, study_name: str) -> Trials:
    """Return the logged trials; W&B may take some seconds to list runs that have just ended."""
    last_try = time.monotonic() + SECONDS_TO_WAIT
    while True:
        with contextlib.suppress(ValueError):
            trials = trials_from_runs(entity, project, study=study_name)
            if len(trials) >= N_TRIALS:
                return trials
        if time.monotonic() >= last_try:
            return trials_from_runs(entity, project, study=study_name)
        time.sleep(2)


def count_charts(address: str) -> int:
    """Return how many custom charts a saved report has."""
    grids = [block for block in reports.Report.from_url(address).blocks if isinstance(block, reports.PanelGrid)]
    return sum(isinstance(panel, reports.CustomChart) for grid in grids for panel in grid.panels)


def create_again(entity: str) -> str:
    """Create a preset that exists once more, and return what W&B answered."""
    preset = PRESETS["axis"]
    try:
        answer = wandb.Api().create_custom_chart(
            entity=entity,
            name=preset.name,
            display_name=preset.display_name,
            spec_type="vega2",
            access="private",
            spec=dict(preset.spec),
        )
    except Exception as error:
        return f"refused ({type(error).__name__}: {str(error).strip()})"
    return f"accepted ({answer})"


def delete_all(entity: str, project: str, study_name: str, addresses: list[str]) -> str:
    """Delete the reports and the runs that this script made."""
    for address in addresses:
        if not reports.Report.from_url(address).delete():
            raise RuntimeError(f"W&B did not delete {address}")
    runs = list(wandb.Api().runs(f"{entity}/{project}", filters={"group": study_name}))
    for run in runs:
        run.delete(delete_artifacts=True)
    last_try = time.monotonic() + SECONDS_TO_WAIT
    while left := len(wandb.Api().runs(f"{entity}/{project}", filters={"group": study_name})):
        if time.monotonic() < last_try:
            time.sleep(2)
            continue
        raise RuntimeError(f"{left} of {len(runs)} runs are still there")
    return f"{len(addresses)} reports, {len(runs)} runs"


def main() -> int:
    """Run all checks; return the exit status: 0 when all are OK."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entity", help="team or user (default: that of the login)")
    parser.add_argument("--project", help="default: playbook-smoke-<time>, a new one")
    parser.add_argument("--keep", action="store_true", help="delete nothing")
    arguments = parser.parse_args()

    stamp = time.strftime("%Y%m%d-%H%M%S")
    entity = arguments.entity or wandb.Api().default_entity or parser.error("the login has no entity: pass --entity")
    project = arguments.project or f"playbook-smoke-{stamp}"
    study_name = f"smoke-{stamp}"
    checks = Checks()
    addresses: list[str] = []
    design, trials, configs, records = make_trials(study_name)
    print(f"{entity}/{project}, with wandb {wandb.__version__}")

    with checks.check(f"log {N_TRIALS} trials as runs"):
        for number, (config, record) in enumerate(zip(configs, records, strict=True)):
            log_trial(record, config, study=trials, number=number, project=project, entity=entity)
    with checks.check("read the runs back as they were logged"):
        different = find_differences(trials, read_back(entity, project, study_name))
        if different:
            raise RuntimeError("; ".join(different))
    with checks.check("publish the presets") as note:
        note(", ".join(publish_presets(entity).values()))
    with checks.check("publish the presets again"):
        if publish_presets(entity) != {stem: f"{entity}/{preset.name}" for stem, preset in PRESETS.items()}:
            raise RuntimeError("their names are others")
    with checks.check("create a preset that exists, by the client itself") as note:
        note(create_again(entity))
    with checks.check("make the live report of the round before its trials") as note:
        addresses.append(report_template(design, entity=entity, project=project, study_name=study_name))
        note(f"{count_charts(addresses[-1])} charts, look at {addresses[-1]}")
    with checks.check("publish a draft report with live charts") as note:
        live = publish_report(trials, entity=entity, project=project, draft=True, live=True)
        addresses.append(live)
        note(f"{count_charts(live)} charts")
    with checks.check("publish it again with charts of logged tables") as note:
        address = publish_report(trials, entity=entity, project=project, draft=True, live=False)
        if address not in addresses:
            addresses.append(address)
        note(f"{count_charts(address)} charts, look at {address}")
    with checks.check("read the runs back beside the reports'"):
        different = find_differences(trials, read_back(entity, project, study_name))
        if different:
            raise RuntimeError("; ".join(different))

    if arguments.keep:
        print(f"Kept: the project {entity}/{project}.")
    else:
        with contextlib.suppress(EOFError):
            input("Look at the reports; then press Enter to delete them and the runs. ")
        with checks.check("delete the reports and runs") as note:
            note(delete_all(entity, project, study_name, addresses))
        print(f"Left: the presets of {entity}, and the empty project {project}; delete it in its settings.")
    print(f"{checks.n_failed} checks FAILED" if checks.n_failed else "All checks are OK.")
    return 1 if checks.n_failed else 0


def end(status: int) -> None:
    """End this process; the client's side process, which once in a while does not end, is waited for a minute only."""
    ending = threading.Thread(target=wandb.teardown, daemon=True)
    ending.start()
    ending.join(SECONDS_TO_WAIT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    end(main())
