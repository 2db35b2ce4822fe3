from __future__ import annotations

import math
import pickle
import re
import time
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning_toys import PACKAGES, QUIET, SAFE_LOADING, make_gan, make_loader, make_model, make_trainer

from playbook_plugins.analysis.infeasible import InfeasibleError
from playbook_plugins.lightning.clipping import PercentileGradientClipping, total_norm
from playbook_plugins.lightning.norm_window import NormWindow, norm_histogram, norm_quantiles

pytestmark = QUIET


class Spy:
    """Keeps the gradient before and after the clipping, by its place in the list of callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.gradients: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parts = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.gradients.append(torch.cat([part.detach().flatten().double() for part in [torch.empty(0), *parts]]))


def spies(package: Any) -> tuple[Any, Any]:
    kind = type("Spy", (Spy, package.Callback), {"state_key": property(lambda self: f"spy{id(self)}")})
    return kind(), kind()


def fit(package: Any, clipping: Any, model: Any = None, callbacks: Any = (), **options: Any) -> tuple[Any, Any]:
    before, after = spies(package)
    model = make_model(package) if model is None else model
    trainer = make_trainer(package, [before, clipping, after, *callbacks], **({"max_steps": 40} | options))
    trainer.fit(model, make_loader(8, shuffle=True))
    return before.gradients, after.gradients


# The statistics.


@pytest.mark.parametrize("window", [None, 1, 7, 100])
@pytest.mark.parametrize("percentile", [0, 10, 50, 90, 99.9, 100])
def test_the_value_is_numpys_to_the_last_bit(percentile: float, window: int | None) -> None:
    rng = np.random.default_rng(3)
    norms = np.concatenate([rng.lognormal(size=150), np.float32(rng.lognormal(size=100)), np.repeat(1.5, 50)])
    tracked = NormWindow(percentile, window)
    for seen, norm in enumerate(norms, 1):
        tracked.add(float(norm))
        start = 0 if window is None else max(0, seen - window)
        assert tracked.value() == np.percentile(norms[start:seen], percentile)


@pytest.mark.parametrize("window", [None, 9_000])
def test_the_value_is_numpys_over_many_blocks(window: int | None) -> None:
    norms = np.random.default_rng(0).lognormal(size=30_000)
    tracked = NormWindow(90, window)
    for norm in norms:
        tracked.add(float(norm))
    assert tracked.value() == np.percentile(norms if window is None else norms[-window:], 90)
    again = NormWindow(90, window)
    again.load(tracked.packed())
    for one in (tracked, again):
        one.add(0.25)
    assert again.value() == tracked.value()


def test_nothing_that_is_not_finite_enters() -> None:
    tracked = NormWindow()
    assert math.isnan(tracked.value())
    for norm in (1.0, math.nan, math.inf, -math.inf, 3.0):
        tracked.add(norm)
    assert (len(tracked), tracked.value()) == (2, np.percentile([1.0, 3.0], 90))


def test_a_million_norms_stay_small_and_quick() -> None:
    norms = np.random.default_rng(1).lognormal(size=1_000_000).astype(np.float32)
    tracked = NormWindow(90)
    tracked.load(norms)
    assert tracked.packed().nbytes == 4_000_000
    assert tracked.value() == np.percentile(norms.astype(np.float64), 90)
    begun = time.perf_counter()
    for norm in norms[:1000].tolist():
        tracked.add(norm)
        tracked.value()
    # Some 6 microseconds each; sorting takes 70 milliseconds.
    assert (time.perf_counter() - begun) / 1000 < 1e-3


def test_norms_in_double_precision_are_kept_as_such() -> None:
    tracked = NormWindow()
    tracked.add(0.1)
    assert tracked.packed().dtype == np.float64
    tracked.history[0] = float(np.float32(0.1))
    assert tracked.packed().dtype == np.float32


def test_quantiles_and_histogram() -> None:
    norms = np.random.default_rng(2).lognormal(size=1000)
    assert norm_quantiles(norms)[[0, 50, 100]].tolist() == [norms.min(), np.median(norms), norms.max()]
    edges, counts = norm_histogram(norms, 20)
    assert (len(edges), counts.sum(), edges[0], edges[-1]) == (21, 1000, norms.min(), norms.max())
    for few in ([2.0], [2.0, 2.0], [2.0, np.nextafter(2.0, 3.0)], [0.0, 1.0], [0.0]):
        edges, counts = norm_histogram(few)
        assert counts.sum() == len(few)
        assert np.all(np.diff(edges) > 0)
    assert norm_quantiles([]).shape == (0,)
    assert [part.shape for part in norm_histogram([])] == [(0,), (0,)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_norm_is_that_over_all_gradients(dtype: torch.dtype) -> None:
    gradients = [torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype) for shape in ((40, 3), (7,))]
    expected = float(torch.cat([gradient.double().flatten() for gradient in gradients]).norm())
    assert float(total_norm(gradients)) == pytest.approx(expected, rel=1e-6)


# The callback.


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_gradients_are_clipped_at_the_percentile_of_the_steps_before(
    package: Any, window: int | None, accumulation: int
) -> None:
    clipping = PercentileGradientClipping(80, window=window, min_steps=5)
    # At a low rate the norms vary from batch to batch and do not fall.
    model = make_model(package, configure=lambda model: torch.optim.SGD(model.parameters(), lr=1e-4))
    before, after = fit(package, clipping, model, accumulate_grad_batches=accumulation)
    history = np.array(clipping.windows[0].history)
    assert len(history) == 40
    np.testing.assert_allclose(history, [float(gradient.norm()) for gradient in before], rtol=1e-6)
    n_clipped = 0
    for step, (raw, clipped) in enumerate(zip(before, after, strict=True)):
        seen = history[:step] if window is None else history[max(0, step - window) : step]
        if step >= 5 and history[step] > np.percentile(seen, 80):
            n_clipped += 1
            torch.testing.assert_close(clipped, raw * np.percentile(seen, 80) / history[step])
        else:
            assert torch.equal(clipped, raw)
    assert 0 < n_clipped < 40
    assert clipping.clipped_share == n_clipped / 40
    assert clipping.quantiles()[50] == np.median(history)
    assert clipping.histogram()[1].sum() == 40


@pytest.mark.parametrize("package", PACKAGES)
def test_accumulation_sees_the_gradient_of_the_whole_batch(package: Any) -> None:
    norms = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        clipping = PercentileGradientClipping(threshold=1e9)
        model = make_model(package)
        trainer = make_trainer(package, [clipping], max_steps=10, accumulate_grad_batches=accumulation)
        trainer.fit(model, make_loader(8 * accumulation, batch_size))
        norms.append(list(clipping.windows[0].history))
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_fixed_threshold(package: Any) -> None:
    clipping = PercentileGradientClipping(threshold=0.5)
    with pytest.warns(UserWarning, match="PercentileGradientClipping has clipped"):
        before, after = fit(package, clipping, make_model(package, scale=20.0), max_steps=120)
    norms = torch.stack([gradient.norm() for gradient in before])
    torch.testing.assert_close(torch.stack([one.norm() for one in after]), norms.clamp(max=0.5), rtol=1e-6, atol=0)
    assert clipping.clipped_share == float((norms > 0.5).double().mean())


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed", "bf16-true"])
def test_other_precisions_see_the_same_norms(package: Any, precision: str) -> None:
    norms = {}
    for name in ("32-true", precision):
        clipping = PercentileGradientClipping(threshold=1.0)
        fit(package, clipping, precision=name, max_steps=5)
        norms[name] = np.array(clipping.windows[0].history)
    np.testing.assert_allclose(norms[precision][:2], norms["32-true"][:2], rtol=1e-6 if "64" in precision else 2e-2)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_keeps_its_own_counsel(package: Any, fused: bool) -> None:
    # A scale that overflows float16 at first: the scaler skips those steps and lowers it; fused gradients stay scaled.
    def run(precision: Any) -> Any:
        clipping = PercentileGradientClipping(threshold=1.0)
        model = make_model(package, configure=lambda m: torch.optim.AdamW(m.parameters(), lr=1e-4, fused=fused))
        trainer = make_trainer(package, [clipping], max_steps=30, plugins=precision)
        trainer.fit(model, make_loader(8))
        return np.array(clipping.windows[0].history), model

    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    scaled, model = run([package.plugins.MixedPrecision("16-mixed", "cpu", scaler)])
    full, _ = run([])
    n_skipped = 30 - len(scaled)
    assert 0 < n_skipped < 20
    assert scaler.get_scale() == 2.0 ** (24 - n_skipped)
    # The skipped batches were passed over; at this rate the weights hardly move.
    np.testing.assert_allclose(scaled, full[n_skipped:], rtol=2e-2)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("package", PACKAGES)
def test_each_optimizer_has_its_own_window(package: Any) -> None:
    clipping = PercentileGradientClipping(50, min_steps=3)
    before, after = fit(package, clipping, make_gan(package), max_steps=24)
    for place in (0, 1):
        history = np.array(clipping.windows[place].history)
        np.testing.assert_allclose(history, [float(one.norm()) for one in before[place::2]], rtol=1e-6)
        for step in range(3, 12):
            limit = min(history[step], np.percentile(history[:step], 50))
            assert float(after[place::2][step].norm()) == pytest.approx(limit, rel=1e-6)
    assert not np.array_equal(clipping.windows[0].history, clipping.windows[1].history)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_norm_that_is_not_finite_ends_the_run(package: Any) -> None:
    clipping = PercentileGradientClipping()
    model = make_model(package, poison=6)
    with pytest.raises(InfeasibleError, match=r"^non-finite gradient norm at step 6$"):
        fit(package, clipping, model)
    assert len(clipping.windows[0].history) == 6
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "NAdam"])
@pytest.mark.parametrize("options", [{}, {"foreach": True}])
def test_skip_leaves_weights_and_optimizer_bit_equal(package: Any, kind: str, options: Any) -> None:
    states = []

    class Watch(package.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            held = (pl_module.state_dict(), trainer.optimizers[0].state_dict()["state"])
            states.append(pickle.loads(pickle.dumps(held)))

    def configure(model: Any) -> Any:
        more = {"momentum": 0.9} if kind in ("SGD", "RMSprop") else {}
        return getattr(torch.optim, kind)(model.net.parameters(), lr=0.01, weight_decay=0.1, **more, **options)

    clipping = PercentileGradientClipping(min_steps=1, nonfinite="skip")
    fit(package, clipping, make_model(package, configure=configure, poison=3), [Watch()], max_steps=6)
    assert len(clipping.windows[0].history) == 5
    weights, moments = states[2]
    assert all(torch.equal(weights[name], states[3][0][name]) for name in weights)
    assert str(moments) == str(states[3][1])
    assert any(not torch.equal(weights[name], states[4][0][name]) for name in weights)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("window", [None, 6])
def test_a_resumed_run_goes_on_bit_for_bit(package: Any, window: int | None, tmp_path: Any) -> None:
    class Save(package.Callback):
        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def model() -> Any:
        return make_model(package, configure=lambda model: torch.optim.SGD(model.parameters(), lr=1e-4))

    whole = PercentileGradientClipping(70, window=window, min_steps=4)
    make_trainer(package, [whole, Save()], max_epochs=5).fit(model(), make_loader(8))
    resumed = PercentileGradientClipping(70, window=window, min_steps=4)
    make_trainer(package, [resumed], max_epochs=5).fit(
        model(), make_loader(8), ckpt_path=tmp_path / "16.ckpt", **SAFE_LOADING
    )
    assert resumed.windows[0].history == whole.windows[0].history
    assert resumed.windows[0].value() == whole.windows[0].value()
    assert resumed.clipped_share == whole.clipped_share > 0


@pytest.mark.parametrize("package", PACKAGES)
def test_a_new_run_begins_afresh(package: Any) -> None:
    clipping = PercentileGradientClipping(min_steps=2)
    fit(package, clipping, max_steps=7)
    fit(package, clipping, max_steps=5)
    assert len(clipping.windows[0].history) == 5


@pytest.mark.parametrize("package", PACKAGES)
def test_norm_threshold_and_share_are_logged(package: Any, tmp_path: Any) -> None:
    clipping = PercentileGradientClipping(50, min_steps=5)
    logger = package.loggers.CSVLogger(tmp_path)
    trainer = make_trainer(package, [clipping], logger=logger, max_steps=40, log_every_n_steps=10)
    trainer.fit(make_model(package), make_loader(8))
    table = np.genfromtxt(tmp_path / "lightning_logs/version_0/metrics.csv", delimiter=",", names=True)
    history = np.array(clipping.windows[0].history)
    np.testing.assert_allclose(table["gradient_norm"], history[9::10], rtol=1e-6)
    thresholds = [np.percentile(history[:step], 50) for step in (9, 19, 29, 39)]
    np.testing.assert_allclose(table["gradient_clip_threshold"], thresholds, rtol=1e-6)
    assert table["gradient_clipped_share"][-1] == pytest.approx(clipping.clipped_share)


@pytest.mark.parametrize("package", PACKAGES)
def test_it_warns_once_when_most_updates_are_clipped(package: Any) -> None:
    clipping = PercentileGradientClipping(threshold=1e-6)
    message = (
        "PercentileGradientClipping has clipped 100% of the updates up to step 99, more than half: the playbook's "
        "advice is to lower the learning rate instead."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        fit(package, clipping, max_steps=150)
    assert sum("PercentileGradientClipping" in str(one.message) for one in caught) == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_a_second_clipping_is_refused(package: Any) -> None:
    message = (
        "`gradient_clip_val` of the Trainer is 0.5: beside PercentileGradientClipping it would clip a second time. "
        "Remove it, or pass it here as threshold=."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit(package, PercentileGradientClipping(), gradient_clip_val=0.5)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_sharded_gradients_are_refused(package: Any, name: str) -> None:
    kind = type(name, (package.strategies.SingleDeviceStrategy,), {})
    message = (
        f"`strategy` is {name}, and PercentileGradientClipping does not support it: each rank holds only a part of the "
        "gradient's norm. Use ddp, or the strategy's own clipping without this callback."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit(package, PercentileGradientClipping(), strategy=kind("cpu"), devices="auto")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"percentile": 101}, "`percentile` is 101: it must lie between 0 and 100. The playbook recommends 90."),
        (
            {"threshold": 0.0},
            "`threshold` is 0.0: it must be positive and finite. Pass a norm, for instance record.clip_threshold(90) "
            "of an earlier run, or None for the running percentile.",
        ),
        ({"window": 0}, "`window` is 0: it must be at least 1. Pass None to look at all steps before."),
        ({"min_steps": 0}, "`min_steps` is 0: the percentile needs at least 1 norm. Pass 1 or more."),
        (
            {"window": 50},
            "`window` is 50 and `min_steps` 100: a window smaller than min_steps would never clip. Pass a larger "
            "window or fewer min_steps.",
        ),
        ({"nonfinite": "stop"}, "`nonfinite` is 'stop': it must be one of ['raise', 'skip']. Pass 'raise' or 'skip'."),
    ],
)
def test_bad_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        PercentileGradientClipping(**arguments)


def test_it_is_a_callback_of_both_packages_and_pickles() -> None:
    clipping = PercentileGradientClipping()
    assert isinstance(clipping, pytorch_lightning.Callback)
    assert isinstance(clipping, lightning.pytorch.Callback)
    assert pickle.loads(pickle.dumps(clipping)).percentile == 90.0
