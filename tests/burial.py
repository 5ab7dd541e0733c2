"""What killed processes leave behind in memory, cleared away where it can disturb nobody.

A simulated process that was killed leaves frozen coroutines. Closing them runs their ``finally`` blocks, which complain
that there is no event loop any more; in a later test that would be a warning, and warnings are errors.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from execsafe.testing import loop


@contextmanager
def burying() -> Iterator[None]:
    """Close at the end what runs inside have left."""
    yield
    hook, sys.unraisablehook = sys.unraisablehook, lambda _complaint: None
    try:
        while loop._buried:
            for task in loop._buried.popleft():
                loop._close(task.get_coro())
        for _ in range(3):
            gc.collect()
    finally:
        sys.unraisablehook = hook
