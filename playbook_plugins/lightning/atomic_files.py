"""How is a file written so that no reader ever finds half of it? Beside its target, flushed, then renamed onto it.

Playbook: "Saving checkpoints and retrospectively selecting the best checkpoint".

A rename replaces a file at once only within one filesystem, so the temporary file lies in the target's own folder,
wherever TMPDIR points. Until the rename the earlier file is intact; after it the new one is whole, because its data
were flushed to the disk before.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path

_TEMPORARY = re.compile(r"^\..+\.(?P<host>[^.]*)\.(?P<process>\d+)\.playbook-tmp$")


def write_atomically(target: Path, data: bytes | memoryview) -> None:
    """Write a file, or leave the one that is there; a failed attempt leaves nothing behind.

    Raises
    ------
    OSError
        When the disk is full, or the folder is missing or cannot be written.
    """
    temporary = _temporary(target)
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def copy_atomically(source: Path, target: Path, data: bytes | memoryview) -> None:
    """Give a file just written a second name, without a second copy where the filesystem has hard links.

    Both names are only ever replaced as a whole, never written into, so that neither can change the other.

    Parameters
    ----------
    source, target
        Files of one folder.
    data
        The content of `source`, written to `target` where there are no hard links.

    Raises
    ------
    OSError
        As `write_atomically`.
    """
    temporary = _temporary(target)
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
    except OSError:
        write_atomically(target, data)
        return
    try:
        os.replace(temporary, target)
    finally:
        # A rename between two names of the same file does nothing, and leaves both.
        temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make the renames in a folder survive a power failure, where the platform lets folders be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes: only of this host, and only where the process is gone."""
    for path in folder.iterdir():
        match = _TEMPORARY.match(path.name)
        if match and match["host"] == _host() and not _is_alive(int(match["process"])):
            with contextlib.suppress(OSError):
                path.unlink()


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{_host()}.{os.getpid()}.playbook-tmp")


def _host() -> str:
    return socket.gethostname().replace(".", "-")


def _is_alive(process: int) -> bool:
    if process == os.getpid():
        return False  # this process has not written yet; an earlier one had its number
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
