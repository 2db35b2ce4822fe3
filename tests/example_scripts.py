"""The examples as tests and benchmarks use them: run as scripts, as a user does, or loaded to call their functions."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

EXAMPLES = Path(__file__).parents[1] / "examples"
# The trained networks are small: more threads than one only wait for each other.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}


def run(folder: Path, script: str, *arguments: str, strict: bool = True, status: int = 0) -> str:
    """Run an example and return what it printed; strictly, any warning ends it."""
    finished = subprocess.run(
        [sys.executable, *(["-W", "error"] if strict else []), str(EXAMPLES / script), *arguments],
        cwd=folder,
        env=ENVIRONMENT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=280,
    )
    assert finished.returncode == status, finished.stdout
    return finished.stdout


def load_example(name: str) -> ModuleType:
    """Return an example as a module, without running it."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
