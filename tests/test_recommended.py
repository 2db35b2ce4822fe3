"""The recommended stack in one call, and the same run whatever the order of its members."""

from __future__ import annotations

import itertools
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_toys import PACKAGES, QUIET, make_loader, make_model, make_trainer

from playbook_plugins.lightning import (
    BatchNormSync,
    BatchSizeProbe,
    BestCheckpoints,
    LearningRateWarmup,
    PercentileGradientClipping,
    PeriodicEvaluation,
    TrialRecorder,
    WeightEMA,
    playbook_callbacks,
)

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:LearningRateWarmup takes")]

FULL = [
    BatchSizeProbe,
    LearningRateWarmup,
    PercentileGradientClipping,
    PeriodicEvaluation,
    WeightEMA,
    BatchNormSync,
    TrialRecorder,
    BestCheckpoints,
]


def test_the_order_is_the_recommended_one() -> None:
    stack = playbook_callbacks("val_loss", "min", 1000, 20, half_life=50, probe=True)
    assert [type(one) for one in stack] == FULL
    _, warmup, clipping, evaluation, average, _, recorder, checkpoints = stack
    assert (warmup.warmup_steps, clipping.percentile, clipping.threshold) == (20, 90.0, None)
    assert (evaluation.every_n_steps, average.half_life) == (20, 50)
    assert (recorder.monitor, recorder.mode, recorder.train) == ("val_loss", "min", "loss")
    assert (checkpoints.monitor, checkpoints.mode, checkpoints.save_top_k) == ("val_loss", "min", 3)


def test_what_is_not_asked_for_is_left_out() -> None:
    plain = playbook_callbacks(monitor="val_accuracy", mode="max", max_steps=30)
    assert [type(one) for one in plain] == [FULL[2], FULL[3], FULL[5], FULL[6], FULL[7]]
    assert plain[1].every_n_steps == 1
    bare = playbook_callbacks("val_loss", "min", 30, clip_percentile=None, every_n_steps=7)
    assert [type(one) for one in bare] == [FULL[3], FULL[5], FULL[6], FULL[7]]
    assert bare[0].every_n_steps == 7


def test_the_arguments_arrive(tmp_path: Path) -> None:
    stack = playbook_callbacks(
        "val_loss", "max", 30, clip_threshold=0.7, train="error", save_top_k=-1, dirpath=tmp_path, clip_percentile=80
    )
    clipping, _, _, recorder, checkpoints = stack
    assert (clipping.threshold, clipping.percentile) == (0.7, 80)
    assert (recorder.train, recorder.mode) == ("error", "max")
    assert (checkpoints.save_top_k, checkpoints.dirpath, checkpoints.mode) == (-1, str(tmp_path), "max")


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="^" + re.escape(
        "`max_steps` is -1: the recommended callbacks need the length of training, at least 1 optimizer step. Pass the "
        "same max_steps as to the Trainer, or build the callbacks one by one for an endless run."
    ) + "$"):  # fmt: skip
        playbook_callbacks("val_loss", "min", -1)
    with pytest.raises(ValueError, match="^" + re.escape(
        "`clip_percentile` is None and `clip_threshold` is 0.5: the one leaves clipping out, the other asks for it. "
        "Pass clip_threshold alone to clip at a fixed norm."
    ) + "$"):  # fmt: skip
        playbook_callbacks("val_loss", "min", 10, clip_percentile=None, clip_threshold=0.5)


# Every order of the members.


def run(package: Any, folder: Path, order: Iterable[int]) -> dict[str, Any]:
    """Train for 10 steps after 1 of warmup, 3 an epoch, and return what the run was."""
    options = {"every_n_steps": 4, "clip_percentile": 30, "half_life": 2, "probe": True}
    stack = playbook_callbacks("val_loss", "min", 10, 1, dirpath=folder, **options)
    probe, _, clipping, _, _, _, recorder, checkpoints = stack
    clipping.min_steps = 3
    # As short as can be: every order is run.
    probe.max_batch_size, probe.n_warmup_steps, probe.n_steps, probe.max_seconds = 2, 1, 3, 0.0
    model = make_model(package, configure=configure, dropout=0.2)
    model.net.append(torch.nn.BatchNorm1d(1))
    options = {"max_steps": 10, "accumulate_grad_batches": 2, "enable_checkpointing": True}
    trainer = make_trainer(package, [stack[place] for place in order], **options)
    torch.manual_seed(1)
    trainer.fit(model, make_loader(6, shuffle=True), make_loader(1))
    curve = recorder.record.curve
    return {
        "rates": model.rates,
        "losses": model.losses,
        "step": curve.step.tolist(),
        # NaN equals NaN as text.
        **{name: [repr(value) for value in column] for name, column in curve.columns().items()},
        "scores": [(row.step, row.metrics["val_loss"]) for row in checkpoints.evaluations],
        "kept": [Path(path).name for path in checkpoints.kept_checkpoints],
        "norms": list(clipping.windows[0].history),
        "clipped": clipping.clipped_share,
        "steps": (trainer.global_step, trainer.max_steps),
        "probed": probe.result.batch_size.tolist() if probe.result else [],
        "weights": [value.tolist() for value in model.state_dict().values()],
    }


def configure(model: Any) -> Any:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def same_run(package: Any, folder: Path, orders: Iterable[Iterable[int]]) -> int:
    """Assert that all orders give one run, and return how many there were."""
    expected = run(package, folder / "usual", range(8))
    assert expected["steps"] == (11, 11)
    assert expected["step"] == [0, 4, 8, 11]
    assert expected["clipped"] > 0
    assert expected["probed"] == [2]
    count = 0
    for order in orders:
        assert run(package, folder / "other", order) == expected, order
        shutil.rmtree(folder / "other")
        count += 1
    return count


@pytest.mark.parametrize("package", PACKAGES)
def test_some_orders_give_the_same_run(package: Any, tmp_path: Path) -> None:
    members = list(range(8))
    orders = [members[::-1], [7, *members[:7]], *(members[turn:] + members[:turn] for turn in (1, 3, 5))]
    assert same_run(package, tmp_path, orders) == 5


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(7))
def test_every_order_gives_the_same_run(first: int, tmp_path: Path) -> None:
    # Lightning moves checkpoints to the end wherever they stand: the other seven are to be ordered.
    package = PACKAGES[first % 2].values[0]
    others = [place for place in range(7) if place != first]
    orders = ([first, *rest, 7] for rest in itertools.permutations(others))
    assert same_run(package, tmp_path, orders) == 720


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("place", range(8))
def test_checkpoints_come_last_wherever_they_stand(package: Any, place: int) -> None:
    *others, checkpoints = playbook_callbacks("val_loss", "min", 10, 1, half_life=2, probe=True)
    trainer = make_trainer(package, [*others[:place], checkpoints, *others[place:]], enable_checkpointing=True)
    assert trainer.callbacks[-1] is checkpoints
    assert [one for one in trainer.callbacks if one in others] == others
