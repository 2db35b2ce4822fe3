from __future__ import annotations

import hashlib
import logging
import math
import random
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from lightning_toys import PACKAGES, QUIET, make_gan, make_loader, make_model, make_trainer
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from playbook_plugins.analysis import Status, Verdict
from playbook_plugins.analysis.stability import SECTION
from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.instability import InstabilityProbe, probe_instability
from playbook_plugins.lightning.warmup import LearningRateWarmup
from playbook_plugins.lightning.weight_ema import WeightEMA

pytestmark = QUIET


def probe(model: Any, data: Any, **options: Any) -> InstabilityProbe:
    return probe_instability(model, data, **({"accelerator": "cpu"} | options))


class _Quadratic:
    """The loss 0.5 * L * w^2 of one weight: gradient descent at rate r multiplies w by 1 - r * L in every step.

    The noise of its batches moves the loss and not the gradient. It diverges where r > 2 / L.
    """

    def __init__(self, rate: float, curvature: float = 4.0, noise: float = 0.1, schedule: Any = None) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor([3.0]))
        self.rate, self.curvature, self.noise, self.schedule = rate, curvature, noise, schedule
        self.rates: list[float] = []
        self.seen: list[float] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        [x] = batch
        self.seen.append(float(x.sum()))
        return (0.5 * self.curvature * self.w**2).sum() + self.noise * x.mean().detach()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", (0.5 * self.curvature * self.w**2).sum())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.rate)
        return optimizer if self.schedule is None else self.schedule(optimizer)


def quadratic(package: Any, rate: float, **options: Any) -> Any:
    return type("Quadratic", (_Quadratic, package.LightningModule), {})(rate, **options)


def ones(n_batches: int = 8, **options: Any) -> DataLoader[Any]:
    x = torch.randn(n_batches * 4, 1, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x), batch_size=4, **options)


def flags(found: InstabilityProbe) -> set[tuple[str, str]]:
    return {(finding.check, finding.subject) for finding in found if finding.verdict is Verdict.FLAG}


@pytest.mark.parametrize("package", PACKAGES)
def test_the_limit_of_gradient_descent_is_found(package: Any) -> None:
    # 2 / L = 0.5: 0.45 / L is stable at 2 times, 0.9 / L, and diverges at 5 times, 2.25 / L.
    found = probe(quadratic(package, 0.45 / 4), ones(), validation=ones(1), max_steps=250)
    limit = found[0]
    assert (limit.check, limit.subject, limit.verdict) == ("learning rate limit", "learning rate", Verdict.FLAG)
    assert (limit.numbers["unstable_factor"], limit.numbers["stable_factor"]) == (5.0, 2.0)
    assert limit.numbers["kind"] == "non-finite"
    assert {subject for _, subject in flags(found)} == {"learning rate", "learning rate x 5", "learning rate x 10"}
    assert [finding.section for finding in found] == [SECTION] * len(found)
    records = found.records
    assert list(records) == [1.0, 2.0, 5.0, 10.0]
    assert [records[factor].status for factor in records] == [Status.COMPLETE] * 2 + [Status.INFEASIBLE] * 2
    # |1 - 2.25| = 1.25 a step. Lightning sums the loss over the 4 examples of the evaluation: 72 * 1.25 ** (2 n) leaves
    # float32 at n = 190.
    n_steps = math.ceil(math.log(torch.finfo(torch.float32).max / 72) / math.log(1.25) / 2)
    assert records[5.0].reason == f"diverged: val_loss is inf at step {n_steps}"
    assert records[5.0].curve.step[-1] == n_steps == 190
    # The curve has a row a step, with the loss, the gradient and the rate of the update and the evaluation after it.
    curve = records[2.0].curve
    assert curve.step.tolist() == list(range(251))
    weights = 3.0 * (1 - 0.9) ** np.arange(8)
    np.testing.assert_allclose(curve.validation[:8], 2 * weights**2, rtol=1e-4)
    np.testing.assert_allclose(curve.gradient_norm[1:8], 4 * weights[:7], rtol=1e-4)
    np.testing.assert_allclose(curve.learning_rate[1:], 0.9 / 4)
    assert np.isnan([curve.train[0], curve.gradient_norm[0], curve.learning_rate[0]]).all()
    assert records[2.0].clip_threshold(100) == pytest.approx(12.0)
    assert records[2.0].max_steps == 250


@pytest.mark.parametrize("package", PACKAGES)
def test_a_model_that_is_stable_at_ten_times_its_rate_shows_no_evidence(package: Any) -> None:
    # 10 times 0.15 / L is 1.5 / L.
    found = probe(quadratic(package, 0.15 / 4), ones(shuffle=True), max_steps=200)
    assert flags(found) == set()
    assert found[0].verdict is Verdict.NO_EVIDENCE
    assert found[0].numbers["stable_factor"] == 10.0
    assert len(found) == 1 + 4 * 6
    assert [finding.subject for finding in found[1:7]] == ["learning rate x 1"] * 6
    assert isinstance(found[:2], tuple)
    # Without an evaluation the training loss is the objective.
    assert found.records[10.0].objective_name == "train_loss"
    assert found.records[10.0].curve.step.tolist() == list(range(1, 201))


class _Saddle(_Quadratic):
    """A loss whose curvature is 40 at first and falls towards 4 with every step taken, as at initialisation.

    Large rates blow up early and recover.
    """

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        [x] = batch
        self.seen.append(float(x.sum()))
        curvature = 4.0 + 36.0 * 0.9 ** len(self.seen)
        return (0.5 * curvature * self.w**2).sum() + self.noise * x.mean().detach()


def saddle(package: Any, rate: float, **options: Any) -> Any:
    return type("Saddle", (_Saddle, package.LightningModule), {})(rate, **options)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_early_blow_up_with_a_recovery_is_found_and_warmup_cures_it(package: Any) -> None:
    # 2 / 40 = 0.05: the rate 0.045 is stable from the start, twice the rate only after a while.
    options: dict[str, Any] = {"max_steps": 200, "factors": (1.0, 2.0)}
    found = probe(saddle(package, 0.045), ones(), **options)
    assert ("early instability", "learning rate x 2") in flags(found)
    assert ("learning rate limit", "learning rate") in flags(found)
    assert not {subject for _, subject in flags(found)} & {"learning rate x 1"}
    [early] = [one for one in found if one.check == "early instability" and one.subject == "learning rate x 2"]
    assert early.numbers["recovered"] == 1
    assert found[0].numbers["unstable_factor"] == 2.0
    warmup = LearningRateWarmup(30, max_share=1.0)
    with pytest.warns(UserWarning, match="LearningRateWarmup takes"):
        cured = probe(saddle(package, 0.045), ones(), callbacks=[warmup], **options)
    assert flags(cured) == set()
    # The user's own callback has not run.
    assert warmup.state_dict() == LearningRateWarmup(30).state_dict()
    assert cured.records[2.0].max_steps == 230
    np.testing.assert_allclose(cured.records[2.0].curve.learning_rate[:3], [0.0, 0.09 / 30, 0.18 / 30])


class _Spiky(_Quadratic):
    """Steps at a rate above 0.1 throw the weight off at batch 200, from where it comes back in some steps."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        rate = self.optimizers().param_groups[0]["lr"]  # type: ignore[attr-defined]
        if len(self.seen) == 200 and rate > 0.1:
            loss = loss + 40.0 * self.w.sum()
        return loss


def test_a_spike_is_found_where_it_is() -> None:
    package = PACKAGES[0].values[0]
    model = type("Spiky", (_Spiky, package.LightningModule), {})(0.05)  # type: ignore[attr-defined]
    found = probe(model, ones(shuffle=True), max_steps=300, factors=(1.0, 2.5))
    assert flags(found) == {("loss spike", "learning rate x 2.5"), ("gradient norm spike", "learning rate x 2.5")}
    steps = {one.check: one.numbers["step"] for one in found[6:] if one.verdict is Verdict.FLAG}
    assert steps == {"loss spike": 201, "gradient norm spike": 200}
    # It recovers, at more than twice the rate: nothing keeps the rate down.
    assert found[0].verdict is Verdict.NO_EVIDENCE


@pytest.mark.parametrize("package", PACKAGES)
def test_clipping_can_be_probed_too(package: Any) -> None:
    options: dict[str, Any] = {"max_steps": 60, "factors": (5.0,)}
    clipping = PercentileGradientClipping(threshold=1e-3)
    bare = probe(quadratic(package, 0.45 / 4), ones(), **options).records[5.0]
    clipped = probe(quadratic(package, 0.45 / 4), ones(), callbacks=[clipping], **options).records[5.0]
    assert bare.curve.train[-1] > 1e6
    assert clipped.curve.train[-1] < 20
    # The norms are those before clipping.
    assert clipped.curve.gradient_norm[0] == bare.curve.gradient_norm[0] == pytest.approx(12.0)
    assert clipping.windows == []


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("shuffle", [False, True])
def test_all_runs_see_the_same_weights_batches_and_random_numbers(package: Any, shuffle: bool) -> None:
    options: dict[str, Any] = {"max_steps": 30, "factors": (1.0, 1.0000001), "validation": make_loader(2)}
    found = probe(make_model(package, dropout=0.5), make_loader(shuffle=shuffle), **options)
    curves = [found.records[factor].curve for factor in options["factors"]]
    for curve in curves[1:]:
        np.testing.assert_allclose(curve.train[1:], curves[0].train[1:], rtol=1e-3)
        assert curve.train[1] == curves[0].train[1]
    # Evaluation leaves training as it is.
    alone = probe(make_model(package, dropout=0.5), make_loader(shuffle=shuffle), max_steps=30, factors=(1.0,))
    np.testing.assert_array_equal(alone.records[1.0].curve.train, curves[0].train[1:])


@pytest.mark.parametrize("package", PACKAGES)
def test_the_run_at_the_rate_itself_is_the_user_s_own_run(package: Any) -> None:
    model, reference = make_model(package, dropout=0.5), make_model(package, dropout=0.5)
    found = probe(model, make_loader(shuffle=True), max_steps=60, factors=(2.0, 1.0))
    make_trainer(package, [], max_steps=60).fit(reference, make_loader(shuffle=True))
    np.testing.assert_array_equal(found.records[1.0].curve.train, np.array(reference.losses))


class Drawing(Dataset[Any]):
    """A data set with generators of its own."""

    def __init__(self) -> None:
        self.numpy = np.random.default_rng(3)
        self.python = random.Random(3)
        self.old = np.random.RandomState(3)

    def __len__(self) -> int:
        return 32

    def __getitem__(self, place: int) -> Any:
        draw = self.numpy.normal() + self.python.random() + self.old.normal()
        return torch.full((3,), draw, dtype=torch.float32), torch.ones(1)


def fingerprint(model: Any, loaders: list[Any]) -> dict[str, str]:
    data: Any = loaders[0].dataset
    parts: dict[str, Any] = {
        "weights": [value.tolist() for value in model.state_dict().values()],
        "gradients": [None if one.grad is None else one.grad.tolist() for one in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "trained": [parameter.requires_grad for parameter in model.parameters()],
        "attributes": (model.n_batches, model.losses, model.rates, model.evaluated, sorted(vars(model))),
        "python": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],  # noqa: NPY002
        "torch": torch.get_rng_state().tolist(),
        "loaders": [loader.generator.get_state().tolist() for loader in loaders],
        "data": [str(data.numpy.bit_generator.state), data.python.getstate(), str(data.old.get_state(legacy=False))],
        "loaders' attributes": [(sorted(vars(loader)), loader._iterator is None) for loader in loaders],
    }
    return {name: hashlib.sha256(repr(part).encode()).hexdigest() for name, part in parts.items()}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.filterwarnings(r"ignore:Found 1 module\(s\) in eval mode at the start of training")
def test_it_leaves_no_trace(package: Any, fails: bool) -> None:
    class Fail(package.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(1)
            if fails and trainer.global_step == 20:
                raise RuntimeError("a bug")

    model = make_model(package, dropout=0.5)
    model.net[0].eval()
    model.net[3].weight.requires_grad_(False)
    model.loss((torch.ones(2, 3), torch.ones(2, 1))).backward()
    loaders = [
        DataLoader(Drawing(), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5)),
        DataLoader(make_loader(2).dataset, batch_size=4, generator=torch.Generator().manual_seed(6)),
    ]
    levels = {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)}
    before = fingerprint(model, loaders)
    options: dict[str, Any] = {"validation": loaders[1], "max_steps": 30, "factors": (1.0, 2.0), "callbacks": [Fail()]}
    if fails:
        with pytest.raises(RuntimeError, match=r"^a bug$"):
            probe(model, loaders[0], **options)
    else:
        found = probe(model, loaders[0], **options)
        first = [record.curve.train[1] for record in found.records.values()]
        assert first[0] == first[1]
    assert fingerprint(model, loaders) == before
    assert model._trainer is None
    assert {name: logging.getLogger(name).level for name in levels} == levels
    # The fingerprint can tell: one drawn number changes it.
    torch.rand(1)
    assert fingerprint(model, loaders) != before


@pytest.mark.parametrize("package", PACKAGES)
def test_a_model_that_was_trained_before_keeps_its_trainer(package: Any) -> None:
    model = make_model(package)
    trainer = make_trainer(package, [], max_steps=3)
    trainer.fit(model, make_loader())
    probe(model, make_loader(), max_steps=5, factors=(2.0,))
    assert model.trainer is trainer
    assert (trainer.global_step, len(model.losses)) == (3, 3)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_datamodule(package: Any) -> None:
    class Data(package.LightningDataModule):
        def __init__(self) -> None:
            super().__init__()
            self.kept = DataLoader(make_loader(2).dataset, batch_size=4, generator=torch.Generator())
            self.n_setups = 0

        def setup(self, stage: str) -> None:
            self.n_setups += 1
            self.rows = make_loader().dataset

        def train_dataloader(self) -> Any:
            return DataLoader(self.rows, batch_size=4, shuffle=True)

        def val_dataloader(self) -> Any:
            return self.kept

    data = Data()
    state = data.kept.generator.get_state()
    found = probe(make_model(package), data, max_steps=10, factors=(1.0, 2.0))
    assert found.records[2.0].objective_name == "val_loss"
    assert len(found.records[2.0].curve) == 11
    assert (data.n_setups, hasattr(data, "rows"), data.trainer) == (0, False, None)
    assert torch.equal(data.kept.generator.get_state(), state)
    # Too short to judge.
    assert {one.verdict for one in found if one.check != "non-finite"} == {Verdict.TOO_LITTLE_DATA}
    message = "`validation` is given beside a LightningDataModule, which brings its own. Leave one of them out."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        probe(make_model(package), data, validation=make_loader(1))


@pytest.mark.parametrize("package", PACKAGES)
def test_iterable_data_several_loaders_and_the_model_s_own(package: Any) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(make_loader().dataset)

    stream = probe(make_model(package), DataLoader(Stream(), batch_size=4), max_steps=12, factors=(1.0,))
    plain = probe(make_model(package), make_loader(), max_steps=12, factors=(1.0,))
    np.testing.assert_array_equal(stream.records[1.0].curve.train, plain.records[1.0].curve.train)
    model = make_model(package)
    model.train_dataloader = make_loader
    own = probe(model, None, max_steps=12, factors=(1.0,))
    np.testing.assert_array_equal(own.records[1.0].curve.train, plain.records[1.0].curve.train)
    kept = DataLoader(make_loader().dataset, batch_size=4, num_workers=1, persistent_workers=True)
    workers = probe(make_model(package), kept, max_steps=12, factors=(1.0,))
    np.testing.assert_array_equal(workers.records[1.0].curve.train, plain.records[1.0].curve.train)
    assert kept._iterator is None
    pair = type("Pair", (type(model),), {"training_step": lambda self, batch, i: self.loss(batch["a"])})()
    found = probe(pair, {"a": make_loader(), "b": make_loader(seed=1)}, max_steps=12, factors=(1.0,))
    np.testing.assert_array_equal(found.records[1.0].curve.train, plain.records[1.0].curve.train)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_accumulation_averages_the_loss_of_a_step(package: Any, accumulation: int) -> None:
    found = probe(
        make_model(package), make_loader(6), max_steps=4, factors=(1.0,), accumulate_grad_batches=accumulation
    )
    curve = found.records[1.0].curve
    model = make_model(package)
    make_trainer(package, [], max_steps=4, accumulate_grad_batches=accumulation).fit(model, make_loader(6))
    expected = np.mean(np.reshape(model.losses, (4, accumulation)), axis=1)
    np.testing.assert_allclose(curve.train, expected, rtol=1e-6)
    assert curve.step.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("package", PACKAGES)
def test_manual_optimization_of_two_optimizers(package: Any) -> None:
    found = probe(make_gan(package), make_loader(), validation=make_loader(1), max_steps=120, factors=(1.0, 3.0))
    curve = found.records[3.0].curve
    assert curve.step.tolist() == list(range(0, 121, 2))
    np.testing.assert_allclose(curve.learning_rate[1:], 0.3 * 0.9 ** np.arange(60))
    assert np.isfinite(curve.train[1:]).all()
    assert found.records[1.0].curve.train[1] == curve.train[1]
    # The norm of the gradients of both optimizers at the start.
    model = make_gan(package)
    x, y = next(iter(make_loader()))
    for place, part in enumerate((model.first, model.second)):
        ((place + 1) * torch.nn.functional.mse_loss(part(x), y)).backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert curve.gradient_norm[1] == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_model_that_returns_no_loss(package: Any) -> None:
    silent = type("Silent", (type(make_gan(package)),), {})
    whole = silent.training_step
    silent.training_step = lambda self, batch, i: whole(self, batch, i) and None
    # What went through manual_backward is known.
    found = probe(silent(), make_loader(), max_steps=8, factors=(1.0,))
    same = probe(make_gan(package), make_loader(), max_steps=8, factors=(1.0,))
    np.testing.assert_allclose(found.records[1.0].curve.train, same.records[1.0].curve.train, rtol=1e-6)
    poisoned = type("Poisoned", (silent,), {"training_step": lambda self, batch, i: whole(self, batch, i) * math.nan})
    record = probe(poisoned(), make_loader(), factors=(2.0,)).records[2.0]
    assert (record.reason, len(record.curve)) == ("diverged: training loss is nan at step 2", 1)
    silent.manual_backward = lambda self, loss: loss.backward()
    message = (
        "`model` returned no loss from training_step, and none went through self.manual_backward: there is no training "
        "loss to judge. Return the loss."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        probe(silent(), make_loader(), max_steps=8, factors=(1.0,))


SCHEDULES: dict[str, Any] = {
    "step": lambda o: lr_scheduler.StepLR(o, 7, 0.5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.01),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7, eta_min=0.01),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.3, total_steps=25),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.05, step_size_up=4, cycle_momentum=False),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, 20, 2.0),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 5), lr_scheduler.CosineAnnealingLR(o, 15, eta_min=0.002)], [5]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.3, 4), lr_scheduler.ExponentialLR(o, 0.95)]
    ),
}


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", [*SCHEDULES, "plateau", "tensor"])
def test_every_schedule_keeps_its_shape(package: Any, name: str) -> None:
    def configure(module: Any) -> Any:
        rate = torch.tensor(0.05) if name == "tensor" else 0.05
        halves = [{"params": module.net[0].parameters()}, {"params": module.net[3].parameters(), "lr": rate / 10}]
        optimizer = torch.optim.Adam(halves, lr=rate, capturable=False, foreach=False)
        if name == "plateau":
            scheduler: Any = lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.3, min_lr=1e-3)
            config = {"scheduler": scheduler, "interval": "step", "monitor": "train_loss", "reduce_on_plateau": True}
        else:
            scheduler = SCHEDULES["step" if name == "tensor" else name](optimizer)
            config = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": config}

    runs: list[list[list[float]]] = []

    class Watch(package.Callback):
        def on_fit_start(self, *_: Any) -> None:
            runs.append([])

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            runs[-1].append([float(group["lr"]) for group in optimizer.param_groups])

    options: dict[str, Any] = {"max_steps": 20, "factors": (1.0, 3.0), "callbacks": [Watch()]}
    probe(make_model(package, configure=configure), make_loader(4), **options)
    plain, scaled = np.array(runs)
    assert plain.shape == scaled.shape == (20, 2)
    if name == "plateau":
        # When the loss stands still differs between the runs; the least rate and the first are scaled.
        np.testing.assert_allclose(scaled[0], 3 * plain[0])
        assert scaled.min() == pytest.approx(3e-3)
    else:
        np.testing.assert_allclose(scaled, 3 * plain, rtol=1e-5)
        assert len(np.unique(plain, axis=0)) > 1


@pytest.mark.parametrize("package", PACKAGES)
def test_a_schedule_with_a_rate_of_its_own_is_refused(package: Any) -> None:
    class Floor(lr_scheduler.LRScheduler):
        def get_lr(self) -> list[float]:
            return [max(base * 0.9**self.last_epoch, 0.03) for base in self.base_lrs]

    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.04)
        return [optimizer], [{"scheduler": Floor(optimizer), "interval": "step"}]

    message = (
        r"`model` has the schedule Floor, whose rates at step 3 are \[0\.03\], and \[0\.0583\d+\] after scaling by 2: "
        r"it holds a rate of its own that probe_instability cannot scale\. Write it as a factor of the optimizer's "
        r"rate, for instance by LambdaLR\."
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        probe(make_model(package, configure=configure), make_loader(), factors=(2.0,))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_schedule_of_the_whole_training_keeps_its_length(package: Any) -> None:
    planned = []

    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.04)
        planned.append(int(module.trainer.estimated_stepping_batches))
        scheduler = lr_scheduler.LinearLR(optimizer, 1.0, 0.0, planned[-1])
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    options: dict[str, Any] = {"max_steps": 10, "factors": (2.0,), "callbacks": [LearningRateWarmup(4)]}
    found = probe(make_model(package, configure=configure), make_loader(), training_steps=1000, **options)
    curve = found.records[2.0].curve
    assert planned == [1000]
    assert curve.step[-1] == found.records[2.0].max_steps == 14
    np.testing.assert_allclose(curve.learning_rate[[3, 4, 13]], [0.06, 0.08, 0.08 * (1 - 9 / 1000)], rtol=1e-5)


@pytest.mark.parametrize("package", PACKAGES)
def test_which_validation_loss_is_judged(package: Any) -> None:
    def named(*names: str) -> Any:
        def validation_step(self: Any, batch: Any, batch_idx: int) -> None:
            for name in names:
                self.log(name, self.loss(batch))

        return type("Named", (type(make_model(package)),), {"validation_step": validation_step})()

    def run(model: Any, **options: Any) -> Any:
        found = probe(model, make_loader(), validation=make_loader(2), max_steps=3, factors=(1.0,), **options)
        return found.records[1.0]

    assert run(named("a", "val/loss")).objective_name == "val/loss"
    assert list(run(named("a", "val/loss")).curve.metrics) == ["a"]
    assert run(named("loss_1", "loss_2")).objective_name == "train_loss"
    assert run(named("loss_1", "loss_2"), monitor="loss_2").objective_name == "loss_2"
    assert run(named("train", "step", "val_loss")).curve.step.tolist() == [0, 1, 2, 3]
    message = (
        "`monitor` is 'other': validation logged no such metric. Log it in validation_step by self.log('other', ...), "
        "or pass one of ['loss_1', 'loss_2']."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        run(named("loss_1", "loss_2"), monitor="other")
    off = probe(
        named("val_loss"), make_loader(), validation=make_loader(1), max_steps=3, factors=(1.0,), limit_val_batches=0
    )
    assert off.records[1.0].curve.step.tolist() == [1, 2, 3]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("poison", [0, 9])
def test_a_loss_that_is_nan_ends_a_run_and_is_a_result(package: Any, poison: int) -> None:
    found = probe(make_model(package, poison=poison), make_loader(), factors=(1.0, 2.0))
    record = found.records[2.0]
    assert (record.status, record.reason) == (Status.INFEASIBLE, f"diverged: training loss is nan at step {poison}")
    assert record.curve.step.tolist() == list(range(1, poison + 2))
    assert np.isnan(record.curve.train).tolist() == [False] * poison + [True]
    assert found[0].verdict is Verdict.FLAG
    assert found[0].numbers["unstable_factor"] == 1.0
    assert found[0].numbers["kind"] == "non-finite"


@pytest.mark.parametrize("package", PACKAGES)
def test_gradients_and_evaluations_that_are_not_finite_end_a_run(package: Any) -> None:
    class Steep(_Quadratic):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            # The square root of zero is zero, its slope infinite.
            loss = super().training_step(batch, batch_idx)
            return loss + (torch.sqrt(0 * self.w) if len(self.seen) == 6 else 0 * self.w).sum()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", torch.tensor(math.nan if self.trainer.global_step == 4 else 1.0))  # type: ignore[attr-defined]

    model = type("Steep", (Steep, package.LightningModule), {})(0.01)
    record = probe(model, ones(), factors=(2.0,)).records[2.0]
    assert record.reason == "non-finite gradient norm at step 5"
    assert record.curve.step.tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(record.curve.train).all()
    assert not np.isfinite(record.curve.gradient_norm[-1])
    record = probe(model, ones(), validation=ones(1), factors=(2.0,)).records[2.0]
    assert record.reason == "diverged: val_loss is nan at step 4"
    assert record.curve.step.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true", "bf16-mixed"])
def test_precision(package: Any, precision: str) -> None:
    found = probe(make_model(package), make_loader(), max_steps=6, factors=(1.0,), precision=precision)
    full = probe(make_model(package), make_loader(), max_steps=6, factors=(1.0,))
    np.testing.assert_allclose(found.records[1.0].curve.train, full.records[1.0].curve.train, rtol=0.05)
    np.testing.assert_allclose(found.records[1.0].curve.gradient_norm, full.records[1.0].curve.gradient_norm, rtol=0.05)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_model_s_own_callbacks_but_those_that_have_no_place(package: Any, tmp_path: Any) -> None:
    seen = []

    class Mine(package.Callback):
        def on_train_start(self, *_: Any) -> None:
            seen.append("mine")

    model = make_model(package)
    kept_out = [
        package.callbacks.ModelCheckpoint(dirpath=tmp_path),
        package.callbacks.EarlyStopping("train_loss", patience=0, check_on_train_epoch_end=True),
        WeightEMA(half_life=3),
    ]
    kind = type(model)
    kind.configure_callbacks = lambda self: [Mine(), *kept_out]
    found = probe(model, make_loader(2), max_steps=12, factors=(1.0, 2.0))
    assert seen == ["mine"] * 2
    assert len(found.records[2.0].curve) == 12
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_one_line_a_run_and_no_chatter(package: Any, caplog: Any, capsys: Any) -> None:
    name = package.__name__
    with caplog.at_level(logging.INFO, logger=name):
        caplog.handler.setLevel(logging.INFO)
        logging.getLogger(name).addHandler(caplog.handler)
        try:
            with warnings.catch_warnings():
                # Lightning's advice to everyone, which the other tests leave out, is not given here.
                warnings.simplefilter("error")
                options: dict[str, Any] = {"factors": (1.0, 10.0), "max_steps": 60}
                probe(quadratic(package, 0.45 / 4), ones(), validation=ones(1), **options)
                caplog.clear()
                probe(quadratic(package, 0.45 / 4), ones(), **options)
        finally:
            logging.getLogger(name).removeHandler(caplog.handler)
    lines = dict.fromkeys(record.getMessage() for record in caplog.records if record.name.startswith(name))
    first, second = lines
    assert re.fullmatch(
        r"probe_instability: run 1 of 2, learning rate x 1: 60 steps, training loss 17\.9\d* to [-.e0-9]+; "
        r"no instability seen\.",
        first,
    )
    assert re.fullmatch(
        r"probe_instability: run 2 of 2, learning rate x 10: \d+ steps, training loss 17\.9\d* to inf; "
        r"non-finite at step \d+\.",
        second,
    )
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_steps": 0},
            "`max_steps` is 0: each run needs at least 1 step, and 50 to be judged. The playbook takes 500.",
        ),
        *(
            (
                {"factors": factors},
                f"`factors` is {list(factors)}: it must hold different positive numbers, which multiply the best "
                "learning rate. The default is (1, 2, 5, 10).",
            )
            for factors in ((), (1.0, 1.0), (0.0,), (-2.0, 1.0), (math.inf,), (math.nan,))
        ),
        (
            {"training_steps": 400},
            "`training_steps` is 400, less than the 500 steps of each run: it is the length of the whole training. "
            "Pass that, or None.",
        ),
        *(
            (
                {"callbacks": [callback]},
                f"`callbacks` holds {type(callback).__name__}: a probe evaluates every step by itself, judges the raw "
                "weights, runs to its end and keeps no checkpoints. Leave it out.",
            )
            for callback in (WeightEMA(half_life=3), PeriodicEvaluation(3))
        ),
        (
            {"data": iter([])},
            "`data` is a list_iterator, which can be read only once, but every run begins at the same batch. Pass a "
            "DataLoader, or any object whose __iter__ begins anew.",
        ),
        (
            {"validation": iter([])},
            "`validation` is a list_iterator, which can be read only once, but every run begins at the same batch. "
            "Pass a DataLoader, or any object whose __iter__ begins anew.",
        ),
        (
            {"model": torch.nn.Linear(1, 1)},
            "`model` is a Linear: it must be a LightningModule, whose configure_optimizers sets the best learning "
            "rate. Wrap it in one.",
        ),
    ],
)
def test_messages(package: Any, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"model": make_model(package), "data": make_loader(), "accelerator": "cpu"} | options
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        probe_instability(**given)


@pytest.mark.parametrize("package", PACKAGES)
def test_models_that_cannot_be_probed(package: Any) -> None:
    def fails(model: Any, message: str) -> None:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            probe(model, make_loader(), max_steps=3)

    other = make_model(package)
    fails(
        make_model(package, configure=lambda module: torch.optim.SGD(other.parameters(), lr=0.1)),
        "`model` has optimizers over parameters that are not its own: a copy of it would train another model. Build "
        "the optimizers from self.parameters(), without a reference to the model from outside.",
    )
    relative = make_model(package, configure=lambda module: torch.optim.SGD(module.parameters(), lr=0.1))
    plain = type(relative).configure_optimizers

    def without_rate(self: Any) -> Any:
        optimizer = plain(self)
        optimizer.param_groups[0]["lr"] = None
        return optimizer

    type(relative).configure_optimizers = without_rate
    fails(
        relative,
        "`model` is optimized by SGD, whose learning rate is None: probe_instability multiplies the learning rate. Set "
        "it to a number.",
    )
    compiled = make_model(package)
    compiled._compiler_ctx = {"compiler": "dynamo"}
    fails(
        compiled,
        "`model` was trained through torch.compile, and a copy of it would train the original. Pass a module that was "
        "not compiled: its instability is the same.",
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_a_compiled_model_is_probed_as_the_module_that_it_wraps(package: Any) -> None:
    model = make_model(package)
    found = probe(torch.compile(model, backend="eager"), make_loader(), max_steps=5, factors=(1.0,))
    plain = probe(make_model(package), make_loader(), max_steps=5, factors=(1.0,))
    np.testing.assert_array_equal(found.records[1.0].curve.train, plain.records[1.0].curve.train)


@pytest.mark.parametrize("package", PACKAGES)
def test_several_processes_are_refused(package: Any) -> None:
    message = (
        "`devices` is 2, which makes 2 processes: probe_instability trains on one device. Pass devices=1, and "
        "accumulate_grad_batches=2 for the same batch size in all."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        probe(make_model(package), make_loader(), devices=2, max_steps=3)
