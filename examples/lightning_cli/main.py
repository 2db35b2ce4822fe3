"""How are the playbook's callbacks named in a configuration file? A LightningCLI, and `config.yaml` beside it.

Run ``python main.py fit --config config.yaml``: the callbacks need no line of Python, and any setting can be changed on
the command line, for instance ``--model.learning_rate=0.3``.
"""

from __future__ import annotations

# Or `import pytorch_lightning as pl` and `from pytorch_lightning.cli import LightningCLI`: the callbacks work in both.
import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.lightning import TrialRecorder


class Classifier(pl.LightningModule):
    """A small network that reads handwritten digits.

    Args:
        learning_rate: The base learning rate of Nesterov momentum, above 0.
        width: The number of hidden units.
    """

    def __init__(self, learning_rate: float, width: int = 64) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.network = nn.Sequential(nn.Linear(64, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Return the loss of one batch."""
        inputs, targets = batch
        return functional.cross_entropy(self.network(inputs), targets)

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Log loss and error of the validation set."""
        inputs, targets = batch
        logits = self.network(inputs)
        self.log("val_loss", functional.cross_entropy(logits, targets))
        self.log("val_error", (logits.argmax(dim=1) != targets).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9, nesterov=True)


class Digits(pl.LightningDataModule):
    """1,437 scans of 8 x 8 pixels for training, 360 for validation.

    Args:
        batch_size: Examples a step.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Load and split the data, the same way for every stage."""
        del stage
        scans, digits = load_digits(return_X_y=True)
        parts = train_test_split(scans / 16.0, digits, test_size=360, random_state=0, stratify=digits)
        training, validation, targets, answers = (torch.tensor(part) for part in parts)
        self.training = TensorDataset(training.float(), targets)
        self.validation = TensorDataset(validation.float(), answers)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the training batches, shuffled."""
        return DataLoader(self.training, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the validation set as one batch."""
        return DataLoader(self.validation, len(self.validation))


def main() -> None:
    """Run the command line, and say what the recorder has seen."""
    torch.set_num_threads(1)
    cli = LightningCLI(Classifier, Digits, seed_everything_default=0)
    for callback in cli.trainer.callbacks:
        if isinstance(callback, TrialRecorder) and len(callback.record.curve):
            record = callback.record
            print(
                f"Best {record.objective_name} {record.objective:.2%} at step {record.best_step} of "
                f"{record.curve.step[-1]}; {record.clipped_share:.0%} of the updates were clipped."
            )


if __name__ == "__main__":
    main()
