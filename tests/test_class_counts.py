"""Are the correct predictions of rare classes counted exactly, on one rank and on two?

As a script, ``python test_class_counts.py STRATEGY FOLDER`` evaluates with two real processes in both packages.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import support_runs
import torch
import torch.distributed.fsdp
from averaging_toys import restore
from lightning_toys import PACKAGES, QUIET, make_trainer
from support_runs import CELLS
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from playbook_plugins.lightning.checkpoint_index import CheckpointIndex
from playbook_plugins.lightning.checkpoints import BestCheckpoints
from playbook_plugins.lightning.class_counts import ClassCounts, count_classes
from playbook_plugins.lightning.evaluation import PeriodicEvaluation
from playbook_plugins.lightning.exact_validation import exact_validation_loader

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:`torch.jit.* is deprecated")]
N_CLASSES = 4


def examples(n: int = 53) -> TensorDataset:
    """Return examples of a frequent class, two rare ones and one that does not occur."""
    generator = torch.Generator().manual_seed(n)
    y = torch.multinomial(torch.tensor([0.7, 0.2, 0.1, 0.0]), n, replacement=True, generator=generator)
    x = torch.randn(n, 3, generator=generator) + nn.functional.one_hot(y, 4)[:, :3]
    return TensorDataset(x, y)


class _Classifier:
    """Its last evaluation is kept, example by example."""

    def build(self, cell: str = "32-true") -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, N_CLASSES))
        self.cell = cell
        self.automatic_optimization = cell != "manual optimization"
        self.seen: list[list[tuple[int, int]]] = []

    def configure_model(self) -> None:
        if self.cell == "fsdp2":
            torch.distributed.fsdp.fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        if not self.automatic_optimization:
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
        return loss

    def on_validation_start(self) -> None:
        self.seen.append([])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        x, y = batch
        scores = self.net(x)
        self.log("val_loss", nn.functional.cross_entropy(scores, y), sync_dist=True, batch_size=len(x))
        loader = self.trainer.val_dataloaders
        if not (hasattr(loader, "is_filler") and loader.is_filler(batch_idx)):
            self.seen[-1] += list(zip(scores.argmax(1).tolist(), y.tolist(), strict=True))
        return {"predictions": scores, "targets": y, "anything": "else"}

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(self.parameters(), lr=0.3) for _ in range(1 + (not self.automatic_optimization))]


class PytorchLightningClassifier(_Classifier, pytorch_lightning.LightningModule):
    def __init__(self, cell: str = "32-true") -> None:
        super().__init__()
        self.build(cell)


class LightningClassifier(_Classifier, lightning.pytorch.LightningModule):
    def __init__(self, cell: str = "32-true") -> None:
        super().__init__()
        self.build(cell)


def make_classifier(package: Any, cell: str = "32-true") -> Any:
    return (PytorchLightningClassifier if package is pytorch_lightning else LightningClassifier)(cell)


def tally(seen: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Return the examples and the correct predictions of each class, counted one by one."""
    n_examples = [sum(y == place for _, y in seen) for place in range(N_CLASSES)]
    n_correct = [sum(y == place == guess for guess, y in seen) for place in range(N_CLASSES)]
    return n_examples, n_correct


def logger_of(package: Any) -> Any:
    class Kept(package.loggers.logger.DummyLogger):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[Any] = []

        def log_metrics(self, metrics: Any, step: int) -> None:
            self.rows.append((step, dict(metrics)))

    return Kept()


class Note(lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Keeps what the callbacks that follow read."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, Any]] = []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.metrics.append({name: value.item() for name, value in trainer.callback_metrics.items()})


def settings_of(package: Any, cell: str) -> dict[str, Any]:
    if cell == "16-mixed":
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        return {"plugins": [package.plugins.precision.MixedPrecision("16-mixed", "cpu", scaler)]}
    if cell in support_runs.PRECISIONS:
        return {"precision": cell}
    return {"accumulate_grad_batches": 2} if cell == "accumulation" else {}


ONE_PROCESS = [pytest.param(cell, marks=pytest.mark.slow) if cell == "compile" else cell for cell in CELLS]


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("cell", ONE_PROCESS)
def test_every_evaluation_is_counted(package: Any, cell: str) -> None:
    model, logger, note = make_classifier(package, cell), logger_of(package), Note()
    # Registered before the callback: the counts must not depend on the order.
    callbacks = [note, ClassCounts(N_CLASSES, max_examples=20), PeriodicEvaluation(2)]
    options = settings_of(package, cell) | {"logger": logger, "log_every_n_steps": 1}
    trainer = make_trainer(package, callbacks, max_steps=8 if cell == "manual optimization" else 4, **options)
    fitted = torch.compile(model, backend=support_runs.COMPILER) if cell == "compile" else model
    trainer.fit(fitted, DataLoader(examples(64), batch_size=8), DataLoader(examples(), batch_size=16))
    rows = [(step, row) for step, row in logger.rows if "val_correct/class_1" in row]
    # On the same axis as what the module logs.
    assert [step for step, _ in rows] == [step for step, row in logger.rows if "val_loss" in row]
    assert len(model.seen) == len(rows) == len(note.metrics) == (5 if cell == "manual optimization" else 3)
    for seen, (_, row), metrics in zip(model.seen, rows, note.metrics, strict=True):
        n_examples, n_correct = tally(seen)
        assert sum(n_examples) == 53
        expected = {f"val_correct/class_{place}": n_correct[place] for place in (1, 2)}
        expected |= {f"val_examples/class_{place}": n_examples[place] for place in (1, 2)}
        assert row == expected
        assert all(type(value) is int for value in row.values())
        assert {name: value for name, value in metrics.items() if name != "val_loss"} == expected
    assert callbacks[1].n_examples == dict(zip(callbacks[1].names, n_examples, strict=True))
    assert callbacks[1].n_correct == dict(zip(callbacks[1].names, n_correct, strict=True))
    assert len({tuple(row.values()) for _, row in rows}) > 1


@pytest.mark.parametrize("package", PACKAGES)
def test_training_and_the_users_metrics_are_the_same(package: Any) -> None:
    runs = []
    for callbacks in ([], [ClassCounts(N_CLASSES)]):
        model, note = make_classifier(package), Note()
        trainer = make_trainer(package, [*callbacks, note, PeriodicEvaluation(2)], max_steps=4)
        trainer.fit(model, DataLoader(examples(64), batch_size=8), DataLoader(examples(), batch_size=16))
        runs.append((model.state_dict(), [row["val_loss"] for row in note.metrics], torch.rand(1)))
        torch.manual_seed(0)
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize("package", PACKAGES)
def test_all_classes_by_name_over_two_loaders_outside_of_a_fit(package: Any, tmp_path: Path) -> None:
    model, counts = make_classifier(package), ClassCounts(["cat", "dog", "owl", "none"], max_examples=None)
    logger = package.loggers.CSVLogger(tmp_path, name="", version="")
    trainer = make_trainer(package, [counts], logger=logger)
    loaders = [DataLoader(examples(), batch_size=16), DataLoader(examples(20), batch_size=16)]
    trainer.validate(model, loaders, verbose=False)
    n_examples, n_correct = tally(model.seen[0])
    assert sum(n_examples) == 73
    names = ["cat", "dog", "owl"]
    logged = {name: int(value) for name, value in trainer.callback_metrics.items() if not name.startswith("val_loss")}
    assert logged == {f"val_correct/{name}": n for name, n in zip(names, n_correct, strict=False)} | {
        f"val_examples/{name}": n for name, n in zip(names, n_examples, strict=False)
    }
    assert counts.n_examples == dict(zip([*names, "none"], n_examples, strict=True))
    assert "val_correct/owl" in (tmp_path / "metrics.csv").read_text()
    # Counted anew each time, and another evaluation's examples are not added.
    trainer.validate(model, loaders[0], verbose=False)
    assert sum(counts.n_examples.values()) == 53


@pytest.mark.parametrize("package", PACKAGES)
def test_the_sanity_check_is_not_logged_and_checkpoints_list_the_counts(package: Any, tmp_path: Path) -> None:
    logger = logger_of(package)
    files = BestCheckpoints("val_loss", dirpath=tmp_path)
    options = {"num_sanity_val_steps": 1, "val_check_interval": 4, "logger": logger, "log_every_n_steps": 1}
    trainer = make_trainer(package, [files, ClassCounts(N_CLASSES)], max_steps=8, enable_checkpointing=True, **options)
    model = make_classifier(package)
    trainer.fit(model, DataLoader(examples(64), batch_size=8), DataLoader(examples(), batch_size=16))
    assert len(model.seen) == 3
    assert [step for step, row in logger.rows if "val_correct/class_1" in row] == [3, 7]  # as Lightning numbers them
    for row, seen in zip(CheckpointIndex.read(tmp_path).evaluations, model.seen[1:], strict=True):
        assert row.metrics["val_correct/class_2"] == tally(seen)[1][2]


def test_counts_by_hand() -> None:
    names = ["a", "b", "c"]
    y = torch.tensor([0, 1, 1, 2, -100])
    expected = [[1, 2, 1], [1, 1, 0]]
    guesses = torch.tensor([0, 1, 2, 1, 0])
    assert count_classes({"predictions": guesses, "targets": y}, names).tolist() == expected
    scores = nn.functional.one_hot(guesses, 3).float()
    assert count_classes({"predictions": scores, "targets": y}, names).tolist() == expected
    # One target a pixel: (batch, height, width) and (batch, class, height, width).
    image = count_classes({"predictions": scores.T.reshape(1, 3, 5, 1), "targets": y.reshape(1, 5, 1)}, names)
    assert image.tolist() == expected
    pair = count_classes({"predictions": torch.tensor([True, False]), "targets": torch.tensor([1, 1])}, ["no", "yes"])
    assert pair.tolist() == [[0, 2], [0, 1]]
    # As many examples as classes: classes are not taken for scores.
    square = {"predictions": torch.tensor([2, 1, 0]), "targets": torch.tensor([2, 2, 0])}
    assert count_classes(square, names).tolist() == [[1, 0, 2], [1, 0, 1]]
    empty = {"predictions": torch.zeros(0, 3), "targets": torch.zeros(0, dtype=torch.int64)}
    assert count_classes(empty, names).tolist() == [[0, 0, 0], [0, 0, 0]]


NEEDED = (
    'ClassCounts needs what was predicted and what is right. Return {"predictions": scores, "targets": y}, among '
    "others."
)
FIT = (
    "they must be classes of one shape, or the predictions scores of shape (batch, 3, ...). For two classes, return "
    "for instance probability > 0.5."
)
INTEGERS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (None, f"`validation_step` returned NoneType: {NEEDED}"),
        ({"targets": 1, "loss": 2}, f"`validation_step` returned ['loss', 'targets']: {NEEDED}"),
        (
            {"predictions": torch.zeros(2), "targets": INTEGERS},
            f"`predictions` has shape (2,) and type torch.float32, `targets` (2,) and torch.int64: {FIT}",
        ),
        (
            {"predictions": torch.zeros(2, 4), "targets": INTEGERS},
            f"`predictions` has shape (2, 4) and type torch.float32, `targets` (2,) and torch.int64: {FIT}",
        ),
        (
            {"predictions": INTEGERS, "targets": torch.tensor([0, 3])},
            "`targets` holds 3, and `classes` gives 3, numbered from 0. Pass all classes to ClassCounts.",
        ),
    ],
)
def test_outputs_that_do_not_fit(outputs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        count_classes(outputs, ["a", "b", "c"])


@pytest.mark.parametrize("classes", [0, -1, True, [], ["a", "a"], "abc"])
def test_classes_are_checked(classes: Any) -> None:
    message = (
        f"`classes` is {classes!r}: it must be the number of classes, at least 1, or a list of their names, each once. "
        "Pass for instance 10."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ClassCounts(classes)


def test_the_threshold_is_checked() -> None:
    message = "`max_examples` is 0: it must be at least 1, or None to log every class. Pass for instance 100."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ClassCounts(3, max_examples=0)


@pytest.mark.parametrize("package", PACKAGES)
@pytest.mark.parametrize("kind", ["FSDPStrategy", "Stage2"])
def test_strategies_that_are_refused(package: Any, kind: str, tmp_path: Path) -> None:
    strategies = package.strategies

    class Stage2(strategies.DeepSpeedStrategy):  # type: ignore[misc]
        """The real class, of which only what needs the library itself is left out."""

        def __init__(self) -> None:
            strategies.DDPStrategy.__init__(self, process_group_backend="gloo")

        setup_environment = strategies.DDPStrategy.setup_environment
        setup_distributed = strategies.DDPStrategy.setup_distributed

    options = {"strategy": Stage2()} if kind == "Stage2" else support_runs.fsdp_options(package, "fsdp1", n_devices=1)
    environment = dict(os.environ)
    message = (
        f"`strategy` is {kind}, and ClassCounts does not support it: its evaluation has not been tried with counts "
        "over ranks. Use ddp, or ModelParallelStrategy (FSDP2)."
    )
    try:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            support_runs.fit(package, [ClassCounts(3)], folder=tmp_path, **options)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        restore(environment)


# Examples and batch size: of the second, one rank runs a batch that does not count; 0 stands for a loader of torch.
CASES = [(53, 16), (3, 1), (53, 0)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "fsdp2"])
def test_two_processes(strategy: str, tmp_path: Path) -> None:
    command = [sys.executable, str(Path(__file__)), strategy, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for package in support_runs.PACKAGES:
        for n, size in CASES[:1] if strategy == "ddp_spawn" else CASES[:2]:
            # Also where the counts come back from other processes.
            assert json.loads((tmp_path / f"{package}-{n}-{size}.json").read_text()) == n
            ranks = [json.loads((tmp_path / f"{package}-{n}-{size}-{rank}.json").read_text()) for rank in (0, 1)]
            assert len(ranks[0]["metrics"]) == 3
            for parts in zip(*(rank["seen"] for rank in ranks), *(rank["metrics"] for rank in ranks), strict=True):
                seen = [(guess, y) for guess, y in parts[0] + parts[1]]
                n_examples, n_correct = tally(seen)
                assert sorted(y for _, y in seen) == sorted(examples(n).tensors[1].tolist())
                expected = {f"val_correct/class_{place}": n_correct[place] for place in range(4) if n_examples[place]}
                expected |= {
                    f"val_examples/class_{place}": n_examples[place] for place in range(4) if n_examples[place]
                }
                for metrics in parts[2:]:
                    assert {name: value for name, value in metrics.items() if name != "val_loss"} == expected
        if strategy != "ddp_spawn":
            # Lightning's own sampler repeats the first example to make two equal halves of 53.
            assert json.loads((tmp_path / f"{package}-53-0.json").read_text()) == 54


class Write(Note):
    """Leaves what one rank saw in a file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        notes = {"seen": pl_module.seen, "metrics": self.metrics}
        Path(f"{self.path}-{trainer.global_rank}.json").write_text(json.dumps(notes))


def main(strategy: str, folder: Path) -> None:
    for name, package in support_runs.PACKAGES.items():
        for n, size in CASES[:1] if strategy == "ddp_spawn" else CASES:
            kind = support_runs.fsdp_options(package, "fsdp2") if strategy == "fsdp2" else {"strategy": strategy}
            options = {"devices": 2, "max_steps": 4, "use_distributed_sampler": True, **kind}
            counts = ClassCounts(N_CLASSES)
            callbacks = [counts, Write(f"{folder}/{name}-{n}-{size}"), PeriodicEvaluation(2)]
            trainer = make_trainer(package, callbacks, **options)
            loader = exact_validation_loader(examples(n), size) if size else DataLoader(examples(n), batch_size=16)
            train_loader = DataLoader(examples(64), batch_size=8 if size != 1 else 1)
            trainer.fit(make_classifier(package, strategy), train_loader, loader)
            if trainer.is_global_zero:
                logged = trainer.callback_metrics
                n_counted = sum(int(value) for key, value in logged.items() if key.startswith("val_examples/"))
                (folder / f"{name}-{n}-{size}.json").write_text(json.dumps(n_counted))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
