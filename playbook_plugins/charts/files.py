"""How does a file get its new content whole or not at all?"""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> Path:
    """Write a file beside its target and move it there, so that no reader ever sees half of it.

    Parameters
    ----------
    path
        The target, in an existing folder.
    content
        What the file holds afterwards.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    OSError
        When the folder cannot be written to; nothing is left behind then.
    """
    beside = path.parent / f".playbook-{secrets.token_hex(8)}.part"
    try:
        # "x": whatever else bears that name is not ours to overwrite.
        with beside.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return path
