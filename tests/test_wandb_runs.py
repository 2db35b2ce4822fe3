from __future__ import annotations

import math
import re
import time
from typing import Any

import numpy as np
import pytest
import wandb
from table_equality import assert_equal_tables
from wandb_server import DEFAULT_ENTITY, LoopbackServer
from wandb_studies import make_record

from playbook_plugins.analysis import Parameter, Status, review
from playbook_plugins.wandb import WandbUnavailableError, log_trial, trials_from_runs
from playbook_plugins.wandb import runs as runs_module

CURVES = {"validation": "val/loss", "train": "train_loss", "step": "trainer/global_step"}


def plant_foreign(server: LoopbackServer, n_runs: int = 12, **more: Any) -> None:
    """Plant runs as another's training loop logs them: nested config, a summary of last values, mixed rows."""
    generator = np.random.default_rng(0)
    for number in range(n_runs):
        rate = 10 ** generator.uniform(-4, -1)
        rows: list[dict[str, Any]] = []
        for step in range(1, 9):
            rows.append({"train_loss": 1 / step, "trainer/global_step": step, "epoch": step // 4})
            if step % 4 == 0:
                rows.append({"val/loss": rate / step, "trainer/global_step": step, "epoch": step // 4})
        server.plant_run(
            DEFAULT_ENTITY,
            "theirs",
            name=f"run{number:04}",
            config={"optimizer": {"name": ["adam", "sgd"][number % 2], "lr": rate}, "batch_size": 64, "sizes": [1, 2]},
            summary={"val/loss": rate / 8, "train_loss": 0.125, "_step": 9, "best": {"loss": rate / 8}},
            history=rows,
            created_at=f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z",
            **more,
        )


def test_a_project_that_never_saw_this_package(wandb_server: LoopbackServer) -> None:
    plant_foreign(wandb_server)
    trials = trials_from_runs(DEFAULT_ENTITY, "theirs", objective="val/loss", direction="minimize", curves=CURVES)
    assert (trials.name, trials.objective_name) == (f"{DEFAULT_ENTITY}/theirs", "val/loss")
    assert trials.number.tolist() == list(range(12))
    assert trials.fixed == {"batch_size": 64}
    kinds = {parameter.name: (parameter.kind, parameter.log) for parameter in trials.parameters}
    assert kinds == {"optimizer.name": ("categorical", False), "optimizer.lr": ("float", True)}
    np.testing.assert_array_equal(trials.objective, trials.values["optimizer.lr"] / 8)
    curve = trials.curves[3]
    assert curve is not None
    assert curve.step.tolist() == [4, 8]
    assert curve.validation[-1] == trials.objective[3]
    assert curve.train.tolist() == [np.mean([1, 1 / 2, 1 / 3, 1 / 4]), np.mean([1 / 5, 1 / 6, 1 / 7, 1 / 8])]
    assert trials.best_step.tolist() == [8] * 12
    assert (trials.max_steps == -1).all()
    # The table is as good as any other to the analysis.
    assert review(trials)
    nested = trials_from_runs(DEFAULT_ENTITY, "theirs", objective="best.loss", direction="minimize")
    np.testing.assert_array_equal(nested.objective, trials.objective)
    assert nested.curves == (None,) * 12


def test_only_some_runs(wandb_server: LoopbackServer) -> None:
    plant_foreign(wandb_server, 4, group="a")
    for name, group in (("x", "b"), ("y", "b")):
        wandb_server.plant_run(DEFAULT_ENTITY, "theirs", name=name, summary={"val/loss": 1.0}, group=group)
    asked: dict[str, Any] = {"objective": "val/loss", "direction": "minimize"}
    assert len(trials_from_runs(DEFAULT_ENTITY, "theirs", **asked)) == 6
    assert len(trials_from_runs(DEFAULT_ENTITY, "theirs", filters={"group": "b"}, **asked)) == 2
    trials = trials_from_runs(DEFAULT_ENTITY, "theirs", study="a", **asked)
    assert (len(trials), trials.name) == (4, "a")


def test_a_thousand_runs_take_few_requests(wandb_server: LoopbackServer) -> None:
    plant_foreign(wandb_server, 1000)
    start = time.monotonic()
    trials = trials_from_runs(DEFAULT_ENTITY, "theirs", objective="val/loss", direction="minimize", n_curves=0)
    assert time.monotonic() - start < 10
    assert len(trials) == 1000
    assert len(wandb_server.requests) <= 4
    assert wandb_server.count("Runs") == 2


def test_curves_of_the_best_only(wandb_server: LoopbackServer) -> None:
    for number in range(4):
        log_trial(make_record(number), {"rate": number}, study="s", number=number, project="p")
    before = len(wandb_server.requests)
    none = trials_from_runs(DEFAULT_ENTITY, "p", n_curves=0)
    assert len(wandb_server.requests) - before <= 2
    assert none.curves == (None,) * 4
    some = trials_from_runs(DEFAULT_ENTITY, "p", n_curves=2)
    best = set(some.ranking()[:2].tolist())
    assert {row for row, curve in enumerate(some.curves) if curve is not None} == best
    every = trials_from_runs(DEFAULT_ENTITY, "p")
    assert all(curve is not None for curve in every.curves)
    # The best step is known without a curve.
    assert none.best_step.tolist() == every.best_step.tolist()


def test_a_sweep_tells_its_space_and_its_direction(wandb_server: LoopbackServer) -> None:
    config = {
        "method": "random",
        "metric": {"name": "acc", "goal": "maximize"},
        "parameters": {
            "rate": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
            "depth": {"min": 1, "max": 9},
            "seed": {"value": 3},
        },
    }
    wandb_server.add_sweep(DEFAULT_ENTITY, "p", "sweep1", config)
    for number, state in enumerate(["finished", "finished", "crashed", "running"]):
        wandb_server.plant_run(
            DEFAULT_ENTITY,
            "p",
            name=f"r{number}",
            config={"rate": 0.01 * (number + 1), "depth": 2 + number, "seed": 3},
            summary={"acc": 0.5 + number / 10},
            state=state,
            sweep="sweep1",
        )
    wandb_server.plant_run(DEFAULT_ENTITY, "p", name="other", summary={"acc": 9.0})
    trials = trials_from_runs(DEFAULT_ENTITY, "p", sweep="sweep1", objective="acc")
    assert trials.direction == "maximize"
    assert trials.name == f"sweep {DEFAULT_ENTITY}/p/sweep1"
    assert sorted(trials.parameters, key=lambda parameter: parameter.name) == [
        Parameter(name="depth", kind="int", low=1.0, high=9.0),
        Parameter(name="rate", kind="float", low=1e-4, high=1.0, log=True),
    ]
    assert trials.fixed == {"seed": 3}
    assert trials.values["depth"].tolist() == [2, 3, 4, 5]
    assert list(trials.status) == [Status.COMPLETE, Status.COMPLETE, Status.FAILED, Status.RUNNING]
    np.testing.assert_array_equal(trials.objective, [0.5, 0.6, np.nan, np.nan])


def test_trials_whose_run_goes_on_or_broke(wandb_server: LoopbackServer) -> None:
    log_trial(make_record(0), {"rate": 1}, study="s", number=0, project="p")
    kept = {key: entry["value"] for key, entry in wandb_server.runs[0].config.items() if key != "_wandb"}
    for number, state in ((1, "running"), (2, "crashed")):
        wandb_server.plant_run(
            DEFAULT_ENTITY, "p", name=f"r{number}", config={**kept, "playbook_number": number}, state=state
        )
    trials = trials_from_runs(DEFAULT_ENTITY, "p")
    assert list(trials.status) == [Status.COMPLETE, Status.RUNNING, Status.FAILED]
    assert trials.reason == ("", "", "the run crashed")


def test_an_own_api_is_asked_anew(wandb_server: LoopbackServer) -> None:
    api = wandb.Api()
    plant_foreign(wandb_server, 2)
    asked: dict[str, Any] = {"objective": "val/loss", "direction": "minimize", "api": api}
    first = trials_from_runs(DEFAULT_ENTITY, "theirs", **asked)
    plant_foreign(wandb_server, 3)
    assert (len(first), len(trials_from_runs(DEFAULT_ENTITY, "theirs", **asked))) == (2, 3)
    assert wandb_server.count("Viewer") == 1


def test_infinities_and_nan_of_others(wandb_server: LoopbackServer) -> None:
    for name, value in (("a", math.inf), ("b", -math.inf), ("c", math.nan), ("d", 0.5)):
        wandb_server.plant_run(
            DEFAULT_ENTITY, "p", name=name, summary={"loss": value}, history=[{"loss": 1.0}, {"loss": value}]
        )
    trials = trials_from_runs(
        DEFAULT_ENTITY, "p", objective="loss", direction="minimize", curves={"validation": "loss"}
    )
    assert [str(status) for status in trials.status] == ["infeasible"] * 3 + ["complete"]
    assert trials.reason[:3] == ("the objective is inf", "the objective is -inf", "the objective is nan")
    assert trials.objective.tolist() == [math.inf] * 3 + [0.5]
    for curve in trials.curves[:3]:
        assert curve is not None
        np.testing.assert_array_equal(curve.validation, [1.0, math.nan])


def test_a_long_history_is_read_whole(wandb_server: LoopbackServer) -> None:
    rows = [{"loss": 1 / (1 + step)} for step in range(3500)]
    wandb_server.plant_run(DEFAULT_ENTITY, "p", name="a", summary={"loss": rows[-1]["loss"]}, history=rows)
    trials = trials_from_runs(
        DEFAULT_ENTITY, "p", objective="loss", direction="minimize", curves={"validation": "loss"}
    )
    [curve] = trials.curves
    assert curve is not None
    assert curve.validation.tolist() == [row["loss"] for row in rows]


# When W&B does not answer


@pytest.mark.parametrize("operation", ["Viewer", "Runs", "RunHistoryKeys", "HistoryPage"])
@pytest.mark.parametrize("kind", [503, 429, "drop"])
def test_a_short_outage_is_not_noticed(kind: int | str, operation: str, wandb_server: LoopbackServer) -> None:
    plant_foreign(wandb_server, 2)
    asked: dict[str, Any] = {"objective": "val/loss", "direction": "minimize", "curves": CURVES}
    expected = trials_from_runs(DEFAULT_ENTITY, "theirs", **asked)
    wandb_server.fail(kind, times=1, operation=operation, retry_after=0.2)
    assert_equal_tables(trials_from_runs(DEFAULT_ENTITY, "theirs", **asked), expected)


@pytest.mark.slow
def test_a_long_outage_is_told(wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "_REQUEST_SECONDS", 1)
    plant_foreign(wandb_server, 2)
    wandb_server.fail("hang", times=None)
    with pytest.raises(WandbUnavailableError) as caught:
        trials_from_runs(DEFAULT_ENTITY, "theirs", objective="val/loss", direction="minimize")
    message = str(caught.value)
    assert message.startswith(f"could not read the runs of {DEFAULT_ENTITY}/theirs: W&B did not answer. It was asked 4")
    assert wandb_server.api_key not in message


def test_histories_that_never_come_are_given_up(wandb_server: LoopbackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs_module, "_STALL_SECONDS", 1.0)
    plant_foreign(wandb_server, 3)
    wandb_server.fail("hang", times=None, operation="HistoryPage")
    start = time.monotonic()
    with pytest.raises(WandbUnavailableError) as caught:
        trials_from_runs(DEFAULT_ENTITY, "theirs", objective="val/loss", direction="minimize", curves=CURVES)
    assert time.monotonic() - start < 5
    assert str(caught.value) == (
        f"could not read the curves of {DEFAULT_ENTITY}/theirs: W&B sent none for 1 s, after 0 of 3. Run this again "
        "when W&B answers (https://status.wandb.com), or pass n_curves= for the best trials only."
    )


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_told_at_once(status: int, wandb_server: LoopbackServer) -> None:
    plant_foreign(wandb_server, 1)
    wandb_server.fail(status, times=None, operation="Runs")
    with pytest.raises(Exception, match="a failure that the test asked for") as caught:
        trials_from_runs(DEFAULT_ENTITY, "theirs", objective="val/loss", direction="minimize")
    assert not isinstance(caught.value, WandbUnavailableError)
    assert wandb_server.count("Runs") == 1


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"filters": {"group": "none"}},
            f"there is no run in {DEFAULT_ENTITY}/theirs: nothing can be read. Check the name, the filters, and that "
            "the runs have been uploaded.",
        ),
        (
            {"objective": "nothing"},
            f"`objective` is 'nothing': no run in {DEFAULT_ENTITY}/theirs has this key in its summary. Pass one of "
            "['best', 'train_loss', 'val/loss'], nested keys with dots.",
        ),
        (
            {"curves": {"train": "train_loss"}},
            "`curves` is {'train': 'train_loss'}: it does not say which key of the history is the validation "
            "objective. Pass for instance {'validation': 'val_loss', 'train': 'train_loss', 'step': "
            "'trainer/global_step'}.",
        ),
        (
            {"curves": {"validation": "val_los", "step": "trainer/global_step"}},
            "`curves` names 'val_los' as the validation objective: no run that was read has it in its history together "
            "with the step 'trainer/global_step'. Pass the keys as W&B's charts show them, or leave `curves` out.",
        ),
        (
            {"n_curves": -1},
            "`n_curves` is -1: it must be a whole number from 0. Leave it out to read every curve.",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str, wandb_server: LoopbackServer) -> None:
    plant_foreign(wandb_server, 2)
    asked = {"objective": "val/loss", "direction": "minimize", **arguments}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trials_from_runs(DEFAULT_ENTITY, "theirs", **asked)


def test_a_project_that_is_not_there(wandb_server: LoopbackServer) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        trials_from_runs(DEFAULT_ENTITY, "nowhere")


def test_reading_leaves_the_runs_alone(wandb_server: LoopbackServer) -> None:
    plant_foreign(wandb_server, 2)
    trials_from_runs(DEFAULT_ENTITY, "theirs", objective="val/loss", direction="minimize", curves=CURVES)
    assert not [request for request in wandb_server.requests if "mutation" in (request.query or "")]
    assert wandb_server.invalid == []
    assert wandb_server.unknown == []


def test_after_a_refusal_no_more_histories_are_asked_for(wandb_server: LoopbackServer) -> None:
    plant_foreign(wandb_server, 300)
    wandb_server.fail(403, times=None, operation="RunHistoryKeys")
    with pytest.raises(wandb.errors.CommError, match="a failure that the test asked for"):
        trials_from_runs(DEFAULT_ENTITY, "theirs", objective="val/loss", direction="minimize", curves=CURVES)
    time.sleep(0.5)
    n_asked = wandb_server.count("RunHistoryKeys")
    time.sleep(0.5)
    assert wandb_server.count("RunHistoryKeys") == n_asked < 300
