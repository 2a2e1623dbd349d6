"""An object read in ranges is the file that it is, whatever is read and sought, and reads ahead only when it is streamed."""

from __future__ import annotations

import io
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.dataset.place_files import Ranges

DATA = bytes(range(256)) * 9


class Memory:
    """An object in memory; remembers what it was asked for."""

    def __init__(self, fail_at: int = -1) -> None:
        self.asked: list[tuple[int, int]] = []
        self.fail_at = fail_at
        self.threads: set[str] = set()

    def get_range(self, path: str, offset: int, length: int) -> memoryview:
        assert length > 0 and offset < len(DATA), "nothing is asked for in vain"
        if offset <= self.fail_at < offset + length:
            raise TimeoutError("no answer")
        self.asked.append((offset, length))
        self.threads.add(threading.current_thread().name)
        return memoryview(DATA)[offset : offset + length]


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(-1, 700)),
        st.tuples(st.just("seek"), st.integers(0, len(DATA) + 50)),
        st.tuples(st.just("back"), st.integers(-300, 0)),
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(OPERATIONS, st.sampled_from([0, 16, 100, 128]), st.sampled_from([100, 128, 5_000]))
def test_reads_are_those_of_a_file(operations: list[tuple[str, int]], buffering: int, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, "PLACE_READ_BYTES", window)
        raw = Ranges(Memory(), "x", len(DATA))
        with raw if not buffering else io.BufferedReader(raw, buffering) as file:
            expected = io.BytesIO(DATA)
            for what, number in operations:
                if what == "read":
                    data = file.read(number) or b""
                    if not buffering and number > 0:  # a raw read may be short, but not empty before the end
                        wanted = expected.read(len(data))
                        assert data == wanted and (data or expected.tell() >= len(DATA))
                    else:
                        assert data == expected.read(number)
                elif what == "seek":
                    assert file.seek(number) == expected.seek(number)
                else:
                    assert file.seek(number, 2) == expected.seek(number, 2)
                assert file.tell() == expected.tell()


def test_a_stream_is_fetched_ahead_once_and_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLACE_READ_BYTES", 100)
    memory = Memory()
    with io.BufferedReader(Ranges(memory, "x", len(DATA)), 100) as file:
        assert b"".join(iter(lambda: file.read(70), b"")) == DATA
    assert sorted(memory.asked) == [(at, min(100, len(DATA) - at)) for at in range(0, len(DATA), 100)]
    assert any(name.startswith("lepton-range") for name in memory.threads)


def test_reads_here_and_there_fetch_nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLACE_READ_BYTES", 100)
    memory = Memory()
    with Ranges(memory, "x", len(DATA)) as file:
        for at in (1_000, 0, 500, 530, 560):  # small ones, though one after the other
            file.seek(at)
            assert file.read(30) == DATA[at : at + 30]
    assert memory.asked == [(1_000, 30), (0, 30), (500, 30), (530, 30), (560, 30)]


def test_what_fails_ahead_is_raised_where_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLACE_READ_BYTES", 100)
    with io.BufferedReader(Ranges(Memory(fail_at=450), "x", len(DATA)), 100) as file:
        assert file.read(400) == DATA[:400]
        with pytest.raises(TimeoutError):
            file.read(100)
