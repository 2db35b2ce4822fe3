"""Is the comparison of retrains right on real ones? Over a thousand runs of identical scripts (modded-nanogpt)."""

from __future__ import annotations

import gzip
import json
import math
import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from playbook_plugins.analysis.retrains import compare_retrains
from playbook_plugins.analysis.trial_variance import estimate_trial_variance

DATA = Path(os.environ.get("PLAYBOOK_DATA", Path(__file__).parents[2] / "shared" / "data"))
RUNS = DATA / "nanogpt_seeds" / "runs.jsonl.gz"
N_SPLITS = 200

pytestmark = pytest.mark.skipif(not RUNS.exists(), reason=f"the repeated-seed runs are not at {RUNS}")


@pytest.fixture(scope="module")
def retrains() -> dict[tuple[str, int], np.ndarray]:
    """Return the final validation losses of each group that is purely retrains (sd < 0.0025, see the README)."""
    groups: dict[tuple[str, int], list[float]] = defaultdict(list)
    with gzip.open(RUNS, "rt") as lines:
        for line in lines:
            run = json.loads(line)
            groups[run["group"], run["total_steps"]].append(run["final_val_loss"])
    arrays = {group: np.array(losses, dtype=np.float64) for group, losses in groups.items()}
    # A group with an unknown loss has the spread NaN, and is left out.
    return {group: losses for group, losses in arrays.items() if losses.std(ddof=1) < 0.0025}


def shares_adopted(retrains: dict[tuple[str, int], np.ndarray], *, is_sd_known: bool) -> np.ndarray:
    """Return the share of random splits of each group in which one half is adopted over the other."""
    generator = np.random.default_rng(0)
    shares = []
    for group, losses in retrains.items():
        known = {}
        if is_sd_known:
            history = estimate_trial_variance([other for name, other in retrains.items() if name != group])
            known = {"known_sd": history.sd, "known_freedom": history.freedom}
        half = len(losses) // 2
        shuffled = generator.permuted(np.tile(losses, (N_SPLITS, 1)), axis=1)
        shares.append(
            np.mean([compare_retrains(one[:half], one[half:], "minimize", **known).p <= 0.05 for one in shuffled])
        )
    return np.array(shares)


def test_there_are_many_groups(retrains: dict[tuple[str, int], np.ndarray]) -> None:
    assert len(retrains) == 85
    assert sum(len(losses) for losses in retrains.values()) == 1054


def test_one_half_of_a_group_is_rarely_adopted_over_the_other(retrains: dict[tuple[str, int], np.ndarray]) -> None:
    shares = shares_adopted(retrains, is_sd_known=False)
    assert 0.03 <= shares.mean() <= 0.06
    # No group by itself does much worse: three standard errors of its 200 splits.
    assert shares.max() <= 0.06 + 3 * math.sqrt(0.06 * 0.94 / N_SPLITS)


def test_a_standard_deviation_of_other_pipelines_is_right_on_average_only(
    retrains: dict[tuple[str, int], np.ndarray],
) -> None:
    shares = shares_adopted(retrains, is_sd_known=True)
    assert shares.mean() <= 0.06
    assert shares.max() > 0.15


def test_the_trial_variance_of_one_pipeline(retrains: dict[tuple[str, int], np.ndarray]) -> None:
    variance = estimate_trial_variance(list(retrains.values()))
    assert variance.n_groups == 85
    assert variance.freedom == 1054 - 85
    assert 0.0013 < variance.low < variance.sd < variance.high < 0.0016


def test_a_change_that_was_launched_is_adopted_and_one_without_effect_is_not(
    retrains: dict[tuple[str, int], np.ndarray],
) -> None:
    def result(directory: str, candidate: tuple[str, int], baseline: tuple[str, int]) -> tuple[float, float]:
        one, two = (retrains[f"track_1_short/{directory}/{name}", steps] for name, steps in (candidate, baseline))
        comparison = compare_retrains(one, two, "minimize")
        return comparison.improvement, comparison.p

    # At the same number of steps, gated layers against none.
    improvement, p = result("2026-04-29_XSAGatedLayers", ("this_pr_v1-s1410", 1450), ("baseline-s1410", 1450))
    assert improvement == pytest.approx(0.00451, abs=1e-5)
    assert p < 1e-6
    # A change for speed, which was not meant to change the loss.
    improvement, p = result("2026-05-20_BigramsSignTrick", ("pr299", 1480), ("baseline", 1480))
    assert abs(improvement) < 0.001
    assert p > 0.2
