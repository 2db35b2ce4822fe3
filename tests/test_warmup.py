from __future__ import annotations

import logging
import math
import pickle
import re
import tempfile
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import support_runs
import torch
from hypothesis import example, given, settings, strategies
from lightning_toys import PACKAGES, QUIET, SAFE_LOADING, make_gan, make_loader, make_model, make_trainer
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

from playbook_plugins.lightning.warmup import LearningRateWarmup

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:LearningRateWarmup takes")]

W, M = 4, 50


def two_groups(model: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        [{"params": model.net[0].parameters(), "lr": 0.07}, {"params": model.net[3].parameters(), "lr": 0.011}],
        momentum=0.9,
    )


def stepwise(build: Any) -> Any:
    """Return what configures two parameter groups with a schedule by steps."""

    def configure(model: Any) -> Any:
        optimizer = two_groups(model)
        schedule = build(optimizer, model.trainer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    return configure


SCHEDULES = {
    "none": two_groups,
    "exponential": stepwise(lambda optimizer, _: lr_scheduler.ExponentialLR(optimizer, 0.97)),
    "cosine": stepwise(lambda optimizer, _: lr_scheduler.CosineAnnealingLR(optimizer, M)),
    "lambda": stepwise(lambda optimizer, _: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))),
    "steps": stepwise(lambda optimizer, _: lr_scheduler.StepLR(optimizer, 7, 0.3)),
    "estimated": stepwise(
        lambda optimizer, trainer: lr_scheduler.LinearLR(
            optimizer, 1.0, 0.01, total_iters=trainer.estimated_stepping_batches
        )
    ),
    "one cycle": stepwise(
        lambda optimizer, trainer: lr_scheduler.OneCycleLR(
            optimizer, [0.3, 0.2], total_steps=trainer.estimated_stepping_batches + 1, cycle_momentum=False
        )
    ),
}


def fit(package: Any, warmup: Any, configure: Any, n_batches: int = 8, **options: Any) -> tuple[Any, Any]:
    model = make_model(package, configure=configure)
    trainer = make_trainer(package, [] if warmup is None else [warmup], **({"max_steps": M} | options))
    trainer.fit(model, make_loader(n_batches), make_loader(2))
    return model, trainer


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_is_the_users_own_shifted(package: Any, schedule: str, accumulation: int) -> None:
    options = {"accumulate_grad_batches": accumulation}
    plain, _ = fit(package, None, SCHEDULES[schedule], **options)
    warmed, trainer = fit(package, LearningRateWarmup(W), SCHEDULES[schedule], **options)
    base = plain.rates[0]
    assert warmed.rates[:W] == [[rate * step / W for rate in base] for step in range(W)]
    # To the last bit, the base rate at step W included.
    assert warmed.rates[W:] == plain.rates
    assert len(plain.rates) == M
    assert trainer.max_steps == trainer.global_step == M + W


@pytest.mark.parametrize("package", PACKAGES)
def test_the_rate_of_a_tensor_is_warmed_in_place(package: Any) -> None:
    model, _ = fit(package, LearningRateWarmup(W), lambda m: torch.optim.Adam(m.parameters(), lr=torch.tensor(0.5)))
    assert [rates[0] for rates in model.rates[: W + 1]] == [0.0, 0.125, 0.25, 0.375, 0.5]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_first_update_moves_nothing(package: Any) -> None:
    model = make_model(package)
    before = [parameter.clone() for parameter in model.parameters()]
    make_trainer(package, [LearningRateWarmup(1, extend_max_steps=False, max_share=1.0)], max_steps=1).fit(
        model, make_loader(8)
    )
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("package", PACKAGES)
def test_without_extension_the_run_keeps_its_length(package: Any) -> None:
    model, trainer = fit(package, LearningRateWarmup(W, extend_max_steps=False), two_groups)
    assert trainer.global_step == trainer.max_steps == M
    assert model.rates[W] == [0.07, 0.011]


@pytest.mark.parametrize("package", PACKAGES)
def test_zero_steps_change_nothing(package: Any) -> None:
    plain, _ = fit(package, None, SCHEDULES["cosine"])
    warmed, trainer = fit(package, LearningRateWarmup(0), SCHEDULES["cosine"])
    assert warmed.rates == plain.rates
    assert trainer.max_steps == M


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("n_warmup", [4, 8, 12])
def test_a_schedule_by_epochs_skips_the_epochs_inside_the_warmup(package: Any, n_warmup: int) -> None:
    def configure(model: Any) -> Any:
        optimizer = two_groups(model)
        return [optimizer], [lr_scheduler.ExponentialLR(optimizer, 0.5)]

    # Epochs of 8 steps: one ends within a warmup of 8 or 12 steps, none within one of 4.
    model, _ = fit(package, LearningRateWarmup(n_warmup, max_share=1.0), configure, max_steps=32)
    skipped = n_warmup // 8
    for step in range(n_warmup, 32 + n_warmup):
        assert model.rates[step][0] == 0.07 * 0.5 ** (step // 8 - skipped)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_reduce_on_plateau_stands_still_during_warmup(package: Any, interval: str) -> None:
    calls = []

    class Plateau(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            calls.append(1)
            super().step(0.0 if not calls else 1.0)

    def configure(model: Any) -> Any:
        optimizer = two_groups(model)
        schedule = {
            "scheduler": Plateau(optimizer, patience=0, factor=0.1, threshold=0.0),
            "monitor": "train_loss",
            "interval": interval,
        }
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    warmed, _ = fit(package, LearningRateWarmup(8, max_share=1.0), configure, max_steps=24)
    n_warmed = len(calls)
    calls.clear()
    plain, _ = fit(package, None, configure, max_steps=24)
    assert n_warmed == len(calls) > 0
    # Epochs of 8 steps, and the warmup is one of them: shifted exactly.
    assert warmed.rates[8:] == plain.rates


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("stepped", [True, False])
def test_two_optimizers_warm_up_by_their_own_steps(package: Any, stepped: bool) -> None:
    def run(callbacks: list[Any]) -> Any:
        model = make_gan(package, stepped=stepped)
        trainer = make_trainer(package, callbacks, max_steps=100)
        trainer.fit(model, make_loader(8))
        return model, trainer

    plain, _ = run([])
    warmed, trainer = run([LearningRateWarmup(W)])
    assert trainer.global_step == 100 + 2 * W
    for place, base in ((0, 0.1), (1, 0.03)):
        assert warmed.rates[place][:W] == [base * step / W for step in range(W)]
        assert warmed.rates[place][W:] == plain.rates[place]
        assert len(plain.rates[place]) == 50


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("limit", ["epochs", "both", "epochs first"])
def test_epochs_are_converted_to_steps(package: Any, limit: str) -> None:
    options = {
        "epochs": {"max_epochs": 10},
        "both": {"max_epochs": 100, "max_steps": 30},
        "epochs first": {"max_epochs": 10, "max_steps": 300},
    }[limit]
    # 8 batches, accumulation 3: 3 steps an epoch, 30 in all.
    plain, _ = fit(package, None, SCHEDULES["estimated"], **({"max_steps": -1} | options), accumulate_grad_batches=3)
    warmed, trainer = fit(
        package,
        LearningRateWarmup(3),
        SCHEDULES["estimated"],
        **({"max_steps": -1} | options),
        accumulate_grad_batches=3,
    )
    assert len(plain.rates) == 30
    assert trainer.global_step == trainer.max_steps == 33
    assert warmed.rates[3:] == plain.rates


class SaveOnce:
    """Write a checkpoint at one step; mixed into the callbacks of both packages."""

    def __init__(self, step: int, path: str) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def rates_of(model: Any) -> list[Any]:
    """Return the rates of every step, a list an optimizer."""
    return list(model.rates) if isinstance(model.rates, tuple) else [model.rates]


# Resumed inside the warmup of two optimizers, and inside the last steps of a schedule that knows its length.
@example(
    n_warmup=3,
    limit=("max_steps", 8),
    accumulation=1,
    n_batches=3,
    schedule="two optimizers",
    resumed_at=0.1,
    package=pytorch_lightning,
)
@example(
    n_warmup=3,
    limit=("max_epochs", 4),
    accumulation=2,
    n_batches=5,
    schedule="estimated",
    resumed_at=0.95,
    package=lightning.pytorch,
)
@given(
    n_warmup=strategies.integers(0, 4),
    limit=strategies.one_of(
        strategies.tuples(strategies.just("max_steps"), strategies.integers(4, 16)),
        strategies.tuples(strategies.just("max_epochs"), strategies.integers(1, 4)),
    ),
    accumulation=strategies.integers(1, 3),
    n_batches=strategies.integers(1, 6),
    schedule=strategies.one_of(strategies.just("two optimizers"), strategies.sampled_from(sorted(SCHEDULES))),
    resumed_at=strategies.floats(0, 1, exclude_max=True),
    package=strategies.sampled_from([pytorch_lightning, lightning.pytorch]),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_warmed_and_resumed_run_is_the_plain_one_shifted(
    n_warmup: int,
    limit: tuple[str, int],
    accumulation: int,
    n_batches: int,
    schedule: str,
    resumed_at: float,
    package: Any,
) -> None:
    n_optimizers = 2 if schedule == "two optimizers" else 1
    options = {"max_steps": -1} | dict([limit])
    if limit[0] == "max_steps":
        options["max_steps"] *= n_optimizers
    if n_optimizers == 1:
        options["accumulate_grad_batches"] = accumulation

    def start(*callbacks: Any, **how: Any) -> tuple[Any, Any]:
        model = make_gan(package) if n_optimizers == 2 else make_model(package, configure=SCHEDULES[schedule])
        trainer = make_trainer(package, list(callbacks), **options)
        trainer.fit(model, make_loader(n_batches), **how)
        return rates_of(model), trainer

    plain, trainer = start()
    planned = trainer.global_step
    n_warmup = min(n_warmup, planned // n_optimizers)
    total = planned + n_optimizers * n_warmup
    # Both optimizers step in every batch.
    at = n_optimizers * max(1, int(resumed_at * (total // n_optimizers)))
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/middle.ckpt"
        save = type("Save", (SaveOnce, package.Callback), {})(at, path)
        warmed, trainer = start(LearningRateWarmup(n_warmup, max_share=1.0), save)
        assert trainer.global_step == total
        resumed, again = start(LearningRateWarmup(n_warmup, max_share=1.0), ckpt_path=path, **SAFE_LOADING)
    for mine, others, rest in zip(warmed, plain, resumed, strict=True):
        base = others[0]
        for step in range(n_warmup):
            groups = zip(mine[step], base, strict=True) if n_optimizers == 1 else [(mine[step], base)]
            assert all(rate == of * step / n_warmup for rate, of in groups)
        assert mine[n_warmup:] == others
        assert rest == mine[at // n_optimizers :]
    assert again.global_step == total
    if n_warmup:
        assert trainer.max_steps == again.max_steps == total


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(make_loader(8).dataset)


@pytest.mark.parametrize("package", PACKAGES)
def test_epochs_of_unknown_length_are_refused(package: Any) -> None:
    message = (
        "`max_epochs` is 3 and the training loader has no length: LearningRateWarmup counts training in optimizer "
        "steps and cannot convert it. Pass max_steps to the Trainer."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(package, [LearningRateWarmup(W)], max_epochs=3).fit(make_model(package), DataLoader(Stream(), 4))
    model = make_model(package)
    trainer = make_trainer(package, [LearningRateWarmup(W)], max_epochs=200, max_steps=M)
    trainer.fit(model, DataLoader(Stream(), 4))
    assert len(model.rates) == trainer.global_step == M + W


@pytest.mark.parametrize("package", PACKAGES)
def test_an_endless_run_is_warmed_and_stays_endless(package: Any) -> None:
    class Stop(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 9

    model = make_model(package, configure=two_groups)
    trainer = make_trainer(package, [LearningRateWarmup(W), Stop()], max_steps=-1, max_epochs=-1)
    trainer.fit(model, make_loader(4))
    assert trainer.max_steps == -1
    assert [rates[0] for rates in model.rates] == [0.07 * min(step, W) / W for step in range(9)]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("limit", [{"max_steps": 41}, {"max_epochs": 5}])
def test_a_resumed_run_goes_on_where_it_was(package: Any, limit: Any, tmp_path: Any) -> None:
    class Save(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def start(callbacks: list[Any], **how: Any) -> Any:
        model = make_model(package, configure=SCHEDULES["cosine"])
        trainer = make_trainer(package, callbacks, **limit)
        trainer.fit(model, make_loader(8), **how)
        return model, trainer

    whole, trainer = start([LearningRateWarmup(W), Save()])
    total = trainer.global_step
    assert total == (41 if "max_steps" in limit else 40) + W
    # Inside the warmup, at its end, after it, and inside the last W steps.
    for step in (1, W - 1, W, W + 1, 20, total - W, total - 1):
        resumed, trainer = start([LearningRateWarmup(W)], ckpt_path=tmp_path / f"{step}.ckpt", **SAFE_LOADING)
        assert trainer.global_step == trainer.max_steps == total
        assert resumed.rates == whole.rates[step:], step


@pytest.mark.parametrize("package", PACKAGES)
def test_a_second_fit_neither_warms_nor_grows_unless_raised(package: Any) -> None:
    model, trainer = fit(package, warmup := LearningRateWarmup(W), two_groups)
    loader = make_loader(8)
    trainer.fit(model, loader, make_loader(2))
    assert (len(model.rates), trainer.max_steps) == (M + W, M + W)
    trainer.fit_loop.epoch_loop.max_steps = 100
    trainer.fit(model, loader, make_loader(2))
    assert (len(model.rates), trainer.max_steps) == (100 + W, 100 + W)
    assert [rates[0] for rates in model.rates[M + W : M + 2 * W + 1]] == [0.07 * step / W for step in range(W + 1)]
    # A new run with the same callback is warmed up as the first was.
    again = make_model(package, configure=two_groups)
    trainer = make_trainer(package, [warmup], max_steps=M)
    trainer.fit(again, loader)
    assert (len(again.rates), again.rates[0], again.rates[W]) == (M + W, [0, 0], [0.07, 0.011])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_second_fit_of_more_epochs_is_converted_as_the_first(package: Any) -> None:
    model, trainer = fit(package, LearningRateWarmup(W), SCHEDULES["cosine"], max_epochs=5, max_steps=-1)
    assert (trainer.max_steps, trainer.max_epochs) == (5 * 8 + W, 6)
    trainer.fit(model, make_loader(8), make_loader(2))
    assert (trainer.max_steps, trainer.max_epochs) == (5 * 8 + W, 6)
    trainer.fit_loop.max_epochs = 10
    trainer.fit(model, make_loader(8), make_loader(2))
    assert (trainer.max_steps, trainer.max_epochs) == (10 * 8 + W, 11)
    assert len(model.rates) == trainer.global_step == 10 * 8 + W
    assert [rates[0] for rates in model.rates[44 : 44 + W + 1]] == [0.07 * step / W for step in range(W + 1)]
    # Where both limits are given, raising one leaves the other as it was asked for.
    model, trainer = fit(package, LearningRateWarmup(W), two_groups, max_epochs=7)
    assert (trainer.max_steps, trainer.max_epochs) == (M + W, 8)
    trainer.fit_loop.epoch_loop.max_steps = 200
    trainer.fit(model, make_loader(8), make_loader(2))
    assert (trainer.max_steps, trainer.max_epochs) == (7 * 8 + W, 8)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_trainer_of_the_length_that_another_grew_to_is_a_new_run(package: Any) -> None:
    _, first = fit(package, warmup := LearningRateWarmup(W), two_groups)
    model, second = fit(package, warmup, two_groups, max_steps=M + W)
    assert (len(model.rates), first.max_steps, second.max_steps) == (M + 2 * W, M + W, M + 2 * W)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_pickled_trainer_has_grown_already(package: Any) -> None:
    _, trainer = support_runs.fit(package, [LearningRateWarmup(W, max_share=1.0)])
    again = pickle.loads(pickle.dumps(trainer))
    again.fit(model := support_runs.make_regression(package), *support_runs.make_loaders())
    assert again.global_step == again.max_steps == trainer.max_steps == support_runs.N_STEPS + W
    assert model.trainer is again


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_that_was_only_tested_is_no_run_to_go_on_with(package: Any, tmp_path: Any) -> None:
    def test(model: Any, trainer: Any) -> None:
        type(model).test_step = type(model).validation_step
        trainer.test(model, make_loader(2), ckpt_path=tmp_path / "end.ckpt", verbose=False, **SAFE_LOADING)

    model, trainer = fit(package, warmup := LearningRateWarmup(W), two_groups)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    test(model, trainer)
    again, trainer = fit(package, warmup, two_groups)
    assert (again.rates[0], again.rates[W], trainer.max_steps) == ([0, 0], [0.07, 0.011], M + W)
    # Nor does testing reach into the run that trained.
    test(again, trainer)
    trainer.fit(again, make_loader(8), make_loader(2))
    assert (len(again.rates), trainer.max_steps) == (M + W, M + W)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_dry_run_keeps_its_length(package: Any) -> None:
    model = make_model(package, configure=SCHEDULES["cosine"])
    trainer = make_trainer(package, [LearningRateWarmup(W)], fast_dev_run=3)
    trainer.fit(model, make_loader(8), make_loader(2))
    assert trainer.max_steps == trainer.global_step == 3
    assert [rates[0] for rates in model.rates] == [0.07 * step / W for step in range(3)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_fit_that_was_stopped_goes_on(package: Any) -> None:
    class Stop(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 2

    model = make_model(package, configure=two_groups)
    trainer = make_trainer(package, [LearningRateWarmup(W), Stop()], max_steps=M)
    for _ in range(2):
        # Lightning 2.5 leaves it as the stopped fit did.
        trainer.should_stop = False
        trainer.fit(model, make_loader(8))
    assert trainer.global_step == M + W
    assert [rates[0] for rates in model.rates[: W + 2]] == [0.07 * min(step, W) / W for step in range(W + 2)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_failure_gives_the_schedulers_back(package: Any) -> None:
    class Fail(package.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            raise RuntimeError("on purpose")

    for model in (make_model(package, configure=SCHEDULES["cosine"]), make_gan(package)):
        trainer = make_trainer(package, [LearningRateWarmup(W), Fail()], max_steps=100)
        with pytest.raises(RuntimeError, match="on purpose"):
            trainer.fit(model, make_loader(8))
        assert all(config.frequency == 1 for config in trainer.lr_scheduler_configs)
        assert all(type(config.scheduler).__module__.startswith("torch") for config in trainer.lr_scheduler_configs)


@pytest.mark.parametrize("package", PACKAGES)
def test_it_says_so_in_one_line(package: Any, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        fit(package, LearningRateWarmup(2), two_groups)
    said = [record for record in caplog.records if "LearningRateWarmup" in record.message]
    assert [record.message for record in said] == [
        "LearningRateWarmup: the learning rate rises from 0 over 2 steps, then the schedule runs; training takes 52 "
        "steps instead of 50."
    ]
    assert said[0].name == package.__name__


@pytest.mark.filterwarnings("error:LearningRateWarmup takes")
@pytest.mark.parametrize("package", PACKAGES)
def test_long_warmups_warn_and_very_long_ones_are_refused(package: Any) -> None:
    message = (
        "LearningRateWarmup takes 8% of the 50 steps of training, more than 5%: tune warmup_steps down once training "
        "is stable."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        fit(package, LearningRateWarmup(4), two_groups)
    fit(package, LearningRateWarmup(5), two_groups, max_steps=100)
    message = (
        "`warmup_steps` is 6, 12% of the 50 steps of training: warmup may take at most 10%. Warm up for fewer steps, "
        "train longer, or pass a larger max_share."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit(package, LearningRateWarmup(6), two_groups)


@pytest.mark.parametrize("package", PACKAGES)
def test_unsupported_trainings_are_refused(package: Any) -> None:
    message = (
        "`optimizer` is LBFGS, and LearningRateWarmup does not support it: it evaluates the loss several times a step. "
        "Remove the warmup, or use a first-order optimizer."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit(package, LearningRateWarmup(W), lambda model: torch.optim.LBFGS(model.parameters()))
    kind = type("DeepSpeedStrategy", (package.strategies.SingleDeviceStrategy,), {})
    message = (
        "`strategy` is DeepSpeedStrategy, and LearningRateWarmup does not support it: it counts optimizer steps "
        "itself. Use DeepSpeed's WarmupLR, or ddp instead."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit(package, LearningRateWarmup(W), two_groups, strategy=kind("cpu"), devices="auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"warmup_steps": -1},
            "`warmup_steps` is -1: it must be at least 0, in optimizer steps. Pass 0 for no warmup.",
        ),
        (
            {"warmup_steps": 1, "max_share": math.inf},
            "`max_share` is inf: it must lie between 0 and 1. The default is 0.1.",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LearningRateWarmup(**arguments)
