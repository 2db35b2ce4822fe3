"""When does a point of the search space itself fail? What training code raises for it, and running out of memory.

Playbook: "Identifying bad search space boundaries": infeasible points are shown, counted and explained, never dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playbook_plugins.analysis.records import TrialRecord

# What torch's allocators say: CUDA, XPU and MPS "out of memory", the CPU "can't allocate memory".
_WORDS = ("out of memory", "defaultcpuallocator", "can't allocate memory")


class InfeasibleError(Exception):
    """Raised by training code to say that a point of the search space cannot be trained.

    Parameters
    ----------
    reason
        Why, in words that the report can show, for instance ``"diverged at step 120"``.

    Attributes
    ----------
    reason
        As given.
    record
        What was recorded until then, where a recorder kept a history; otherwise None.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.record: TrialRecord | None = None


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, whichever framework raised it.

    Parameters
    ----------
    error
        Any exception. `MemoryError`, the frameworks' own ``OutOfMemoryError``, and a `RuntimeError` with the words of
        an allocator count.
    """
    if isinstance(error, MemoryError) or any(base.__name__ == "OutOfMemoryError" for base in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)
