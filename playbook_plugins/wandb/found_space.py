"""Which search space do runs come from that say nothing of it? Read from the config of a sweep, or from the runs.

Playbook: "Identifying scientific, nuisance, and fixed hyperparameters".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from playbook_plugins.analysis.parameters import Parameter
from playbook_plugins.wandb.run_layout import is_same, read_number

# One dict a run: its hyperparameters under flat names.
Configs: TypeAlias = Sequence[Mapping[str, Any]]

# Positive numbers that span at least this factor were searched on a logarithmic scale, as far as anyone can tell.
LOG_FACTOR = 100.0
# Texts that differ in every run of more than so many are names of runs or folders.
MAX_NAMES = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundSpace:
    """A search space as far as sweep and runs tell it.

    Attributes
    ----------
    parameters
        The hyperparameters that vary.
    fixed
        Those that have one value in all runs.
    """

    parameters: tuple[Parameter, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)


def flatten_config(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the hyperparameters of a run under flat names, as W&B's tables show them.

    Parameters
    ----------
    config
        A run's config. ``{"optimizer": {"name": "adam"}}`` becomes ``{"optimizer.name": "adam"}``; lists are left
        out, and so are keys that begin with ``_`` or ``playbook_``, which trackers write.
    prefix
        Goes before every name.
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if not prefix and str(key).startswith(("_", "playbook_")):
            continue
        if isinstance(value, Mapping):
            flat |= flatten_config(value, f"{prefix}{key}.")
        elif not isinstance(value, list | tuple):
            flat[f"{prefix}{key}"] = value
    return flat


def find_space(configs: Configs, sweep: Mapping[str, Any] | None = None) -> FoundSpace:
    """Return the search space of runs.

    Parameters
    ----------
    configs
        Their hyperparameters, as `flatten_config` returns them.
    sweep
        The config of the sweep that made them: its hyperparameters, ranges and scales are taken as they stand there.
        Distributions without bounds (normal, log-normal, beta) get the range of the runs. Without a sweep all of it
        comes from the runs.

    Returns
    -------
    FoundSpace
        Without a sweep: a key with one value in all runs is fixed. Numbers get their range; the scale is logarithmic
        where they are positive and span a factor of `LOG_FACTOR` or more. They are whole where all of them are. None
        among numbers means that the run has no value. Texts, bools, None and mixtures are categories, in order of
        appearance; but texts that differ in each of more than `MAX_NAMES` runs name the run, and are left out. A key
        that some runs lack and the others agree on tells nothing, and is left out too.
    """
    if sweep is None:
        return _space_of_data(configs, skipped=())
    declared: dict[str, Parameter | None] = {}
    fixed: dict[str, Any] = {}
    for name, entry in _sweep_entries(sweep.get("parameters", {})):
        read = _read_entry(name, entry, [config[name] for config in configs if name in config])
        if isinstance(read, Fixed):
            fixed[name] = read.value
        else:
            declared[name] = read
    others = _space_of_data(configs, skipped=(*declared, *fixed)).fixed
    parameters = tuple(parameter for parameter in declared.values() if parameter is not None)
    return FoundSpace(parameters=parameters, fixed={**fixed, **others})


def find_choice(parameter: Parameter, value: Any) -> Any:
    """Return the choice that a value read from W&B stands for; None where it is none of them.

    W&B hands 1.0 over as 1: a value of another type counts where it equals a choice and no choice is exactly it.
    """
    if parameter.rank(value) is not None:
        return value
    for choice in parameter.choices:
        if is_same(choice, value) or _is_same_number(choice, value):
            return choice
    return None


@dataclass(frozen=True)
class Fixed:
    """The one value that a sweep gives a hyperparameter."""

    value: Any


def _is_same_number(choice: Any, value: Any) -> bool:
    """Return whether a choice that JSON has no number for came back as W&B spells it."""
    if not isinstance(choice, float) or math.isfinite(choice):
        return False
    return value in ("NaN", None) if math.isnan(choice) else read_number(value) == choice


def _space_of_data(configs: Configs, skipped: Sequence[str]) -> FoundSpace:
    names = dict.fromkeys(name for config in configs for name in config if name not in skipped)
    parameters, fixed = [], {}
    for name in names:
        values = [config[name] for config in configs if name in config]
        distinct = {(type(value), value): value for value in values}
        if len(distinct) == 1:
            if len(values) == len(configs):
                fixed[name] = values[0]
            continue
        parameter = _parameter_of_data(name, values)
        if parameter is not None:
            parameters.append(parameter)
    return FoundSpace(parameters=tuple(parameters), fixed=fixed)


def _parameter_of_data(name: str, values: Sequence[Any]) -> Parameter | None:
    numbers = _finite_numbers(values)
    if numbers is not None:
        if not numbers:
            return None
        low, high = min(numbers), max(numbers)
        is_log = low > 0 and high / low >= LOG_FACTOR
        is_whole = all(number.is_integer() for number in numbers)
        return Parameter(name=name, kind="int" if is_whole else "float", low=low, high=high, log=is_log)
    choices = list({(type(value), value): value for value in values}.values())
    if len(choices) == len(values) > MAX_NAMES and all(isinstance(choice, str) for choice in choices):
        return None
    return Parameter(name=name, kind="categorical", choices=tuple(choices))


def _finite_numbers(values: Sequence[Any]) -> list[float] | None:
    """Return the finite numbers among values that are all numbers or unset; None where any is something else."""
    known = [value for value in values if value not in (None, "NaN", "Infinity", "-Infinity")]
    if not known or any(isinstance(value, bool) or not isinstance(value, int | float) for value in known):
        return None
    return [float(value) for value in known if math.isfinite(value)]


def _sweep_entries(parameters: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    entries = []
    for name, entry in parameters.items():
        if "parameters" in entry and isinstance(entry["parameters"], Mapping):
            entries += _sweep_entries(entry["parameters"], f"{prefix}{name}.")
        else:
            entries.append((f"{prefix}{name}", entry))
    return entries


def _read_entry(name: str, entry: Mapping[str, Any], values: Sequence[Any]) -> Parameter | Fixed | None:
    """Return one hyperparameter of a sweep; None where neither sweep nor runs know a range."""
    distribution = entry.get("distribution") or _default_distribution(entry)
    if distribution == "constant":
        return Fixed(entry.get("value"))
    if distribution in ("categorical", "categorical_w_probabilities"):
        choices = tuple(choice for choice in entry["values"] if not isinstance(choice, list | Mapping))
        return Parameter(name=name, kind="categorical", choices=choices) if choices else None
    step = float(entry.get("q", 1)) if distribution.startswith("q_") else None
    stem = distribution.removeprefix("q_")
    if stem in _BOUNDS:
        low, high = _BOUNDS[stem](float(entry["min"]), float(entry["max"]))
        is_log = "log" in stem
    else:
        # normal, log_normal, beta, and what W&B may add: the sweep has no bounds.
        numbers = _finite_numbers(values)
        if not numbers:
            return None
        low, high = min(numbers), max(numbers)
        is_log = stem == "log_normal" and low > 0
    if step is not None and stem in _BOUNDS:
        low, high = round(low / step) * step, round(high / step) * step
        # The grid's lowest point can be 0, which has no logarithm.
        low = max(low, step) if is_log else low
        high = max(low, high)
    is_whole = stem == "int_uniform" or (step is not None and step.is_integer() and low.is_integer())
    return Parameter(
        name=name,
        kind="int" if is_whole else "float",
        low=low,
        high=high,
        log=is_log,
        step=None if is_log or step is None else step,
    )


def _default_distribution(entry: Mapping[str, Any]) -> str:
    """Return the distribution that W&B takes where none is named."""
    if "value" in entry:
        return "constant"
    if "values" in entry:
        return "categorical"
    bounds = (entry.get("min"), entry.get("max"))
    if "min" not in entry or "max" not in entry:
        return "normal"
    return "int_uniform" if all(isinstance(bound, int) for bound in bounds) else "uniform"


def _as_given(low: float, high: float) -> tuple[float, float]:
    return low, high


# min and max of log_uniform are natural logarithms of the bounds; of inv_log_uniform those of their inverses.
_BOUNDS: dict[str, Callable[[float, float], tuple[float, float]]] = {
    "uniform": _as_given,
    "int_uniform": _as_given,
    "log_uniform": lambda low, high: (math.exp(low), math.exp(high)),
    "log_uniform_values": _as_given,
    "inv_log_uniform": lambda low, high: (math.exp(-high), math.exp(-low)),
    "inv_log_uniform_values": _as_given,
}
