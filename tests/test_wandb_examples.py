"""The examples for W&B, run as a user runs them: as scripts, offline or against the loopback server."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml
from example_scripts import EXAMPLES, load_example
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from wandb.sdk.sweeps.scheduler.optuna import build_optuna_optimizer
from wandb.sdk.sweeps.sweep_info import SweepInfo
from wandb_server import LoopbackServer

from playbook_plugins.analysis import Trials
from playbook_plugins.optuna import HaltonSampler, trials_from_study
from playbook_plugins.wandb import trials_from_offline

SWEEP = EXAMPLES / "wandb_sweep"
SPACE = {
    "learning_rate": FloatDistribution(0.001, 30.0, log=True),
    "one_minus_momentum": FloatDistribution(0.01, 1.0, log=True),
    "activation": CategoricalDistribution(["relu", "tanh"]),
}


def offline(folder: Path) -> dict[str, str]:
    # Not the variables of a person who is logged in.
    others = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**others, "WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true"}


def start(script: Path, folder: Path, environment: Mapping[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # wandb_workspaces declares its models in Pydantic's old way, and says so.
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(script), *arguments],
        cwd=folder,
        env=dict(environment),
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(script: Path, folder: Path, environment: Mapping[str, str], *arguments: str, status: int = 0) -> str:
    process = start(script, folder, environment, *arguments)
    output, errors = process.communicate(timeout=200)
    assert process.returncode == status, output + errors
    return output


def load(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="digits-classic", storage=f"sqlite:///{folder}/runs/wandb_sweep.db")


def drawn_points(study: optuna.Study) -> list[tuple[object, ...]]:
    return [tuple(trial.params[name] for name in SPACE) for trial in study.trials]


def sequential_points(n: int) -> list[tuple[object, ...]]:
    sampler = HaltonSampler(search_space=SPACE, scientific={"activation": ["relu", "tanh"]})
    study = optuna.create_study(study_name="digits-classic", sampler=sampler)
    for _ in range(n):
        study.ask(SPACE)
    return drawn_points(study)


@pytest.mark.slow
def test_classic_goes_on_where_it_stopped_and_logs_what_it_tells(tmp_path: Path) -> None:
    run(SWEEP / "classic.py", tmp_path, offline(tmp_path), "--trials", "5")
    assert drawn_points(load(tmp_path)) == sequential_points(5)
    output = run(SWEEP / "classic.py", tmp_path, offline(tmp_path), "--trials", "8")
    assert output.count("trial ") == 3 + 1
    study = load(tmp_path)
    assert drawn_points(study) == sequential_points(8)
    told, logged = trials_from_study(study), trials_from_offline(tmp_path)
    assert logged.name == "digits-classic"
    assert logged.number.tolist() == list(range(8))
    for field in ("objective", "status", "best_step", "max_steps"):
        np.testing.assert_array_equal(getattr(logged, field), getattr(told, field))
    for name in SPACE:
        np.testing.assert_array_equal(logged.values[name], told.values[name])


@pytest.mark.slow
def test_classic_scripts_share_one_study(tmp_path: Path) -> None:
    # The study exists before, so that both find it at the same moment.
    run(SWEEP / "classic.py", tmp_path, offline(tmp_path), "--trials", "1")
    workers = [start(SWEEP / "classic.py", tmp_path, offline(tmp_path), "--trials", "9") for _ in range(2)]
    for worker in workers:
        output, errors = worker.communicate(timeout=200)
        assert worker.returncode == 0, output + errors
    points = drawn_points(load(tmp_path))
    assert len(points) in (9, 10)
    assert points == sequential_points(len(points))
    assert len(trials_from_offline(tmp_path)) == len(points)


@pytest.mark.slow
def test_classic_draws_a_lost_trial_again(tmp_path: Path) -> None:
    run(SWEEP / "classic.py", tmp_path, offline(tmp_path), "--trials", "2")
    study = load(tmp_path)
    study.sampler = HaltonSampler(search_space=SPACE, scientific={"activation": ["relu", "tanh"]})
    # A worker that was killed left this behind.
    study.ask(SPACE)
    run(SWEEP / "classic.py", tmp_path, offline(tmp_path), "--trials", "4", "--redo-lost")
    states = [trial.state for trial in load(tmp_path).trials]
    assert states == [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    # The third point twice, by the worker that was killed and by the one that went on, and then the fourth.
    points = sequential_points(4)
    assert drawn_points(load(tmp_path)) == [*points[:3], points[2], points[3]]


def test_the_training_script_runs_alone(tmp_path: Path) -> None:
    run(SWEEP / "train.py", tmp_path, offline(tmp_path), "--learning_rate", "0.5", "--activation", "tanh")
    [objective] = trials_from_offline(tmp_path).objective
    assert objective < 0.1


def test_the_sweep_compares_both_activations_at_the_same_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SWEEP)
    config = yaml.safe_load(Path("sweep.yaml").read_text())
    sweep = SweepInfo(
        id="abcd1234", name="digits", entity="team", project="digits", config=config, controller_run_name="controller"
    )
    asked = [
        suggestion.config.flat_dict() for suggestion in build_optuna_optimizer(sweep).ask_n_runs(config["run_cap"])
    ]
    by_activation = {
        name: {(one["learning_rate"], one["one_minus_momentum"]) for one in asked if one["activation"] == name}
        for name in ("relu", "tanh")
    }
    assert by_activation["relu"] == by_activation["tanh"]
    assert len(by_activation["relu"]) == 8
    assert {one["width"] for one in asked} == {32}


def test_the_comparison_of_the_smoke_test_is_strict(wandb_server: LoopbackServer) -> None:
    # The server's fixture imports what the script needs without its warning.
    script = load_example("wandb_smoke")
    _, logged, _, _ = script.make_trials("smoke")
    assert script.find_differences(logged, logged.select(range(len(logged)))) == []
    assert {str(status) for status in logged.status} == {"complete", "infeasible"}
    [curve, *curves] = logged.curves
    later = curve.step.copy()
    later[-1] += 1
    changes = {
        "goal": "Another?",
        "fixed": {"max_train_steps": 101},
        "objective": np.nextafter(logged.objective, 0),
        "best_step": logged.best_step + 1,
        "parameters": logged.parameters[::-1],
        "values": {name: column for name, column in logged.values.items() if name != "width"},
        "curves": (dataclasses.replace(curve, step=later), *curves),
    }
    names = {"values": "values of 'width'", "curves": "'step' in the curve of trial 0"}
    for name, value in changes.items():
        [difference] = script.find_differences(logged, altered(logged, name, value))
        assert difference.startswith(f"{names.get(name, name)} (")
    [difference] = script.find_differences(logged, altered(logged, "curves", (None, *curves)))
    assert difference == "the curve of trial 0, which only one table has"


def altered(trials: Trials, name: str, value: object) -> Trials:
    """Return a copy with another field, also where the table would refuse it."""
    other = copy.copy(trials)
    object.__setattr__(other, name, value)
    return other


def smoke(server: LoopbackServer, folder: Path, *arguments: str, status: int = 0) -> Sequence[str]:
    environment = {**os.environ, **server.environment(folder)}
    output = run(EXAMPLES / "wandb_smoke.py", folder, environment, "--project", "smoke", *arguments, status=status)
    return output.replace("Look at the reports; then press Enter to delete them and the runs. ", "").splitlines()


@pytest.mark.slow
def test_the_smoke_test_passes_and_leaves_nothing(wandb_server: LoopbackServer, tmp_path: Path) -> None:
    lines = smoke(wandb_server, tmp_path)
    assert lines[-1] == "All checks are OK."
    assert [line[:8] for line in lines[1:-2]] == ["OK      "] * 10
    assert not wandb_server.invalid
    assert not wandb_server.unknown
    assert len(wandb_server.backend.deleted_runs) >= 9
    assert not wandb_server.runs
    assert not wandb_server.reports
    assert len(wandb_server.charts) >= 8


@pytest.mark.slow
def test_the_smoke_test_fails_where_a_check_does(wandb_server: LoopbackServer, tmp_path: Path) -> None:
    wandb_server.fail(400, times=None, operation="upsertView")
    lines = smoke(wandb_server, tmp_path, "--keep", status=1)
    failed = [line for line in lines if line.startswith("FAILED")]
    assert lines[-1] == f"{len(failed)} checks FAILED"
    assert len(failed) >= 3
    assert lines[-2].startswith("Kept: the project ")
    assert len(wandb_server.runs) >= 8
