"""Does another run write to this folder? A claim that ends with its process, so that a killed run leaves no trace.

Playbook: "Considerations for multi-host pipelines": only one host logs and saves checkpoints.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CLAIM_NAME = ".playbook_writer"


@dataclass
class _Claim:
    path: Path
    handle: int
    made_file: bool
    made_folder: bool


class FolderClaims:
    """The folders to which this process writes, each held by an advisory lock on a small file in it.

    The lock is the operating system's (``flock``): it ends with the process, however it ends. Files that were not made
    here are never deleted; one that a killed run left behind is claimed anew. Where the file system has no locks, or
    the folder cannot be written, nothing is claimed and nobody is found. Copies hold no claims.
    """

    def __init__(self) -> None:
        self._claims: list[_Claim] = []

    def __reduce__(self) -> tuple[type[FolderClaims], tuple[()]]:
        """Copy without the claims, which only one process can give back."""
        return FolderClaims, ()

    def take(self, folder: Path) -> str | None:
        """Claim a folder until `release`, and make it where it is missing.

        Returns
        -------
        str or None
            Who writes there, when it is another process or another run of this one; None when it is claimed now.
        """
        path = folder / CLAIM_NAME
        made_folder = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, made_file = _open(path)
        except OSError:
            return None
        try:
            is_free = _lock(handle)
        except OSError:
            # Nobody can hold a lock here.
            if made_file:
                path.unlink(missing_ok=True)
            os.close(handle)
            return None
        if not is_free:
            owner = _describe(_read(handle))
            os.close(handle)
            return owner
        if not _is_at(handle, path):
            # Its owner removed it between our opening and our locking.
            os.close(handle)
            return self.take(folder)
        if made_file or _read(handle) is not None:
            text = json.dumps({"host": socket.gethostname(), "pid": os.getpid()})
            os.ftruncate(handle, 0)
            os.pwrite(handle, text.encode(), 0)
        self._claims.append(_Claim(path, handle, made_file, made_folder))
        return None

    def release(self) -> None:
        """Give all folders back."""
        for claim in self._claims:
            with suppress(OSError):
                if claim.made_file and _is_at(claim.handle, claim.path):
                    claim.path.unlink()
                if claim.made_folder:
                    # Only where nothing was written to it.
                    claim.path.parent.rmdir()
            # Workers of a loader may have the file open still.
            _unlock(claim.handle)
            os.close(claim.handle)
        self._claims = []


def _open(path: Path) -> tuple[int, bool]:
    """Return the open file, and whether it was made here."""
    while True:
        with suppress(FileExistsError):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR), False


def _lock(handle: int) -> bool:
    """Return whether nobody else holds the lock, which is held then."""
    if sys.platform == "win32":
        raise OSError("no such lock")
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(handle: int) -> None:
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read(handle: int) -> dict[str, object] | None:
    """Return what the file says of its owner; empty for an empty file, None for a file of another kind."""
    text = os.pread(handle, 1000, 0)
    if not text:
        return {}
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and set(found) == {"host", "pid"} else None


def _describe(owner: dict[str, object] | None) -> str:
    return f"process {owner['pid']} on {owner['host']}" if owner else "another process"
