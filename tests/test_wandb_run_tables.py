from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from table_equality import assert_equal_curves, assert_equal_tables

from playbook_plugins.analysis import Curve, Parameter, Role, Status, TrialRecord, Trials
from playbook_plugins.wandb.run_curves import check_curve_keys, gather_curve
from playbook_plugins.wandb.run_layout import (
    StudyHeader,
    TrialEntry,
    enter_trial,
    read_curve,
    read_number,
    to_plain,
    values_of_config,
    write_curve,
)
from playbook_plugins.wandb.run_outcomes import ReadRun, read_summary
from playbook_plugins.wandb.run_tables import Question, add_curves, check_n_curves, rows_to_read, tabulate_runs

CHOICES = (True, 1, "1", None, 0.5, 1.0, "adam", False, 0, math.inf)
PARAMETERS = (
    Parameter(name="optimizer", kind="categorical", choices=("adam", "sgd"), role=Role.SCIENTIFIC),
    Parameter(name="adam.rate", kind="float", low=1e-4, high=1.0, log=True, condition=("optimizer", "adam")),
    Parameter(name="sgd.rate", kind="float", low=1e-3, high=9.0, condition=("optimizer", "sgd")),
    Parameter(name="kind", kind="categorical", choices=CHOICES),
    Parameter(name="width", kind="int", low=1.0, high=64.0, step=1),
)


def through_wandb(value: Any) -> Any:
    """Return a value as it comes back from W&B: whole floats are integers, other than finite numbers texts or None."""
    if isinstance(value, Mapping):
        return {key: through_wandb(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [through_wandb(entry) for entry in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        return int(value) if value.is_integer() and abs(value) < 1e15 else json.loads(json.dumps(value))
    return value


def read_back(entry: TrialEntry, **more: Any) -> ReadRun:
    return ReadRun(
        **{
            "id": f"run-{entry.number}",
            "config": through_wandb(entry.write_config()),
            "summary": through_wandb(entry.summary),
            "job_type": "trial",
            **more,
        }
    )


def rows_back(entry: TrialEntry) -> list[dict[str, Any]]:
    # In a history a NaN comes as a text.
    return [
        {key: "NaN" if value != value else through_wandb(value) for key, value in row.items()}
        for row in entry.write_history()
    ]


numbers = st.floats(width=64)
finite = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(min_size=1, max_size=8)


@st.composite
def curves(draw: st.DrawFn) -> Curve:
    steps = sorted(draw(st.sets(st.integers(0, 10**6), min_size=1, max_size=6)))

    def column() -> list[float]:
        return draw(st.lists(numbers, min_size=len(steps), max_size=len(steps)))

    metrics = {name: column() for name in draw(st.sets(names, max_size=2))}
    return Curve.from_columns(steps, column(), column(), column(), column(), metrics, column(), column())


@st.composite
def records(draw: st.DrawFn, direction: Any) -> TrialRecord:
    status = draw(st.sampled_from([Status.COMPLETE, Status.PRUNED, Status.INFEASIBLE]))
    curve = draw(curves())
    if status is Status.COMPLETE and not np.isfinite(curve.validation).any():
        status = Status.INFEASIBLE
    return TrialRecord(
        direction=direction,
        curve=curve,
        objective_name=draw(names),
        status=status,
        reason=draw(st.text(max_size=20)),
        max_steps=draw(st.integers(-1, 10**6)),
    )


@st.composite
def studies(draw: st.DrawFn) -> tuple[Trials, list[TrialRecord]]:
    direction = draw(st.sampled_from(["minimize", "maximize"]))
    told = draw(st.lists(records(direction), min_size=1, max_size=4))
    n = len(told)
    optimizer = draw(st.lists(st.sampled_from(["adam", "sgd"]), min_size=n, max_size=n))
    rate = draw(st.lists(finite, min_size=n, max_size=n))
    known = {record.objective_name for record in told}
    table = Trials.from_columns(
        draw(names),
        PARAMETERS,
        {
            "optimizer": optimizer,
            "adam.rate": [value if one == "adam" else math.nan for one, value in zip(optimizer, rate, strict=True)],
            "sgd.rate": [value if one == "sgd" else math.nan for one, value in zip(optimizer, rate, strict=True)],
            "kind": draw(st.lists(st.sampled_from(CHOICES), min_size=n, max_size=n)),
            "width": draw(st.lists(st.integers(1, 64), min_size=n, max_size=n)),
        },
        [record.objective for record in told],
        direction=direction,
        status=[record.status for record in told],
        reason=[record.reason for record in told],
        best_step=[record.best_step for record in told],
        max_steps=[record.max_steps for record in told],
        curves=[record.curve for record in told],
        number=sorted(draw(st.sets(st.integers(0, 99), min_size=n, max_size=n))),
        objective_name=known.pop() if len(known) == 1 else "objective",
        fixed={"batch_size": 64, "flag": True, "ratio": 1.0},
        goal=draw(st.text(max_size=10)),
        caveats=tuple(draw(st.lists(st.text(max_size=5), max_size=2))),
    )
    return table, told


@settings(deadline=None)
@given(studies(), st.booleans(), st.randoms())
def test_whatever_a_study_holds_comes_back(
    study: tuple[Trials, list[TrialRecord]], by_record: bool, order: Any
) -> None:
    table, told = study
    runs, rows = [], {}
    for row, (number, record) in enumerate(zip(table.number.tolist(), told, strict=True)):
        outcome = record if by_record else table
        # The configuration that training got is by other names, and does not matter where the study knows.
        config = {"optimizer": table.values["optimizer"][row], "rate": 0.0, "batch_size": 64}
        entry = enter_trial(outcome, config, table, number)
        runs.append(read_back(entry))
        rows[number] = rows_back(entry)
    order.shuffle(runs)
    chosen, read = tabulate_runs(runs, Question(source="here"))
    read = add_curves(
        read, chosen, {row: gather_curve(rows[number], None) for row, number in enumerate(read.number.tolist())}
    )
    assert_equal_tables(read, table)


@given(curves())
def test_whatever_a_curve_holds_comes_back(curve: Curve) -> None:
    back = read_curve(json.loads(json.dumps([through_wandb_row(row) for row in write_curve(curve)])))
    assert_equal_curves(back, curve)


def through_wandb_row(row: Mapping[str, float]) -> dict[str, Any]:
    return {key: "NaN" if value != value else through_wandb(value) for key, value in row.items()}


def test_the_rows_of_a_curve() -> None:
    curve = Curve.from_columns(
        [0, 10], [0.5, math.nan], [math.nan, 0.25], metrics={"acc": [0.1, 0.2], "none": [math.nan, math.nan]}
    )
    first, second = write_curve(curve)
    assert math.isnan(first.pop("playbook/metrics/none"))
    assert first == {"playbook/step": 0, "playbook/validation": 0.5, "playbook/metrics/acc": 0.1}
    assert second == {"playbook/step": 10, "playbook/train": 0.25, "playbook/metrics/acc": 0.2}


def test_rows_of_others_and_repeated_steps() -> None:
    rows = [
        {"loss": 3.0},
        {"playbook/step": 10, "playbook/validation": 0.5},
        {"playbook/step": 5, "playbook/validation": "Infinity"},
        {"playbook/step": 10, "playbook/validation": 0.4},
        {"playbook/step": None},
    ]
    curve = read_curve(rows)
    assert curve is not None
    assert curve.step.tolist() == [5, 10]
    assert curve.validation.tolist() == [math.inf, 0.4]
    assert read_curve([{"loss": 1.0}]) is None


def test_values_of_a_configuration_by_its_branch() -> None:
    config = {"optimizer": "adam", "rate": 0.3, "width": 4, "other": 1}
    assert values_of_config(config, PARAMETERS) == {"optimizer": "adam", "adam.rate": 0.3, "width": 4}
    assert values_of_config({"optimizer": "sgd", "rate": 0.3}, PARAMETERS) == {"optimizer": "sgd", "sgd.rate": 0.3}
    # The stored name, where the configuration has it.
    assert values_of_config({"sgd.rate": 2.0}, PARAMETERS) == {"sgd.rate": 2.0}
    branch = [Parameter(name="1.rate", kind="float", low=0.0, high=1.0, condition=("flag", 1))]
    assert values_of_config({"flag": 1.0, "rate": 0.5}, branch) == {"1.rate": 0.5}
    assert values_of_config({"flag": True, "rate": 0.5}, branch) == {}


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (0.5, 0.5), ("Infinity", math.inf), ("-Infinity", -math.inf)],
)
def test_numbers_of_wandb(value: Any, number: float) -> None:
    assert read_number(value) == number


@pytest.mark.parametrize("value", [None, "NaN", "1", True, {"min": 1}, [1], ""])
def test_what_is_no_number_is_nan(value: Any) -> None:
    assert math.isnan(read_number(value))


def test_plain_values() -> None:
    class Named:
        def __str__(self) -> str:
            return "named"

    value = {"a": (np.int64(1), np.array([[0.5]])), 2: {np.bool_(True)}, "n": None, "o": Named()}
    plain = to_plain(value)
    assert plain == {"a": [1, [[0.5]]], "2": [True], "n": None, "o": "named"}
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("loss", (True, 1.0)),
        ("val_loss.min", (True, 0.5)),
        ("a/b.c", (True, 2.0)),
        ("deep.in.side", (True, 4.0)),
        ("x.y", (True, 5.0)),
        ("x.y.z", (True, 6.0)),
        ("gone.min", (False, None)),
        ("val_loss.max", (False, None)),
    ],
)
def test_keys_of_a_summary(key: str, found: tuple[bool, float | None]) -> None:
    summary = {
        "loss": 1,
        "val_loss": {"min": 0.5},
        "a/b": {"c": 2},
        "deep": {"in": {"side": 4}},
        "x.y": 5,
        "x": {"y.z": 6, "y": 7},
    }
    is_known, value = read_summary(summary, key)
    assert is_known == found[0]
    assert value == found[1] or (math.isnan(value) and found[1] is None)


# Runs that know nothing of this package


def foreign(id: str, state: str = "finished", *, rate: float = 0.1, **more: Any) -> ReadRun:
    return ReadRun(**{"id": id, "state": state, "config": {"rate": rate}, **more})


@pytest.mark.parametrize(
    ("state", "summary", "status", "reason"),
    [
        ("finished", {"loss": 0.5}, Status.COMPLETE, ""),
        ("finished", {"loss": "NaN"}, Status.INFEASIBLE, "the objective is nan"),
        ("finished", {"loss": None}, Status.INFEASIBLE, "the objective is nan"),
        ("finished", {"loss": "Infinity"}, Status.INFEASIBLE, "the objective is inf"),
        ("finished", {"other": 1}, Status.FAILED, "the run finished without the objective"),
        ("running", {"loss": 0.5}, Status.RUNNING, ""),
        ("running", {}, Status.RUNNING, ""),
        ("pending", {}, Status.RUNNING, ""),
        ("crashed", {"loss": 0.5}, Status.FAILED, "the run crashed"),
        ("failed", {}, Status.FAILED, "the run failed"),
        ("killed", {"loss": 0.5}, Status.FAILED, "the run was killed"),
        ("preempted", {}, Status.FAILED, "the run was preempted"),
        ("odd", {}, Status.FAILED, "the run is odd"),
        ("crashed", {"loss": "NaN"}, Status.INFEASIBLE, "diverged: nan"),
        # Its own keys go before the state: training ended, and the tracker lost the run's end.
        (
            "crashed",
            {"loss": 0.5, "playbook_status": "pruned", "playbook_reason": "hopeless"},
            Status.PRUNED,
            "hopeless",
        ),
        ("failed", {"playbook_status": "failed", "playbook_reason": "KeyError('x')"}, Status.FAILED, "KeyError('x')"),
        ("finished", {"playbook_status": "complete"}, Status.FAILED, "the run finished without the objective"),
    ],
)
def test_how_a_run_ended(state: str, summary: dict[str, Any], status: Status, reason: str) -> None:
    runs = [foreign("a", state, summary=summary), foreign("b", rate=0.2, summary={"loss": 1.0})]
    _, trials = tabulate_runs(runs, Question(source="here", objective="loss", direction="minimize"))
    assert trials.status[0] is status
    assert trials.reason[0] == reason
    judged = {Status.COMPLETE: 0.5, Status.PRUNED: 0.5, Status.INFEASIBLE: math.inf}
    np.testing.assert_equal(trials.objective[0], judged.get(status, math.nan))


def test_several_runs_of_one_trial() -> None:
    def entry(objective: float, number: int | None) -> TrialEntry:
        record = TrialRecord(direction="minimize", curve=Curve.from_columns([0], [objective]))
        return enter_trial(record, {"rate": objective}, "s", number)

    runs = [
        read_back(entry(0.5, 1), id="a"),
        read_back(entry(0.3, 0), id="b"),
        read_back(entry(0.4, 1), id="c"),
        # A third attempt that goes on does not hide the second.
        read_back(entry(9.0, 1), id="d", state="running", summary={}),
        read_back(entry(0.7, None), id="e"),
    ]
    chosen, trials = tabulate_runs(runs, Question(source="here"))
    assert [run.id for run in chosen] == ["b", "c", "e"]
    assert trials.number.tolist() == [0, 1, 2]
    assert trials.objective.tolist() == [0.3, 0.4, 0.7]
    assert trials.values["rate"].tolist() == [0.3, 0.4, 0.7]


def test_runs_of_reports_and_of_no_study_are_left_out() -> None:
    record = TrialRecord(direction="minimize", curve=Curve.from_columns([0], [0.5]))
    trial = read_back(enter_trial(record, {}, "s", 0))
    report = ReadRun(id="r", job_type="playbook-report", group="s", summary={"playbook_objective": 0.1})
    other = ReadRun(id="o", job_type="train", summary={"playbook_objective": 0.2})
    chosen, _ = tabulate_runs([report, trial, other], Question(source="here"))
    assert chosen == [trial]
    # Where no run names a study, as after training with a recorder alone, every run but a report's is a trial.
    chosen, _ = tabulate_runs([report, other], Question(source="here", direction="minimize"))
    assert chosen == [other]


def test_ranges_that_changed_are_joined() -> None:
    def run(number: int, *parameters: Parameter) -> ReadRun:
        header = StudyHeader(name="s", direction="maximize", parameters=parameters, goal=f"goal {number}")
        entry = TrialEntry(
            header=header,
            number=number,
            config={},
            values={parameter.name: 1 for parameter in parameters},
            summary={"playbook_objective": 1.0, "playbook_status": "complete"},
            curve=None,
        )
        return read_back(entry)

    first = Parameter(name="a", kind="float", low=0.0, high=1.0)
    second = Parameter(name="a", kind="float", low=0.5, high=2.0)
    later = Parameter(name="b", kind="int", low=1, high=3)
    _, trials = tabulate_runs([run(1, second, later), run(0, first)], Question(source="here"))
    assert [(one.name, one.low, one.high) for one in trials.parameters] == [("a", 0.0, 2.0), ("b", 1.0, 3.0)]
    # That of the run made last, whatever its number.
    assert trials.goal == "goal 0"
    assert trials.direction == "maximize"


def test_given_parameters_go_before_all() -> None:
    runs = [
        foreign(str(n), rate=0.1 * n, summary={"loss": 1.0}, config={"model": {"rate": 0.1 * n}, "seed": 3})
        for n in (1, 2)
    ]
    given = [Parameter(name="model.rate", kind="float", low=1e-3, high=1.0, log=True)]
    question = Question(source="here", objective="loss", direction="minimize", parameters=given)
    _, trials = tabulate_runs(runs, question)
    assert list(trials.parameters) == given
    assert trials.values["model.rate"].tolist() == [0.1, 0.2]
    assert trials.fixed == {"seed": 3}


def test_another_objective_of_own_runs() -> None:
    record = TrialRecord(direction="minimize", curve=Curve.from_columns([0], [0.5]))
    entry = enter_trial(record, {}, "s", 0)
    run = read_back(entry, summary={**entry.summary, "test_accuracy": 0.75})
    _, trials = tabulate_runs([run], Question(source="here", objective="test_accuracy", direction="maximize"))
    assert (trials.objective.tolist(), trials.direction, trials.objective_name) == ([0.75], "maximize", "test_accuracy")


def own_run(study: str = "s", direction: Any = "minimize") -> ReadRun:
    record = TrialRecord(direction=direction, curve=Curve.from_columns([0], [0.5]))
    return read_back(enter_trial(record, {}, study, 0), id=study)


PLAIN = foreign("a", summary={"loss": 1.0, "acc": 2.0, "_step": 4})


@pytest.mark.parametrize(
    ("runs", "question", "message"),
    [
        (
            [],
            {"study": "s"},
            "there is no run in here: nothing can be read. Check the name, the filters, and that the runs have been "
            "uploaded.",
        ),
        (
            [own_run("b"), own_run("a")],
            {},
            "`study` is None, but the runs in here belong to the studies ['a', 'b']: a table holds one. Pass study= "
            "one of them, and join tables of one round with Trials.concat.",
        ),
        (
            [own_run("b"), own_run("a")],
            {"study": "c"},
            "`study` is 'c': no run in here belongs to it. Pass one of ['a', 'b'].",
        ),
        (
            [PLAIN],
            {"study": "c"},
            "`study` is 'c': no run in here belongs to it. Log trials with log_trial, or leave `study` out.",
        ),
        (
            [PLAIN],
            {},
            "`objective` is 'playbook_objective': no run in here has this key in its summary. Pass one of ['acc', "
            "'loss'], nested keys with dots.",
        ),
        (
            [own_run()],
            {"objective": "loss", "direction": "minimize"},
            "`objective` is 'loss': no run in here has this key in its summary. Pass one of ['playbook_best_step', "
            "'playbook_final_objective', 'playbook_max_steps', 'playbook_objective', 'playbook_reason', "
            "'playbook_status'], nested keys with dots.",
        ),
        (
            [PLAIN],
            {"objective": "loss"},
            "`direction` is None, and the runs in here do not tell in which direction 'loss' gets better. Pass "
            "direction='minimize' or direction='maximize'.",
        ),
        (
            [PLAIN],
            {"objective": "loss", "direction": "up"},
            "`direction` is 'up': it must be 'minimize' or 'maximize'. Pass the direction in which loss gets better.",
        ),
        (
            [own_run()],
            {"direction": "maximize"},
            "`direction` is 'maximize', but the runs in here were logged to minimize their objective: both must agree. "
            "Leave `direction` out.",
        ),
    ],
)
def test_what_cannot_be_answered(runs: list[ReadRun], question: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tabulate_runs(runs, Question(source="here", **question))


def test_a_newer_version_is_refused() -> None:
    text = json.dumps({**json.loads(own_run().config["playbook_study"]), "version": 2})
    message = (
        "`playbook_study` of a run is of version 2: this package reads version 1. Upgrade playbook-plugins to read it."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tabulate_runs([ReadRun(id="a", config={"playbook_study": text})], Question(source="here"))


def test_which_curves_are_read() -> None:
    table = Trials.from_columns("s", [], {}, [0.3, math.inf, 0.1, 0.2])
    assert rows_to_read(table, None) == [0, 1, 2, 3]
    assert rows_to_read(table, 2) == [2, 3]
    assert rows_to_read(table, 0) == []
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match=re.escape(f"`n_curves` is {wrong!r}: it must be a whole number from 0.")):
            check_n_curves(wrong)  # type: ignore[arg-type]


# Histories of others


def test_a_curve_of_another_logger() -> None:
    rows: list[dict[str, Any]] = [{"val_loss": 1.0, "step": 0, "_step": 0}]
    for step in range(1, 9):
        rows.append({"train_loss": float(step), "lr": 0.1 * step, "step": step, "norm": float(10 - step)})
        if step % 4 == 0:
            rows.append({"val_loss": "NaN" if step == 8 else 0.5, "acc": step / 10, "step": step})
    keys = {
        "validation": "val_loss",
        "train": "train_loss",
        "step": "step",
        "learning_rate": "lr",
        "gradient_norm": "norm",
        "gradient_norm_max": "norm",
        "accuracy": "acc",
    }
    curve = gather_curve(rows, keys)
    assert curve is not None
    assert curve.step.tolist() == [0, 4, 8]
    np.testing.assert_array_equal(curve.validation, [1.0, 0.5, math.nan])
    np.testing.assert_array_equal(curve.train, [math.nan, 2.5, 6.5])
    np.testing.assert_allclose(curve.learning_rate, [math.nan, 0.4, 0.8])
    np.testing.assert_array_equal(curve.gradient_norm, [math.nan, 7.5, 3.5])
    np.testing.assert_array_equal(curve.gradient_norm_max, [math.nan, 9, 5])
    np.testing.assert_array_equal(curve.metrics["accuracy"], [math.nan, 0.4, 0.8])
    assert np.isnan(curve.clip_threshold).all()


def test_the_rows_of_wandb_count_where_no_step_is_named() -> None:
    curve = gather_curve([{"loss": 1.0, "_step": 3}, {"loss": 0.5, "_step": 7}], {"validation": "loss"})
    assert curve is not None
    assert curve.step.tolist() == [3, 7]
    assert gather_curve([{"other": 1.0, "_step": 3}], {"validation": "loss"}) is None


def test_steps_that_are_none_are_refused() -> None:
    message = (
        "`curves` names 'epoch' as the step, where the history has 0.5: steps are whole numbers from 0. Name the key "
        "that counts optimizer steps, or leave 'step' out."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        gather_curve([{"loss": 1.0, "epoch": 0.5}], {"validation": "loss", "step": "epoch"})
    message = (
        "`curves` is {'train': 'loss'}: it does not say which key of the history is the validation objective. Pass "
        "for instance {'validation': 'val_loss', 'train': 'train_loss', 'step': 'trainer/global_step'}."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_curve_keys({"train": "loss"})


def test_the_best_step_of_a_curve_of_others() -> None:
    runs = [foreign("a", summary={"loss": 0.5})]
    chosen, trials = tabulate_runs(runs, Question(source="here", objective="loss", direction="minimize"))
    curve = Curve.from_columns([0, 10, 20], [0.9, 0.3, 0.5])
    assert trials.best_step.tolist() == [-1]
    assert add_curves(trials, chosen, {0: curve}).best_step.tolist() == [10]


def test_a_long_record_is_kept_as_a_storage_keeps_it() -> None:
    steps = np.arange(2000)
    record = TrialRecord(
        direction="minimize",
        curve=Curve.from_columns(steps, np.abs(steps - 777.0)),
        status=Status.INFEASIBLE,
        reason="x" * 5000,
    )
    entry = enter_trial(record, {}, "s", 0)
    assert entry.curve is not None
    assert len(entry.curve) <= 501
    assert_equal_curves(entry.curve, TrialRecord.from_json(record.to_json()).curve)
    assert entry.summary["playbook_best_step"] == 777
    assert entry.summary["playbook_reason"] == "x" * 2000
