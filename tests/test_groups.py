from __future__ import annotations

import numpy as np
import pytest

from playbook_plugins.analysis import Parameter, Role, Trials
from playbook_plugins.analysis.groups import groups_by_value, scientific_categories

METHOD = Parameter(name="method", kind="categorical", choices=("a", "b", "c"), role=Role.SCIENTIFIC)
NORM = Parameter(name="norm", kind="categorical", choices=(True, 1), role=Role.SCIENTIFIC)
DEPTH = Parameter(name="depth", kind="int", low=1, high=3, role=Role.SCIENTIFIC)
SINGLE = Parameter(name="single", kind="categorical", choices=("x",), role=Role.SCIENTIFIC)
OTHER = Parameter(name="other", kind="categorical", choices=("x", "y"))
BRANCH = Parameter(
    name="a.kind", kind="categorical", choices=("x", "y"), role=Role.SCIENTIFIC, condition=("method", "a")
)


def study() -> Trials:
    values = {
        "method": ["a", "b", "a", None, "unheard of"],
        "norm": [True, 1, 1, True, 1],
        "depth": [1, 2, 3, 1, 2],
        "single": ["x"] * 5,
        "other": ["x", "y"] * 2 + ["x"],
        "a.kind": ["x", None, "y", None, None],
    }
    return Trials.from_columns("s", [METHOD, NORM, DEPTH, SINGLE, OTHER, BRANCH], values, np.arange(5.0))


def test_scientific_categories_have_two_values_at_least() -> None:
    assert scientific_categories(study()) == [METHOD, NORM, BRANCH]
    assert scientific_categories(Trials.from_columns("s", [DEPTH], {"depth": [1]}, [1.0])) == []


def test_hand_worked_groups() -> None:
    groups = {name: rows.tolist() for name, rows in groups_by_value(study(), [0, 1, 2, 3, 4])}
    assert groups == {
        None: [0, 1, 2, 3, 4],
        # A value without a trial has an empty group; None and what is no choice belong to none.
        "method=a": [0, 2],
        "method=b": [1],
        "method=c": [],
        # True is not 1.
        "norm=True": [0, 3],
        "norm=1": [1, 2, 4],
        # A trial without the branch is in no group of it.
        "a.kind=x": [0],
        "a.kind=y": [2],
    }


@pytest.mark.parametrize("rows", [[], [2], [4, 2, 0]])
def test_only_the_given_rows_are_grouped_in_their_order(rows: list[int]) -> None:
    groups = dict(groups_by_value(study(), rows))
    assert groups[None].tolist() == rows
    assert groups["norm=1"].tolist() == [row for row in rows if row in (1, 2, 4)]
    assert all(members.dtype == np.intp for members in groups.values())


def test_the_values_of_a_hyperparameter_share_out_the_trials_that_have_it() -> None:
    generator = np.random.default_rng(0)
    trials = Trials.from_columns(
        "s", [METHOD], {"method": generator.choice(np.array(["a", "b", "c"], dtype=object), 50)}, generator.random(50)
    )
    rows = generator.permutation(50)[:30]
    [whole, *groups] = groups_by_value(trials, rows)
    assert whole[0] is None
    assert sorted(np.concatenate([members for _, members in groups])) == sorted(rows)
    # Neither the direction nor the objective has a part in it.
    turned = Trials.from_columns("s", [METHOD], trials.values, -trials.objective, direction="maximize")
    for (name, one), (same, other) in zip([whole, *groups], groups_by_value(turned, rows), strict=True):
        assert name == same
        np.testing.assert_array_equal(one, other)
