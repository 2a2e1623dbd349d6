"""What a daemon lets go of: see leptonstore/daemon/memory.py."""

from __future__ import annotations

import gc
import weakref

from leptonstore.daemon.memory import give_back, settle
from leptonstore.tiers.direct import append_buffers


class Circle:
    """As a store and its writer."""

    def __init__(self) -> None:
        self.itself = self


def test_what_refers_to_itself_is_gone_after_work_that_gives_back() -> None:
    gc.disable()
    try:
        made = weakref.ref(Circle())
        assert made() is not None
        give_back()
        assert made() is None
    finally:
        gc.enable()


def test_memory_that_waits_for_the_next_pack_is_given_back_too() -> None:
    append_buffers.give(append_buffers.take())
    assert append_buffers.spare
    give_back()
    assert not append_buffers.spare


def test_what_was_there_when_a_daemon_was_ready_is_not_looked_at_again() -> None:
    kept = Circle()
    settle()
    try:
        assert gc.get_freeze_count() > 0
        assert not any(one is kept for one in gc.get_objects())
        later = weakref.ref(Circle())
        give_back()
        assert later() is None
    finally:
        gc.unfreeze()
