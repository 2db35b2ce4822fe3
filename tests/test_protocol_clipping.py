"""Does clipping tuning find the largest threshold that helps, and say when the learning rate is to be cut instead?"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_training import PlantedRates, run_two_workers, survive_kills

from playbook_plugins.analysis import Curve, TrialRecord, Verdict
from playbook_plugins.optuna.clipping_tuning import tune_clipping
from playbook_plugins.optuna.protocols import ProtocolResult
from playbook_plugins.report import word

CONFIG = {"learning_rate": 1.0}


def tune(train: Any, config: dict[str, Any] | None = None, **arguments: Any) -> ProtocolResult:
    return tune_clipping(train, CONFIG if config is None else config, **{"study_name": "s", **arguments})


@settings(max_examples=25, deadline=None)
@given(
    median=st.floats(0.01, 100.0),
    spread=st.floats(0.3, 3.0),
    percentile=st.sampled_from([80.0, 90.0, 95.0]),
    max_share=st.sampled_from([0.3, 0.5]),
    place=st.integers(0, 4),
    blow_up=st.sampled_from(["diverges", "rises", "early"]),
)
def test_it_recovers_the_planted_threshold(
    median: float, spread: float, percentile: float, max_share: float, place: int, blow_up: Any
) -> None:
    planted = PlantedRates(unstable_rate=0.5, blow_up=blow_up, norm_median=median, norm_spread=spread)
    norms = planted.norm_quantiles()
    tried = np.geomspace(norms[int(percentile)], norms[round(100 * (1 - max_share))], 4).tolist()
    # At place 4 not even the smallest helps.
    stable = 1.0001 * tried[place] if place < 4 else 0.0
    result = tune(replace(planted, stable_threshold=stable), percentile=percentile, max_clipped_share=max_share)
    finding = result.findings[-1]
    assert finding.numbers["first_threshold"] == pytest.approx(tried[0])
    last = tried[min(place, 3)]
    assert finding.numbers["threshold"] == pytest.approx(last)
    assert finding.numbers["clipped_share"] == pytest.approx(planted.share_above(last))
    assert result.recommendation == ({"clip_threshold": pytest.approx(last)} if place < 4 else {})
    assert finding.verdict is (Verdict.NO_EVIDENCE if place < 4 else Verdict.FLAG)
    assert len(result.trials) == 1 + min(place, 3) + 1


def test_the_first_threshold_cures_in_nearly_all_simulations() -> None:
    """Of 100 healthy clipped runs, at most 2% are called unstable and lead to a smaller threshold."""
    smaller = 0
    for seed in range(100):
        planted = PlantedRates(unstable_rate=0.5, stable_threshold=100.0, seed=seed, noise=0.05)
        smaller += tune(planted).findings[-1].numbers["n_runs"] != 1
    assert smaller <= 2


def test_clipping_most_updates_is_a_cut_of_the_learning_rate() -> None:
    planted = PlantedRates(unstable_rate=0.5, stable_threshold=100.0)

    def train(config: dict[str, Any]) -> TrialRecord:
        # Clipped training has larger norms than the run that told the threshold.
        return replace(planted(config), clipped_share=0.67)

    result = tune(train)
    assert result.recommendation == {}
    assert result.findings[-1].numbers["is_aggressive"] == 1
    words = word(result.findings[-1])
    assert words.headline == "clip_threshold: clipping would have to cut most updates"
    assert words.sentence.startswith("At 1.898, 67% of the updates are clipped, more than 50%; training is stable.")
    assert words.action.startswith("Cut the learning rate instead")
    unstable = tune(lambda config: replace(PlantedRates(unstable_rate=0.5)(config), clipped_share=0.67))
    assert "training is unstable even then." in word(unstable.findings[-1]).sentence


def test_clipping_that_does_not_help_is_told() -> None:
    result = tune(PlantedRates(unstable_rate=0.5, norm_spread=3.0))
    assert result.recommendation == {}
    words = word(result.findings[-1])
    assert words.headline == "clip_threshold: training stays unstable"
    assert words.sentence.startswith("Of 4 thresholds none helped, down to 1, where 50% of the updates are clipped. ")
    assert words.action.startswith("Cut the learning rate instead")
    assert {finding.subject for finding in result.findings[:-1]} == {"unclipped run"}
    assert "loss rise" in [finding.check for finding in result.findings[:-1]]
    assert list(result.trials) == ["unclipped", "clipped 1", "clipped 2", "clipped 3", "clipped 4"]


def test_a_stable_run_needs_no_clipping() -> None:
    result = tune(PlantedRates())
    assert list(result.trials) == ["unclipped"]
    assert result.recommendation == {}
    [finding] = result.findings
    assert (finding.verdict, finding.numbers["unclipped_is_stable"]) == (Verdict.NO_EVIDENCE, 1)


def test_outlying_norms_alone_are_reason_to_clip() -> None:
    planted = PlantedRates(norm_spread=0.1)

    def train(config: dict[str, Any]) -> TrialRecord:
        record = planted(config)
        record.curve.gradient_norm[150] = 50.0
        return record

    result = tune(train)
    assert result.recommendation == {"clip_threshold": pytest.approx(planted.norm_quantiles()[90])}
    assert result.findings[0].check == "gradient norm spike"


def test_a_run_too_short_to_judge_answers_nothing() -> None:
    def train(config: dict[str, Any]) -> TrialRecord:
        return TrialRecord(direction="minimize", curve=Curve.from_columns([0, 9], [1, 1]), max_steps=9)

    [finding] = tune(train).findings
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert word(finding).headline == "clip_threshold: whether training without clipping is stable cannot be said"


def test_the_share_is_read_off_the_norms_where_it_was_not_recorded() -> None:
    planted = PlantedRates(unstable_rate=0.5, stable_threshold=100.0)
    result = tune(lambda config: replace(planted(config), clipped_share=math.nan))
    assert result.findings[-1].numbers["clipped_share"] == pytest.approx(0.1, abs=0.02)
    assert result.recommendation


CALL = """
from playbook_plugins.optuna.clipping_tuning import tune_clipping
planted = PlantedRates(unstable_rate=0.5, stable_threshold=3.0, norm_spread=2.0)
result = tune_clipping(logged(planted), {"learning_rate": 1.0}, **options)
result.recommendation["clip_threshold"] = round(result.recommendation["clip_threshold"], 6)
"""
# The third of four thresholds between the 90th percentile and the median.
EXPECTED = {"clip_threshold": round(float(np.exp(2.0 * 1.2815515655446004 / 3)), 6)}


@pytest.mark.slow
def test_it_survives_kills(tmp_path: Path) -> None:
    assert survive_kills(tmp_path, CALL, n_kills=2, seed=4) == EXPECTED


@pytest.mark.slow
def test_two_workers_share_it(tmp_path: Path) -> None:
    assert run_two_workers(tmp_path, CALL) == EXPECTED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"percentile": 100.0},
            "`percentile` is 100.0: it must lie between 50, where max_clipped_share is clipped, and 100, both "
            "excluded. The playbook starts with 90.",
        ),
        (
            {"max_clipped_share": 1.0},
            "`max_clipped_share` is 1.0: it must lie between 0 and 1, both excluded. The playbook takes more than 0.5 "
            "for extremely aggressive.",
        ),
        ({"n_smaller": -1}, "`n_smaller` is -1: it must be at least 0. Pass 0 to try a single threshold."),
        (
            {"config": {"learning_rate": 1.0, "clip_threshold": 2.0}},
            "`config` has 'clip_threshold' = 2.0, which this procedure sets itself. Leave the entry out, or name the "
            "one to set by `clip_threshold`.",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tune(PlantedRates(), **arguments)


def test_an_unstable_run_without_norms_is_refused() -> None:
    planted = PlantedRates(unstable_rate=0.5)
    message = (
        "`gradient_norm_quantiles` is empty: this record holds no gradient norms. Train with "
        "PercentileGradientClipping, which records them."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tune(lambda config: replace(planted(config), gradient_norm_quantiles=np.empty(0)))
    message = (
        "`percentile` is 90.0 and `max_clipped_share` 0.5: the thresholds would go from 0 to 0, and a threshold must "
        "be positive and finite. Pass others."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        tune(lambda config: replace(planted(config), gradient_norm_quantiles=np.zeros(101)))
