"""The conditional search space that the tests of the sampler share."""

from __future__ import annotations

from typing import Any

from optuna.distributions import FloatDistribution

UNIT = FloatDistribution(0, 1)
BRANCHES: dict[str, Any] = {
    "decay": UNIT,
    "optimizer": {
        "adam": {"adam.rate": UNIT, "adam.beta1": UNIT},
        "nesterov": {"nesterov.rate": UNIT},
    },
    "dropout": UNIT,
}
