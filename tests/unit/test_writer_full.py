"""A disk that was full for a moment is full once: the failure is told to one caller, and the next one goes on."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from leptonstore import codec
from leptonstore.errors import StoreFull
from leptonstore.store import Store
from leptonstore.store.writer import Writer
from leptonstore.tiers.local import LocalPackSink


def test_what_is_encoded_while_a_failure_is_told_is_no_second_failure(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error was taken away before work under way had ended: that met the full disk again, and the next put was refused for it."""
    values = [np.random.default_rng(seed).bytes(300_000) for seed in range(3)]
    full, told, failed = True, threading.Event(), threading.Event()
    encode, write, let_go = codec.encode, LocalPackSink.write, Writer._let_claimed_go

    def late(data: Any, *arguments: Any, **more: Any) -> codec.Encoded:
        if bytes(data) == values[1]:
            assert told.wait(60)
        return encode(data, *arguments, **more)

    def refused(self: LocalPackSink, *data: Any) -> None:
        if full:
            failed.set()
            raise StoreFull("no space left")
        write(self, *data)

    def telling(self: Writer) -> None:
        told.set()
        let_go(self)

    monkeypatch.setattr(codec, "encode", late)
    monkeypatch.setattr(LocalPackSink, "write", refused)
    monkeypatch.setattr(Writer, "_let_claimed_go", telling)
    store.put(values[1])
    store.put(values[0])
    assert failed.wait(60)
    with pytest.raises(StoreFull):
        while True:  # the error is kept a moment after the write
            store.put(values[2])
    full = False
    kept = [store.put(value) for value in values]
    store.flush()
    assert [store.get(digest) for digest in kept] == values
