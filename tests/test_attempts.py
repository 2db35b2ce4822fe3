"""Which of several attempts at a point is the one that counts, whenever their workers were killed?"""

from __future__ import annotations

import datetime
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from playbook_plugins.analysis import Curve, Status, TrialRecord, Trials
from playbook_plugins.optuna import (
    Plan,
    Round,
    create_exploitation_study,
    redo_lost,
    run_plan,
    study_sheet,
    trials_from_study,
)
from playbook_plugins.optuna.attempts import NOT_NEEDED_KEY, final_attempts
from playbook_plugins.optuna.plans import open_plan
from playbook_plugins.optuna.waiting import finish_together

PLAN = Plan(goal="Which width?", points=({"width": 8}, {"width": 16}, {"width": 32}))
STATES = {state.name[0]: state for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED)}
STATES |= {"R": TrialState.RUNNING, "W": TrialState.WAITING}


def make_trial(number: int, letter: str, root: int | None = None) -> FrozenTrial:
    """Return a trial by the first letter of its state, N for one that was not needed, that does a root again or not."""
    trial = optuna.create_trial(
        state=STATES["F" if letter == "N" else letter],
        value=0.5 if letter == "C" else None,
        params={"x": 0.5},
        distributions={"x": FloatDistribution(0.0, 1.0)},
        user_attrs={NOT_NEEDED_KEY: "another attempt at this point is done or running"} if letter == "N" else {},
        # Two workers that look at once write the same history.
        system_attrs={} if root is None else {"failed_trial": root, "retry_history": [root]},
    )
    trial.number = number
    return trial


def attempts_at_one_point(letters: str) -> list[FrozenTrial]:
    return [make_trial(number, letter, 0 if number else None) for number, letter in enumerate(letters)]


@pytest.mark.parametrize(
    ("letters", "kept"),
    [
        ("F", [0]),
        ("FC", [1]),
        ("FFC", [2]),  # queued twice; the first retry was killed as well
        ("FCF", [1]),  # queued twice; the second was killed before it could say that nobody needs it
        ("FCN", [1]),
        ("FRF", [1]),
        ("FFP", [2]),
        ("FW", []),
        ("FFW", []),
        ("FFF", [2]),
        ("FFN", [1]),
        ("CF", [0]),
    ],
)
def test_of_the_attempts_at_a_point_the_one_that_came_furthest_counts(letters: str, kept: list[int]) -> None:
    assert [trial.number for trial in final_attempts(attempts_at_one_point(letters))] == kept


@given(st.lists(st.tuples(st.sampled_from("CFPRWN"), st.integers(0, 8), st.booleans()), max_size=12))
def test_no_result_is_hidden_and_no_failure_stands_beside_one(drawn: list[tuple[str, int, bool]]) -> None:
    trials: list[FrozenTrial] = []
    roots: list[int] = []
    for number, (letter, pointed, is_retry) in enumerate(drawn):
        root = roots[pointed % number] if is_retry and number else number
        roots.append(root)
        trials.append(make_trial(number, letter, None if root == number else root))
    kept = {trial.number for trial in final_attempts(trials)}
    for root in set(roots):
        by_letter: dict[str, list[int]] = {}
        for number, (letter, _, _) in enumerate(drawn):
            if roots[number] == root:
                by_letter.setdefault(letter, []).append(number)
        alive = [number for letter in "CPR" for number in by_letter.get(letter, [])]
        failed = by_letter.get("F", [])
        expected = alive or ([] if "W" in by_letter else failed[-1:])
        assert sorted(kept & {number for number in range(len(roots)) if roots[number] == root}) == sorted(expected)


def test_a_mark_that_points_nowhere_hides_nothing() -> None:
    # As in trials copied from another study.
    trials = [make_trial(0, "F", root=7), make_trial(1, "C"), make_trial(2, "F")]
    trials[1].system_attrs["retry_history"] = [2]
    assert [trial.number for trial in final_attempts(trials)] == [0, 1, 2]


def make_round() -> Round:
    return Round("How low?", scientific={}, nuisance={"rate": FloatDistribution(0.0, 1.0)}, n_trials=3)


def make_record(config: dict[str, Any], *_: object) -> TrialRecord:
    value = config.get("rate", config.get("width"))
    return TrialRecord(direction="minimize", curve=Curve.from_columns([0, 1], [99.0, value]), max_steps=1)


def kill_a_superfluous_trial(study: optuna.Study) -> None:
    """Leave what a worker leaves that saw an index free, and is killed before it sees that another took it."""
    study.ask()
    redo_lost(study, datetime.timedelta(0), n_indices=3)
    assert study.trials[-1].state is TrialState.FAIL


def kill_one_of_two_retries(study: optuna.Study) -> None:
    """Leave what two workers leave that queue the same lost trial at once, when one of them is killed as well."""
    study.ask()
    assert redo_lost(study, datetime.timedelta(0)) == [0]
    study.add_trial(study.trials[-1])
    study.ask()
    assert redo_lost(study, datetime.timedelta(0)) == []


def test_a_trial_beyond_the_end_that_nobody_began_is_no_trial_of_the_round() -> None:
    study = make_round().create_study(study_name="s", storage=(storage := optuna.storages.InMemoryStorage()))
    make_round().optimize(study, make_record)
    kill_a_superfluous_trial(study)
    assert len(trials_from_study(study)) == 3
    assert study_sheet(storage)[0]["n_trials"] == 3
    # One that trained is shown, whatever the round was cut down to since.
    trial = study.ask()
    make_round().suggest(trial)
    study.tell(trial, state=TrialState.FAIL)
    assert trials_from_study(study).number.tolist() == [0, 1, 2, 4]


def test_a_bayesian_phase_has_no_end() -> None:
    first = make_round().create_study(study_name="s")
    make_round().optimize(first, make_record)
    study = create_exploitation_study(first, study_name="t")
    n_before = len(study.trials)
    study.tell(study.ask(), state=TrialState.FAIL)
    assert len(trials_from_study(study)) == n_before + 1


@pytest.mark.parametrize("kill", [kill_a_superfluous_trial, kill_one_of_two_retries])
def test_a_procedure_does_not_wait_for_a_trial_that_nobody_needs(kill: Any) -> None:
    storage = optuna.storages.InMemoryStorage()
    study = open_plan(PLAN, study_name="s", storage=storage, direction="minimize")
    n_looks = 0

    def carry_out() -> Trials:
        nonlocal n_looks
        n_looks += 1
        assert n_looks < 5
        return run_plan(PLAN, make_record, study_name="s", storage=storage)

    if kill is kill_a_superfluous_trial:
        carry_out()
    kill(study)
    trials = finish_together(carry_out, 3)
    assert trials.status.tolist() == [Status.COMPLETE] * 3
    assert trials.objective.tolist() == [8.0, 16.0, 32.0]
