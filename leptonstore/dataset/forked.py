"""Locks of what lies in memory, in a forked child: a thread of the parent that held one is not there to let it go.

What such a lock guards are bounded caches, whose steps are whole whatever the moment of the fork; at worst one counts a value's
bytes wrong once. Found by worker processes of a loader that were forked while a second loader's threads read the same dataset: one child in
a hundred waited for ever.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class Locked(Protocol):
    """Something with a lock that its methods hold for a moment."""

    _lock: threading.Lock


_every: weakref.WeakSet[Locked] = weakref.WeakSet()


def renew_in_children(owner: Locked) -> None:
    """A forked child has a lock of its own there, which nobody holds. For as long as `owner` lives."""
    _every.add(owner)


def _in_child() -> None:
    for owner in list(_every):
        owner._lock = threading.Lock()


os.register_at_fork(after_in_child=_in_child)
