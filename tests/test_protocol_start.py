"""Is a first configuration told from chance by its noise, and are its extras and its time seen?"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_training import config_noise, run_two_workers, survive_kills

from playbook_plugins.analysis import Curve, Finding, InfeasibleError, TrialRecord, Verdict
from playbook_plugins.optuna.starting_point import check_start
from playbook_plugins.report import word


def planted_start(gain: float, *, noise: float = 0.01, n: int = 40, maximize: bool = False, **more: Any) -> Any:
    """Return training whose error falls from that of chance, 0.9, by a planted gain, within its first half."""

    def train(config: dict[str, Any]) -> TrialRecord:
        error = 0.9 - gain * np.minimum(1.0, np.arange(n) / (n / 2))
        error = error + noise * config_noise(config).standard_normal(n)
        rate = np.full(n, 0.1) if not config.get("decay") else np.linspace(0.1, 0, n)
        curve = Curve.from_columns(10 * np.arange(n), 1 - error if maximize else error, learning_rate=rate)
        direction = "maximize" if maximize else "minimize"
        return TrialRecord(direction=direction, curve=curve, max_steps=10 * n, **{"seconds": 60.0, **more})

    return train


def start(train: Any, config: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Finding]:
    usual = {"chance_level": 0.9, "study_name": "s"}
    result = check_start(train, config or {}, **{**usual, **arguments})
    assert result.recommendation == {}
    return {finding.subject: finding for finding in result.findings}


@settings(max_examples=40, deadline=None)
@given(
    noises=st.sampled_from([-20.0, 0.0, 1.0, 10.0, 20.0, 80.0]),
    noise=st.floats(1e-4, 0.01),
    seed=st.integers(0, 1000),
    maximize=st.booleans(),
)
def test_it_recovers_whether_the_planted_gain_is_clear(noises: float, noise: float, seed: int, maximize: bool) -> None:
    train = planted_start(noises * noise, noise=noise, maximize=maximize)
    arguments = {"chance_level": 0.1, "direction": "maximize"} if maximize else {}
    finding = start(train, {"seed": seed}, **arguments)["result"]
    assert finding.verdict is (Verdict.FLAG if noises < 3 else Verdict.NO_EVIDENCE)
    assert finding.numbers["gain"] == pytest.approx(noises * noise, abs=2 * noise)


@pytest.mark.parametrize("n", [12, 40])
def test_chance_hardly_ever_passes(n: int) -> None:
    """Of 300 runs at chance with Gaussian noise none passes: of 5000, 3 did with 12 evaluations, and 0 with 40."""
    train = planted_start(0.0, n=n)
    assert all(start(train, {"seed": seed})["result"].verdict is Verdict.FLAG for seed in range(300))


def test_a_noiseless_run_is_better_by_any_gain() -> None:
    assert start(planted_start(0.01, noise=0.0))["result"].verdict is Verdict.NO_EVIDENCE
    assert start(planted_start(0.0, noise=0.0))["result"].verdict is Verdict.FLAG


def test_few_evaluations_tell_only_what_is_hopeless() -> None:
    finding = start(planted_start(0.5, n=4))["result"]
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert word(finding).sentence == (
        "There are 4 evaluations: too few to know their noise. Evaluate at least 12 times during training."
    )
    assert start(planted_start(0.0, noise=0.0, n=4))["result"].verdict is Verdict.FLAG
    assert start(planted_start(-0.5, n=4), chance_level=0.5)["result"].verdict is Verdict.FLAG


def test_what_does_not_train_is_flagged_with_its_reason() -> None:
    def train(config: dict[str, Any]) -> TrialRecord:
        raise InfeasibleError("out of memory")

    found = start(train, max_seconds=10)
    assert found["result"].verdict is Verdict.FLAG
    assert word(found["result"]).sentence == "The run is infeasible: out of memory."
    assert found["time"].verdict is Verdict.TOO_LITTLE_DATA


def test_extras_are_seen_by_name_and_by_the_rate() -> None:
    simple = {"learning_rate": 0.1, "dropout": 0.0, "schedule": "constant", "schema": "v2", "clip_threshold": None}
    assert start(planted_start(0.5), simple)["simplicity"].verdict is Verdict.NO_EVIDENCE
    rich = {"dropout": 0.1, "warmup_steps": 10, "use_ema": True, "lr_schedule": "cosine", "decay": 1}
    finding = start(planted_start(0.5), rich)["simplicity"]
    assert finding.verdict is Verdict.FLAG
    assert finding.numbers == {"n_extras": 4, "extras": "dropout, warmup_steps, use_ema, lr_schedule", "decays": 1}
    words = word(finding)
    assert words.sentence == "It has: dropout, warmup_steps, use_ema, lr_schedule, a learning rate that decays."


def test_time_is_asked_only_with_a_limit() -> None:
    assert "time" not in start(planted_start(0.5))
    assert start(planted_start(0.5), max_seconds=61)["time"].verdict is Verdict.NO_EVIDENCE
    slow = start(planted_start(0.5), max_seconds=59)["time"]
    assert slow.verdict is Verdict.FLAG
    assert word(slow).sentence == "A run takes 60 seconds; 59 were allowed."
    unknown = start(planted_start(0.5, seconds=math.nan), max_seconds=59)["time"]
    assert unknown.verdict is Verdict.TOO_LITTLE_DATA


CALL = """
from playbook_plugins.optuna.starting_point import check_start
result = check_start(logged(PlantedRates()), {"learning_rate": 0.1}, chance_level=2.0, **options)
result.recommendation["verdict"] = str(result.findings[0].verdict)
"""


@pytest.mark.slow
def test_it_survives_kills(tmp_path: Path) -> None:
    assert survive_kills(tmp_path, CALL, n_kills=2, seed=5) == {"verdict": "no evidence"}


@pytest.mark.slow
def test_two_workers_share_it(tmp_path: Path) -> None:
    assert run_two_workers(tmp_path, CALL) == {"verdict": "no evidence"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"chance_level": math.inf},
            "`chance_level` is inf: it must be finite. Pass the validation objective of guessing, for instance an "
            "error of 0.9 with ten even classes.",
        ),
        (
            {"max_seconds": 0.0},
            "`max_seconds` is 0.0: it must be positive. Pass how long a run may take, or None not to ask.",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        start(planted_start(0.5), **arguments)
