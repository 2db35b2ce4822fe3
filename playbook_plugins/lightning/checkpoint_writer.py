"""How does one evaluation become one or two files? One serialization, written at once, whatever the disk says.

Playbook: "Saving checkpoints and retrospectively selecting the best checkpoint".

Lightning writes checkpoints through a temporary file in TMPDIR, which another filesystem can turn into a plain copy,
and lets a full disk end the training. This writer stands in for its checkpoint plugin during one save.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import torch

from playbook_plugins.lightning.atomic_files import copy_atomically, write_atomically


class CheckpointWriter:
    """Stands in for the strategy's checkpoint plugin during one save: one serialization, one or two names."""

    def __init__(self, folder: Path, kept: str | None, last: str) -> None:
        self.folder = folder
        self.kept = kept
        self.last = last
        self.written = False
        self.problem: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the file, and give it its second name; called on rank 0 only, and it raises no OSError."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        data = buffer.getbuffer()
        target = self.folder / (self.kept or self.last)
        # An error here must not leave the other ranks waiting at the barrier after the save.
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(target, data)
            self.written = True
            if self.kept is not None:
                target = self.folder / self.last
                copy_atomically(self.folder / self.kept, target, data)
        except OSError as error:
            self.problem = describe_failure(error, str(target))


def describe_failure(error: OSError, path: str) -> str:
    """Return the words for a file that could not be written."""
    return (
        f"{path} could not be written ({error.strerror or error}): training goes on, and the checkpoints before it are "
        "intact. Make room or correct the folder's permissions before the next evaluation."
    )


def warn_of_failure(error: OSError, path: str) -> None:
    """Warn of a file that could not be written."""
    warnings.warn(describe_failure(error, path), stacklevel=3)
