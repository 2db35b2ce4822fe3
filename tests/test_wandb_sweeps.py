"""Quasi-random sweeps, driven by the optimizers of the real client: the same points whatever stops and starts again."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import wandb
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from wandb.sdk.sweeps.run_state import RunState
from wandb.sdk.sweeps.scheduler.optimizer import Run, RunConfig, RunSuggestion, RunWithMetrics
from wandb.sdk.sweeps.scheduler.optuna import OptunaOptimizer, build_optuna_optimizer
from wandb.sdk.sweeps.sweep_info import SweepInfo
from wandb_server import LoopbackServer
from wandb_sweep_operations import SCHEDULER_FEATURE

from playbook_plugins.optuna import HaltonSampler, trials_from_study
from playbook_plugins.wandb import trials_from_runs
from playbook_plugins.wandb.sweeps import halton_sweep

EXAMPLE = Path(__file__).parents[1] / "examples" / "wandb_sweep"
PARAMETERS: dict[str, dict[str, Any]] = {
    "batch_size": {"values": [32, 64, 128]},
    "dropout": {"distribution": "q_uniform", "min": 0.0, "max": 0.5, "q": 0.125},
    "epochs": {"value": 3},
    "layers": {"min": 1, "max": 4},
    "learning_rate": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1.0},
    "momentum": {"min": 0.0, "max": 1.0},
    "optimizer": {"values": ["adam", "nesterov"]},
}
TWO_LINES = "from playbook_plugins.wandb.sweeps import halton_sweep as optimizer\n"
BRANCHES = """
def search_space(trial):
    config = {"optimizer": trial.suggest_categorical("optimizer", ["adam", "nesterov"])}
    if config["optimizer"] == "adam":
        config["beta1"] = trial.suggest_float("beta1", 0.5, 0.999)
    config["learning_rate"] = trial.suggest_float("learning_rate", 1e-5, 1.0, log=True)
    return config
"""
DECLARED = """
import functools
from optuna.distributions import FloatDistribution
from playbook_plugins.wandb.sweeps import halton_sweep
optimizer = functools.partial(halton_sweep, search_space={
    "learning_rate": FloatDistribution(1e-5, 1.0, log=True), "optimizer": FloatDistribution(0, 1),
    "beta1": FloatDistribution(0.5, 0.999)})
"""


def make_sweep(
    source: Path | None = None, text: str = TWO_LINES, *, sweep_id: str = "abcd1234", **changes: Any
) -> SweepInfo:
    scheduler: dict[str, Any] = {"engine": "optuna"}
    if source is not None:
        source.write_text(text)
        scheduler |= {"source": str(source), "optimizer": "optimizer"}
        if "def search_space" in text:
            scheduler["search_space"] = "search_space"
    config = {"metric": {"name": "val_error", "goal": "minimize"}, "parameters": PARAMETERS, "scheduler": scheduler}
    config = {key: value for key, value in {**config, **changes}.items() if value is not None}
    return SweepInfo(
        id=sweep_id, name="a sweep", entity="team", project="digits", config=config, controller_run_name="controller"
    )


class World:
    """What W&B remembers of a sweep: its runs, as JSON, from one scheduler to the next."""

    def __init__(self, sweep: SweepInfo) -> None:
        self.sweep = sweep
        self.runs: dict[str, dict[str, Any]] = {}

    def enqueue(self, suggestion: RunSuggestion) -> str:
        name = f"run-{len(self.runs)}"
        # Numbers go through a server that writes 1 for 1.0.
        config = json.loads(json.dumps(suggestion.config.flat_dict()), parse_float=shorten)
        self.runs[name] = {"config": config, "state": RunState.PENDING, "summary": {}}
        return name

    def show(self, name: str) -> RunWithMetrics:
        run = self.runs[name]
        # The configuration holds what training adds to it, too.
        config = RunConfig.from_values({**run["config"], "playbook_number": 3})
        return RunWithMetrics(config, run["state"], name, run["summary"], [])

    def warm_start(self, optimizer: OptunaOptimizer, order: list[str] | None = None) -> dict[str, str]:
        """Show all runs to a new optimizer, as the scheduler does, and return the adopted: name to its id there."""
        adopted = {}
        for name in self.runs if order is None else order:
            run = self.show(name)
            if run.state.is_alive:
                adopted[name] = optimizer.tell_existing_active_run(Run(run.config, run.state, name))
            else:
                # As the scheduler does with a run that the optimizer rejects: "NaN" is not a number.
                with contextlib.suppress(TypeError):
                    optimizer.tell_existing_finished_run(run)
        return adopted

    @property
    def configs(self) -> list[dict[str, Any]]:
        return [run["config"] for run in self.runs.values()]


def shorten(text: str) -> float | int:
    number = float(text)
    return int(number) if number.is_integer() else number


def expected_points(n: int, sweep_id: str = "abcd1234", **arguments: Any) -> list[dict[str, Any]]:
    """Return the points of a study that one worker asks in one go."""
    space: dict[str, optuna.distributions.BaseDistribution] = {
        "batch_size": CategoricalDistribution([32, 64, 128]),
        "dropout": FloatDistribution(0.0, 0.5, step=0.125),
        "layers": IntDistribution(1, 4),
        "learning_rate": FloatDistribution(1e-5, 1.0, log=True),
        "momentum": FloatDistribution(0.0, 1.0),
        "optimizer": CategoricalDistribution(["adam", "nesterov"]),
    }
    study = optuna.create_study(study_name=sweep_id, sampler=HaltonSampler(search_space=space, **arguments))
    return [{**study.ask(space).params, "epochs": 3} for _ in range(n)]


def spell(configs: list[dict[str, Any]]) -> list[str]:
    """Return configurations as texts, so that 1 and 1.0 are one number and lists can be counted."""
    return [
        json.dumps(
            {key: float(value) if isinstance(value, int) else value for key, value in config.items()}, sort_keys=1
        )
        for config in configs
    ]


def test_two_lines_give_the_points_of_the_sampler(tmp_path: Path) -> None:
    optimizer = build_optuna_optimizer(make_sweep(tmp_path / "halton.py"))
    asked = [suggestion.config.flat_dict() for suggestion in optimizer.ask_n_runs(20)]
    assert spell(asked) == spell(expected_points(20))
    assert isinstance(optimizer.study.sampler, HaltonSampler)
    assert isinstance(optimizer.study.pruner, optuna.pruners.NopPruner)


@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_the_direction_is_the_goal_of_the_metric(goal: str, tmp_path: Path) -> None:
    # The optimizer refuses a study of the other direction.
    sweep = make_sweep(tmp_path / "halton.py", metric={"name": "val_accuracy", "goal": goal})
    assert build_optuna_optimizer(sweep).study.direction.name.lower() == goal


def test_the_seed_follows_from_the_sweep(tmp_path: Path) -> None:
    def ask(sweep_id: str, **arguments: Any) -> list[float]:
        study = halton_sweep(make_sweep(sweep_id=sweep_id), **arguments)
        return [study.ask({"momentum": FloatDistribution(0, 1)}).params["momentum"] for _ in range(5)]

    assert ask("one") == ask("one")
    assert ask("one") != ask("two")
    assert ask("one", seed=4) == ask("two", seed=4)
    assert ask("one", seed=4) != ask("one", seed=5)


def test_scientific_values_are_covered_evenly_at_the_same_points(tmp_path: Path) -> None:
    text = (
        "import functools\nfrom playbook_plugins.wandb.sweeps import halton_sweep\n"
        "optimizer = functools.partial(halton_sweep, scientific=['optimizer', 'batch_size'])\n"
    )
    optimizer = build_optuna_optimizer(make_sweep(tmp_path / "halton.py", text))
    asked = [suggestion.config.flat_dict() for suggestion in optimizer.ask_n_runs(24)]
    assert set(Counter((one["optimizer"], one["batch_size"]) for one in asked).values()) == {4}
    assert len({one["learning_rate"] for one in asked}) == 4
    scientific = {"optimizer": ["adam", "nesterov"], "batch_size": [32, 64, 128]}
    assert spell(asked) == spell(expected_points(24, scientific=scientific))


def test_constants_take_no_dimension(tmp_path: Path) -> None:
    constants = {
        "a_list_of_one": {"values": ["relu"]},
        "a_number": {"value": 1},
        "a_point": {"distribution": "uniform", "min": 2.0, "max": 2.0},
    }
    sweep = make_sweep(tmp_path / "halton.py", parameters={**constants, **PARAMETERS})
    asked = [suggestion.config.flat_dict() for suggestion in build_optuna_optimizer(sweep).ask_n_runs(10)]
    fixed = {"a_list_of_one": "relu", "a_number": 1, "a_point": 2.0}
    assert spell(asked) == spell([{**fixed, **point} for point in expected_points(10)])


def test_the_order_of_importance_is_the_order_of_the_dimensions(tmp_path: Path) -> None:
    parameters = {name: {"min": 0.0, "max": 1.0} for name in ("a", "b", "c")}
    given_order = halton_sweep(make_sweep(parameters=parameters), search_space=["c"], seed=1)
    by_alphabet = halton_sweep(make_sweep(parameters=parameters), seed=1)
    space = {name: FloatDistribution(0, 1) for name in parameters}
    for _ in range(5):
        one, other = given_order.ask(space).params, by_alphabet.ask(space).params
        assert (one["c"], one["a"], one["b"]) == (other["a"], other["b"], other["c"])


@pytest.mark.parametrize("text", [TWO_LINES, DECLARED + BRANCHES], ids=["declarative", "define-by-run"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chance=st.randoms(use_true_random=False), n_starts=st.integers(1, 4))
def test_stopped_and_started_again_it_goes_on_with_the_sequence(
    text: str, tmp_path: Path, chance: random.Random, n_starts: int
) -> None:
    sweep = make_sweep(tmp_path / "halton.py", text)
    world = World(sweep)
    for _ in range(n_starts):
        optimizer = build_optuna_optimizer(sweep)
        # W&B lists the runs in an order of its own.
        order = list(world.runs)
        chance.shuffle(order)
        tracked = world.warm_start(optimizer, order)
        for _ in range(chance.randrange(4)):
            for suggestion in optimizer.ask_n_runs(chance.randrange(1, 4)):
                tracked[world.enqueue(suggestion)] = suggestion.run_id
            for name in list(tracked):
                end = chance.choice([None, RunState.RUNNING, RunState.FINISHED, RunState.FAILED, RunState.CRASHED])
                if end is not None:
                    world.runs[name]["state"] = end
                    world.runs[name]["summary"] = {"val_error": chance.random()} if end is RunState.FINISHED else {}
                    optimizer.tell_run(tracked[name], world.show(name))
                    if not end.is_alive:
                        del tracked[name]
        # Killed: points that were asked for and not enqueued are lost with the process.
        optimizer.ask_n_runs(chance.randrange(3))
    whole = build_optuna_optimizer(sweep).ask_n_runs(len(world.runs))
    assert spell(world.configs) == spell([suggestion.config.flat_dict() for suggestion in whole])


def finish(world: World, optimizer: OptunaOptimizer, n: int, value: Any = 0.1) -> None:
    for suggestion in optimizer.ask_n_runs(n):
        name = world.enqueue(suggestion)
        world.runs[name] |= {"state": RunState.FINISHED, "summary": {} if value is None else {"val_error": value}}


@pytest.mark.parametrize("hidden", [None, "NaN", "Infinity"])
def test_runs_that_the_scheduler_does_not_show_are_not_drawn_again(hidden: str | None, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "halton.py")
    world = World(sweep)
    optimizer = build_optuna_optimizer(sweep)
    for value in (0.1, hidden, hidden, 0.2):
        finish(world, optimizer, 2, value)
    again = build_optuna_optimizer(sweep)
    world.warm_start(again)
    assert len(again.study.trials) == 4
    finish(world, again, 3)
    assert spell(world.configs) == spell(expected_points(11))


def test_hidden_runs_at_the_very_end_are_drawn_again(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "halton.py")
    world = World(sweep)
    optimizer = build_optuna_optimizer(sweep)
    finish(world, optimizer, 3)
    finish(world, optimizer, 2, "NaN")
    again = build_optuna_optimizer(sweep)
    world.warm_start(again)
    finish(world, again, 4)
    points = expected_points(7)
    assert spell(world.configs) == spell([*points[:5], *points[3:7]])


def test_runs_of_another_origin_take_no_point(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "halton.py")
    world = World(sweep)
    finish(world, build_optuna_optimizer(sweep), 3)
    by_hand = {**expected_points(1)[0], "learning_rate": 0.01}
    for number, state in enumerate([RunState.FINISHED, RunState.RUNNING]):
        world.runs[f"by-hand-{number}"] = {"config": by_hand, "state": state, "summary": {"val_error": 0.3}}
    again = build_optuna_optimizer(sweep)
    world.warm_start(again)
    finish(world, again, 3)
    assert spell(world.configs) == spell([*expected_points(3), by_hand, by_hand, *expected_points(6)[3:]])
    sampler = again.study.sampler
    assert isinstance(sampler, HaltonSampler)
    assert [sampler.index(again.study, trial) for trial in again.study.trials] == [0, 1, 2, None, None, 3, 4, 5]


def test_an_active_run_without_all_values_is_adopted_away_from_the_points(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "halton.py")
    world = World(sweep)
    world.runs["partial"] = {"config": {"momentum": 0.25}, "state": RunState.RUNNING, "summary": {}}
    optimizer = build_optuna_optimizer(sweep)
    world.warm_start(optimizer)
    finish(world, optimizer, 3)
    [adopted, *asked] = [trial.params for trial in optimizer.study.trials]
    assert adopted["momentum"] == 0.25
    assert spell(asked) == spell(expected_points(3))
    assert all(adopted["learning_rate"] != point["learning_rate"] for point in expected_points(50))


def test_a_small_discrete_space_is_counted_with_its_repetitions(tmp_path: Path) -> None:
    parameters = {"optimizer": {"values": ["adam", "nesterov"]}, "layers": {"min": 1, "max": 3}}
    sweep = make_sweep(tmp_path / "halton.py", parameters=parameters)
    world = World(sweep)
    for _ in range(5):
        optimizer = build_optuna_optimizer(sweep)
        world.warm_start(optimizer)
        finish(world, optimizer, 5)
    whole = build_optuna_optimizer(sweep).ask_n_runs(25)
    assert spell(world.configs) == spell([suggestion.config.flat_dict() for suggestion in whole])
    assert len(set(spell(world.configs))) == 6


def test_a_forgotten_suggestion_leaves_the_others_in_their_places(tmp_path: Path) -> None:
    optimizer = build_optuna_optimizer(make_sweep(tmp_path / "halton.py"))
    asked = list(optimizer.ask_n_runs(3))
    optimizer.forget_run(asked[1].run_id)
    asked += optimizer.ask_n_runs(2)
    assert spell([one.config.flat_dict() for one in asked]) == spell(expected_points(5))


def test_a_pickled_sampler_goes_on(tmp_path: Path) -> None:
    optimizer = build_optuna_optimizer(make_sweep(tmp_path / "halton.py"))
    asked = list(optimizer.ask_n_runs(3))
    optimizer.study.sampler = pickle.loads(pickle.dumps(optimizer.study.sampler))
    asked += optimizer.ask_n_runs(3)
    assert spell([one.config.flat_dict() for one in asked]) == spell(expected_points(6))


def test_a_kept_study_is_a_copy_without_duplicates(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/sweep.db"
    text = (
        "import functools\nfrom playbook_plugins.wandb.sweeps import halton_sweep\n"
        f"optimizer = functools.partial(halton_sweep, storage={url!r})\n"
    )
    sweep = make_sweep(tmp_path / "halton.py", text)
    world = World(sweep)
    for _ in range(3):
        optimizer = build_optuna_optimizer(sweep)
        world.warm_start(optimizer)
        finish(world, optimizer, 2)
        # What is left in the storage is that which the killed process knew last.
        optimizer.study._storage.remove_session()
    optimizer = build_optuna_optimizer(sweep)
    world.warm_start(optimizer)
    kept = optuna.load_study(study_name="sweep-abcd1234", storage=url)
    assert spell([{**trial.params} for trial in kept.trials]) == spell(expected_points(6))
    assert [trial.state for trial in kept.trials] == [TrialState.COMPLETE] * 6
    assert trials_from_study(kept).objective.tolist() == [0.1] * 6


def test_another_study_is_not_deleted(tmp_path: Path) -> None:
    storage = optuna.storages.InMemoryStorage()
    optuna.create_study(study_name="mine", storage=storage).ask()
    message = (
        "`study_name` is 'mine', a study in the storage that is not a copy of the sweep team/digits/abcd1234 but of "
        "another origin: it would be made anew at each start of the scheduler. Pass a `study_name` of the sweep's own."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        halton_sweep(make_sweep(), storage=storage, study_name="mine")
    halton_sweep(make_sweep(sweep_id="first"), storage=storage, study_name="shared")
    message = message.replace("'mine'", "'shared'").replace("of another origin", '"team/digits/first"')
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        halton_sweep(make_sweep(), storage=storage, study_name="shared")
    assert len(optuna.load_study(study_name="mine", storage=storage).trials) == 1


_METRIC_RULE = (
    "it must have a name, and the goal 'minimize' or 'maximize'. Write for instance `metric: {name: val_error, goal: "
    "minimize}` into the sweep's configuration."
)


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        (
            {"metric": None, "metrics": [{"name": "val_error"}, {"name": "seconds"}]},
            {},
            "`sweep` 'abcd1234' has the metrics ['val_error', 'seconds']: the playbook compares trials by one. Write "
            "the one to compare by as `metric: {name: ..., goal: minimize}` into the sweep's configuration, and log "
            "the others.",
        ),
        ({"metric": None}, {}, "`sweep` 'abcd1234' has the metric {}: " + _METRIC_RULE),
        (
            {"metric": {"name": "val_error", "goal": "target"}},
            {},
            "`sweep` 'abcd1234' has the metric {'name': 'val_error', 'goal': 'target'}: " + _METRIC_RULE,
        ),
        (
            {},
            {"scientific": ["momentum"]},
            "`scientific` is ['momentum']: it must be a sequence of parameters of the sweep that have `values`, which "
            "are ['batch_size', 'optimizer']. Name those, or pass a mapping from names to values.",
        ),
        (
            {},
            {"scientific": "optimizer"},
            "`scientific` is 'optimizer': it must be a sequence of parameters of the sweep that have `values`, which "
            "are ['batch_size', 'optimizer']. Name those, or pass a mapping from names to values.",
        ),
        (
            {},
            {"search_space": ["momentum", "epochs"]},
            "`search_space` names ['epochs'], which the sweep does not vary: its parameters with more than one value "
            "are ['batch_size', 'dropout', 'layers', 'learning_rate', 'momentum', 'optimizer']. Name those, in order "
            "of importance.",
        ),
        (
            {},
            {"search_space": "momentum"},
            "`search_space` is 'momentum': it must be a sequence of names, or a mapping from names to Optuna "
            "distributions. Pass ['momentum'].",
        ),
    ],
)
def test_messages(changes: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        halton_sweep(make_sweep(**changes), **arguments)


def test_the_scheduler_reports_a_refusal_as_its_own(tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "halton.py", metric=None, metrics=[{"name": "a"}, {"name": "b"}])
    with pytest.raises(wandb.Error, match=r"^`sweep` 'abcd1234' has the metrics \['a', 'b'\]: "):
        build_optuna_optimizer(sweep)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            {"distribution": "log_uniform", "min": -5.0, "max": 0.0},
            "Sweep distribution 'log_uniform' has no optuna equivalent",
        ),
        ({"distribution": "normal", "mu": 0.0, "sigma": 1.0}, "Sweep distribution 'normal' has no optuna equivalent"),
        ({"parameters": {"rate": {"min": 0.0, "max": 1.0}}}, "Cannot infer an optuna distribution"),
    ],
)
def test_what_the_scheduler_cannot_draw_it_refuses_before_asking_us(
    spec: dict[str, Any], message: str, tmp_path: Path
) -> None:
    # The README of the example names these; a version of the client that takes them must be looked at again.
    sweep = make_sweep(tmp_path / "halton.py", "raise RuntimeError('loaded')\n", parameters={"x": spec})
    with pytest.raises(wandb.Error, match=message):
        build_optuna_optimizer(sweep)


@pytest.mark.parametrize("n_runs", [300])
def test_a_long_sweep_is_recognized_quickly(n_runs: int, tmp_path: Path) -> None:
    sweep = make_sweep(tmp_path / "halton.py")
    world = World(sweep)
    optimizer = build_optuna_optimizer(sweep)
    finish(world, optimizer, n_runs)
    again = build_optuna_optimizer(sweep)
    world.warm_start(again, list(reversed(world.runs)))
    finish(world, again, 1)
    assert spell(world.configs[-1:]) == spell(expected_points(n_runs + 1)[-1:])


def test_without_optuna_it_says_what_to_install() -> None:
    script = (
        "import sys\nsys.modules['optuna'] = None\n"
        "from playbook_plugins.wandb.sweeps import halton_sweep\n"
        "assert 'wandb' not in sys.modules\n"
        "try:\n    halton_sweep(None)\nexcept ImportError as error:\n    print(error)\n"
    )
    printed = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    assert printed == (
        "optuna draws the runs of a quasi-random sweep and is not installed. Run: pip install "
        "'playbook-plugins[wandb,optuna]'\n"
    )


@pytest.mark.slow
def test_the_real_scheduler_is_killed_and_goes_on(wandb_server: LoopbackServer, tmp_path: Path) -> None:
    wandb_server.backend.features.add(SCHEDULER_FEATURE)
    folder = tmp_path / "sweep"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "sweep.yaml"
    file.write_text(file.read_text().replace("run_cap: 16", "run_cap: 7"))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **wandb_server.environment(tmp_path / "home"), "PATH": path, "WANDB_SILENT": "false"}
    processes: list[subprocess.Popen[bytes]] = []

    def start(name: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (tmp_path / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "wandb", *arguments],
                    cwd=folder,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        return processes[-1]

    def read(name: str) -> str:
        return (tmp_path / f"{name}.log").read_text()

    try:
        assert start("sweep", "sweep", "sweep.yaml").wait(60) == 0, read("sweep")
        [project] = wandb_server.backend.projects.values()
        [sweep] = project.sweeps.values()
        address = f"{wandb_server.entity}/playbook-sweep/{sweep.name}"
        assert f"wandb sweep-scheduler {address}" in read("sweep")
        schedule = ("sweep-scheduler", address, "--batch-size", "3", "--poll-interval", "1")

        first = start("first", *schedule)
        agents = [start(f"agent-{number}", "agent", address) for number in range(2)]
        deadline = time.monotonic() + 90
        while sum(run.state in ("finished", "failed") for run in project.runs_of_sweep(sweep.name)) < 3:
            assert first.poll() is None, read("first")
            assert time.monotonic() < deadline, read("first")
            time.sleep(0.1)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
        n_before = len(project.runs_of_sweep(sweep.name))

        assert start("second", *schedule).wait(120) == 0, read("second")
        assert "the run cap was hit" in read("second")
        for agent in agents:
            assert agent.wait(60) == 0
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    runs = project.runs_of_sweep(sweep.name)
    names = ("activation", "learning_rate", "one_minus_momentum", "width")
    configs = [{name: run.config[name]["value"] for name in names} for run in runs]
    assert len(configs) > max(7, n_before)
    space = {
        "learning_rate": FloatDistribution(0.001, 30.0, log=True),
        "one_minus_momentum": FloatDistribution(0.01, 1.0, log=True),
        "activation": CategoricalDistribution(["relu", "tanh"]),
    }
    sampler = HaltonSampler(search_space=space, scientific={"activation": ["relu", "tanh"]})
    study = optuna.create_study(study_name=sweep.name, sampler=sampler)
    assert spell(configs) == spell([{**study.ask(space).params, "width": 32} for _ in configs])
    assert not wandb_server.invalid
    assert not wandb_server.unknown

    trials = trials_from_runs(wandb_server.entity, "playbook-sweep", sweep=sweep.name)
    finished = [run for run in runs if run.state == "finished"]
    assert trials.name == f"sweep-{sweep.name}"
    assert sorted(trials.objective[trials.is_judged]) == sorted(run.summary["playbook_objective"] for run in finished)
