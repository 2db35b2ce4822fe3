"""Are the same trials read rightly by another objective?"""

from __future__ import annotations

import re

import numpy as np
import pytest

from playbook_plugins.analysis import Curve, Parameter, Status, Trials, review

RATE = Parameter(name="rate", kind="float", low=0, high=1)
STEPS = [0, 10, 20, 30]
NAN = float("nan")


def study(direction: str = "minimize") -> Trials:
    """Return four trials: two with a curve, one diverged, one without a curve."""
    sign = 1 if direction == "minimize" else -1
    curves = [
        Curve.from_columns(
            STEPS, np.multiply(sign, [9, 2, 1, 4]), [8, 5, 2, 1], metrics={"accuracy": [0.1, 0.7, 0.5, 0.6]}
        ),
        Curve.from_columns(
            STEPS, np.multiply(sign, [9, 5, 3, 2]), [8, 6, NAN, 3], metrics={"accuracy": [0.1, 0.2, 0.8, NAN]}
        ),
        Curve.from_columns([0, 10], [sign * 9.0, NAN], [8, NAN]),
        None,
    ]
    return Trials.from_columns(
        "s",
        [RATE],
        {"rate": [0.1, 0.2, 0.9, 0.5]},
        np.multiply(sign, [1, 2, NAN, 0.5]),
        direction=direction,
        status=[Status.COMPLETE, Status.COMPLETE, Status.INFEASIBLE, Status.COMPLETE],
        best_step=[20, 30, -1, 10],
        max_steps=[30] * 4,
        curves=curves,
        objective_name="val_error",
    )


def test_the_final_value_is_that_of_the_last_evaluation() -> None:
    final = study().with_objective("final")
    np.testing.assert_array_equal(final.objective, [4, 2, np.inf, NAN])
    assert final.best_step.tolist() == [30, 30, 0, -1]
    assert final.objective_name == "final val_error"
    assert final.ranking().tolist() == [1, 0]
    # Not judged: what it would have been by this objective is unknown.
    assert final.is_judged.tolist() == [True, True, True, False]
    assert final.curves[0].validation.tolist() == [9, 2, 1, 4]


def test_the_training_objective() -> None:
    train = study().with_objective("train")
    np.testing.assert_array_equal(train.objective, [1, 3, np.inf, NAN])
    assert train.best_step.tolist() == [30, 30, 0, -1]
    assert train.curves[0].validation.tolist() == [8, 5, 2, 1]
    assert train.curves[0].metrics["val_error"].tolist() == [9, 2, 1, 4]
    assert train.objective_name == "train"
    assert train.direction == study("maximize").with_objective("train").direction == "minimize"


def test_another_metric_at_its_best_and_at_the_kept_checkpoint() -> None:
    best = study().with_objective("accuracy")
    assert best.direction == "maximize"
    np.testing.assert_array_equal(best.objective, [0.7, 0.8, -np.inf, NAN])
    assert best.best_step.tolist() == [10, 20, -1, -1]
    kept = study().with_objective("accuracy", moment="best step")
    # The second trial was best at step 30, where its accuracy is unknown.
    np.testing.assert_array_equal(kept.objective, [0.5, NAN, -np.inf, NAN])
    last = study().with_objective("accuracy", moment="final")
    np.testing.assert_array_equal(last.objective, [0.6, 0.8, -np.inf, NAN])
    worst = study().with_objective("accuracy", direction="minimize")
    np.testing.assert_array_equal(worst.objective, [0.1, 0.1, np.inf, NAN])


def test_going_back_gives_the_old_objective() -> None:
    back = study().with_objective("train").with_objective("val_error")
    np.testing.assert_array_equal(back.objective[:2], study().objective[:2])
    assert back.direction == "minimize"
    assert back.curves[1].validation.tolist() == study().curves[1].validation.tolist()
    same = study().with_objective("validation")
    np.testing.assert_array_equal(same.objective[:2], study().objective[:2])
    assert same.best_step[:2].tolist() == [20, 30]


def test_minimizing_and_maximizing_are_dual() -> None:
    for objective in ("final", "validation"):
        low, high = study().with_objective(objective), study("maximize").with_objective(objective)
        np.testing.assert_array_equal(low.objective, -high.objective)
        np.testing.assert_array_equal(low.best_step, high.best_step)


def test_everything_else_is_kept_and_can_be_reviewed() -> None:
    old = study()
    new = old.with_objective("train")
    assert (new.name, new.parameters, new.reason) == (old.name, old.parameters, old.reason)
    assert new.number.tolist() == old.number.tolist()
    assert list(new.status) == list(old.status)
    assert review(new)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"objective": "top_5"},
            "`objective` is 'top_5': no curve of the study 's' knows it. Pass 'final', 'validation', 'train' or one of "
            "the metrics ['accuracy'], or record it during training.",
        ),
        (
            {"objective": "train", "moment": "last"},
            "`moment` is 'last': it must be one of ['best', 'best step', 'final']. Leave it out for the best.",
        ),
        (
            {"objective": "train", "direction": "down"},
            "`direction` is 'down': it must be 'minimize' or 'maximize'. Pass the direction in which the objective "
            "gets better.",
        ),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        study().with_objective(**arguments)
