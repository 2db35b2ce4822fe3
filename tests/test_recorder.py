from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_toys import PACKAGES, QUIET, SAFE_LOADING, make_gan, make_loader, make_model, make_trainer
from torch.utils.data import DataLoader

from playbook_plugins.analysis import InfeasibleError, Status, TrialRecord
from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.recorder import TrialRecorder, classify
from playbook_plugins.lightning.training_time import TrainingTime, count_examples
from playbook_plugins.lightning.warmup import LearningRateWarmup

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:LearningRateWarmup takes")]


def stack(recorder: Any, n: int = 4) -> list[Any]:
    return [LearningRateWarmup(2), PercentileGradientClipping(min_steps=5), PeriodicEvaluation(n), recorder]


def fit(package: Any, callbacks: list[Any], model: Any = None, n_batches: int = 5, **options: Any) -> Any:
    model = make_model(package) if model is None else model
    trainer = make_trainer(package, callbacks, **({"max_steps": 20} | options))
    trainer.fit(model, make_loader(n_batches), make_loader(2, seed=1))
    return model


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_training_objective_can_be_another_entry_than_the_loss(package: Any, accumulation: int) -> None:
    curves = []
    for train in ("loss", "twice"):
        model = make_model(package)
        with_loss_only = model.training_step

        def training_step(batch: Any, batch_idx: int, step: Any = with_loss_only) -> dict[str, Any]:
            loss = step(batch, batch_idx)
            return {"loss": loss, "twice": 2 * loss.detach()}

        model.training_step = training_step
        recorder = TrialRecorder("val_loss", "min", train=train)
        fit(package, stack(recorder), model, accumulate_grad_batches=accumulation)
        curves.append(recorder.record.curve.train)
    assert np.isfinite(curves[0][1:]).all()
    np.testing.assert_allclose(curves[1], 2 * curves[0])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_training_objective_that_is_not_returned_is_refused(package: Any) -> None:
    message = (
        "`train` is 'error': training_step returned no such entry, but the training objective of the curve is read "
        "from there. Return {'loss': ..., 'error': ...}, or leave train='loss'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit(package, stack(TrialRecorder("val_loss", "min", train="error")))


@pytest.mark.parametrize("package", PACKAGES)
def test_the_error_of_a_diverged_run_carries_its_record(package: Any) -> None:
    with pytest.raises(InfeasibleError) as caught:
        fit(package, stack(TrialRecorder("val_loss", "min")), make_model(package, poison=9))
    record = caught.value.record
    assert record is not None
    assert record.status is Status.INFEASIBLE
    assert record.reason == caught.value.reason
    assert record.curve.step.tolist() == [0, 4, 8]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_curve_of_a_run(package: Any, accumulation: int) -> None:
    recorder = TrialRecorder("val_loss", "min")
    watched = []

    class Watch(package.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            watched.append((float(trainer.callback_metrics["val_loss"]), len(pl_module.losses), len(pl_module.rates)))
            thresholds.append(clipping.current_threshold(0))

    thresholds: list[float | None] = []
    callbacks = [*stack(recorder), Watch()]
    clipping = callbacks[1]
    model = fit(package, callbacks, accumulate_grad_batches=accumulation)
    record = recorder.record
    curve = record.curve
    assert (record.status, record.reason, record.direction, record.objective_name) == (
        Status.COMPLETE,
        "",
        "minimize",
        "val_loss",
    )
    assert curve.step.tolist() == [0, 4, 8, 12, 16, 20, 22]
    assert record.max_steps == 22
    assert curve.validation.tolist() == [value for value, _, _ in watched]
    assert list(curve.metrics) == ["val_twice"]
    np.testing.assert_allclose(curve.metrics["val_twice"], 2 * curve.validation, rtol=1e-6)
    for column in (curve.train, curve.learning_rate, curve.gradient_norm, curve.gradient_norm_max):
        assert math.isnan(column[0])
    history = np.array(clipping.windows[0].history)
    for row in range(1, len(curve)):
        batches = slice(watched[row - 1][1], watched[row][1])
        assert curve.train[row] == pytest.approx(np.mean(model.losses[batches]), rel=1e-6)
        assert curve.learning_rate[row] == model.rates[watched[row][2] - 1][0]
        norms = history[curve.step[row - 1] : curve.step[row]]
        assert curve.gradient_norm[row] == np.median(norms)
        assert curve.gradient_norm_max[row] == norms.max()
    # Five norms must have been seen before anything is clipped.
    assert thresholds[:2] == [None, None]
    np.testing.assert_array_equal(curve.clip_threshold, np.array(thresholds, dtype=np.float64))
    assert np.isfinite(curve.clip_threshold[2:]).all()
    assert record.gradient_norm_quantiles.tolist() == np.percentile(history, np.arange(101)).tolist()
    assert record.gradient_norm_histogram[1].sum() == 22
    assert record.clipped_share == clipping.clipped_share
    assert record.examples_per_second > 0
    assert 0 < record.data_wait_share < 1
    assert record.seconds > 0
    again = TrialRecord.from_json(record.to_json())
    np.testing.assert_array_equal(again.curve.train, curve.train)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_order_of_the_callbacks_does_not_matter(package: Any) -> None:
    def run(order: tuple[int, ...]) -> tuple[Any, Any]:
        recorder = TrialRecorder("val_loss", "min")
        callbacks = stack(recorder)
        model = fit(package, [callbacks[place] for place in order])
        record = json.loads(recorder.record.to_json())
        return model.losses, {name: record[name] for name in ("curve", "clipped_share", "gradient_norm_quantiles")}

    orders = list(itertools.permutations(range(4)))
    expected = run(orders[0])
    for order in orders[1:]:
        assert run(order) == expected, order


@pytest.mark.parametrize("package", PACKAGES)
def test_without_the_other_callbacks(package: Any) -> None:
    recorder = TrialRecorder("val_loss", "max")
    fit(package, [recorder], max_epochs=3, max_steps=-1)
    record = recorder.record
    assert record.direction == "maximize"
    # Lightning validates after each epoch; its sanity check is no evaluation.
    assert record.curve.step.tolist() == [5, 10, 15]
    assert record.max_steps == 15
    assert np.isfinite(record.curve.train).all()
    for column in (record.curve.gradient_norm, record.curve.gradient_norm_max, record.curve.clip_threshold):
        assert np.isnan(column).all()
    assert math.isnan(record.clipped_share)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_fixed_threshold_is_in_force_from_the_start(package: Any) -> None:
    recorder = TrialRecorder("val_loss", "min")
    fit(package, [PercentileGradientClipping(threshold=0.5), PeriodicEvaluation(5), recorder])
    assert recorder.record.curve.clip_threshold.tolist() == [0.5] * 5


@pytest.mark.parametrize("package", PACKAGES)
def test_it_watches_and_does_not_touch(package: Any) -> None:
    def run(callbacks: list[Any]) -> Any:
        torch.manual_seed(0)
        return fit(package, callbacks, make_model(package, dropout=0.5)).losses

    assert run([]) == run([TrialRecorder("val_loss", "min")])


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_that_is_nan_stops_the_run_at_once(package: Any, accumulation: int) -> None:
    recorder = TrialRecorder("val_loss", "min")
    seen = []

    class Watch(package.Callback):
        def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
            seen.append(exception)

    model = make_model(package, poison=7)
    # Of five batches an epoch, accumulation 2 makes three steps: batches 7 and 8 are the step after four.
    step = 7 if accumulation == 1 else 4
    with pytest.raises(InfeasibleError, match=f"^diverged: training loss is nan at step {step}$") as caught:
        fit(package, [PeriodicEvaluation(2), recorder, Watch()], model, accumulate_grad_batches=accumulation)
    assert seen == [caught.value]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    record = recorder.record
    assert (record.status, record.reason) == (Status.INFEASIBLE, caught.value.reason)
    assert record.objective == math.inf
    assert len(record.curve)


@pytest.mark.parametrize("package", PACKAGES)
def test_beside_clipping_the_norm_stops_it_in_the_same_step(package: Any) -> None:
    recorder = TrialRecorder("val_loss", "min")
    with pytest.raises(InfeasibleError, match=r"^non-finite gradient norm at step 7$"):
        fit(package, stack(recorder), make_model(package, poison=7))
    assert recorder.record.status is Status.INFEASIBLE
    assert recorder.record.curve.step.tolist() == [0, 4]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (math.inf, "inf")])
def test_an_objective_that_is_not_finite_stops_the_run(package: Any, value: float, word: str) -> None:
    model = make_model(package)
    usual = model.validation_step
    model.validation_step = lambda batch, batch_idx: (
        usual(batch, batch_idx) if model.trainer.global_step < 8 else model.log("val_loss", torch.tensor(value))
    )
    recorder = TrialRecorder("val_loss", "min")
    with pytest.raises(InfeasibleError, match=f"^diverged: val_loss is {word} at step 8$"):
        fit(package, stack(recorder), model)
    record = recorder.record
    assert record.status is Status.INFEASIBLE
    assert record.curve.step.tolist() == [0, 4, 8]
    assert np.isnan(record.curve.validation).tolist() == [False, False, True]


def add_to_loss(package: Any, model: Any, first: int, amount: float) -> Any:
    """Have the model add a constant to the training loss from a batch on, which leaves the weights as they would be."""
    usual = model.training_step
    model.training_step = lambda batch, batch_idx: (
        usual(batch, batch_idx) + (amount if model.n_batches > first else 0.0)
    )
    return model


@pytest.mark.parametrize("package", PACKAGES)
def test_a_training_loss_that_stays_high_stops_the_run_where_wanted(package: Any) -> None:
    def run(factor: float | None) -> TrialRecord:
        recorder = TrialRecorder("val_loss", "min", divergence_factor=factor)
        # Of batches 41 to 220, that is of steps 40 to 219.
        model = add_to_loss(package, make_model(package), 40, 100.0)
        fit(package, [PeriodicEvaluation(100), recorder], model, 50, max_steps=250)
        return recorder.record

    assert run(None).status is Status.COMPLETE
    assert run(100.0).status is Status.COMPLETE
    with pytest.raises(InfeasibleError) as caught:
        run(2.0)
    record = caught.value.record
    assert record is not None
    first = fit(package, [], n_batches=50, max_steps=20).losses[:20]
    start = np.median(first)
    limit = start + 6 * 1.4826 * np.median(np.abs(first - start))
    assert caught.value.reason == (
        f"diverged: training loss is uncharacteristically high (180 of its last 200 values above {limit:.4g}, after "
        f"a start at {start:.4g}) at step 219"
    )
    assert (record.status, record.reason) == (Status.INFEASIBLE, caught.value.reason)
    assert record.curve.step.tolist() == [0, 100, 200]


@pytest.mark.parametrize("package", PACKAGES)
def test_high_losses_are_counted_over_a_resume(package: Any, tmp_path: Any) -> None:
    class Save(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step in (10, 100):
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def run(path: Any) -> str:
        model = make_model(package)
        # A resume counts the batches anew.
        add_to_loss(package, model, 40 - (int(path.stem) if path else 0), 100.0)
        recorder = TrialRecorder("val_loss", "min", divergence_factor=2.0)
        callbacks = [PeriodicEvaluation(100), recorder, *([] if path else [Save()])]
        with pytest.raises(InfeasibleError) as caught:
            make_trainer(package, callbacks, max_steps=250).fit(
                model, make_loader(5), make_loader(2, seed=1), ckpt_path=path, **SAFE_LOADING
            )
        return caught.value.reason

    whole = run(None)
    assert whole.endswith("at step 219")
    # Within the start of the run, and amid the high losses.
    assert run(tmp_path / "10.ckpt") == whole
    assert run(tmp_path / "100.ckpt") == whole


@pytest.mark.parametrize("package", PACKAGES)
def test_the_losses_of_each_optimizer_are_judged_for_themselves(package: Any) -> None:
    class Break(package.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step >= 80:
                pl_module.second.weight.data.fill_(1e3)

    recorder = TrialRecorder("val_loss", "min", divergence_factor=2.0)
    # The first optimizer's losses, every other one, stay low. The second's 40 steps before are followed by 180.
    with pytest.raises(InfeasibleError, match=r"uncharacteristically high \(180 of .* at step 439$"):
        fit(package, [PeriodicEvaluation(100), recorder, Break()], make_gan(package), max_steps=600)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("poison", [-1, 7])
def test_any_precision(package: Any, precision: str, poison: int) -> None:
    # Lightning's own 16-mixed wants a GPU; the same plugin runs on the CPU with a scaler of its own.
    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        # It doubles its scale at every fifth step.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0, growth_interval=5)
        options = {"plugins": [package.plugins.MixedPrecision("16-mixed", "cpu", scaler)]}
    recorder = TrialRecorder("val_loss", "min", divergence_factor=1.5)
    model = make_model(package, poison=poison)
    if poison >= 0:
        with pytest.raises(InfeasibleError, match=r"^diverged: training loss is nan at step 7$"):
            fit(package, [PeriodicEvaluation(4), recorder], model, **options)
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    else:
        fit(package, [PeriodicEvaluation(4), recorder], model, **options)
        plain = fit(package, [PeriodicEvaluation(4)])
        expected = [np.mean(plain.losses[first : first + 4]) for first in range(0, 20, 4)]
        np.testing.assert_allclose(recorder.record.curve.train[1:], expected, rtol=0.05)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_growing_scale_is_no_growing_loss(package: Any) -> None:
    recorder, model = TrialRecorder("val_loss", "min", divergence_factor=1.5), make_model(package)
    usual = model.training_step

    # In single precision, which is faster on a CPU: the scaler scales it all the same.
    @torch.autocast("cpu", enabled=False)
    def training_step(batch: Any, batch_idx: int) -> Any:
        return usual(batch, batch_idx)

    model.training_step = training_step
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=5)
    plugins = [package.plugins.MixedPrecision("16-mixed", "cpu", scaler)]
    fit(package, [PeriodicEvaluation(100), recorder], model, 50, plugins=plugins, max_steps=260)
    # The scaled losses are high from step 60 on.
    assert scaler.get_scale() == 2.0**52
    assert recorder.record.status is Status.COMPLETE


class Raise:
    def __init__(self, exception: BaseException, step: int = 6) -> None:
        super().__init__()
        self.exception, self.step = exception, step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise self.exception


class TrialPruned(Exception):
    """By the name of Optuna's, which this extra does not need."""


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("exception", "status", "reason"),
    [
        (RuntimeError("a bug"), Status.FAILED, "RuntimeError('a bug')"),
        (KeyboardInterrupt(), Status.FAILED, "KeyboardInterrupt()"),
        (InfeasibleError("too large"), Status.INFEASIBLE, "too large"),
        (TrialPruned("at step 6"), Status.PRUNED, "at step 6"),
        (MemoryError(), Status.INFEASIBLE, "out of memory"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), Status.INFEASIBLE, None),
    ],
)
def test_the_record_after_an_exception(
    package: Any, exception: BaseException, status: Status, reason: str | None
) -> None:
    recorder = TrialRecorder("val_loss", "min")
    raiser = type("Raise", (Raise, package.Callback), {})(exception)
    # Lightning turns an interrupt into an exit.
    with pytest.raises(SystemExit if isinstance(exception, KeyboardInterrupt) else type(exception)):
        fit(package, [*stack(recorder), raiser])
    record = recorder.record
    assert record.status is status
    assert record.reason == (reason or "out of memory: CUDA out of memory. Tried")
    assert record.curve.step.tolist() == [0, 4]
    assert record.max_steps == 22


def test_out_of_memory_of_the_cpu_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    status, reason = classify(caught.value)
    assert status is Status.INFEASIBLE
    assert reason.startswith("out of memory: ")
    assert classify(RuntimeError("shapes differ"))[0] is Status.FAILED


@pytest.mark.parametrize("package", PACKAGES)
def test_the_record_during_training(package: Any) -> None:
    recorder = TrialRecorder("val_loss", "min")
    assert recorder.record.status is Status.RUNNING
    seen = []

    class Watch(package.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(recorder.record)

    fit(package, [*stack(recorder), Watch()])
    assert {record.status for record in seen} == {Status.RUNNING}
    assert [len(record.curve) for record in seen[:6]] == [1, 1, 1, 1, 2, 2]


@pytest.mark.parametrize("package", PACKAGES)
def test_after_a_resume_the_curve_continues(package: Any, tmp_path: Any) -> None:
    class Save(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    # Without randomness in the order of the batches, a resume at the end of an epoch repeats the run.
    whole = TrialRecorder("val_loss", "min")
    fit(package, [*stack(whole, 3), Save()])
    resumed = TrialRecorder("val_loss", "min")
    make_trainer(package, stack(resumed, 3), max_steps=20).fit(
        make_model(package), make_loader(5), make_loader(2, seed=1), ckpt_path=tmp_path / "10.ckpt", **SAFE_LOADING
    )
    one, other = whole.record, resumed.record
    assert other.status is Status.COMPLETE
    assert other.curve.step.tolist() == [0, 3, 6, 9, 12, 15, 18, 21, 22]
    for name, column in one.curve.columns().items():
        np.testing.assert_array_equal(column, other.curve.columns()[name], err_msg=name)
    np.testing.assert_array_equal(one.gradient_norm_quantiles, other.gradient_norm_quantiles)
    assert (one.max_steps, one.clipped_share) == (other.max_steps, other.clipped_share)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_second_fit_continues_and_a_new_run_begins_afresh(package: Any) -> None:
    recorder = TrialRecorder("val_loss", "min")
    trainer = make_trainer(package, [PeriodicEvaluation(3), recorder], max_steps=6)
    model, loaders = make_model(package), (make_loader(5), make_loader(2))
    trainer.fit(model, *loaders)
    trainer.fit_loop.epoch_loop.max_steps = 9
    trainer.fit(model, *loaders)
    assert recorder.record.curve.step.tolist() == [0, 3, 6, 9]
    fit(package, [PeriodicEvaluation(3), recorder], max_steps=3)
    assert recorder.record.curve.step.tolist() == [0, 3]


@pytest.mark.parametrize("package", PACKAGES)
def test_validation_outside_of_fit_is_not_recorded(package: Any) -> None:
    recorder = TrialRecorder("val_loss", "min")
    trainer = make_trainer(package, [PeriodicEvaluation(3), recorder], max_steps=3)
    model = make_model(package)
    trainer.fit(model, make_loader(5), make_loader(2))
    trainer.validate(model, make_loader(2), verbose=False)
    assert recorder.record.curve.step.tolist() == [0, 3]
    assert recorder.record.status is Status.COMPLETE


@pytest.mark.parametrize("package", PACKAGES)
def test_an_exception_outside_of_fit_is_not_the_end_of_the_run(package: Any) -> None:
    recorder, model = TrialRecorder("val_loss", "min"), make_model(package)
    trainer = make_trainer(package, [PeriodicEvaluation(3), recorder], max_steps=3)
    trainer.fit(model, make_loader(5), make_loader(2))

    def validation_step(batch: Any, batch_idx: int) -> None:
        raise RuntimeError("a bug in validation")

    model.validation_step = validation_step
    with pytest.raises(RuntimeError, match=r"^a bug in validation$"):
        trainer.validate(model, make_loader(2), verbose=False)
    assert (recorder.record.status, recorder.record.reason) == (Status.COMPLETE, "")


@pytest.mark.parametrize("package", PACKAGES)
def test_manual_optimization(package: Any) -> None:
    recorder = TrialRecorder("val_loss", "min")
    fit(package, [PeriodicEvaluation(6), recorder], make_gan(package), max_steps=12)
    curve = recorder.record.curve
    assert curve.step.tolist() == [0, 6, 12]
    assert np.isfinite(curve.train[1:]).all()
    # Each optimizer's schedule multiplies by 0.9 a step; the first one's rate is recorded.
    np.testing.assert_allclose(curve.learning_rate[1:], [0.1 * 0.9**2, 0.1 * 0.9**5])


@pytest.mark.parametrize("package", PACKAGES)
def test_manual_optimization_that_returns_nothing(package: Any) -> None:
    class Poison(package.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, *_: Any) -> None:
            if trainer.global_step == 8:
                batch[1].fill_(math.nan)

    recorder, model = TrialRecorder("val_loss", "min"), make_gan(package)
    usual = model.training_step

    def training_step(batch: Any, batch_idx: int) -> None:
        usual(batch, batch_idx)

    model.training_step = training_step
    with pytest.raises(InfeasibleError, match=r"^diverged: training loss is nan at step 8$"):
        fit(package, [PeriodicEvaluation(6), recorder, Poison()], model, max_steps=12)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    curve = recorder.record.curve
    assert curve.step.tolist() == [0, 6]
    assert np.isnan(curve.train).all()


@pytest.mark.parametrize("package", PACKAGES)
def test_throughput_and_the_wait_for_data(package: Any) -> None:
    now = [0.0]

    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            now[0] += 0.005
            return torch.zeros(3), torch.zeros(1)

    class Watch(package.Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            now[0] += 0.06

        def on_validation_end(self, *_: Any) -> None:
            now[0] += 0.3

    recorder = TrialRecorder("val_loss", "min", clock=lambda: now[0])
    # A batch of 4 takes 20 ms to load and 60 ms to train on; the five evaluations count for neither.
    trainer = make_trainer(package, [PeriodicEvaluation(5), recorder, Watch()], max_epochs=2)
    trainer.fit(make_model(package), DataLoader(Slow(), batch_size=4), make_loader(2))
    record = recorder.record
    assert record.data_wait_share == pytest.approx(0.25)
    assert record.examples_per_second == pytest.approx(4 / 0.08)
    assert record.seconds == pytest.approx(20 * 0.08 + 5 * 0.3)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_wait_for_data_is_that_of_the_clock(package: Any) -> None:
    loading, training, n_batches = 0.06, 0.05, 10
    slept: dict[float, list[float]] = {loading: [], training: []}

    def sleep(seconds: float) -> None:
        # A busy machine sleeps longer.
        start = time.perf_counter()
        time.sleep(seconds)
        slept[seconds].append(time.perf_counter() - start)

    class Slow(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return n_batches

        def __getitem__(self, index: int) -> Any:
            sleep(loading)
            return torch.zeros(3), torch.zeros(1)

    class Watch(package.Callback):
        def on_before_optimizer_step(self, *_: Any) -> None:
            sleep(training)

        def on_validation_batch_start(self, *_: Any) -> None:
            time.sleep(0.1)

    recorder = TrialRecorder("val_loss", "min")
    trainer = make_trainer(package, [PeriodicEvaluation(4), recorder, Watch()], max_epochs=1)
    trainer.fit(make_model(package), DataLoader(Slow()), make_loader(1))
    record = recorder.record
    # The first batch does not count. The other nine have one example each.
    seconds = 9 / record.examples_per_second
    waited, trained = (sum(slept[kind][1:]) for kind in (loading, training))
    assert record.data_wait_share * seconds == pytest.approx(waited, rel=0.1)
    # The four evaluations would add 0.4 seconds.
    assert waited + trained <= seconds < waited + trained + 0.3
    assert record.seconds > waited + trained + 0.4


def test_training_time_by_hand() -> None:
    now = iter([0, 1, 2, 3, 10, 13, 15, 20, 40, 50, 50])
    timing = TrainingTime(lambda: float(next(now)))
    timing.begin_fit()  # 0
    timing.begin_wait()  # 1: the first batch of a fit does not count
    timing.end_wait()  # 2
    timing.end_batch(4)
    timing.begin_batch()  # 3
    timing.begin_wait()  # 10: while training on the batch, as a loader without length does
    timing.end_wait()  # 13
    timing.end_batch(8)  # 15
    assert (timing.n_examples, timing.training_seconds, timing.waiting_seconds) == (8, 12, 3)
    assert (timing.examples_per_second, timing.wait_share) == (8 / 12, 3 / 12)
    assert timing.seconds == 20
    timing.end_fit()  # 40
    again = TrainingTime(lambda: float(next(now)))
    again.load_state_dict(timing.state_dict())
    assert (again.seconds, again.wait_share) == (40, 3 / 12)


def test_examples_are_counted_in_any_batch() -> None:
    x = torch.zeros(6, 2)
    for batch in (x, [x, x[:1]], {"x": x}, (("a", 3), {"x": [x]}), x.numpy()):
        assert count_examples(batch) == 6
    for batch in ("text", torch.tensor(3.0), None):
        assert count_examples(batch) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_checkpoints_come_from_whoever_keeps_them(package: Any) -> None:
    class Keeper(package.Callback):
        kept_checkpoints = (Path("best.ckpt"), Path("second.ckpt"))

    recorder = TrialRecorder("val_loss", "min")
    fit(package, [*stack(recorder), Keeper()])
    assert recorder.record.checkpoints == ("best.ckpt", "second.ckpt")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_run_without_an_evaluation_has_no_record(package: Any) -> None:
    recorder = TrialRecorder("val_loss", "min")
    fit(package, [recorder], max_steps=2, limit_val_batches=0)
    with pytest.raises(ValueError, match="none with a finite val_loss"):
        _ = recorder.record


@pytest.mark.parametrize("package", PACKAGES)
def test_a_metric_that_is_not_logged_is_named(package: Any) -> None:
    message = (
        "`monitor` is 'val_error': validation logged no such metric. Log it in validation_step by "
        "self.log('val_error', ...), or pass one of ['val_loss', 'val_twice']."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit(package, stack(TrialRecorder("val_error", "min")))


def test_bad_arguments_are_refused() -> None:
    message = "`mode` is 'minimize': it must be 'min' or 'max'. Pass the way in which val_loss gets better."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TrialRecorder("val_loss", "minimize")  # type: ignore[arg-type]


def test_it_pickles() -> None:
    assert pickle.loads(pickle.dumps(TrialRecorder("val_loss", "min"))).monitor == "val_loss"


@pytest.mark.parametrize("package", PACKAGES)
def test_spawned_processes_are_refused(package: Any) -> None:
    message = (
        "`strategy` is DDPStrategy, and TrialRecorder does not support it: the record would stay behind in the worker "
        "process. Use strategy='ddp'."
    )
    with pytest.raises(Exception, match=re.escape(message)):
        fit(package, [TrialRecorder("val_loss", "min")], strategy="ddp_fork", devices=2)


@pytest.mark.parametrize("package", PACKAGES)
def test_deepspeed_is_refused(package: Any) -> None:
    kind = type("DeepSpeedStrategy", (package.strategies.SingleDeviceStrategy,), {})
    message = (
        "`strategy` is DeepSpeedStrategy, and TrialRecorder does not support it: whether all ranks stop before the "
        "update that would destroy the weights is not tested there. Use ddp, or ModelParallelStrategy."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit(package, [TrialRecorder("val_loss", "min")], strategy=kind(device=torch.device("cpu")))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_compiled_network_trains_the_same(package: Any) -> None:
    def run(wrap: Any) -> Any:
        recorder = TrialRecorder("val_loss", "min")
        model = make_model(package)
        model.net = wrap(model.net)
        return fit(package, stack(recorder), model), recorder.record

    plain, record = run(lambda net: net)
    # The eager backend compiles without a C++ compiler.
    compiled, again = run(lambda net: torch.compile(net, backend="eager"))
    assert compiled.rates == plain.rates
    assert compiled.evaluated == plain.evaluated
    for name, column in record.curve.columns().items():
        np.testing.assert_allclose(again.curve.columns()[name], column, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_others_work_in_forked_processes(package: Any, tmp_path: Path) -> None:
    class Tell(package.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            told = (pl_module.evaluated, pl_module.rates, list(callbacks[1].windows[0].history))
            (tmp_path / f"{trainer.global_rank}.json").write_text(json.dumps(told))

    callbacks = [LearningRateWarmup(2), PercentileGradientClipping(min_steps=5), PeriodicEvaluation(4)]
    fit(package, [*callbacks, Tell()], strategy="ddp_fork", devices=2)
    one, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert one == other
    assert one[0] == [0, 4, 8, 12, 16, 20, 22]
    assert [rates[0] for rates in one[1][:3]] == [0, 0.025, 0.05]
    assert len(one[2]) == 22


def run_twice(script: str, package: Any, folder: Path) -> tuple[Any, Any]:
    """Run a script in two processes and return what each of them wrote."""
    (folder / "script.py").write_text(script)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(folder / "script.py")]
    subprocess.run(
        [sys.executable, *command, str(Path(__file__).parent), str(folder), package.__name__],
        check=True,
        timeout=200,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    one, other = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return one, other


SCRIPT = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from lightning_toys import make_loader, make_model, make_trainer
from playbook_plugins.analysis import InfeasibleError
from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.recorder import TrialRecorder
from playbook_plugins.lightning.warmup import LearningRateWarmup

package = importlib.import_module(sys.argv[3])
told = {}
logged = []

class Told(package.loggers.CSVLogger):
    def log_metrics(self, metrics, step=None):
        logged.extend(name for name in metrics if name == "playbook_objective")

for case in ("whole", "nan on rank 1", "high on rank 1"):
    is_high = case == "high on rank 1"
    recorder = TrialRecorder("val_loss", "min", divergence_factor=2.0 if is_high else None)
    clipping = PercentileGradientClipping(50, min_steps=3)
    callbacks = [LearningRateWarmup(2), PeriodicEvaluation(100 if is_high else 3), recorder]
    callbacks += [clipping] * (case == "whole")
    options = {"strategy": "ddp", "devices": 2, "max_steps": 250 if is_high else 20, "logger": Told(sys.argv[2])}
    trainer = make_trainer(package, callbacks, **options)
    model = make_model(package)
    model.poison = 5 if case == "nan on rank 1" and trainer.global_rank == 1 else -1
    if is_high and trainer.global_rank == 1:
        usual = model.training_step
        model.training_step = lambda batch, batch_idx: usual(batch, batch_idx) + 100.0 * (model.n_batches > 40)
    message = ""
    try:
        trainer.fit(model, make_loader(8), make_loader(4, seed=1))
    except InfeasibleError as error:
        message = error.reason
    told[case] = {
        "message": message,
        "evaluated": model.evaluated,
        "rates": model.rates,
        "norms": list(clipping.windows[0].history) if clipping.windows else [],
        "weights": [parameter.detach().tolist() for parameter in model.parameters()],
        "losses": model.losses,
        "record": json.loads(recorder.record.to_json()),
        "logged": len(logged),
    }
    if case == "whole":
        trainer.strategy.barrier()
json.dump(told, open(f"{sys.argv[2]}/{trainer.global_rank}.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_two_processes_agree(package: Any, tmp_path: Path) -> None:
    one, other = run_twice(SCRIPT, package, tmp_path)
    whole = one["whole"]
    for name in ("evaluated", "rates", "norms", "weights"):
        assert whole[name] == other["whole"][name], name
    assert whole["evaluated"] == [0, 3, 6, 9, 12, 15, 18, 21, 22]
    assert len(whole["norms"]) == 22
    # The mean over both ranks' batches.
    expected = np.mean(whole["losses"][:3] + other["whole"]["losses"][:3])
    assert whole["record"]["curve"]["train"][1] == pytest.approx(expected, rel=1e-6)
    assert whole["record"]["curve"]["train"] == other["whole"]["record"]["curve"]["train"]
    # Rank 1's loss is NaN at batch 5: both stop there.
    assert other["nan on rank 1"]["message"] == "diverged: training loss is nan at step 5"
    assert one["nan on rank 1"]["message"] == "diverged: training loss is not finite on another rank at step 5"
    assert {told["nan on rank 1"]["record"]["status"] for told in (one, other)} == {"infeasible"}
    # Rank 1's loss stays high from its step 40 on.
    assert other["high on rank 1"]["message"].startswith("diverged: training loss is uncharacteristically high (180 ")
    assert other["high on rank 1"]["message"].endswith(" at step 219")
    assert one["high on rank 1"]["message"] == (
        "diverged: training loss is not finite, or uncharacteristically high, on another rank at step 219"
    )
    # Rank zero alone logs the summary, once a run.
    assert [told["logged"] for told in one.values()] == [1, 2, 3]
    assert [told["logged"] for told in other.values()] == [0, 0, 0]


SHARDED = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
from lightning_toys import make_loader, make_model, make_trainer
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from playbook_plugins.analysis import InfeasibleError
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.recorder import TrialRecorder

package = importlib.import_module(sys.argv[3])

class Shard(package.Callback):
    def setup(self, trainer, pl_module, stage):
        def configure_model():
            for layer in (pl_module.net[0], pl_module.net[3], pl_module.net):
                fully_shard(layer, mesh=pl_module.device_mesh["data_parallel"])
        pl_module.configure_model = configure_model

told = {}
for case in ("ddp", "sharded", "nan on rank 1"):
    recorder, model = TrialRecorder("val_loss", "min"), make_model(package)
    strategy, callbacks = "ddp", [PeriodicEvaluation(3), recorder]
    if case != "ddp":
        strategy = package.strategies.ModelParallelStrategy(2, 1, process_group_backend="gloo")
        callbacks.append(Shard())
    trainer = make_trainer(package, callbacks, strategy=strategy, devices=2, max_steps=9)
    model.poison = 5 if case == "nan on rank 1" and trainer.global_rank == 1 else -1
    message = ""
    try:
        trainer.fit(model, make_loader(8), make_loader(4, seed=1))
    except InfeasibleError as error:
        message = error.reason
    is_sharded = all(isinstance(parameter, DTensor) for parameter in model.parameters())
    told[case] = {"message": message, "is_sharded": is_sharded, "record": json.loads(recorder.record.to_json())}
json.dump(told, open(f"{sys.argv[2]}/{trainer.global_rank}.json", "w"))
"""


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_a_sharded_model_is_recorded_as_a_whole_one(package: Any, tmp_path: Path) -> None:
    one, other = run_twice(SHARDED, package, tmp_path)
    assert [told["is_sharded"] for told in one.values()] == [False, True, True]
    for name in ("validation", "train", "learning_rate"):
        whole, sharded = (np.array(one[case]["record"]["curve"][name][1:]) for case in ("ddp", "sharded"))
        np.testing.assert_allclose(sharded, whole, rtol=1e-5, err_msg=name)
    assert one["sharded"]["record"]["curve"] == other["sharded"]["record"]["curve"]
    assert one["sharded"]["record"]["curve"]["step"] == [0, 3, 6, 9]
    assert other["nan on rank 1"]["message"] == "diverged: training loss is nan at step 5"
    assert one["nan on rank 1"]["message"] == "diverged: training loss is not finite on another rank at step 5"
