"""Leave the process group before the interpreter ends, in whichever process this is imported.

A process that ends in a gloo process group is aborted now and then: a thread of gloo lets go of its tensors while the
interpreter is already being taken down (pytorch/pytorch#179291). Lightning leaves the group at exit for NCCL only.
"""

from __future__ import annotations

import atexit

import torch


@atexit.register
def leave_process_group() -> None:
    """Destroy the default process group, where there is one."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
