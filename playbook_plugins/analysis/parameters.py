"""What is one hyperparameter of the search space, and where in its range does a value lie?

Playbook: "Identifying scientific, nuisance, and fixed hyperparameters".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind: TypeAlias = Literal["float", "int", "categorical"]


class Role(StrEnum):
    """What a hyperparameter is to the goal of the round (playbook: "Identifying scientific, nuisance, fixed")."""

    SCIENTIFIC = "scientific"
    NUISANCE = "nuisance"
    FIXED = "fixed"


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One hyperparameter of the search space.

    Attributes
    ----------
    name
        The name under which the study stores it.
    kind
        ``"float"``, ``"int"`` or ``"categorical"``.
    low, high
        The inclusive bounds of a number, in its own unit; NaN for a categorical hyperparameter.
    log
        Whether the search scale is logarithmic.
    step
        The grid's step, or None for a continuous hyperparameter.
    choices
        The values of a categorical hyperparameter; empty for a number.
    role
        Scientific, nuisance or fixed.
    condition
        ``(parent, value)`` when this hyperparameter exists only where ``parent`` equals ``value``.
    """

    name: str
    kind: Kind
    low: float = float("nan")
    high: float = float("nan")
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] = ()
    role: Role = Role.NUISANCE
    condition: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check that the bounds or the choices describe a search space."""
        if self.kind == "categorical":
            if not self.choices:
                raise ValueError(
                    f"`choices` of the categorical hyperparameter {self.name!r} is empty: it must name at least one "
                    "value. Pass the values that the study may take."
                )
            return
        if not self.low <= self.high:
            raise ValueError(
                f"`low` and `high` of the hyperparameter {self.name!r} are {self.low} and {self.high}: low must not "
                "exceed high, and neither may be NaN. Pass the bounds of the search space."
            )
        if self.log and not self.low > 0:
            raise ValueError(
                f"`low` of the hyperparameter {self.name!r} is {self.low}: a logarithmic scale needs a positive lower "
                "bound. Pass a positive bound, or log=False."
            )

    @property
    def is_numeric(self) -> bool:
        """Whether the values are ordered numbers."""
        return self.kind != "categorical"

    @property
    def given_name(self) -> str:
        """The name under which training gets it: ``learning_rate`` of ``adam.learning_rate``, which is of a branch."""
        return self.name if self.condition is None else self.name.removeprefix(f"{self.condition[1]}.")

    def to_unit(self, values: ArrayLike) -> NDArray[np.float64]:
        """Map values onto [0, 1] in the search scale: 0 is the lower bound, 1 the upper.

        Parameters
        ----------
        values
            Values of this hyperparameter, any shape. NaN (for a number) or None (for a category) where a trial has
            none.

        Returns
        -------
        ndarray
            float64, the shape of ``values``; NaN where there is no value, or none that has a finite place, such as
            a learning rate of 0 on a logarithmic scale. Values outside the bounds fall outside [0, 1]. The i-th of K
            categories maps to (i + 0.5) / K; a single-valued number to 0.5.
        """
        if self.kind == "categorical":
            ranks = self.ranks(values)
            return np.where(ranks >= 0, (ranks + 0.5) / len(self.choices), np.nan)
        numbers = np.asarray(values, dtype=np.float64)
        low, high = self.low, self.high
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                numbers = np.log(numbers)
            low, high = float(np.log(low)), float(np.log(high))
        numbers = np.where(np.isfinite(numbers), numbers, np.nan)
        if high == low:
            return np.where(np.isnan(numbers), np.nan, 0.5)
        return np.asarray((numbers - low) / (high - low), dtype=np.float64)

    def from_unit(self, unit: float) -> float:
        """Return the number at a place in [0, 1] of the search scale: the inverse of `to_unit` for numbers."""
        if self.log:
            return float(self.low * (self.high / self.low) ** unit)
        return float(self.low + unit * (self.high - self.low))

    def rank(self, value: Any) -> int | None:
        """Return the place of a category among the choices, None where it is not one of them.

        Types count: True is not 1.
        """
        for place, choice in enumerate(self.choices):
            if type(choice) is type(value) and choice == value:
                return place
        return None

    def ranks(self, values: ArrayLike) -> NDArray[np.intp]:
        """Return the places of many categories among the choices.

        Parameters
        ----------
        values
            Any shape; None where a trial has none.

        Returns
        -------
        ndarray
            intp, the shape of ``values``: as `rank`, but -1 where it is None.
        """
        table = np.asarray(values, dtype=object)
        known: dict[tuple[type, Any], int] = {}
        ranks = np.empty(table.size, dtype=np.intp)
        for row, value in enumerate(table.ravel()):
            key = (type(value), value)
            if key not in known:
                place = self.rank(value)
                known[key] = -1 if place is None else place
            ranks[row] = known[key]
        return ranks.reshape(table.shape)

    def widen(self, other: Parameter) -> Parameter:
        """Return one range that holds the values of both, for a hyperparameter whose range changed between trials.

        Parameters
        ----------
        other
            The later range of the same hyperparameter.

        Returns
        -------
        Parameter
            With the role and the condition of this one: the wider bounds; logarithmic where both are; on a grid where
            both lie on one; the choices of both, this one's first. Where the kinds differ, the later range.
        """
        if self.kind != other.kind:
            return replace(other, role=self.role, condition=self.condition)
        if not self.is_numeric:
            more = [choice for choice in other.choices if not any(_is_same(choice, known) for known in self.choices)]
            return replace(self, choices=(*self.choices, *more))
        is_log = self.log and other.log
        return replace(
            self,
            low=min(self.low, other.low),
            high=max(self.high, other.high),
            log=is_log,
            step=_common_float_step(self, other) if self.kind == "float" else _common_int_step(self, other, is_log),
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the hyperparameter as JSON values; what is not set is left out."""
        plain: dict[str, Any] = {"name": self.name, "kind": self.kind, "role": str(self.role)}
        if self.is_numeric:
            plain |= {"low": self.low, "high": self.high, "log": self.log, "step": self.step}
        else:
            plain["choices"] = list(self.choices)
        if self.condition is not None:
            plain["condition"] = list(self.condition)
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Parameter:
        """Rebuild a hyperparameter from `to_plain`."""
        return cls(
            name=plain["name"],
            kind=plain["kind"],
            low=float(plain.get("low", math.nan)),
            high=float(plain.get("high", math.nan)),
            log=bool(plain.get("log", False)),
            step=plain.get("step"),
            choices=tuple(plain.get("choices", ())),
            role=Role(plain["role"]),
            condition=tuple(plain["condition"]) if plain.get("condition") else None,
        )


def _is_same(first: Any, second: Any) -> bool:
    """Return whether two categories are one; True is not 1, and NaN is itself."""
    return type(first) is type(second) and (first == second or (first != first and second != second))


def _common_float_step(first: Parameter, second: Parameter) -> float | None:
    """Return the step of the one grid of two, whose lower bounds then lie whole steps apart; else None."""
    if first.step is None or first.step != second.step:
        return None
    n_steps = (first.low - second.low) / first.step
    return first.step if abs(n_steps - round(n_steps)) < 1e-8 else None


def _common_int_step(first: Parameter, second: Parameter, is_log: bool) -> int:
    """Return the step of the coarsest grid that holds two."""
    if is_log:
        return 1
    return math.gcd(int(first.step or 1), int(second.step or 1), abs(int(first.low) - int(second.low)))
