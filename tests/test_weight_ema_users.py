"""Does WeightEMA keep what users of Lightning's own weight averaging rely on?"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from averaging_toys import (
    LIGHTNING_WARNINGS,
    MODULES,
    PACKAGES,
    LightningToy,
    PytorchLightningToy,
    WeightRecorder,
    loaders,
    restore,
    toy,
    trainer,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from playbook_plugins.lightning.weight_ema import WeightEMA

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_WARNINGS]
both = pytest.mark.parametrize("package", PACKAGES, ids=["pytorch_lightning", "lightning"])

DECAY = 0.9
EPOCHS: dict[str, Any] = {"max_steps": -1, "max_epochs": 8, "val_check_interval": 1.0}


def averaged(weights: list[dict[str, torch.Tensor]], name: str) -> torch.Tensor:
    """The average by its definition, in float64."""
    average = weights[0][name].double()
    for state in weights[1:]:
        average = DECAY * average + (1 - DECAY) * state[name].double()
    return average


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


class Stream(IterableDataset[Any]):
    """The examples of `loaders`, without a length."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return iter(self.data)


@both
@pytest.mark.parametrize("iterable", [False, True])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_every_epoch_has_as_many_updates_as_steps(tmp_path, package, batch_norm, iterable):
    ema, recorder = WeightEMA(decay=DECAY), WeightRecorder()
    counts = []

    class Count(package.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            counts.append((trainer.global_step, *ema.n_updates))

    train, validation = loaders(n_batches=8)
    if iterable:
        train = DataLoader(Stream(train.dataset), batch_size=4)
    model = toy(package, batch_norm=batch_norm, learning_rate=0.01)
    fitted = trainer(package, tmp_path, [recorder, ema, Count()], accumulate_grad_batches=2, **EPOCHS)
    fitted.fit(model, train, validation)
    assert counts == [(4 * epoch, 4 * epoch) for epoch in range(1, 9)]
    assert fitted.lightning_module is model
    for name in ("inputs.weight", "outputs.bias"):
        expected = averaged(recorder.weights, name)
        torch.testing.assert_close(model.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-6)


@both
@pytest.mark.parametrize("epoch", [1, 3, 5])
def test_a_run_that_crashed_and_is_resumed_from_lightnings_own_checkpoint_equals_the_straight_run(
    tmp_path, package, epoch
):
    class Crash(package.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == epoch:
                raise RuntimeError("on purpose")

    settings = EPOCHS | {"accumulate_grad_batches": 2}
    straight, crashed = toy(package), toy(package)
    trainer(package, tmp_path, [WeightEMA(decay=DECAY)], **settings).fit(straight, *loaders())
    saver = package.callbacks.ModelCheckpoint(tmp_path / "files", save_on_train_epoch_end=True)
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer(package, tmp_path, [WeightEMA(decay=DECAY), Crash(), saver], **settings).fit(crashed, *loaders())
    (path,) = (tmp_path / "files").iterdir()
    # As users do: first the average is loaded, then training is resumed from the file.
    resumed = type(crashed).load_from_checkpoint(path)
    ema = WeightEMA(decay=DECAY)
    trainer(package, tmp_path, [ema], **settings).fit(resumed, *loaders(), ckpt_path=path)
    assert ema.n_updates == (8 * 4,)
    assert_same_weights(resumed, straight)


@both
def test_a_file_loads_without_the_callback_and_is_the_average(tmp_path, package):
    model, (train, validation) = toy(package), loaders()
    saver = package.callbacks.ModelCheckpoint(tmp_path / "files", monitor="val_loss", save_top_k=1)
    fitted = trainer(package, tmp_path, [WeightEMA(decay=DECAY), saver])
    fitted.fit(model, train, validation)
    best = saver.best_model_path
    with_callback = fitted.test(model, validation, ckpt_path="best", verbose=False)
    loaded = type(model).load_from_checkpoint(best)
    alone = trainer(package, tmp_path, [])
    without = alone.test(loaded, validation, verbose=False)
    by_path = alone.test(toy(package), validation, ckpt_path=best, verbose=False)
    validated = alone.validate(loaded, validation, verbose=False)
    assert with_callback == without == by_path
    # The score of the file is that of the weights in it.
    assert validated[0]["val_loss"] == pytest.approx(float(saver.best_model_score), rel=1e-6)


@both
@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_stages_without_a_fit_use_the_weights_as_they_are(tmp_path, package, stage):
    source, model, ema = toy(package), toy(package), WeightEMA(decay=DECAY)
    fitted = trainer(package, tmp_path, [WeightEMA(decay=DECAY)])
    fitted.fit(source, *loaders())
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    nn.init.constant_(model.outputs.weight, 0.25)
    model.predict_step = lambda batch, batch_idx: model(batch[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    alone = trainer(package, tmp_path, [ema])
    getattr(alone, stage)(model, loaders()[1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    # A file that is only read gives its average to the model and nothing to the callback.
    getattr(alone, stage)(model, loaders()[1], ckpt_path=tmp_path / "end.ckpt")
    assert_same_weights(model, source)
    assert ema.n_steps == ema.n_updates == ()
    assert ema.average is None


@both
def test_predictions_after_the_fit_are_those_of_the_average(tmp_path, package):
    model, recorder, (train, validation) = toy(package), WeightRecorder(), loaders()
    model.predict_step = lambda batch, batch_idx: model(batch[0])
    fitted = trainer(package, tmp_path, [recorder, WeightEMA(decay=DECAY)])
    fitted.fit(model, train, validation)
    predictions = torch.cat(fitted.predict(model, validation))
    other = toy(package)
    other.load_state_dict(recorder.weights[-1])
    raw = torch.cat([other.eval()(x) for x, _ in validation]).detach()
    for name, value in [*other.named_parameters(), ("norm.running_mean", None), ("norm.running_var", None)]:
        value = other.state_dict()[name] if value is None else value
        value.data.copy_(averaged(recorder.weights, name))
    average = torch.cat([other.eval()(x) for x, _ in validation]).detach()
    torch.testing.assert_close(predictions, average, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(predictions, raw, rtol=1e-3)


class KeepFile(WeightRecorder):
    """Save a file after the evaluation at a step, the end of an epoch."""

    def __init__(self, path: Path, step: int = 8) -> None:
        super().__init__()
        self.path = path
        self.step = step

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@both
def test_a_file_written_without_averaging_is_resumed_with_it(tmp_path, package):
    plain, model, recorder = toy(package), toy(package), WeightRecorder()
    trainer(package, tmp_path, [KeepFile(tmp_path / "8.ckpt")]).fit(plain, *loaders())
    ema = WeightEMA(decay=DECAY)
    trainer(package, tmp_path, [recorder, ema]).fit(model, *loaders(), ckpt_path=tmp_path / "8.ckpt")
    assert ema.n_updates == (4,)
    assert len(recorder.weights) == 4
    assert all(torch.equal(value, recorder.weights[-1][name]) for name, value in plain.state_dict().items())
    expected = averaged(recorder.weights, "outputs.weight")
    torch.testing.assert_close(model.outputs.weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


@both
def test_a_file_written_with_averaging_is_resumed_without_it_from_the_average(tmp_path, package):
    source, model, keep = toy(package), toy(package), KeepFile(tmp_path / "8.ckpt")
    trainer(package, tmp_path, [keep, WeightEMA(decay=DECAY)]).fit(source, *loaders())
    started = {}

    class Start(package.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            started.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    with pytest.warns(UserWarning, match="WeightEMA"):  # Lightning names the callbacks that the file knows
        trainer(package, tmp_path, [Start()]).fit(model, *loaders(), ckpt_path=tmp_path / "8.ckpt")
    expected = averaged(keep.weights[:8], "outputs.weight")
    torch.testing.assert_close(started["outputs.weight"].double(), expected, rtol=1e-6, atol=1e-6)


class _Late:
    """A model whose last layer is made by `configure_model`, as large models are."""

    def build(self, **settings: Any) -> None:
        super().build(**settings)
        self.outputs = None

    def configure_model(self) -> None:
        if self.outputs is None:
            torch.manual_seed(1)
            self.outputs = nn.Linear(8, 1)


class LatePytorchLightningToy(_Late, PytorchLightningToy):
    pass


class LateLightningToy(_Late, LightningToy):
    pass


LATE = [LatePytorchLightningToy, LateLightningToy]


@both
def test_layers_made_late_are_averaged_saved_and_resumed(tmp_path, package):
    kind = LATE[PACKAGES.index(package)]
    model, resumed, keep = kind(), kind(), KeepFile(tmp_path / "8.ckpt")
    ema = WeightEMA(decay=DECAY)
    trainer(package, tmp_path, [keep, ema]).fit(model, *loaders())
    assert isinstance(model.outputs, nn.Linear)
    expected = averaged(keep.weights, "outputs.weight")
    torch.testing.assert_close(model.outputs.weight.detach().double(), expected, rtol=1e-6, atol=1e-6)
    trainer(package, tmp_path, [WeightEMA(decay=DECAY)]).fit(resumed, *loaders(), ckpt_path=tmp_path / "8.ckpt")
    assert_same_weights(resumed, model)
    tested = kind()
    metrics = trainer(package, tmp_path, []).test(tested, loaders()[1], ckpt_path=tmp_path / "8.ckpt", verbose=False)
    assert set(metrics[0]) == {"test_loss"}
    expected = averaged(keep.weights[:8], "outputs.weight")
    torch.testing.assert_close(tested.outputs.weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


@both
def test_nothing_but_weights_is_copied(tmp_path, package):
    class Uncopied:
        """Data that is attached to the model, and too large to be copied."""

        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("copied")

    model, ema = toy(package), WeightEMA(decay=DECAY)
    model.data = Uncopied()
    objects = {name: id(parameter) for name, parameter in model.named_parameters()}
    trainer(package, tmp_path, [ema]).fit(model, *loaders())
    assert ema.n_updates == (12,)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == objects
    assert set(ema.average.average_by_name()) == set(objects) | {"norm.running_mean", "norm.running_var"}


@both
def test_a_sanity_check_and_a_step_after_each_evaluation_change_nothing(tmp_path, package):
    plain, model = toy(package), toy(package)
    recorders = WeightRecorder(), WeightRecorder()
    settings = {"num_sanity_val_steps": 2, "val_check_interval": 1}
    trainer(package, tmp_path, [recorders[0]], **settings).fit(plain, *loaders())
    trainer(package, tmp_path, [recorders[1], WeightEMA(decay=DECAY)], **settings).fit(model, *loaders())
    for expected, weights in zip(*(recorder.weights for recorder in recorders), strict=True):
        assert all(torch.equal(value, weights[name]) for name, value in expected.items())
    # The sanity check saw the first weights, the evaluations the average of all steps so far.
    assert torch.equal(model.seen[0][1], plain.seen[0][1])
    for step, seen in model.seen[1:]:
        expected = averaged(recorders[1].weights[:step], "outputs.weight")
        torch.testing.assert_close(seen.double(), expected, rtol=1e-6, atol=1e-6)


class _ByHand:
    """Two networks with an optimizer each, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.automatic_optimization = False
        self.parts = nn.ModuleList([nn.Linear(4, 1), nn.Linear(4, 1)])

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        for part, optimizer in zip(self.parts, self.optimizers(), strict=True):
            optimizer.zero_grad()
            self.manual_backward(nn.functional.mse_loss(part(x), y))
            optimizer.step()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.mse_loss(self.parts[0](batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in self.parts]


@both
def test_manual_optimization_evaluates_saves_and_resumes(tmp_path, package):
    kind = type("ByHand", (_ByHand, MODULES[PACKAGES.index(package)]), {})
    settings = {"max_steps": 24}  # of both optimizers together
    model, resumed, keep = kind(), kind(), KeepFile(tmp_path / "16.ckpt", step=16)
    ema, again = WeightEMA(decay=DECAY), WeightEMA(decay=DECAY)
    fitted = trainer(package, tmp_path, [keep, ema], **settings)
    fitted.fit(model, *loaders())
    assert ema.n_updates == (12, 12)
    for name in ("parts.0.weight", "parts.1.weight"):
        expected = averaged(keep.weights, name)
        torch.testing.assert_close(model.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-6)
    trainer(package, tmp_path, [again], **settings).fit(resumed, *loaders(), ckpt_path=tmp_path / "16.ckpt")
    assert again.n_updates == (12, 12)
    assert_same_weights(resumed, model)
    in_fit = float(fitted.callback_metrics["val_loss"])
    assert fitted.validate(model, loaders()[1], verbose=False)[0]["val_loss"] == pytest.approx(in_fit)


@both
def test_the_callback_can_be_pickled_before_and_after_a_fit(tmp_path, package):
    ema = WeightEMA(decay=DECAY)
    assert pickle.loads(pickle.dumps(ema)).decay == DECAY
    trainer(package, tmp_path, [ema]).fit(toy(package), *loaders())
    copy = pickle.loads(pickle.dumps(ema))
    assert copy.n_updates == (12,)
    for name, value in ema.average.average_by_name().items():
        assert torch.equal(copy.average.average_by_name()[name], value)


class _Divided:
    """Every rank trains on its own part of each batch."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        part = slice(self.global_rank, None, self.trainer.world_size)
        return super().training_step([values[part] for values in batch], batch_idx)


class DividedPytorchLightningToy(_Divided, PytorchLightningToy):
    pass


class DividedLightningToy(_Divided, LightningToy):
    pass


DIVIDED = [DividedPytorchLightningToy, DividedLightningToy]


def divided(package: Any) -> Any:
    return DIVIDED[PACKAGES.index(package)](batch_norm=False, learning_rate=0.01)


@pytest.mark.slow  # each of the processes loads torch and both packages
@both
def test_two_spawned_processes_train_and_resume_as_one_over_all_the_data(tmp_path, package):
    environment = dict(os.environ)
    one, two, data = divided(package), divided(package), loaders(n_batches=4)
    settings = EPOCHS | {"max_epochs": 5, "use_distributed_sampler": False}
    trainer(package, tmp_path, [WeightEMA(decay=DECAY)], **settings).fit(one, *data)
    saver = package.callbacks.ModelCheckpoint(tmp_path / "files", save_on_train_epoch_end=True)
    spawned = {"strategy": "ddp_spawn", "devices": 2}
    try:
        trainer(package, tmp_path, [WeightEMA(decay=DECAY), saver], **(settings | spawned | {"max_epochs": 3})).fit(
            two, *data
        )
        (path,) = (tmp_path / "files").iterdir()
        assert torch.equal(torch.load(path, weights_only=True)["state_dict"]["outputs.weight"], two.outputs.weight)
        two = divided(package)
        trainer(package, tmp_path, [WeightEMA(decay=DECAY)], **(settings | spawned)).fit(two, *data, ckpt_path=path)
    finally:
        restore(environment)
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-5, atol=1e-6)
