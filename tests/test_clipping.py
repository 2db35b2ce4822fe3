from __future__ import annotations

import copy
import io
import math
import pickle
import re
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from averaging_toys import loaders, toy
from lightning_toys import PACKAGES, QUIET, SAFE_LOADING, make_gan, make_loader, make_model, make_trainer

from playbook_plugins.analysis.infeasible import InfeasibleError
from playbook_plugins.lightning.clipping import PercentileGradientClipping
from playbook_plugins.lightning.gradient_norm import total_norm
from playbook_plugins.lightning.norm_window import NormWindow, ThresholdRule, replay_thresholds

# What torch's compiler says of its own modules, when it loads them.
pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Several threads slow networks as small as these down, many times over on a busy machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


@pytest.mark.parametrize("window", [None, 7])
def test_replayed_thresholds_are_those_of_each_step(window: int | None) -> None:
    norms = np.random.default_rng(4).lognormal(size=60)
    whole = replay_thresholds(norms, ThresholdRule(80, None, window, 5))
    assert np.isnan(whole[:5]).all()
    for step in range(5, 60):
        assert whole[step] == np.percentile(norms[0 if window is None else max(0, step - window) : step], 80)
    np.testing.assert_array_equal(replay_thresholds(norms, ThresholdRule(80, None, window, 5), 20), whole[20:])
    assert replay_thresholds(norms, ThresholdRule(80, 0.5, window, 5), 50).tolist() == [0.5] * 10


def test_updates_without_a_finite_norm_keep_their_place() -> None:
    tracked = NormWindow()
    for norm in (1.0, math.nan, 2.0):
        tracked.add(norm)
    tracked.pass_over()
    tracked.add(3.0)
    assert tracked.updates().tolist() == [0, 2, 4]
    assert (list(tracked.nonfinite), list(tracked.without), tracked.n_updates) == ([1], [3], 5)
    again = NormWindow()
    again.load(tracked.packed(), list(tracked.nonfinite), list(tracked.without))
    again.add(math.inf)
    assert again.updates().tolist() == [0, 2, 4]
    assert list(again.nonfinite) == [1, 5]


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
@pytest.mark.parametrize(("window", "precision"), [(None, "32-true"), (6, "32-true"), (None, "64-true")])
def test_a_resumed_run_goes_on_bit_for_bit(package: Any, window: int | None, precision: Any, tmp_path: Any) -> None:
    class Save(package.Callback):
        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def model() -> Any:
        # Lightning loads the weights before it widens the module.
        dtype = torch.float64 if precision == "64-true" else None
        return make_model(package, configure=lambda model: torch.optim.SGD(model.parameters(), lr=1e-4), dtype=dtype)

    whole = PercentileGradientClipping(70, window=window, min_steps=4)
    make_trainer(package, [whole, Save()], max_epochs=5, precision=precision).fit(model(), make_loader(8))
    resumed = PercentileGradientClipping(70, window=window, min_steps=4)
    make_trainer(package, [resumed], max_epochs=5, precision=precision).fit(
        model(), make_loader(8), ckpt_path=tmp_path / "16.ckpt", **SAFE_LOADING
    )
    assert resumed.windows[0].history == whole.windows[0].history
    assert resumed.windows[0].value() == whole.windows[0].value()
    assert resumed.clipped_share == whole.clipped_share > 0
    np.testing.assert_array_equal(resumed.history().threshold, whole.history().threshold)
    kept = whole.state_dict()["norms"][0].dtype
    assert kept == (torch.float64 if precision == "64-true" else torch.float32)


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
def test_deepspeed_is_refused(package: Any) -> None:
    kind = type("DeepSpeedStrategy", (package.strategies.SingleDeviceStrategy,), {})
    message = (
        "`strategy` is DeepSpeedStrategy, and PercentileGradientClipping does not support it: it clips inside its "
        "engine, after the hooks. Use ddp or FSDP, or set gradient_clipping in DeepSpeed's own configuration without "
        "this callback."
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


# The history.


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("window", [None, 6])
def test_the_history_holds_the_threshold_that_was_in_force_at_every_step(package: Any, window: int | None) -> None:
    in_force = []

    class Watched(PercentileGradientClipping):
        def on_before_optimizer_step(self, trainer: Any, *hook: Any) -> None:
            in_force.append(self.current_threshold())
            super().on_before_optimizer_step(trainer, *hook)

    clipping = Watched(70, window=window, min_steps=5, nonfinite="skip")
    model = make_model(package, poison=11, configure=lambda model: torch.optim.SGD(model.parameters(), lr=1e-4))
    fit(package, clipping, model)
    history = clipping.history()
    assert history.update.tolist() == [*range(11), *range(12, 40)]
    assert history.nonfinite.tolist() == [11]
    assert history.norm.tolist() == list(clipping.windows[0].history)
    told = [None if math.isnan(threshold) else threshold for threshold in history.threshold]
    assert told == [threshold for step, threshold in enumerate(in_force) if step != 11]
    assert history.clipped_share == clipping.clipped_share > 0
    # What is not finite moved no threshold: that of the step after is the same as at the step itself.
    assert in_force[12] == in_force[11]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_history_knows_that_a_run_was_resumed_with_other_settings(package: Any, tmp_path: Any) -> None:
    def model() -> Any:
        return make_model(package, configure=lambda model: torch.optim.SGD(model.parameters(), lr=1e-4))

    first = PercentileGradientClipping(70, min_steps=4)
    trainer = make_trainer(package, [first], max_steps=16)
    trainer.fit(model(), make_loader(8))
    trainer.save_checkpoint(tmp_path / "16.ckpt")
    resumed = PercentileGradientClipping(30, window=6, min_steps=5)
    trainer = make_trainer(package, [resumed], max_steps=40)
    trainer.fit(model(), make_loader(8), ckpt_path=tmp_path / "16.ckpt", **SAFE_LOADING)
    history = resumed.history()
    norms = history.norm
    np.testing.assert_array_equal(history.threshold[:16], first.history().threshold)
    for step in range(16, 40):
        assert history.threshold[step] == np.percentile(norms[step - 6 : step], 30)
    assert history.clipped_share == resumed.clipped_share


@pytest.mark.parametrize("package", PACKAGES)
def test_a_step_without_gradients_is_passed_over(package: Any) -> None:
    class Pausing(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Linear(3, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 3 else self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    clipping = PercentileGradientClipping()
    with pytest.warns(UserWarning, match="returned `None`"):
        fit(package, clipping, Pausing(), max_steps=8)
    assert clipping.history().update.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert clipping.history().nonfinite.tolist() == []


def test_the_state_of_a_million_steps_is_four_megabytes() -> None:
    clipping = PercentileGradientClipping()
    clipping.windows, clipping._n_clipped = [NormWindow()], [0]
    clipping.windows[0].load(np.random.default_rng(1).lognormal(size=1_000_000).astype(np.float32), range(10), [])
    buffer = io.BytesIO()
    torch.save(clipping.state_dict(), buffer)
    assert buffer.tell() < 4_010_000
    buffer.seek(0)
    again = PercentileGradientClipping()
    again.load_state_dict(torch.load(buffer, weights_only=True))
    assert again.windows[0].history == clipping.windows[0].history
    assert again.windows[0].value() == clipping.windows[0].value()
    assert list(again.windows[0].nonfinite) == list(range(10))


# Where else it works.


@pytest.mark.parametrize("package", PACKAGES)
def test_a_skipped_update_of_two_optimizers_leaves_both_alone_or_one(package: Any) -> None:
    states = []

    class Watch(package.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            held = [pl_module.state_dict(), *(optimizer.state_dict()["state"] for optimizer in trainer.optimizers)]
            states.append(pickle.loads(pickle.dumps(held)))

    model = make_gan(package)

    def spoil(gradient: Any) -> Any:
        return gradient * math.nan if model.trainer.fit_loop.epoch_loop.batch_idx == 3 else gradient

    model.second.weight.register_hook(spoil)
    clipping = PercentileGradientClipping(min_steps=1, nonfinite="skip")
    fit(package, clipping, model, [Watch()], max_steps=12)
    assert clipping.history(0).update.tolist() == [0, 1, 2, 3, 4, 5]
    assert clipping.history(1).update.tolist() == [0, 1, 2, 4, 5]
    assert clipping.history(1).nonfinite.tolist() == [3]
    (weights, _, moments), (after, _, moments_after) = states[2], states[3]
    for name, value in weights.items():
        assert torch.equal(value, after[name]) == name.startswith("second"), name
    assert str(moments) == str(moments_after)
    assert str(moments) != str(states[4][2])


@pytest.mark.parametrize("package", PACKAGES)
def test_a_skipped_update_takes_its_whole_accumulation_with_it(package: Any) -> None:
    states = []

    class Watch(package.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            held = (pl_module.state_dict(), trainer.optimizers[0].state_dict()["state"])
            states.append(pickle.loads(pickle.dumps(held)))

    model = make_model(package, poison=5, configure=lambda model: torch.optim.Adam(model.parameters(), lr=0.01))
    clipping = PercentileGradientClipping(min_steps=1, nonfinite="skip")
    fit(package, clipping, model, [Watch()], max_steps=6, accumulate_grad_batches=4)
    assert clipping.history().nonfinite.tolist() == [1]
    (weights, moments), (after, moments_after) = states[3], states[7]
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert str(moments) == str(moments_after)
    # The gradients of the poisoned accumulation are gone: the next update moves, and stays finite.
    assert all(torch.isfinite(value).all() and not torch.equal(value, weights[n]) for n, value in states[11][0].items())


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(("precision", "rtol"), [("32-true", 1e-6), ("bf16-mixed", 1e-2)])
def test_accumulation_and_manual_optimization_see_the_same_norms(package: Any, precision: str, rtol: float) -> None:
    class Manual(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.inner = make_model(package)

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(self.inner.loss(batch))
            optimizer.step()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    norms = []
    for batch_size, accumulation, manual in ((8, 1, False), (2, 4, False), (8, 1, True)):
        clipping = PercentileGradientClipping(threshold=1e9)
        model = Manual() if manual else make_model(package, configure=Manual.configure_optimizers)
        trainer = make_trainer(
            package, [clipping], max_steps=10, accumulate_grad_batches=accumulation, precision=precision
        )
        trainer.fit(model, make_loader(10 * accumulation, batch_size))
        norms.append(clipping.history().norm)
    np.testing.assert_allclose(norms[1], norms[0], rtol=rtol)
    np.testing.assert_allclose(norms[2], norms[0], rtol=rtol)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_is_clipped_alike(package: Any, backend: str) -> None:
    def run(wrap: Any) -> Any:
        clipping = PercentileGradientClipping(60, min_steps=3)
        model = make_model(package)
        model.net = wrap(model.net)
        fit(package, clipping, model, max_steps=12)
        return clipping.history()

    plain, compiled = run(lambda net: net), run(lambda net: torch.compile(net, backend=backend))
    np.testing.assert_allclose(compiled.norm, plain.norm, rtol=1e-5)
    np.testing.assert_allclose(compiled.threshold, plain.threshold, rtol=1e-5)
    assert compiled.clipped.tolist() == plain.clipped.tolist()
    assert plain.clipped.any()


def test_it_is_a_callback_of_both_packages_and_pickles() -> None:
    clipping = PercentileGradientClipping()
    assert isinstance(clipping, pytorch_lightning.Callback)
    assert isinstance(clipping, lightning.pytorch.Callback)
    assert pickle.loads(pickle.dumps(clipping)).percentile == 90.0


@pytest.mark.parametrize("package", PACKAGES)
def test_it_pickles_and_copies_after_a_run(package: Any) -> None:
    clipping = PercentileGradientClipping(70, min_steps=3)
    # Lightning leaves the module's log method in the callback, so that it pickles where the module does.
    make_trainer(package, [clipping], max_steps=10, limit_val_batches=0).fit(toy(package), loaders()[0])
    for again in (pickle.loads(pickle.dumps(clipping)), copy.deepcopy(clipping)):
        np.testing.assert_array_equal(again.history().threshold, clipping.history().threshold)
        assert again.current_threshold() == clipping.current_threshold()
