"""Which Lightning is installed? Base classes that work in the Trainers of both packages.

`pytorch_lightning.Trainer` accepts only its own `Callback`, `lightning.pytorch.Trainer` only its own. A class with
both as bases works in both, so each callback here derives from the base of whichever packages are installed.
"""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType
from typing import TYPE_CHECKING

__all__ = ["CallbackBase", "ModelCheckpointBase"]

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _installed_packages() -> tuple[ModuleType, ...]:
    found = [name for name in _PACKAGES if importlib.util.find_spec(name.partition(".")[0]) is not None]
    if not found:
        raise ImportError(
            "playbook_plugins.lightning needs PyTorch Lightning, and neither `pytorch_lightning` nor `lightning` is "
            "installed. Run: pip install 'playbook-plugins[lightning]'"
        )
    return tuple(importlib.import_module(name) for name in found)


if TYPE_CHECKING:
    from pytorch_lightning import Callback as CallbackBase
    from pytorch_lightning.callbacks import ModelCheckpoint as ModelCheckpointBase
else:
    packages = _installed_packages()
    CallbackBase = type("CallbackBase", tuple(package.Callback for package in packages), {})
    ModelCheckpointBase = type(
        "ModelCheckpointBase", tuple(package.callbacks.ModelCheckpoint for package in packages), {}
    )
