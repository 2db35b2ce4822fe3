from __future__ import annotations

import re

import pytest

from playbook_plugins.optuna import optimizer_space


@pytest.mark.parametrize(
    ("name", "n_trials", "expected"),
    [
        ("adam", 9, ["learning_rate"]),
        ("adam", 10, ["learning_rate", "one_minus_beta1"]),
        ("adam", 24, ["learning_rate", "one_minus_beta1"]),
        ("adam", 25, ["learning_rate", "one_minus_beta1", "epsilon"]),
        ("nadam", 50, ["learning_rate", "one_minus_beta1", "epsilon", "one_minus_beta2"]),
        ("sgd", 100, ["learning_rate"]),
        ("momentum", 24, ["learning_rate", "one_minus_momentum"]),
        ("nesterov", 24, ["learning_rate", "one_minus_momentum"]),
        ("rmsprop", 9, ["learning_rate"]),
    ],
)
def test_the_budget_decides_what_is_searched(name: str, n_trials: int, expected: list[str]) -> None:
    space = optimizer_space(name, n_trials)
    assert list(space) == expected
    assert all(distribution.log and distribution.low > 0 for distribution in space.values())


@pytest.mark.parametrize(
    ("name", "n_trials", "message"),
    [
        (
            "lion",
            10,
            "`name` is 'lion': it must be one of ['adam', 'momentum', 'nadam', 'nesterov', 'rmsprop', 'sgd']. Pass one "
            "of these, or write the search space of another optimizer as a dict of Optuna distributions.",
        ),
        (
            "adam",
            0,
            "`n_trials` is 0: it must be at least 1, the number of trials for this optimizer. Pass the round's trials "
            "divided by the number of optimizers.",
        ),
    ],
)
def test_bad_input_is_refused(name: str, n_trials: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        optimizer_space(name, n_trials)
