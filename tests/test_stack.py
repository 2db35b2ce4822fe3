"""The whole stack of callbacks, as the quickstart uses it: what each promises, kept in the company of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning_toys import QUIET
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.analysis import Status
from playbook_plugins.lightning import (
    BatchNormSync,
    BestCheckpoints,
    LearningRateWarmup,
    PercentileGradientClipping,
    PeriodicEvaluation,
    TrialRecorder,
    WeightEMA,
)

PACKAGES = [pytest.param(pytorch_lightning, id="pytorch_lightning"), pytest.param(lightning.pytorch, id="lightning")]
pytestmark = QUIET


def make_model(package: Any) -> Any:
    class Model(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.network = torch.nn.Sequential(
                torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
            )

        def loss(self, batch: Any) -> torch.Tensor:
            inputs, targets = batch
            return torch.nn.functional.mse_loss(self.network(inputs), targets)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)

    return Model()


def make_loader(n_examples: int, batch_size: int, seed: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n_examples, 4, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs.prod(dim=1, keepdim=True)), batch_size=batch_size)


def run(
    package: Any, folder: Path, ckpt_path: str | None = None, reverse: bool = False, save_top_k: int = 3
) -> tuple[Any, list[Any]]:
    """Train for 100 steps after 5 of warmup, 8 steps an epoch, and return the model and the callbacks."""
    callbacks = [
        LearningRateWarmup(5),
        PercentileGradientClipping(min_steps=20),
        PeriodicEvaluation(10),
        WeightEMA(),
        BatchNormSync(),
        TrialRecorder("val_loss", "min"),
        BestCheckpoints("val_loss", "min", save_top_k=save_top_k, dirpath=folder),
    ]
    trainer = package.Trainer(
        max_steps=100,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks[::-1] if reverse else callbacks,
    )
    model = make_model(package)
    trainer.fit(model, make_loader(64, 8, seed=0), make_loader(64, 64, seed=1), ckpt_path=ckpt_path)
    return model, callbacks


def evaluate(model: Any) -> float:
    model.eval()
    with torch.no_grad():
        [batch] = make_loader(64, 64, seed=1)
        return float(model.loss(batch))


@pytest.mark.parametrize("package", PACKAGES)
def test_record_checkpoints_and_final_model_tell_the_same(package: Any, tmp_path: Path) -> None:
    model, [*_, ema, _, recorder, checkpoints] = run(package, tmp_path)
    record = recorder.record
    assert record.status is Status.COMPLETE
    assert record.max_steps == 105
    assert record.curve.step.tolist() == [*range(0, 101, 10), 105]
    # The final model is the average, and the last evaluation was made with it.
    assert evaluate(model) == pytest.approx(record.final_objective, rel=1e-6)
    assert ema.n_updates == (105,)
    scores = {evaluation.step: evaluation.metrics["val_loss"] for evaluation in checkpoints.evaluations}
    assert scores == pytest.approx(dict(zip(record.curve.step.tolist(), record.curve.validation, strict=True)))
    assert list(record.checkpoints) == [str(path) for path in checkpoints.kept_checkpoints]
    ranked = sorted(scores, key=lambda step: scores[step])
    for step, path in zip(ranked[:3], record.checkpoints, strict=True):
        loaded = make_model(package)
        loaded.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
        assert evaluate(loaded) == pytest.approx(scores[step], rel=1e-6)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reverse_order_gives_the_same_run(package: Any, tmp_path: Path) -> None:
    model, callbacks = run(package, tmp_path / "usual")
    other, others = run(package, tmp_path / "reverse", reverse=True)
    np.testing.assert_array_equal(callbacks[5].record.curve.validation, others[5].record.curve.validation)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("package", PACKAGES)
def test_a_resumed_run_ends_where_the_straight_run_ends(package: Any, tmp_path: Path) -> None:
    model, callbacks = run(package, tmp_path / "straight", save_top_k=-1)
    curve = callbacks[5].record.curve
    # At the end of an epoch: in its middle the loader would have to know where it was.
    [start] = [path for path in callbacks[6].kept_checkpoints if Path(path).name == "step=80.ckpt"]
    resumed, others = run(package, tmp_path / "resumed", ckpt_path=str(start), save_top_k=-1)
    np.testing.assert_array_equal(others[5].record.curve.step, curve.step)
    np.testing.assert_array_equal(others[5].record.curve.validation, curve.validation)
    for one, two in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)
