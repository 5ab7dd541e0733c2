"""How a critical section that every call goes through is entered and left.

``with mutex:`` costs as much again as the mutex itself. Where that counts, it is written out::

    try:
        self._acquire()  # bound once: mutex.acquire
        ...
    except BaseException:
        let_go(mutex)
        raise
    self._release()

acquire() stands inside of the ``try``: an interrupt (Ctrl-C) may be raised right after it, and nobody else would ever
get the mutex again.
"""

from __future__ import annotations

import contextlib
import threading


def let_go(mutex: threading.RLock) -> None:
    """Release *mutex* after an exception, which may have struck before this thread had it."""
    with contextlib.suppress(RuntimeError):  # RLock's answer to a thread that does not hold it
        mutex.release()
