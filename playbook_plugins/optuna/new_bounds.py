"""Where does a bound of the search space move, and where must it stop?

Playbook: "Identifying bad search space boundaries" for wider ranges, "Exploration vs exploitation" for narrower ones.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from optuna.distributions import FloatDistribution, IntDistribution

Side: TypeAlias = Literal["lower", "upper"]
Numeric: TypeAlias = FloatDistribution | IntDistribution

_FACTOR = 3.0
# Shares and decay rates, by the usual names: they lie in [0, 1), and what counts is how close to 1 they come.
_SHARES = {
    "momentum",
    "beta",
    "beta1",
    "beta2",
    "rho",
    "decay_rate",
    "ema_decay",
    "dropout",
    "dropout_rate",
    "drop_rate",
    "drop_path",
    "drop_path_rate",
    "stochastic_depth",
    "label_smoothing",
    "probability",
}


def widen(name: str, space: Numeric, side: Side, limits: tuple[float, float] | None = None) -> Numeric:
    """Return a distribution with one bound moved outwards, or the same where it cannot move.

    On a log scale the bound moves by a third of the range's decades, and by a factor of 3 at least; on a linear scale
    the range becomes 3 times as wide. Continuous bounds are rounded outwards to 2 significant digits; whole numbers and
    grids stay on their grid. A bound never leaves the domain of what it bounds:

    - it never crosses zero: a range that begins at 0 keeps it, a positive lower bound is divided by 3 instead (a whole
      number stops at 1), and likewise for negative ranges;
    - ``one_minus_*`` ends at 1;
    - ``momentum``, ``beta1``, ``dropout`` and their like (and any ``*_probability``) come no closer to 1 than a third
      of the distance that was left, where they would reach it;
    - ``limits`` end it where they are given.

    Parameters
    ----------
    name
        The hyperparameter's name in the configuration.
    space
        Its range.
    side
        ``"lower"`` or ``"upper"``.
    limits
        The smallest and the largest value that it can ever take, inclusive.
    """
    target = _stop_at_one(name, space, _stop_at_zero(space, _wider(space, side), side), side)
    low, high = _domain(name, space, limits if limits is not None else (-math.inf, math.inf))
    # A bound that lies outside its limits already is left alone.
    if side == "lower":
        return _moved(space, side, min(max(target, low), float(space.low)), low)
    return _moved(space, side, max(min(target, high), float(space.high)), high)


def narrow(space: Numeric, side: Side, share: float) -> Numeric:
    """Return a distribution without an outer share of its scaled range, rounded outwards; the same where none goes."""
    place = share if side == "lower" else 1.0 - share
    if space.log:
        target = space.low * (space.high / space.low) ** place
    else:
        target = space.low + place * (space.high - space.low)
    target = _round_outwards(target, side)
    if side == "lower":
        return _moved(space, side, max(target, float(space.low)), float(space.low))
    return _moved(space, side, min(target, float(space.high)), float(space.high))


def scaled_width(space: Numeric) -> float:
    """Return the width of a range in its search scale: in powers of e on a log scale."""
    return math.log(space.high / space.low) if space.log else float(space.high - space.low)


def _wider(space: Numeric, side: Side) -> float:
    if space.log:
        factor = max(_FACTOR, (space.high / space.low) ** (1 / 3))
        return _round_outwards(space.low / factor if side == "lower" else space.high * factor, side)
    more = (_FACTOR - 1) * (space.high - space.low)
    return _round_outwards(space.low - more if side == "lower" else space.high + more, side)


def _stop_at_zero(space: Numeric, target: float, side: Side) -> float:
    bound = float(space.low if side == "lower" else space.high)
    crosses = space.low >= 0 >= target if side == "lower" else space.high <= 0 <= target
    if not crosses:
        return target
    nearer = _round_outwards(bound / _FACTOR, side)
    # A whole number divided until nothing is left stops one short of zero.
    return math.copysign(max(1.0, abs(nearer)), bound) if isinstance(space, IntDistribution) and bound else nearer


def _stop_at_one(name: str, space: Numeric, target: float, side: Side) -> float:
    last = name.rpartition(".")[2]
    if side == "lower" or target < 1 or space.high > 1 or space.low < 0:
        return target
    if last.startswith("one_minus_"):
        return 1.0
    if last in _SHARES or last.endswith("_probability"):
        return 1.0 - (1.0 - space.high) / _FACTOR
    return target


def _round_outwards(value: float, side: Side) -> float:
    """Return a bound with 2 significant digits, moved away from the range rather than into it."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 1)
    # What is a whole number of units but for its last bits is one.
    digits = round(value / unit, 9)
    return float(f"{(math.floor(digits) if side == 'lower' else math.ceil(digits)) * unit:.12g}")


def _domain(name: str, space: Numeric, limits: tuple[float, float]) -> tuple[float, float]:
    """Return the values that no bound may pass, inclusive: what a grid's next step outwards is held against."""
    low, high = limits
    if space.low >= 0:
        least = 1.0 if isinstance(space, IntDistribution) and space.low >= 1 else 0.0
        low = max(low, least)
    if space.high <= 0:
        high = min(high, 0.0)
    last = name.rpartition(".")[2]
    if last.startswith("one_minus_") and space.high <= 1:
        high = min(high, 1.0)
    return low, high


def _moved(space: Numeric, side: Side, target: float, limit: float) -> Numeric:
    """Return the distribution with one bound at the target, or on the next place of its grid outside of it.

    Where that place is beyond the limit, the bound takes the last one before.
    """
    if isinstance(space, FloatDistribution) and space.step is None:
        lower, upper = (target, space.high) if side == "lower" else (space.low, target)
        return FloatDistribution(lower, upper, log=space.log)
    step = float(space.step or 1)
    bound = float(space.low if side == "lower" else space.high)
    outwards = -1.0 if side == "lower" else 1.0
    # Places of the grid, which a quotient of floats misses by its last bits.
    n_steps = math.ceil(outwards * (target - bound) / step - 1e-9)
    if outwards * (bound + outwards * n_steps * step - limit) > 1e-9 * step:
        n_steps = math.floor(outwards * (limit - bound) / step + 1e-9)
    moved = bound + outwards * n_steps * step
    lower, upper = (moved, float(space.high)) if side == "lower" else (float(space.low), moved)
    if isinstance(space, IntDistribution):
        return IntDistribution(round(lower), round(upper), log=space.log, step=space.step)
    return FloatDistribution(float(f"{lower:.12g}"), float(f"{upper:.12g}"), step=space.step)
