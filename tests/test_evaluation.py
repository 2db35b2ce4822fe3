from __future__ import annotations

import random
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from lightning_toys import PACKAGES, QUIET, SAFE_LOADING, make_gan, make_loader, make_model, make_trainer
from torch.utils.data import DataLoader, IterableDataset

from playbook_plugins.lightning.evaluation import PeriodicEvaluation

pytestmark = QUIET


def fit(package: Any, n: int = 2, n_batches: int = 5, callbacks: tuple[Any, ...] = (), **options: Any) -> Any:
    model = make_model(package)
    trainer = make_trainer(package, [PeriodicEvaluation(n), *callbacks], **options)
    trainer.fit(model, make_loader(n_batches), make_loader(2, seed=1))
    return model


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("accumulation", [1, 2, 3])
@pytest.mark.parametrize("n_batches", [1, 4, 5])
def test_evaluates_at_multiples_and_at_the_end(package: Any, accumulation: int, n_batches: int) -> None:
    model = fit(package, 2, n_batches, max_steps=7, accumulate_grad_batches=accumulation)
    assert model.evaluated == [0, 2, 4, 6, 7]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_last_step_of_the_last_epoch_is_evaluated(package: Any) -> None:
    # 5 batches, accumulation 2: 3 steps an epoch.
    model = fit(package, 4, 5, max_epochs=3, accumulate_grad_batches=2)
    assert model.evaluated == [0, 4, 8, 9]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_last_step_that_is_a_multiple_is_evaluated_once(package: Any) -> None:
    assert fit(package, 3, 4, max_steps=6).evaluated == [0, 3, 6]
    assert fit(package, 100, 4, max_epochs=2).evaluated == [0, 8]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_loader_without_length(package: Any) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(make_loader(5, 4).dataset)

    model = make_model(package)
    trainer = make_trainer(package, [PeriodicEvaluation(3)], max_epochs=2)
    trainer.fit(model, DataLoader(Stream(), batch_size=4), make_loader(2))
    assert model.evaluated == [0, 3, 6, 9, 10]


@pytest.mark.parametrize("package", PACKAGES)
def test_early_stopping_is_evaluated_at_its_last_step(package: Any) -> None:
    class Stop(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = trainer.global_step >= 5

    for extra in ({}, {"accumulate_grad_batches": 2}):
        assert fit(package, 2, 4, (Stop(),), max_steps=50, **extra).evaluated == [0, 2, 4, 5]


@pytest.mark.parametrize("package", PACKAGES)
def test_stopping_waits_for_min_steps_without_more_evaluations(package: Any) -> None:
    class Stop(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = True

    assert fit(package, 4, 4, (Stop(),), max_steps=20, min_steps=6).evaluated == [0, 4, 6]


@pytest.mark.parametrize("package", PACKAGES)
def test_lightnings_own_rules_have_no_effect(package: Any) -> None:
    message = (
        "PeriodicEvaluation evaluates every 2 optimizer steps: val_check_interval and check_val_every_n_epoch of the "
        "Trainer have no effect."
    )
    rules: list[dict[str, Any]] = [{"val_check_interval": 1}, {"check_val_every_n_epoch": 2}]
    if SAFE_LOADING:
        # A time is new in Lightning 2.6, as is that argument.
        rules.append({"val_check_interval": "00:00:00:00"})
    for rule in rules:
        with pytest.warns(UserWarning, match=re.escape(message)):
            model = fit(package, 2, 4, max_steps=5, **rule)
        assert model.evaluated == [0, 2, 4, 5]


@pytest.mark.parametrize("package", PACKAGES)
def test_manual_optimization_evaluates_where_a_multiple_is_reached(package: Any) -> None:
    # Each batch takes two steps: 2, 4, 6, 8, 10; the multiples of 3 are reached at 4, 6 and 10.
    seen = []

    class Watch(package.Callback):
        def on_validation_end(self, trainer: Any, *_: Any) -> None:
            seen.append(trainer.global_step)

    make_trainer(package, [PeriodicEvaluation(3), Watch()], max_steps=10).fit(
        make_gan(package), make_loader(4), make_loader(2)
    )
    assert seen == [0, 4, 6, 10]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(("order", "accumulation"), [("after", 1), ("after", 2), ("before", 2)])
def test_a_resumed_run_evaluates_at_the_same_steps(package: Any, order: str, accumulation: int, tmp_path: Any) -> None:
    class Save(package.Callback):
        """Save after every batch and evaluation, and note which evaluations were done by then."""

        def __init__(self) -> None:
            self.seen: list[int] = []
            self.files: dict[Any, list[int]] = {}

        def save(self, trainer: Any) -> None:
            path = tmp_path / f"{len(self.files)}.ckpt"
            self.files[path] = list(self.seen)
            trainer.save_checkpoint(path)

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            self.save(trainer)

        def on_validation_end(self, trainer: Any, *_: Any) -> None:
            if order == "after":  # PeriodicEvaluation knows by then that this evaluation is done
                self.seen.append(trainer.global_step)
            self.save(trainer)
            if order == "before":
                self.seen.append(trainer.global_step)

    def start(save: Any = None, **how: Any) -> Any:
        model = make_model(package)
        callbacks = [PeriodicEvaluation(2), *([save] if save else [])]
        trainer = make_trainer(
            package,
            callbacks if order == "after" else callbacks[::-1],
            max_steps=9,
            accumulate_grad_batches=accumulation,
        )
        trainer.fit(model, make_loader(5), make_loader(2, seed=1), **how)
        return model

    save = Save()
    assert start(save).evaluated == [0, 2, 4, 6, 8, 9]
    # 5 batches with accumulation 2 are 3 steps, so that 9 steps take 15 batches.
    assert len(save.files) == 6 + {1: 9, 2: 15}[accumulation]
    for path, done in save.files.items():
        assert done + start(ckpt_path=path, **SAFE_LOADING).evaluated == [0, 2, 4, 6, 8, 9], path.name


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("limit", [{"max_steps": 17}, {"max_epochs": 4}])
@pytest.mark.parametrize("hook", ["on_validation_end", "on_train_batch_end", "on_train_epoch_end"])
@pytest.mark.parametrize("n", [5, 10, 3])
def test_a_run_resumed_at_the_end_of_an_epoch_trains_on_the_same(
    package: Any, n: int, hook: str, limit: Any, tmp_path: Any
) -> None:
    def save(self: Any, trainer: Any, *_: Any) -> None:
        if trainer.global_step % 5 == 0:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def start(*callbacks: Any, **how: Any) -> Any:
        model = make_model(package)
        trainer = make_trainer(package, [PeriodicEvaluation(n), *callbacks], **limit)
        trainer.fit(model, make_loader(5), make_loader(2, seed=1), **how)
        return model, trainer

    whole, trainer = start(type("Save", (package.Callback,), {hook: save})())
    paths = [path for path in tmp_path.glob("*.ckpt") if 0 < int(path.stem) < trainer.global_step]
    assert paths
    for path in paths:
        step = int(path.stem)
        resumed, again = start(ckpt_path=path, **SAFE_LOADING)
        assert resumed.losses == whole.losses[step:], step
        assert resumed.evaluated[-1] == whole.evaluated[-1]
        if hook != "on_train_epoch_end":
            # Otherwise Lightning counts that batch twice for its loggers, with or without this callback.
            assert again.fit_loop.epoch_loop._batches_that_stepped == trainer.fit_loop.epoch_loop._batches_that_stepped


@pytest.mark.parametrize("package", PACKAGES)
def test_evaluation_leaves_no_trace_in_training(package: Any) -> None:
    def run(n: int | None) -> tuple[Any, Any, Any]:
        torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
        model = make_model(package, dropout=0.5)
        callbacks = [PeriodicEvaluation(n)] if n else []
        options = {} if n else {"limit_val_batches": 0}
        trainer = make_trainer(package, callbacks, max_steps=12, **options)
        trainer.fit(model, make_loader(5, shuffle=True), make_loader(2, seed=1))
        return (
            model.losses,
            (torch.rand(3).tolist(), np.random.rand(), random.random()),  # noqa: NPY002
            [module.training for module in model.modules()],
        )

    assert run(None) == run(1) == run(5)


@pytest.mark.parametrize("package", PACKAGES)
def test_step_zero_runs_all_hooks_of_all_callbacks(package: Any) -> None:
    seen = []

    class Watch(package.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            seen.append(("start", trainer.global_step, pl_module.training, trainer.sanity_checking))

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append(("end", trainer.global_step, float(trainer.callback_metrics["val_loss"]) > 0))

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            assert pl_module.training

    fit(package, 10, 4, (Watch(),), max_steps=1)
    assert seen[:2] == [("start", 0, False, False), ("end", 0, True)]


@pytest.mark.parametrize("package", PACKAGES)
def test_checkpoints_and_early_stopping_of_lightning_follow_it(package: Any, tmp_path: Any) -> None:
    checkpoint = package.callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", monitor="val_loss", save_top_k=-1, auto_insert_metric_name=False
    )
    stopping = package.callbacks.EarlyStopping("val_loss", patience=0, mode="max")
    model = fit(package, 2, 5, (stopping, checkpoint), max_steps=20, enable_checkpointing=True)
    # The loss falls, so that maximizing it stops at the second evaluation.
    assert model.evaluated == [0, 2]
    assert [path.stem for path in tmp_path.glob("*.ckpt")] == ["2"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_second_fit_and_a_new_run(package: Any) -> None:
    evaluation = PeriodicEvaluation(2)
    model = make_model(package)
    trainer = make_trainer(package, [evaluation], max_steps=3)
    trainer.fit(model, make_loader(5), make_loader(2))
    trainer.fit_loop.epoch_loop.max_steps = 5
    trainer.fit(model, make_loader(5), make_loader(2))
    assert model.evaluated == [0, 2, 3, 4, 5]
    assert (trainer.val_check_interval, trainer.check_val_every_n_epoch) == (1.0, 1)
    again = make_model(package)
    make_trainer(package, [evaluation], max_steps=3).fit(again, make_loader(5), make_loader(2))
    assert again.evaluated == [0, 2, 3]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_file_that_was_only_tested_is_no_run_to_go_on_with(package: Any, tmp_path: Any) -> None:
    evaluation = PeriodicEvaluation(2)

    def start() -> Any:
        model = make_model(package)
        type(model).test_step = type(model).validation_step
        trainer = make_trainer(package, [evaluation], max_steps=3)
        trainer.fit(model, make_loader(5), make_loader(2))
        return model, trainer

    model, trainer = start()
    trainer.save_checkpoint(tmp_path / "3.ckpt")
    trainer.test(model, make_loader(2), ckpt_path=tmp_path / "3.ckpt", verbose=False, **SAFE_LOADING)
    again, _ = start()
    assert again.evaluated == [0, 2, 3]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_dry_run_is_evaluated_before_and_after_its_step(package: Any) -> None:
    assert fit(package, 5, fast_dev_run=True).evaluated == [0, 1]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("bar", ["TQDMProgressBar", "RichProgressBar"])
def test_a_progress_bar_bears_it(package: Any, bar: str, capsys: Any) -> None:
    model = fit(package, 2, 5, (getattr(package.callbacks, bar)(),), max_steps=3, enable_progress_bar=True)
    assert model.evaluated == [0, 2, 3]
    assert "Epoch 0" in capsys.readouterr().out


@pytest.mark.parametrize("package", PACKAGES)
def test_it_warns_of_a_small_evaluation_batch(package: Any) -> None:
    trainer = make_trainer(package, [PeriodicEvaluation(2)], max_steps=1)
    message = (
        "The evaluation batch size is 2, smaller than the training batch size 4: evaluation needs less memory than "
        "training, so that a batch at least as large is faster. Raise it."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$"):
        trainer.fit(make_model(package), make_loader(4, 4), make_loader(4, 2))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The evaluation batch size")
        make_trainer(package, [PeriodicEvaluation(2)], max_steps=1).fit(
            make_model(package), make_loader(4, 4), make_loader(4, 4)
        )


def test_bad_arguments_are_refused() -> None:
    message = (
        "`every_n_steps` is 0: it must be at least 1, in optimizer steps. Pass for instance a hundredth of max_steps."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PeriodicEvaluation(0)


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_to_evaluate_is_refused(package: Any) -> None:
    message = (
        "`validation_step` or the validation data is missing, or `limit_val_batches` is 0: PeriodicEvaluation has "
        "nothing to evaluate. Define validation_step and pass a validation loader to fit."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_trainer(package, [PeriodicEvaluation(2)], max_steps=1).fit(make_model(package), make_loader())
