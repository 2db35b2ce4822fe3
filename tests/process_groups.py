"""End a process of a gloo process group without a crash, in whichever process this is imported.

Such a process is aborted now and then while the interpreter is taken down ("terminate called without an active
exception"): a thread of gloo still holds a tensor of the last collective, and may not take the interpreter's lock any
more (pytorch/pytorch#179291). Lightning leaves the group at exit for NCCL only, and leaving it does not stop a thread
that the model or a mesh keeps alive.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

import torch

# For the threads to let go of what they hold.
_SECONDS = 0.3


def is_finished_script() -> bool:
    """Return whether this process ran a script to its end, and is neither pytest nor a child of multiprocessing."""
    program = Path(sys.argv[0])
    is_script = program.suffix == ".py" and program.parent.name != "pytest"
    return is_script and multiprocessing.parent_process() is None and getattr(sys, "last_value", None) is None


@atexit.register
def leave_process_group() -> None:
    """Leave the default process group, where there is one; a script has nothing left to take down."""
    if not torch.distributed.is_initialized():
        return
    time.sleep(_SECONDS)
    if is_finished_script():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    torch.distributed.destroy_process_group()
