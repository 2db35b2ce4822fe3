"""What is there to beat? The incumbent configuration, which travels from round to round until a launch replaces it.

Playbook: "The incremental tuning strategy": a launch updates the best configuration, on strong evidence only, and no
launch should add complexity without need.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The incumbent configuration and what is known of it.

    Parameters
    ----------
    config
        The configuration, with values that JSON can hold.
    objectives
        What its retrains with different seeds reached, in the objective's unit; may be empty.
    evidence
        Why it became the baseline; "" for the first one.
    complexity
        What it adds to the one before: code, hyperparameters, cost; "" for the first one.
    n_launches
        How many baselines came before it.

    Raises
    ------
    ValueError
        When an objective is not finite or a value cannot be kept.
    """

    config: Mapping[str, Any]
    objectives: tuple[float, ...] = ()
    evidence: str = ""
    complexity: str = ""
    n_launches: int = 0

    def __post_init__(self) -> None:
        """Check that the baseline can be kept with a study."""
        if not all(math.isfinite(objective) for objective in self.objectives):
            raise ValueError(
                f"`objectives` is {self.objectives}: the retrains of a baseline must have finite objectives. Leave out "
                "what did not finish, or keep the baseline before."
            )
        try:
            json.dumps(dict(self.config), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`config` is {dict(self.config)!r}: it is kept in the study as JSON, and {error}. Use numbers, text, "
                "booleans, None, lists and dicts."
            ) from error

    def launch(
        self, config: Mapping[str, Any], objectives: Sequence[float] = (), *, evidence: str, complexity: str
    ) -> Baseline:
        """Return the baseline that replaces this one.

        Parameters
        ----------
        config, objectives
            As the attributes.
        evidence
            Why it is better, for instance the retrains of both and their difference.
        complexity
            What it adds; "none" where it adds nothing.

        Raises
        ------
        ValueError
            When evidence or complexity are empty: a launch without them is a guess.
        """
        for argument, text in (("evidence", evidence), ("complexity", complexity)):
            if not text.strip():
                raise ValueError(
                    f"`{argument}` is {text!r}: a launch replaces the baseline on strong evidence and with its "
                    "complexity written down. Say it in a sentence."
                )
        return Baseline(
            config=config,
            objectives=tuple(objectives),
            evidence=evidence,
            complexity=complexity,
            n_launches=self.n_launches + 1,
        )

    def to_plain(self) -> dict[str, Any]:
        """Return the baseline as JSON values."""
        return {
            "config": dict(self.config),
            "objectives": list(self.objectives),
            "evidence": self.evidence,
            "complexity": self.complexity,
            "n_launches": self.n_launches,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Baseline:
        """Rebuild a baseline from `to_plain`."""
        return cls(**{**plain, "objectives": tuple(plain["objectives"])})
