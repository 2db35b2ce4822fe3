from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from playbook_plugins.analysis import Parameter
from playbook_plugins.wandb.found_space import find_choice, find_space, flatten_config


def found(values: list[Any], sweep: dict[str, Any] | None = None) -> Parameter | None:
    """Return what is found out about one hyperparameter; `...` stands for a run that lacks it."""
    configs = [{} if value is ... else {"x": value} for value in values]
    space = find_space(configs, None if sweep is None else {"parameters": {"x": sweep}})
    assert space.fixed == {}
    return space.parameters[0] if space.parameters else None


def test_nested_configurations_become_flat() -> None:
    config = {
        "optimizer": {"name": "adam", "betas": [0.9, 0.999], "inner": {"eps": 1e-8}},
        "a.b": 1,
        "_wandb": {"cli": 1},
        "playbook_study": "{}",
        "layers": (1, 2),
        "deep": {"_kept": 1},
        "none": None,
    }
    assert flatten_config(config) == {
        "optimizer.name": "adam",
        "optimizer.inner.eps": 1e-8,
        "a.b": 1,
        "deep._kept": 1,
        "none": None,
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.1, 0.5, 0.2], {"kind": "float", "low": 0.1, "high": 0.5}),
        ([1, 0.5], {"kind": "float", "low": 0.5, "high": 1.0}),
        ([16, 64, 32], {"kind": "int", "low": 16.0, "high": 64.0}),
        # A whole float comes back from W&B as an integer, and stays one.
        ([1.0, 3], {"kind": "int", "low": 1.0, "high": 3.0}),
        ([1e-4, 1e-2], {"kind": "float", "low": 1e-4, "high": 1e-2, "log": True}),
        ([1e-4, 0.99e-2], {"kind": "float", "low": 1e-4, "high": 0.99e-2}),
        ([0, 1000], {"kind": "int", "low": 0.0, "high": 1000.0}),
        ([16, 2048], {"kind": "int", "low": 16.0, "high": 2048.0, "log": True}),
        ([-1.0, 500.5], {"kind": "float", "low": -1.0, "high": 500.5}),
        # Unset, unknown and missing are no values.
        ([0.1, None, 0.5, ..., "NaN", "Infinity", math.nan], {"kind": "float", "low": 0.1, "high": 0.5}),
        (["b", "a", "b"], {"kind": "categorical", "choices": ("b", "a")}),
        ([True, False], {"kind": "categorical", "choices": (True, False)}),
        ([None, "a"], {"kind": "categorical", "choices": (None, "a")}),
        ([1, "1", True, 1], {"kind": "categorical", "choices": (1, "1", True)}),
        ([0.5, "auto"], {"kind": "categorical", "choices": (0.5, "auto")}),
        ([True, 2], {"kind": "categorical", "choices": (True, 2)}),
    ],
)
def test_the_range_of_the_runs(values: list[Any], expected: dict[str, Any]) -> None:
    parameter = found(values)
    assert parameter is not None
    assert repr(parameter) == repr(Parameter(name="x", **expected))


def test_what_never_varies_is_fixed() -> None:
    configs = [{"seed": 1, "rate": rate, "flag": True, "some": 3} for rate in (0.1, 0.2)]
    del configs[0]["some"]
    space = find_space(configs)
    assert space.fixed == {"seed": 1, "flag": True}
    assert [parameter.name for parameter in space.parameters] == ["rate"]
    # True is not 1.
    assert find_space([{"flag": True}, {"flag": 1}]).fixed == {}


def test_names_of_runs_are_no_hyperparameters() -> None:
    assert found([f"runs/{n}" for n in range(11)]) is None
    assert found([f"runs/{n}" for n in range(10)]) is not None
    assert found([*(f"kind {n}" for n in range(11)), "kind 3"]) is not None
    assert found(["NaN", None, "Infinity", ...]) is not None


@given(st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=6, unique=True))
def test_every_value_lies_in_the_range_found(values: list[float]) -> None:
    parameter = found(list(values))
    assert parameter is not None
    unit = parameter.to_unit(values)
    assert unit.min() == 0
    assert unit.max() == 1


@given(st.lists(st.one_of(st.booleans(), st.text(), st.none()), min_size=2, max_size=9))
def test_every_category_is_a_choice(values: list[Any]) -> None:
    parameter = found(list(values)) if len({(type(value), value) for value in values}) > 1 else None
    if parameter is not None:
        assert (parameter.ranks(values) >= 0).all()


E, LOG = math.e, {"kind": "float", "log": True}


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"distribution": "uniform", "min": 0, "max": 1}, {"kind": "float", "low": 0.0, "high": 1.0}),
        ({"min": 0.5, "max": 1}, {"kind": "float", "low": 0.5, "high": 1.0}),
        ({"min": 1, "max": 9}, {"kind": "int", "low": 1.0, "high": 9.0}),
        ({"distribution": "int_uniform", "min": 1, "max": 9}, {"kind": "int", "low": 1.0, "high": 9.0}),
        ({"distribution": "log_uniform", "min": -2, "max": 1}, {**LOG, "low": E**-2, "high": E}),
        ({"distribution": "log_uniform_values", "min": 1e-5, "max": 0.1}, {**LOG, "low": 1e-5, "high": 0.1}),
        ({"distribution": "inv_log_uniform", "min": 1, "max": 3}, {**LOG, "low": E**-3, "high": E**-1}),
        ({"distribution": "inv_log_uniform_values", "min": 1e-5, "max": 0.1}, {**LOG, "low": 1e-5, "high": 0.1}),
        (
            {"distribution": "q_uniform", "min": 0.1, "max": 1.1, "q": 0.25},
            {"kind": "float", "low": 0.0, "high": 1.0, "step": 0.25},
        ),
        (
            {"distribution": "q_uniform", "min": 2, "max": 10, "q": 2},
            {"kind": "int", "low": 2.0, "high": 10.0, "step": 2.0},
        ),
        ({"distribution": "q_uniform", "min": 2.2, "max": 9}, {"kind": "int", "low": 2.0, "high": 9.0, "step": 1.0}),
        (
            {"distribution": "q_log_uniform_values", "min": 8, "max": 512, "q": 8},
            {"kind": "int", "low": 8.0, "high": 512.0, "log": True},
        ),
        (
            {"distribution": "q_log_uniform", "min": 0.0, "max": math.log(100)},
            {"kind": "int", "low": 1.0, "high": 100.0, "log": True},
        ),
        (
            {"distribution": "q_log_uniform_values", "min": 0.01, "max": 1, "q": 0.25},
            {"kind": "float", "low": 0.25, "high": 1.0, "log": True},
        ),
        # No bounds: what the runs saw.
        ({"distribution": "normal", "mu": 0, "sigma": 1}, {"kind": "float", "low": 0.5, "high": 2.0}),
        ({"mu": 0}, {"kind": "float", "low": 0.5, "high": 2.0}),
        ({"distribution": "log_normal"}, {**LOG, "low": 0.5, "high": 2.0}),
        ({"distribution": "q_normal", "q": 0.5}, {"kind": "float", "low": 0.5, "high": 2.0, "step": 0.5}),
        ({"distribution": "beta", "a": 1, "b": 2}, {"kind": "float", "low": 0.5, "high": 2.0}),
        ({"values": ["a", 1, True, None]}, {"kind": "categorical", "choices": ("a", 1, True, None)}),
        (
            {"distribution": "categorical_w_probabilities", "values": [1, 2], "probabilities": [0.1, 0.9]},
            {"kind": "categorical", "choices": (1, 2)},
        ),
    ],
)
def test_the_distributions_of_a_sweep(entry: dict[str, Any], expected: dict[str, Any]) -> None:
    parameter = found([0.5, 2], entry)
    assert parameter is not None
    wanted = Parameter(name="x", **expected)
    assert (parameter.low, parameter.high) == pytest.approx((wanted.low, wanted.high), nan_ok=True)
    for field in ("name", "kind", "log", "step", "choices", "role", "condition"):
        assert getattr(parameter, field) == getattr(wanted, field), field


@pytest.mark.parametrize("draw", range(20))
def test_draws_of_a_logarithmic_distribution_lie_in_its_range(draw: int) -> None:
    # The definitions as W&B's manual gives them.
    uniform = random.Random(draw).uniform(-3, 2)
    for distribution, value in (("log_uniform", math.exp(uniform)), ("inv_log_uniform", 1 / math.exp(uniform))):
        parameter = found([1.0], {"distribution": distribution, "min": -3, "max": 2})
        assert parameter is not None
        assert 0 <= float(parameter.to_unit(value)) <= 1


def test_a_sweep_with_nested_and_constant_hyperparameters() -> None:
    sweep = {
        "method": "random",
        "parameters": {
            "model": {"parameters": {"width": {"values": [1, 2]}, "kind": {"value": "mlp"}}},
            "rate": {"min": 0.1, "max": 0.9},
            "seed": {"distribution": "constant", "value": 3},
            "sizes": {"values": [[1, 2], [3]]},
            "prior": {"distribution": "normal"},
        },
    }
    configs = [flatten_config({"model": {"width": 1, "kind": "mlp"}, "rate": 0.5, "seed": 3, "host": "h"})] * 2
    space = find_space(configs, sweep)
    assert [(one.name, one.kind) for one in space.parameters] == [("model.width", "categorical"), ("rate", "float")]
    assert space.fixed == {"model.kind": "mlp", "seed": 3, "host": "h"}


@pytest.mark.parametrize(
    ("choices", "value", "choice"),
    [
        ((True, 1, "1"), True, True),
        ((True, 1, "1"), 1, 1),
        ((True, 1, "1"), "1", "1"),
        ((True, 1.0), 1, 1.0),
        ((0.5, math.inf), "Infinity", math.inf),
        ((0.5, -math.inf), "-Infinity", -math.inf),
        (("a", None), None, None),
        ((True, False), 1, None),
        (("a", "b"), "c", None),
    ],
)
def test_a_choice_is_known_again(choices: tuple[Any, ...], value: Any, choice: Any) -> None:
    read = find_choice(Parameter(name="x", kind="categorical", choices=choices), value)
    assert repr(read) == repr(choice)


def test_a_choice_of_nan_is_known_again() -> None:
    parameter = Parameter(name="x", kind="categorical", choices=(1, math.nan))
    assert math.isnan(find_choice(parameter, "NaN"))
    assert math.isnan(find_choice(parameter, None))
