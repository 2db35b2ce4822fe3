"""The callbacks from a YAML file, in the LightningCLI of both packages: what the README shows, run as it stands."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning
import torch
from lightning_toys import PACKAGES, QUIET, make_loader

import playbook_plugins.lightning
from playbook_plugins.analysis import Status
from playbook_plugins.lightning import TrialRecorder

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX` has been removed"),
    # Lightning calls what newer versions of jsonargparse have renamed.
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
]

ROOT = Path(__file__).parents[1]
[YAML] = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


NEEDED = {
    "LearningRateWarmup": {"warmup_steps": 5},
    "PeriodicEvaluation": {"every_n_steps": 20},
    "TrialRecorder": {"monitor": "val_loss", "mode": "min"},
    "BestCheckpoints": {"monitor": "val_loss"},
    "ClassCounts": {"classes": 3},
    "FixedExamples": {"n": 4},
}
EXPORTED = [
    name
    for name, kind in vars(playbook_plugins.lightning).items()
    if inspect.isclass(kind) and issubclass(kind, pytorch_lightning.Callback)
]


def run_cli(package: Any, config: Path, run: bool = True) -> Any:
    """Run ``fit --config`` of the package's LightningCLI in this process, and return the trainer."""

    class Model(package.LightningModule):
        def __init__(self, learning_rate: float = 0.1) -> None:
            super().__init__()
            self.learning_rate = learning_rate
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", torch.nn.functional.mse_loss(self.layer(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    class Data(package.LightningDataModule):
        def train_dataloader(self) -> Any:
            return make_loader(8)

        def val_dataloader(self) -> Any:
            return make_loader(2, seed=1)

    module = importlib.import_module(f"{package.__name__}.cli")
    quiet = [f"--trainer.{option}=false" for option in ("enable_progress_bar", "enable_model_summary")]
    quiet += ["--trainer.accelerator=cpu", "--trainer.devices=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["main.py", *["fit"] * run, f"--config={config}", *quiet])
        return module.LightningCLI(Model, Data, seed_everything_default=0, run=run).trainer


@pytest.mark.parametrize("package", PACKAGES)
def test_the_readmes_yaml_trains_in_the_cli(package: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(YAML)
    trainer = run_cli(package, config)
    [record] = [one.record for one in trainer.callbacks if isinstance(one, TrialRecorder)]
    assert record.status is Status.COMPLETE
    assert record.curve.step.tolist() == [0, 20, 40, 60, 80, 100, 105]
    assert len(record.checkpoints) == 3
    # What the CLI saves beside the logs describes the same run, so that it can be run again.
    (saved,) = Path(trainer.log_dir).glob("config.yaml")
    again = run_cli(package, saved)
    [repeated] = [one.record for one in again.callbacks if isinstance(one, TrialRecorder)]
    assert repeated.curve.validation.tolist() == record.curve.validation.tolist()


@pytest.mark.parametrize("package", PACKAGES)
def test_every_callback_can_be_named_in_yaml(package: Any, tmp_path: Path) -> None:
    assert len(EXPORTED) >= 8
    callbacks = [
        {"class_path": f"playbook_plugins.lightning.{name}", "init_args": NEEDED.get(name, {})} for name in EXPORTED
    ]
    config = tmp_path / "config.yaml"
    # JSON is YAML.
    config.write_text(json.dumps({"trainer": {"callbacks": callbacks}}))
    kinds = [type(one).__name__ for one in run_cli(package, config, run=False).callbacks]
    assert set(EXPORTED) <= set(kinds)
