"""Training that something happens to: it saves at every step until it is killed, or its disk becomes full.

``python checkpoint_run.py killed PACKAGE FOLDER`` says "ready" and trains until a signal ends it.
``python checkpoint_run.py full PACKAGE FOLDER REPORT`` needs a mount namespace of its own: it mounts a small filesystem
at the folder, fills it for a while, and copies what was left to the folder REPORT.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch
import pytorch_lightning
from averaging_toys import loaders, toy, trainer

from playbook_plugins.lightning.checkpoints import BestCheckpoints
from playbook_plugins.lightning.weight_ema import WeightEMA

PACKAGES = {"pytorch_lightning": pytorch_lightning, "lightning.pytorch": lightning.pytorch}
FULL_FROM, FULL_TO = 4, 8  # steps
SIZE = "256k"  # room for a dozen files


class FullDisk(lightning.pytorch.Callback, pytorch_lightning.Callback):
    """Take all the room that is left on a filesystem at one step; at another, copy what there is and give it back."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self.folder, self.copy = folder, copy
        self.filler = folder / "filler"

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == FULL_FROM:
            with open(self.filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * 1024)
        if trainer.global_step == FULL_TO:
            self.filler.unlink()
            shutil.copytree(self.folder, self.copy)


def train_until_killed(package: Any, folder: Path) -> None:
    callbacks = [WeightEMA(decay=0.9), BestCheckpoints("val_loss", save_top_k=3, dirpath=folder)]
    fitted = trainer(package, folder, callbacks, max_steps=100000, max_epochs=-1, val_check_interval=1)
    model = toy(package, learning_rate=1e-4)
    print("ready", flush=True)  # noqa: T201
    fitted.fit(model, *loaders())


def train_on_a_full_disk(package: Any, folder: Path, report: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", folder], check=True)
    callback = BestCheckpoints("val_loss", save_top_k=1, dirpath=folder)
    fitted = trainer(package, report, [FullDisk(folder, report / "full"), callback], max_steps=10, val_check_interval=2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted.fit(toy(package, learning_rate=1e-3), *loaders())
    told = [str(warning.message) for warning in caught if "could not be" in str(warning.message)]
    results = {
        "steps": fitted.global_step,
        "told": told,
        "best": os.path.basename(callback.best_model_path),
        "files": [row.file for row in callback.evaluations],
    }
    shutil.copytree(folder, report / "end")
    (report / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    task, name, *folders = sys.argv[1:]
    function = {"killed": train_until_killed, "full": train_on_a_full_disk}[task]
    function(PACKAGES[name], *map(Path, folders))
