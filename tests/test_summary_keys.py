from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from lightning_toys import PACKAGES, QUIET, make_loader, make_model, make_trainer
from wandb_offline import wandb_folder as wandb_folder

from playbook_plugins.analysis import Curve, InfeasibleError, Status, TrialRecord
from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.recorder import TrialRecorder
from playbook_plugins.lightning.summary import summary_keys

pytestmark = QUIET

ALWAYS = {
    "playbook_objective",
    "playbook_status",
    "playbook_reason",
    "playbook_best_step",
    "playbook_max_steps",
}


def test_the_keys_of_a_whole_record() -> None:
    record = TrialRecord(
        direction="minimize",
        curve=Curve.from_columns([0, 10, 20], [0.9, 0.2, 0.4]),
        max_steps=20,
        gradient_norm_quantiles=np.arange(101.0),
        clipped_share=0.1,
        examples_per_second=1_000.0,
        data_wait_share=0.25,
        seconds=3.0,
    )
    assert summary_keys(record) == {
        "playbook_objective": 0.2,
        "playbook_status": "complete",
        "playbook_reason": "",
        "playbook_best_step": 10,
        "playbook_max_steps": 20,
        "playbook_final_objective": 0.4,
        "playbook_clipped_share": 0.1,
        "playbook_examples_per_second": 1_000.0,
        "playbook_data_wait_share": 0.25,
        "playbook_seconds": 3.0,
        "playbook_gradient_norm_p50": 50.0,
        "playbook_gradient_norm_p90": 90.0,
        "playbook_gradient_norm_p99": 99.0,
    }


def test_the_keys_of_a_record_of_which_little_is_known() -> None:
    curve = Curve.from_columns([0, 10], [0.9, math.nan])
    keys = summary_keys(TrialRecord(direction="maximize", curve=curve, status=Status.INFEASIBLE, reason="diverged"))
    assert keys == {
        "playbook_objective": -math.inf,
        "playbook_status": "infeasible",
        "playbook_reason": "diverged",
        "playbook_best_step": 0,
        "playbook_max_steps": -1,
    }
    empty = TrialRecord(direction="minimize", curve=Curve.from_columns([], []), status=Status.FAILED, reason="a bug")
    keys = summary_keys(empty)
    assert set(keys) == ALWAYS
    assert math.isnan(keys["playbook_objective"])
    # What a tracker turns into JSON must be Python's own.
    assert {type(value) for value in keys.values()} == {float, int, str}


def raise_at(package: Any, exception: BaseException | None) -> Any:
    class Raise(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 6 and exception is not None:
                raise exception

    return Raise()


def run(
    package: Any, loggers: list[Any], exception: BaseException | None = None, evaluated: bool = True, **options: Any
) -> tuple[TrialRecorder, BaseException | None]:
    """Train, and return the recorder and what ended the run."""
    recorder = TrialRecorder("val_loss", "min")
    callbacks = [PercentileGradientClipping(min_steps=5), recorder, raise_at(package, exception)]
    if evaluated:
        callbacks.append(PeriodicEvaluation(4))
    trainer = make_trainer(package, callbacks, **({"max_steps": 10, "logger": loggers} | options))
    try:
        trainer.fit(make_model(package), make_loader(5), make_loader(2, seed=1))
    except BaseException as error:
        return recorder, error
    return recorder, None


def logged(folder: str) -> tuple[dict[str, float], dict[str, str]]:
    """Return the flat keys in the files of a CSVLogger: the numbers with their step, and the text."""
    with open(f"{folder}/metrics.csv") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    (numbers,) = [row for row in rows if "playbook_objective" in row]
    return numbers, yaml.safe_load(Path(f"{folder}/hparams.yaml").read_text())


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("exception", "status", "step"),
    [
        (None, "complete", 10),
        (InfeasibleError("diverged: too high"), "infeasible", 6),
        (RuntimeError("a bug"), "failed", 6),
        (KeyboardInterrupt(), "failed", 6),
        (MemoryError(), "infeasible", 6),
    ],
)
def test_every_end_is_logged(
    package: Any, exception: BaseException | None, status: str, step: int, tmp_path: Path
) -> None:
    loggers = [package.loggers.CSVLogger(tmp_path, name=name) for name in ("one", "other")]
    recorder, error = run(package, loggers, exception)
    # Lightning turns an interrupt into an exit.
    assert isinstance(error, SystemExit) if isinstance(exception, KeyboardInterrupt) else error is exception
    expected = summary_keys(recorder.record)
    assert len(expected) == 13
    assert expected["playbook_status"] == status
    assert math.isinf(expected["playbook_objective"]) == (status == "infeasible")
    for logger in loggers:
        numbers, text = logged(logger.log_dir)
        assert numbers.pop("step") == step
        assert numbers | text == expected


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(("exception", "end"), [(None, "success"), (InfeasibleError("too high"), "failed")])
def test_it_is_one_call_a_logger_before_the_logger_is_closed(
    package: Any, exception: Exception | None, end: str, tmp_path: Path
) -> None:
    calls: list[str] = []

    class Told(package.loggers.CSVLogger):
        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            if any(name.startswith("playbook_") for name in metrics):
                calls.append("log_metrics")
            super().log_metrics(metrics, step)

        def log_hyperparams(self, params: Any = None) -> None:
            calls.append("log_hyperparams")
            super().log_hyperparams(params)

        def finalize(self, status: str) -> None:
            calls.append(f"finalize {status}")
            super().finalize(status)

    run(package, [Told(tmp_path)], exception)
    assert calls == ["log_metrics", "log_hyperparams", f"finalize {end}"]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("exception", [None, RuntimeError("a bug")])
def test_a_logger_that_fails_hides_nothing(package: Any, exception: Exception | None, tmp_path: Path) -> None:
    class Full(package.loggers.CSVLogger):
        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            if "playbook_objective" in metrics:
                raise OSError("disk full")
            super().log_metrics(metrics, step)

    full, other = Full(tmp_path, name="full"), package.loggers.CSVLogger(tmp_path, name="other")
    message = "Full could not log the summary of the run: OSError('disk full')"
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        recorder, error = run(package, [full, other], exception)
    assert [str(warning.message) for warning in caught].count(message) == 1
    assert error is exception
    status = "complete" if exception is None else "failed"
    assert recorder.record.status == status
    # The status is known where the numbers are not, and the logger after it has both.
    assert yaml.safe_load(Path(f"{full.log_dir}/hparams.yaml").read_text())["playbook_status"] == status
    assert logged(other.log_dir)[1]["playbook_status"] == status


@pytest.mark.parametrize("package", PACKAGES)
def test_a_run_without_an_evaluation_is_logged_as_failed(package: Any, tmp_path: Path) -> None:
    logger = package.loggers.CSVLogger(tmp_path)
    run(package, [logger], evaluated=False, limit_val_batches=0)
    numbers, text = logged(logger.log_dir)
    assert math.isnan(numbers["playbook_objective"])
    assert text["playbook_status"] == "failed"
    assert text["playbook_reason"].startswith("`curve` has 0 evaluations, none with a finite val_loss")


@pytest.mark.parametrize("package", PACKAGES)
def test_the_loggers_of_a_trial_run_take_it(package: Any, tmp_path: Path) -> None:
    # Lightning puts dummies in their place; a warning would fail this test.
    logger = package.loggers.CSVLogger(tmp_path)
    run(package, [logger], fast_dev_run=2)
    assert not any(tmp_path.rglob("*.csv"))


@pytest.mark.usefixtures("wandb_folder")
@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("exception", [None, InfeasibleError("diverged: too high")])
def test_wandb_has_them_in_the_summary(package: Any, exception: Exception | None, tmp_path: Path) -> None:
    logger = package.loggers.WandbLogger(save_dir=tmp_path, project="playbook", prefix="my")
    recorder, error = run(package, [logger], exception)
    assert error is exception
    summary = dict(logger.experiment.summary)
    logger.experiment.finish()
    expected = summary_keys(recorder.record)
    assert {name: value for name, value in summary.items() if name.startswith("playbook_")} == expected
    # The history has the numbers under the logger's prefix.
    assert summary["my-playbook_objective"] == expected["playbook_objective"]
