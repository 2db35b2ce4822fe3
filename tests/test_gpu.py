"""What only a CUDA device can show: the gradient scaler, fused optimizers, memory that ends, and no unplanned wait."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_toys import PACKAGES, QUIET, make_loader, make_model, make_trainer

from playbook_plugins.analysis import Status
from playbook_plugins.lightning import (
    BatchSizeProbe,
    LearningRateWarmup,
    PercentileGradientClipping,
    PeriodicEvaluation,
    TrialRecorder,
    WeightEMA,
    playbook_callbacks,
    probe_batch_sizes,
)

pytestmark = [*QUIET, pytest.mark.gpu, pytest.mark.filterwarnings("ignore:LearningRateWarmup takes")]

N_STEPS = 40


def fit(package: Any, callbacks: list[Any], model: Any, **options: Any) -> Any:
    trainer = make_trainer(package, callbacks, **({"accelerator": "gpu", "max_steps": N_STEPS} | options))
    trainer.fit(model, make_loader(8, shuffle=True), make_loader(1))
    return trainer


def adamw(model: Any, fused: bool = True) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_overflows_float16_is_no_step(package: Any, fused: bool) -> None:
    # The scale is far too large at first: the scaler skips the update and halves it, again and again.
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**24)
    clipping, average = PercentileGradientClipping(min_steps=5), WeightEMA(half_life=5)
    recorder = TrialRecorder("val_loss", "min")
    model = make_model(package, configure=lambda model: adamw(model, fused), scale=100.0)
    plugin = package.plugins.MixedPrecision("16-mixed", "cuda", scaler)
    fit(package, [clipping, PeriodicEvaluation(10), average, recorder], model, plugins=[plugin])
    n_skipped = int(np.log2(2.0**24 / scaler.get_scale()))
    assert n_skipped > 0
    assert len(clipping.windows[0].history) == N_STEPS - n_skipped
    assert average.n_updates == (N_STEPS - n_skipped,)
    assert np.isfinite(clipping.norms).all()
    assert recorder.record.status is Status.COMPLETE
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


@pytest.mark.parametrize("package", PACKAGES)
def test_warmup_skips_no_rate_when_the_scaler_skips_a_step(package: Any) -> None:
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**24)
    model = make_model(package, configure=adamw, scale=100.0)
    plugin = package.plugins.MixedPrecision("16-mixed", "cuda", scaler)
    fit(package, [LearningRateWarmup(4)], model, plugins=[plugin])
    assert [rates[0] for rates in model.rates[:6]] == [1e-3 * step / 4 for step in range(4)] + [1e-3, 1e-3]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("bf16-mixed", 1e-2), ("16-mixed", 1e-2)])
def test_a_fused_optimizer_sees_the_same_norms(package: Any, precision: str, tolerance: float) -> None:
    seen = []
    for fused in (True, False):
        clipping = PercentileGradientClipping(50, min_steps=5)
        model = make_model(package, configure=lambda model, fused=fused: adamw(model, fused))
        torch.manual_seed(0)
        fit(package, [clipping], model, precision=precision)
        assert clipping.clipped_share > 0
        seen.append(clipping.norms)
    np.testing.assert_allclose(seen[0], seen[1], rtol=tolerance)


@pytest.fixture
def little_memory() -> Any:
    """Leave this process 2 GiB of the device."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2 * 2**30 / total))
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def hungry(package: Any) -> Any:
    """Return a model whose step takes 16 MiB an example."""

    class Hungry(type(make_model(package))):
        def loss(self, batch: Any) -> torch.Tensor:
            food = torch.zeros(len(batch[0]), 4 * 2**20, device=self.device)
            return super().loss(batch) + food.sum()

    return Hungry()


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.usefixtures("little_memory")
def test_the_probe_meets_the_end_of_the_devices_memory(package: Any) -> None:
    model = hungry(package)
    before = [value.clone() for value in model.state_dict().values()]
    result = probe_batch_sizes(model, make_loader(64, batch_size=16), max_batch_size=512, accelerator="gpu")
    assert result.limit == "memory"
    assert result.failed_batch_size == 2 * result.batch_size[-1]
    # Between 16 MiB an example and the 2 GiB that there are.
    assert result.failed_batch_size in (64, 128, 256)
    grown = np.diff(result.peak_memory) / np.diff(result.batch_size)
    np.testing.assert_allclose(grown[-2:], 2**24, rtol=0.2)
    assert all(torch.equal(*pair) for pair in zip(before, model.state_dict().values(), strict=True))


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.usefixtures("little_memory")
def test_training_goes_on_after_the_probe_ran_out_of_memory(package: Any) -> None:
    runs = []
    for callbacks in ([BatchSizeProbe(max_batch_size=512)], []):
        model = hungry(package)
        torch.manual_seed(0)
        fit(package, callbacks, model, max_steps=10)
        runs.append(model.losses)
    assert runs[0] == runs[1]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.usefixtures("little_memory")
def test_a_run_that_ends_the_devices_memory_is_infeasible(package: Any) -> None:
    recorder = TrialRecorder("val_loss", "min")
    trainer = make_trainer(package, [recorder], accelerator="gpu", max_steps=4, num_sanity_val_steps=0)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.fit(hungry(package), make_loader(2, batch_size=512), make_loader(1))
    assert recorder.record.status is Status.INFEASIBLE
    assert recorder.record.reason.startswith("out of memory: CUDA out of memory")


class Waits:
    """Counts, between two batches, how often the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.where: list[str] = []
        self.caught: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 10:
            self.caught = warnings.catch_warnings(record=True)
            self.log = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if trainer.global_step == 30:
            torch.cuda.set_sync_debug_mode("default")
            self.caught.__exit__(None, None, None)
            self.where = [f"{one.filename}:{one.lineno}" for one in self.log if "synchronizing" in str(one.message)]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_stack_waits_for_the_device_once_a_step(package: Any, tmp_path: Path) -> None:
    counts = []
    for with_stack in (False, True):
        stack = playbook_callbacks("val_loss", "min", N_STEPS, every_n_steps=N_STEPS, half_life=4, dirpath=tmp_path)
        waits = type("Waits", (Waits, package.Callback), {})()
        # Batches that lie on the device already, and a model that reads nothing back.
        x = torch.randn(64, 3, device="cuda")
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True)), batch_size=8)
        options = {"accelerator": "gpu", "max_steps": N_STEPS, "enable_checkpointing": with_stack}
        trainer = make_trainer(package, [waits, *(stack if with_stack else [])], **options)
        trainer.fit(silent(package), data, data)
        counts.append(len(waits.where) / 20)
    # The one that is planned: the norm of the gradients, which decides about the step.
    assert counts[1] - counts[0] <= 1, waits.where


def silent(package: Any) -> Any:
    class Silent(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = torch.nn.Linear(3, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", torch.nn.functional.mse_loss(self.net(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), fused=True)

    return Silent()
