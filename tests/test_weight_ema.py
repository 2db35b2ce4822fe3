"""Does the average of the weights follow its definition, through every way a fit can go?"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

import pytest
import pytorch_lightning
import torch
from averaging_toys import LIGHTNING_WARNINGS, PACKAGES, WeightRecorder, loaders, refusal_of_sharding, toy, trainer
from pytorch_lightning.callbacks import LearningRateFinder
from pytorch_lightning.plugins.precision import MixedPrecision
from torch import nn

from playbook_plugins.lightning.weight_average import WeightAverage, automatic_interval
from playbook_plugins.lightning.weight_ema import WeightEMA

pytestmark = [pytest.mark.filterwarnings(text) for text in LIGHTNING_WARNINGS]
both = pytest.mark.parametrize("package", PACKAGES, ids=["pytorch_lightning", "lightning"])
PL = pytorch_lightning


def reference(weights: list[dict[str, torch.Tensor]], name: str, decay: float, start: int = 0, every: int = 1) -> Any:
    """The definition in float64: copy first, then average = decay^every * average + (1 - decay^every) * weights."""
    average = None
    for step, state in enumerate(weights, start=1):
        if step <= start or (step - start - 1) % every:
            continue
        value = state[name].double()
        average = value.clone() if average is None else decay**every * average + (1 - decay**every) * value
    return average


def averaged_names(model: nn.Module) -> list[str]:
    buffers = [name for name, _ in model.named_buffers() if "running_" in name]
    return [name for name, _ in model.named_parameters()] + buffers


@both
@pytest.mark.parametrize(("start", "every", "accumulate"), [(0, 1, 1), (3, 1, 1), (0, 4, 1), (2, 3, 1), (0, 1, 3)])
def test_average_equals_its_definition(tmp_path, package, start, every, accumulate):
    model, recorder = toy(package), WeightRecorder()
    ema = WeightEMA(decay=0.9, update_starting_at_step=start, update_every_n_steps=every)
    train, validation = loaders(n_batches=9)
    settings = {"max_steps": 10, "accumulate_grad_batches": accumulate, "max_epochs": -1, "val_check_interval": 1.0}
    trainer(package, tmp_path, [recorder, ema], **settings).fit(model, train, validation)
    assert len(recorder.weights) == 10
    assert ema.n_steps == (10,)
    assert ema.n_updates == (len(range(start, 10, every)),)
    for name in averaged_names(model):
        expected = reference(recorder.weights, name, 0.9, start, every)
        # Accumulation changes running statistics between the step and the recording: compare the weights only.
        if accumulate == 1 or "running_" not in name:
            torch.testing.assert_close(model.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-6)


@both
def test_evaluation_uses_the_average_and_training_the_raw_weights(tmp_path, package):
    plain, model, recorder = toy(package), toy(package), WeightRecorder()
    train, validation = loaders()
    trainer(package, tmp_path, []).fit(plain, train, validation)
    trainer(package, tmp_path, [recorder, WeightEMA(decay=0.8)]).fit(model, train, validation)
    assert [step for step, _ in model.seen] == [4, 8, 12]
    for step, seen in model.seen:
        expected = reference(recorder.weights[:step], "outputs.weight", 0.8)
        torch.testing.assert_close(seen.double(), expected, rtol=1e-6, atol=1e-6)
    # Swapping leaves no trace in training.
    for name, value in plain.state_dict().items():
        assert torch.equal(value, recorder.weights[-1][name]), name


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999, 0.9999])
def test_other_buffers_stay_bit_identical(tmp_path, decay):
    model, untouched = toy(PL), toy(PL)
    trainer(PL, tmp_path, [WeightEMA(decay=decay)]).fit(model, *loaders())
    for name in ("positions", "flags", "mask"):
        assert torch.equal(getattr(model, name), getattr(untouched, name))
    assert int(model.norm.num_batches_tracked) == 12


def test_before_the_first_update_evaluation_and_files_use_the_raw_weights(tmp_path):
    plain, model = toy(PL), toy(PL)
    ema = WeightEMA(decay=0.9, update_starting_at_step=1000)
    fitted = trainer(PL, tmp_path, [ema])
    fitted.fit(model, *loaders())
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    trainer(PL, tmp_path, []).fit(plain, *loaders())
    assert ema.n_updates == (0,)
    state = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
        assert torch.equal(state[name], value)
    for (_, seen), (_, expected) in zip(model.seen, plain.seen, strict=True):
        assert torch.equal(seen, expected)


def test_default_half_life_is_five_percent_of_training(tmp_path):
    default, given = toy(PL), toy(PL)
    trainer(PL, tmp_path, [WeightEMA()], max_steps=40, max_epochs=-1).fit(default, *loaders())
    trainer(PL, tmp_path, [WeightEMA(half_life=2.0)], max_steps=40, max_epochs=-1).fit(given, *loaders())
    for name, value in given.state_dict().items():
        torch.testing.assert_close(default.state_dict()[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("half_life", "interval"),
    [(1e-4, 1), (1, 1), (299, 1), (300, 3), (499, 3), (500, 5), (693, 5), (1e6, 5), (1e20, 5)],
)
def test_automatic_interval(half_life, interval):
    assert automatic_interval(0.5 ** (1 / half_life)) == interval


def shares(half_life: float, interval: int, n_updates: int) -> torch.Tensor:
    """The share of the weights of each step in the average, oldest first: what the average makes of unit vectors."""
    n_steps = 1 + interval * n_updates
    model = nn.Linear(n_steps, 1, bias=False).double()
    average, optimizers = WeightAverage(model), [torch.optim.SGD(model.parameters())]
    for step in range(0, n_steps, interval):
        with torch.no_grad():
            model.weight.zero_()[0, step] = 1
        average.update(0, optimizers, 1 - 0.5 ** (interval / half_life))
    return average.average_values(model.weight)[0]


def test_the_automatic_interval_keeps_the_share_of_every_few_steps_and_averages_noise_and_swings_away():
    half_life = 300
    sparse, dense = shares(half_life, 3, n_updates=800), shares(half_life, 1, n_updates=2400)
    torch.testing.assert_close(sparse[1:].view(-1, 3).sum(1), dense[1:].view(-1, 3).sum(1))
    assert float(sparse.sum()) == pytest.approx(1)
    # The first step's share, a half-life of 8 old, is the rest of the memory that is still cut off here.
    assert float(sparse.square().sum()) == pytest.approx(0.00347, rel=0.01)
    assert float(dense.square().sum()) == pytest.approx(0.00347 / 3, rel=0.02)
    swings = torch.tensor([1.0, -1.0], dtype=torch.float64)
    assert abs(float(sparse @ swings.repeat(1201)[:2401])) < 0.01
    even = shares(half_life, 2, n_updates=1200)
    assert float(even @ swings.repeat(1201)[:2401]) == pytest.approx(1)


@both
@pytest.mark.parametrize(
    ("arguments", "every"),
    [
        ({"half_life": 500}, 5),
        ({"half_life": 300}, 3),
        ({"half_life": 299}, 1),
        ({"decay": 0.999}, 1),
        ({"half_life": 500, "update_every_n_steps": 2}, 2),
    ],
)
def test_interval_of_a_fit(tmp_path, package, arguments, every):
    model, recorder, ema = toy(package), WeightRecorder(), WeightEMA(**arguments)
    trainer(package, tmp_path, [recorder, ema], max_steps=18, max_epochs=-1).fit(model, *loaders())
    assert ema.n_steps_per_update == every
    assert ema.n_steps == (18,)
    assert ema.n_updates == (len(range(0, 18, every)),)
    decay = arguments.get("decay", 0.5 ** (1 / arguments.get("half_life", 1)))
    for name in averaged_names(model):
        expected = reference(recorder.weights, name, decay, every=every)
        torch.testing.assert_close(model.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-6)


def test_a_run_with_an_automatic_interval_resumes_bit_for_bit(tmp_path):
    class Save(PL.Callback):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == 8:  # two steps after an update
                trainer.save_checkpoint(tmp_path / "8.ckpt")

    straight, resumed = toy(PL, optimizer="adam"), toy(PL, optimizer="adam")
    trainer(PL, tmp_path, [WeightEMA(half_life=500), Save()]).fit(straight, *loaders())
    ema = WeightEMA(half_life=500)
    trainer(PL, tmp_path, [ema]).fit(resumed, *loaders(), ckpt_path=tmp_path / "8.ckpt")
    assert ema.n_updates == (3,)
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_warmup_shortens_the_memory_of_the_first_updates(tmp_path):
    recorder, model = WeightRecorder(), toy(PL)
    trainer(PL, tmp_path, [recorder, WeightEMA(decay=0.9, warmup=True)]).fit(model, *loaders())
    average = recorder.weights[0]["outputs.weight"].double()
    for n, state in enumerate(recorder.weights[1:], start=1):
        decay = min(0.9, (1 + n) / (10 + n))
        average = decay * average + (1 - decay) * state["outputs.weight"].double()
    torch.testing.assert_close(model.outputs.weight.detach().double(), average, rtol=1e-6, atol=1e-6)


@both
@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_training_weights_are_back_after_an_interrupted_evaluation(tmp_path, package, failure):
    model, recorder = toy(package), WeightRecorder()
    model.fail_at, model.failure = 8, failure
    parameters = dict(model.named_parameters())
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit if failure is KeyboardInterrupt else failure):
            trainer(package, tmp_path, [recorder, WeightEMA(decay=0.5)]).fit(model, *loaders())
    finally:
        signal.signal(signal.SIGINT, handler)
    for name, value in model.state_dict().items():
        assert torch.equal(value, recorder.weights[7][name]), name
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())


@both
def test_training_weights_are_back_after_sigterm_during_evaluation(tmp_path, package):
    model, recorder = toy(package), WeightRecorder()

    class Terminated(package.Callback):
        def on_validation_batch_start(self, *args: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(package.utilities.exceptions.SIGTERMException):
            trainer(package, tmp_path, [recorder, WeightEMA(decay=0.5), Terminated()]).fit(model, *loaders())
    finally:
        signal.signal(signal.SIGTERM, handler)
    for name, value in model.state_dict().items():
        assert torch.equal(value, recorder.weights[3][name]), name


@pytest.mark.parametrize("in_place", [False, True], ids=["exchanged", "copied"])
def test_training_values_are_back_after_an_interrupt_at_any_line_of_a_swap(in_place):
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    average = WeightAverage(model)
    average.in_place = average._copies = in_place
    average.update(0, [torch.optim.SGD(model.parameters())], 1.0)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.5)
    raw = {name: value.clone() for name, value in model.state_dict().items()}

    def is_interrupted(line: int) -> bool:
        n_lines = 0

        def trace(frame: Any, event: str, argument: Any) -> Any:
            nonlocal n_lines
            if not frame.f_code.co_filename.endswith("weight_average.py"):
                return None
            n_lines += event == "line"
            if n_lines == line:
                raise KeyboardInterrupt
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            average.wear()
            average.take_off()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    line = 1
    while is_interrupted(line):
        average.take_off()
        assert not average.worn
        assert all(torch.equal(value, raw[name]) for name, value in model.state_dict().items()), line
        line += 1
    assert line > 30


@both
def test_files_hold_the_average_and_resume_bit_for_bit(tmp_path, package):
    straight, first = toy(package, optimizer="adam"), toy(package, optimizer="adam")
    resumed = toy(package, optimizer="adam")
    steps = {"val_check_interval": 4}
    whole = WeightEMA(update_starting_at_step=2)
    trainer(package, tmp_path, [whole], **steps).fit(straight, *loaders())

    class Save(WeightRecorder):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == 8:
                trainer.save_checkpoint(tmp_path / "8.ckpt")
                trainer.save_checkpoint(tmp_path / "8-weights.ckpt", weights_only=True)

    save = Save()
    trainer(package, tmp_path, [WeightEMA(update_starting_at_step=2), save], **steps).fit(first, *loaders())
    file = torch.load(tmp_path / "8.ckpt", weights_only=True)
    decay = 0.5 ** (1 / (0.05 * 12))
    for name in averaged_names(first):
        expected = reference(save.weights[:8], name, decay, start=2)
        torch.testing.assert_close(file["state_dict"][name].double(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(file["callbacks"]["WeightEMA"]["raw"][name], save.weights[7][name])
    alone = torch.load(tmp_path / "8-weights.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, file["state_dict"][name]) for name, value in alone.items())

    # A longer plan must not change the decay of a run that is resumed; here it is the same run.
    again = WeightEMA(update_starting_at_step=2)
    trainer(package, tmp_path, [again], **steps).fit(resumed, *loaders(), ckpt_path=tmp_path / "8.ckpt")
    assert again.n_updates == whole.n_updates
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for name, value in whole.state_dict()["raw"].items():
        assert torch.equal(again.state_dict()["raw"][name], value), name


def test_a_file_saved_after_the_fit_still_resumes_from_the_raw_weights(tmp_path):
    straight, model, resumed = toy(PL), toy(PL), toy(PL)
    # One step an epoch, so that the end of the fit is the end of an epoch.
    data = loaders(n_batches=1)
    settings = {"max_epochs": -1, "val_check_interval": 1.0}
    trainer(PL, tmp_path, [WeightEMA(decay=0.9)], max_steps=9, **settings).fit(straight, *data)
    fitted = trainer(PL, tmp_path, [WeightEMA(decay=0.9)], max_steps=6, **settings)
    fitted.fit(model, *data)
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    assert torch.equal(torch.load(tmp_path / "end.ckpt")["state_dict"]["outputs.weight"], model.outputs.weight)
    trainer(PL, tmp_path, [WeightEMA(decay=0.9)], max_steps=9, **settings).fit(
        resumed, *data, ckpt_path=tmp_path / "end.ckpt"
    )
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@both
def test_a_finished_run_that_is_resumed_ends_with_the_average(tmp_path, package):
    model, resumed = toy(package), toy(package)
    settings = {"max_epochs": 3, "max_steps": -1, "val_check_interval": 1.0}
    fitted = trainer(package, tmp_path, [WeightEMA(decay=0.9)], **settings)
    fitted.fit(model, *loaders(n_batches=2))
    fitted.save_checkpoint(tmp_path / "end.ckpt")
    ema = WeightEMA(decay=0.9)
    again = trainer(package, tmp_path, [ema], **settings)
    again.fit(resumed, *loaders(n_batches=2), ckpt_path=tmp_path / "end.ckpt")
    assert ema.n_updates == (6,)
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    # A further fit with more to do goes on from the raw weights, as it does where the run ended.
    for one, its_model in ((fitted, model), (again, resumed)):
        one.fit_loop.max_epochs = 5
        one.fit(its_model, *loaders(n_batches=2))
    assert ema.n_updates == (10,)
    assert torch.equal(resumed.outputs.weight, model.outputs.weight)


def test_a_second_fit_goes_on_from_the_raw_weights(tmp_path):
    straight, model = toy(PL), toy(PL)
    data = loaders(n_batches=1)
    settings = {"max_epochs": -1, "val_check_interval": 1.0}
    ema = WeightEMA(decay=0.9)

    def fit_twice(model: Any, ema: WeightEMA, *, edit: bool) -> None:
        fitted = trainer(PL, tmp_path, [ema], max_steps=6, **settings)
        fitted.fit(model, *data)
        if edit:
            nn.init.constant_(model.outputs.weight, 0.25)
        fitted.fit_loop.epoch_loop.max_steps = 9
        fitted.fit(model, *data)

    fit_twice(straight, ema, edit=False)
    assert ema.n_updates == (9,)
    edited = WeightEMA(decay=0.9)
    fit_twice(model, edited, edit=True)
    assert edited.n_updates == (3,)  # other weights: a new average


@both
def test_validate_and_test_after_the_fit_use_the_average(tmp_path, package):
    model, ema = toy(package), WeightEMA(decay=0.9)
    fitted = trainer(package, tmp_path, [ema])
    train, validation = loaders()
    fitted.fit(model, train, validation)
    average = model.outputs.weight.detach().clone()
    fitted.validate(model, validation, verbose=False)
    fitted.test(model, validation, verbose=False)
    assert torch.equal(model.seen[-1][1], average)
    assert torch.equal(model.outputs.weight, average)
    fitted.save_checkpoint(tmp_path / "average.ckpt")
    # Loading needs no callback; testing the file leaves the state of the callback as it was.
    other = toy(package)
    other.load_state_dict(torch.load(tmp_path / "average.ckpt", weights_only=True)["state_dict"])
    assert torch.equal(other.outputs.weight, average)
    fitted.test(model, validation, ckpt_path=tmp_path / "average.ckpt", verbose=False)
    assert ema.n_updates == (12,)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_a_gradient_is_no_step(tmp_path):
    class Skipping(type(toy(PL))):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    model, ema = Skipping(), WeightEMA(decay=0.9)
    trainer(PL, tmp_path, [ema], max_steps=8).fit(model, *loaders())
    assert ema.n_steps == ema.n_updates == (4,)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_steps_skipped_by_the_gradient_scaler_are_no_steps(tmp_path, name, fused):
    class Overflowing(type(toy(PL))):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = super().training_step(batch, batch_idx)
            return loss * torch.inf if batch_idx in (0, 3, 4) else loss

        def configure_optimizers(self) -> Any:
            return getattr(torch.optim, name)(self.parameters(), lr=0.1, fused=fused)

    model, ema, recorder = Overflowing(), WeightEMA(decay=0.9), WeightRecorder()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    trainer(PL, tmp_path, [recorder, ema], max_steps=8, plugins=[plugin]).fit(model, *loaders())
    assert ema.n_steps == ema.n_updates == (5,)
    real = [state for step, state in enumerate(recorder.weights) if step not in (0, 3, 4)]
    expected = reference(real, "outputs.weight", 0.9)
    torch.testing.assert_close(model.outputs.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)


class TwoOptimizers(PL.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 1)
        self.automatic_optimization = False
        self.history: dict[str, list[dict[str, torch.Tensor]]] = {"first": [], "second": []}

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers = self.optimizers()
        loss = self.second(self.first(batch[0])).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        optimizers[0].step()
        self.history["first"].append({name: value.clone() for name, value in self.state_dict().items()})
        if batch_idx % 2:
            optimizers[1].step()
            self.history["second"].append({name: value.clone() for name, value in self.state_dict().items()})

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.first.parameters(), 0.1), torch.optim.Adam(self.second.parameters(), 0.1)]


def test_several_optimizers_have_their_own_counts_and_averages(tmp_path):
    model, ema = TwoOptimizers(), WeightEMA(decay=0.7)
    train, _ = loaders()
    trainer(PL, tmp_path, [ema], max_steps=-1, max_epochs=1, val_check_interval=1.0).fit(model, train)
    assert ema.n_steps == ema.n_updates == (8, 4)
    for name in averaged_names(model):
        expected = reference(model.history[name.partition(".")[0]], name, 0.7)
        torch.testing.assert_close(model.state_dict()[name].double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_of_one_optimizer_is_no_step_of_that_one(tmp_path, fused):
    class Overflowing(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            outputs = self.first(batch[0])
            for index, optimizer in enumerate(self.optimizers()):
                optimizer.zero_grad()
                loss = outputs.square().mean() if index == 0 else self.second(outputs.detach()).square().mean()
                overflows = batch_idx in ((0, 5), (2, 3, 7))[index]
                self.manual_backward(loss * torch.inf if overflows else loss)
                optimizer.step()
                if not overflows:
                    state = {name: value.clone() for name, value in self.state_dict().items()}
                    self.history[("first", "second")[index]].append(state)

        def configure_optimizers(self) -> Any:
            return [
                torch.optim.SGD(self.first.parameters(), 0.1, fused=fused),
                torch.optim.Adam(self.second.parameters(), 0.1, fused=fused),
            ]

    model, ema = Overflowing(), WeightEMA(decay=0.7)
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    settings = {"max_steps": -1, "max_epochs": 1, "val_check_interval": 1.0}
    trainer(PL, tmp_path, [ema], plugins=[plugin], **settings).fit(model, loaders()[0])
    assert ema.n_steps == ema.n_updates == (6, 5)
    for name, _ in model.named_parameters():
        expected = reference(model.history[name.partition(".")[0]], name, 0.7)
        torch.testing.assert_close(model.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_tied_weights_are_averaged_once_and_stay_tied(tmp_path):
    class Tied(type(toy(PL))):
        def __init__(self) -> None:
            super().__init__()
            self.inputs = nn.Linear(4, 4)
            self.norm = nn.Linear(4, 4)
            self.norm.weight = self.inputs.weight
            self.outputs = nn.Linear(4, 1)

    model, recorder = Tied(), WeightRecorder()
    trainer(PL, tmp_path, [recorder, WeightEMA(decay=0.9)]).fit(model, *loaders())
    assert model.norm.weight is model.inputs.weight
    expected = reference(recorder.weights, "inputs.weight", 0.9)
    torch.testing.assert_close(model.norm.weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


def test_layers_made_in_configure_model(tmp_path):
    class Late(type(toy(PL))):
        def __init__(self) -> None:
            super().__init__()
            del self.outputs
            self.outputs = None

        def configure_model(self) -> None:
            if self.outputs is None:
                self.outputs = nn.Linear(8, 1)

    model, recorder = Late(), WeightRecorder()
    trainer(PL, tmp_path, [recorder, WeightEMA(decay=0.9)]).fit(model, *loaders())
    expected = reference(recorder.weights, "outputs.weight", 0.9)
    torch.testing.assert_close(model.outputs.weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_precisions(tmp_path, precision):
    model, resumed, recorder = toy(PL), toy(PL), WeightRecorder()

    class Save(WeightRecorder):
        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.global_step == 8:
                trainer.save_checkpoint(tmp_path / "8.ckpt")

    settings = {"precision": precision}
    ema = WeightEMA(decay=0.99)
    trainer(PL, tmp_path, [recorder, ema, Save()], **settings).fit(model, *loaders())
    kept = dict(ema.average.average_by_name())["outputs.weight"]
    assert kept.dtype == (torch.float64 if precision == "64-true" else torch.float32)
    torch.testing.assert_close(kept.double(), reference(recorder.weights, "outputs.weight", 0.99), rtol=1e-5, atol=1e-6)
    assert torch.equal(model.outputs.weight, kept.to(model.outputs.weight.dtype))
    again = WeightEMA(decay=0.99)
    trainer(PL, tmp_path, [again], **settings).fit(resumed, *loaders(), ckpt_path=tmp_path / "8.ckpt")
    for name, value in ema.average.average_by_name().items():
        assert torch.equal(again.average.average_by_name()[name], value), name


def test_average_of_bfloat16_in_its_own_type_on_request():
    model = nn.Linear(3, 3).bfloat16()
    average = WeightAverage(model, full_precision=False)
    average.update(0, [torch.optim.SGD(model.parameters())], 0.1)
    assert {value.dtype for value in average.average_by_name().values()} == {torch.bfloat16}


def test_compiled_models_keep_their_storages():
    model = nn.Linear(3, 3)
    model.compile(backend="eager")
    average = WeightAverage(model)
    average.update(0, [torch.optim.SGD(model.parameters())], 1.0)
    nn.init.zeros_(model.weight)
    where, first = model.weight.data_ptr(), average.average_values(model.weight).clone()
    average.wear()
    assert model.weight.data_ptr() == where
    assert torch.equal(model.weight, first)
    average.take_off()
    assert model.weight.data_ptr() == where
    assert not model.weight.any()


def test_a_wrong_order_of_the_stack_gives_the_same(tmp_path):
    class EvaluateAtTheEnd(PL.Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    before, after = toy(PL), toy(PL)
    trainer(PL, tmp_path, [EvaluateAtTheEnd(), WeightEMA(decay=0.9)]).fit(before, *loaders())
    trainer(PL, tmp_path, [WeightEMA(decay=0.9), EvaluateAtTheEnd()]).fit(after, *loaders())
    assert torch.equal(before.outputs.weight, after.outputs.weight)
    assert torch.equal(before.seen[-1][1], after.seen[-1][1])


@pytest.mark.filterwarnings("ignore:.*lr_find.*")
def test_a_search_for_the_learning_rate_is_not_averaged(tmp_path):
    class Tuned(type(toy(PL))):
        def __init__(self) -> None:
            super().__init__()
            self.lr = 0.1

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=self.lr)

    finder = LearningRateFinder(num_training_steps=6, update_attr=False)
    recorder, model = WeightRecorder(), Tuned()
    ema = WeightEMA(decay=0.9)
    trainer(PL, tmp_path, [recorder, ema, finder], max_steps=8).fit(model, *loaders())
    assert ema.n_steps == ema.n_updates == (8,)
    expected = reference(recorder.weights, "outputs.weight", 0.9)
    torch.testing.assert_close(model.outputs.weight.detach().double(), expected, rtol=1e-6, atol=1e-6)


def test_resuming_needs_the_same_model(tmp_path):
    fitted = trainer(PL, tmp_path, [WeightEMA(decay=0.9)], max_steps=4)
    fitted.fit(toy(PL), *loaders())
    fitted.save_checkpoint(tmp_path / "4.ckpt")
    other = toy(PL, batch_norm=False)
    other.strict_loading = False
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        trainer(PL, tmp_path, [WeightEMA(decay=0.9)]).fit(other, *loaders(), ckpt_path=tmp_path / "4.ckpt")
    assert str(caught.value) == (
        "`ckpt_path` holds raw weights that the model lacks (norm.bias, norm.running_mean, norm.running_var, "
        "norm.weight): a run is resumed with the model that wrote the file. Build the same model, or load its weights "
        "without resuming."
    )


@both
def test_sharded_strategies_are_refused(tmp_path, package):
    assert refusal_of_sharding(package, tmp_path, WeightEMA(decay=0.9)) == (
        "`strategy` is ModelParallelStrategy, which shards the model: WeightEMA needs the whole parameters on every "
        "rank. Train with a single device or with DDP, or remove WeightEMA and average in the strategy's own way."
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"decay": 0.9, "half_life": 10},
            "`decay` is 0.9 and `half_life` is 10: both say how long the average remembers. Pass one of them, or "
            "neither for a half-life of 5% of training.",
        ),
        (
            {"decay": 1.0},
            "`decay` is 1.0: it must lie between 0 and 1, both excluded. Pass the share of the average that one step "
            "keeps, for instance 0.999.",
        ),
        (
            {"half_life": 0},
            "`half_life` is 0: it must be a positive number of optimizer steps. Pass for instance 5% of max_steps, "
            "which is the default.",
        ),
        (
            {"update_every_n_steps": 0},
            "`update_every_n_steps` is 0: it must be at least 1. Pass 1 to update after every optimizer step.",
        ),
        (
            {"update_starting_at_step": -1},
            "`update_starting_at_step` is -1: it must be at least 0. Pass 0 to average from the first optimizer step "
            "on.",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        WeightEMA(**arguments)
    assert str(caught.value) == message


def test_endless_training_needs_a_half_life(tmp_path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        trainer(PL, tmp_path, [WeightEMA()], max_steps=-1, max_epochs=-1).fit(toy(PL), *loaders())
    assert str(caught.value) == (
        "`half_life` is None and the planned length of training is inf steps: the default half-life is 5% of it, which "
        "needs a finite length. Pass `half_life` or `decay`, or give the Trainer max_steps."
    )
