from __future__ import annotations

import pickle
import re
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FrozenTrial, TrialState

from playbook_plugins.optuna.indices import FAR_INDEX, TrialIndices, sequence_indices


def trials(*marks: dict[str, Any]) -> list[FrozenTrial]:
    made = [optuna.create_trial(state=TrialState.WAITING, system_attrs=mark) for mark in marks]
    for number, trial in enumerate(made):
        trial.number = number
    return made


ENQUEUED: dict[str, Any] = {"fixed_params": {"x": 1}}


def retry(number: int, **more: Any) -> dict[str, Any]:
    return {"failed_trial": number, "retry_history": [number], **more}


def test_without_foreign_trials_the_index_is_the_number() -> None:
    assert sequence_indices(trials({}, {}, {})) == {0: 0, 1: 1, 2: 2}
    assert sequence_indices([]) == {}


def test_enqueued_trials_have_no_index_and_shift_the_later_ones() -> None:
    assert sequence_indices(trials({}, ENQUEUED, {}, ENQUEUED, {})) == {0: 0, 1: None, 2: 1, 3: None, 4: 2}


def test_a_retry_takes_the_index_of_the_original() -> None:
    # Trial 1 is tried again as 3; 3 is lost too, and Optuna's convention still names the first.
    assert sequence_indices(trials({}, {}, {}, retry(1), {}, retry(1), {})) == {
        0: 0,
        1: 1,
        2: 2,
        3: 1,
        4: 3,
        5: 1,
        6: 4,
    }


def test_a_retry_of_a_retry_takes_the_index_of_the_first() -> None:
    assert sequence_indices(trials({}, {}, retry(1), retry(2))) == {0: 0, 1: 1, 2: 1, 3: 1}


def test_a_retry_of_an_enqueued_trial_has_no_index() -> None:
    assert sequence_indices(trials({}, ENQUEUED, retry(1, **ENQUEUED), retry(1), {})) == {
        0: 0,
        1: None,
        2: None,
        3: None,
        4: 1,
    }


def test_a_retry_of_a_trial_that_is_not_there_has_no_index() -> None:
    assert sequence_indices(trials({}, retry(7), {}, retry(-1))) == {0: 0, 1: None, 2: 1, 3: None}


def test_trials_come_in_any_order_and_state() -> None:
    study = optuna.create_study()
    study.enqueue_trial({"x": 0})
    for _ in range(3):
        study.ask()
    study.tell(1, state=TrialState.FAIL)
    study.tell(2, 1.0)
    assert sequence_indices(study.get_trials()[::-1]) == {0: None, 1: 0, 2: 1}


def test_missing_trials_are_refused() -> None:
    message = (
        "`trials` has trial 2 where trial 1 should be: an index depends on all trials before it. Pass all trials of "
        "the study, for instance study.get_trials(deepcopy=False)."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        sequence_indices(trials({}, {}, {})[::2])


marks = st.lists(
    st.one_of(st.just({}), st.just(ENQUEUED), st.integers(0, 20).map(retry)),
    max_size=30,
)


@given(marks)
def test_the_indices_of_the_other_trials_have_no_hole_and_no_duplicate(found: list[dict[str, Any]]) -> None:
    indices = sequence_indices(trials(*found))
    own = [indices[number] for number, mark in enumerate(found) if not mark]
    assert own == list(range(len(own)))
    assert all(index is None or index in own for index in indices.values())


@given(marks)
def test_counting_on_after_a_pickle_gives_the_same(found: list[dict[str, Any]]) -> None:
    counted = TrialIndices()
    for mark in found:
        counted.append(mark)
        counted = pickle.loads(pickle.dumps(counted))
    assert {number: counted.index(number) for number in range(len(counted))} == sequence_indices(trials(*found))


def test_free_parameters_of_enqueued_trials_draw_from_the_far_part_and_retries_from_the_same_point() -> None:
    counted = TrialIndices()
    for mark in ({}, ENQUEUED, ENQUEUED, retry(1, **ENQUEUED), {}, retry(0)):
        counted.append(mark)
    assert [counted.point(number) for number in range(6)] == [0, FAR_INDEX + 1, FAR_INDEX + 2, FAR_INDEX + 1, 1, 0]
