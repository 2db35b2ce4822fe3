from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before torch and numpy are loaded, here and in the processes that tests start: several threads slow networks as small
# as these down, many times over where the tests themselves run in parallel.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import optuna
import pytest

if TYPE_CHECKING:
    from command_line import Output
    from wandb_server import LoopbackServer


@pytest.fixture(autouse=True)
def _quiet_optuna() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    from wandb_server import start_server

    yield from start_server(tmp_path, monkeypatch)


@pytest.fixture
def playbook(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Output]:
    from command_line import make_runner

    return make_runner(capsys, monkeypatch, tmp_path / "working")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and torch sees none"))
