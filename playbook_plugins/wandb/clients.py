"""Where does the W&B client come from? Imported at first use, so that this package loads without it."""

from __future__ import annotations

import importlib
import warnings
from typing import Any


def import_wandb() -> Any:
    """Return the module ``wandb``.

    Raises
    ------
    ImportError
        When it is not installed; the message has the pip command.
    """
    return _import("wandb", "wandb", "logs runs and reads them")


def start_wandb() -> Any:
    """Return the module ``wandb``, with its settings read and its side-car running: what goes online begins here.

    The client reads its settings at its first use, and meanwhile shows other threads the defaults: a thread that came
    a moment after the first would talk to the public server, whatever server the user has named. ``wandb.setup``
    reads them under a lock.

    Raises
    ------
    ImportError
        When it is not installed; the message has the pip command.
    """
    wandb = import_wandb()
    wandb.setup()
    return wandb


def import_reports() -> Any:
    """Return the module ``wandb_workspaces.reports.v2``, without the warnings that it gives of its own code.

    Raises
    ------
    ImportError
        When it is not installed; the message has the pip command.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return _import("wandb_workspaces.reports.v2", "wandb-workspaces", "builds reports")


def _import(module: str, package: str, purpose: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ImportError(
            f"{package} {purpose} and is not installed. Run: pip install 'playbook-plugins[wandb]'"
        ) from None
