"""Do real trainings of five language models give the critical batch sizes that were published for them?"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from playbook_plugins.analysis.batch_size import (
    CriticalBatchSize,
    Refusal,
    ScalingRegime,
    check_critical_batch_size,
    critical_batch_size,
)
from playbook_plugins.analysis.findings import Verdict

DATA = Path(os.environ.get("PLAYBOOK_DATA", Path(__file__).parents[2] / "shared" / "data")) / "critical_batch_size"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"the data set {DATA.name} is not there; set PLAYBOOK_DATA")
MODELS = ("85M", "151M", "302M", "604M", "1.2B")


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open() as file:
        return list(csv.DictReader(file))


def measured(model: str, largest: float = np.inf, **options: Any) -> CriticalBatchSize:
    table = [row for row in rows("steps_to_target.csv") if row["model_size"] == model]
    sizes = np.array([float(row["batch_size"]) for row in table])
    steps = np.array([float(row["min_steps_to_target"]) for row in table])
    return critical_batch_size(sizes[sizes <= largest], steps[sizes <= largest], **options)


@pytest.mark.parametrize("model", MODELS)
def test_the_published_fits_are_found_again(model: str) -> None:
    [published] = [row for row in rows("published_fits.csv") if row["model_size"] == model]
    result = measured(model)
    assert result.value == pytest.approx(float(published["mccandlish_Bcrit_b_over_a"]), rel=1e-5)
    assert result.minimal_steps == pytest.approx(float(published["a_steps_min"]), rel=1e-5)


def test_the_smallest_model_within_its_interval() -> None:
    result = measured("85M")
    assert result.value is not None
    assert result.low is not None
    assert result.high is not None
    assert round(result.value) == 2191
    assert 2000 <= result.value <= 2378
    # At 95% the interval is [1912, 2519].
    assert 1850 <= result.low <= 2000
    assert 2378 <= result.high <= 2600


def test_the_critical_batch_size_grows_with_the_model() -> None:
    values = [measured(model).value for model in MODELS]
    assert values == sorted(values)  # type: ignore[type-var]


@pytest.mark.parametrize("model", MODELS)
def test_batch_sizes_up_to_1024_give_no_number(model: str) -> None:
    result = measured(model, largest=1024)
    assert (result.value, result.low, result.high, result.refusal) == (None, None, None, Refusal.NOT_REACHED)
    finding = check_critical_batch_size(result)[1]
    assert finding.verdict is Verdict.TOO_LITTLE_DATA
    assert finding.numbers["critical_batch_size"] is None


def test_the_three_regimes_of_the_smallest_model() -> None:
    result = measured("85M")
    expected = [ScalingRegime.PERFECT] * 5 + [ScalingRegime.DIMINISHING] * 3 + [ScalingRegime.MAXIMAL]
    assert list(result.regimes) == expected
    assert result.largest_useful == 8192
    [steps, critical] = check_critical_batch_size(result)
    assert (steps.verdict, critical.verdict) == (Verdict.NO_EVIDENCE, Verdict.FLAG)
    # The largest model still gains at its largest batch.
    assert check_critical_batch_size(measured("1.2B"))[1].verdict is Verdict.NO_EVIDENCE
