"""The README's blocks, run as a newcomer would: in order, in an empty folder, with their own model and objective."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
import pytest
import torch
from torch import nn

if TYPE_CHECKING:
    from wandb_server import LoopbackServer

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "tests/benchmarks"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
LINKS = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text())


def newcomers_names() -> dict[str, Any]:
    """Return what the blocks expect a user to have: an objective, a Lightning module and two loaders."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def loss(self, batch: Any) -> torch.Tensor:
            inputs, targets = batch
            return nn.functional.mse_loss(self.layer(inputs), targets)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return self.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.loss(batch))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-4, 1, log=True)
        return abs(rate - 0.01) + trial.suggest_int("layers", 1, 3)

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 4, generator=generator)
    dataset = TensorDataset(inputs, inputs.sum(dim=1, keepdim=True))
    return {
        "objective": objective,
        "model": Model(),
        "train_loader": DataLoader(dataset, batch_size=8, shuffle=True),
        "validation_loader": DataLoader(dataset, batch_size=64),
    }


def test_there_are_four_short_blocks() -> None:
    assert len(BLOCKS) == 4
    assert all(len(block.splitlines()) <= 12 for block in BLOCKS)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX` has been removed")
def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb_server: LoopbackServer) -> None:
    monkeypatch.chdir(tmp_path)
    names = newcomers_names()
    for block in BLOCKS:
        exec(compile(block, "README.md", "exec"), names)
    assert len(names["study"].trials) == 24
    assert [run.config["playbook_number"]["value"] for run in wandb_server.runs[:4]] == [20, 21, 22, 23]
    assert [names["url"]] == [f"{wandb_server.url}/my-team/digits/reports/{names['url'].rpartition('/')[2]}"]
    assert len(wandb_server.reports) == 1
    assert names["recorder"].record.curve.step.tolist() == [0, 20, 40, 60, 80, 100, 105]
    assert len(names["recorder"].record.checkpoints) == 3
    assert "<html" in (tmp_path / "report.html").read_text()


def test_links_lead_somewhere() -> None:
    assert LINKS
    assert all((ROOT / link).exists() for link in LINKS)


def rows_under(heading: str) -> list[list[str]]:
    """Return the cells of the README's table whose first column has this heading."""
    lines = (ROOT / "README.md").read_text().splitlines()
    [start] = [place for place, line in enumerate(lines) if line.startswith(f"| {heading} |")]
    table = itertools.takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_every_measured_row_is_one_that_the_benchmarks_print() -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        claims = importlib.import_module("claims")
    finally:
        sys.path.remove(str(BENCHMARKS))
    printed = [(what, f"`{name}.py`") for name, rows in claims.CLAIMS.items() for what in rows.values()]
    assert [(what, by) for what, _, _, by in rows_under("What")] == printed
    for name, rows in claims.CLAIMS.items():
        source = (BENCHMARKS / f"{name}.py").read_text()
        assert all(re.search(rf'\bclaim\(\s*"{key}"', source) for key in rows), name


def test_the_benchmarks_print_what_they_measured_as_one_table(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS), "bench_import"]
    finished = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True, check=True)
    [row] = [line for line in finished.stdout.splitlines() if line.endswith("| `bench_import.py` |")]
    assert re.search(r"\| [\d.]+ s \| [\d.]+ s, `import optuna` itself \|", row)
    assert "not measured" in finished.stdout
    assert row in (tmp_path / "runs/benchmarks.md").read_text()
    refused = subprocess.run([*command, "bench_nothing"], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert refused.returncode == 1
    assert refused.stderr.startswith("There is no benchmark bench_nothing. Choose among bench_sampler, ")


def test_the_table_names_what_exists() -> None:
    table = rows_under("Playbook")
    called = {name for _, calls, _ in table for name in re.findall(r"`([\w.]+)`", calls)}
    assert len(called) > 15
    # And each row names the tests that hold it.
    for _, _, checked in table:
        tests = re.findall(r"`(test_\w+)`", checked)
        assert tests, checked
        assert all((ROOT / f"tests/{test}.py").exists() for test in tests), checked
    for name in called:
        package, _, attribute = name.partition(".")
        if package in ("Round", "TrialRecord"):
            package, attribute = {"Round": "optuna", "TrialRecord": "analysis"}[package], name
        value: Any = importlib.import_module(f"playbook_plugins.{package}")
        for part in attribute.split("."):
            value = getattr(value, part)
