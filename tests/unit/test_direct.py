"""Writing around the page cache: what is appended is what the file has, whatever the filesystem can do."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonstore import limits
from leptonstore.errors import StoreFull
from leptonstore.tiers import direct
from leptonstore.tiers.direct import ALIGN, Appender, Buffers, append_buffers
from leptonstore.tiers.local import LocalTier

PARTS = st.lists(st.binary(max_size=3 * ALIGN) | st.integers(0, 3 * ALIGN).map(bytes), max_size=12)


@pytest.fixture(scope="module")
def disk() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def refuse_in_fcntl(fd: int, on: bool) -> bool:
    return False


def refuse_in_write(fd: int, data: memoryview, offset: int) -> None:
    """As a device does whose blocks are larger than ours."""
    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
        raise OSError(errno.EINVAL, "blocks of another size")
    assert os.pwrite(fd, data, offset) == len(data)


@pytest.mark.parametrize("refused", ["nowhere", "set_direct", "write_all"])
@given(parts=PARTS, data=st.data())
def test_a_file_has_what_was_appended_and_reads_it_at_any_time(
    refused: str,
    parts: list[bytes],
    data: st.DataObject,
    disk: ThreadPoolExecutor,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("direct") / "file"
    with pytest.MonkeyPatch.context() as patch:
        if refused != "nowhere":
            patch.setattr(direct, refused, refuse_in_fcntl if refused == "set_direct" else refuse_in_write)
        fd, reading = os.open(path, os.O_RDWR | os.O_CREAT), os.open(path, os.O_RDONLY)
        appender, expected = Appender(fd, reading, Buffers(2 * ALIGN, 2), lambda: disk), b""
        for part in parts:
            appender.append(part, part[:3])
            expected += part + part[:3]
            start = data.draw(st.integers(0, len(expected)))
            length = data.draw(st.integers(0, len(expected) - start))
            assert appender.read(start, length) == expected[start : start + length]
        assert appender.length == appender.finish() == len(expected)
        assert path.read_bytes() == expected == appender.read(0, len(expected))
        appender.settle()
        os.close(fd)
        os.close(reading)


def test_an_error_of_the_writing_thread_reaches_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is met by a thread of its own: the pack must not be sealed without what did not fit."""
    real = os.pwritev

    def full(fd: int, parts: list[memoryview], offset: int) -> int:
        if offset >= ALIGN:
            raise OSError(errno.ENOSPC, "no space left")
        return real(fd, parts, offset)

    monkeypatch.setattr(os, "pwritev", full)
    monkeypatch.setattr("leptonstore.tiers.local.append_buffers", Buffers(ALIGN, 4))
    tier = LocalTier(tmp_path)
    sink = tier.create_pack("0" * 32)
    sink.write(bytes(2 * ALIGN))
    with pytest.raises(StoreFull):
        sink.seal()
    sink.abort()
    tier.close()
    assert tier.pack_bytes("0" * 32) is None and not list((tmp_path / "tmp").iterdir())


def test_a_pack_that_is_dropped_while_it_is_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor is closed only when the writing thread is done with it: another file may get the number."""
    monkeypatch.setattr("leptonstore.tiers.local.append_buffers", Buffers(1 << 20, 4))
    tier = LocalTier(tmp_path)
    for _ in range(20):
        sink = tier.create_pack("1" * 32)
        sink.write(bytes(3 << 20))
        sink.abort()
        other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        assert os.fstat(other).st_size == 0
        os.close(other)
    tier.close()
    assert (tmp_path / "other").stat().st_size == 0 and not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("cached", [True, False])
@given(data=st.data())
def test_reading_once_reads_the_same(
    cached: bool, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Around the page cache or from it, within the file or over its end, in blocks or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leptonstore.limits.DIRECT_READ_BYTES_MIN", 1)
        tier = LocalTier(tmp_path_factory.mktemp("once"))
        content = np.random.default_rng(0).bytes(data.draw(st.integers(1, 5 * ALIGN)))
        sink = tier.create_pack("2" * 32)
        sink.write(content)
        sink.seal()
        sink.abort()
        for _ in range(4):
            if not cached:
                fd = os.open(tier.path_of("2" * 32), os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)
            start = data.draw(st.integers(0, len(content)))
            length = data.draw(st.integers(1, len(content) - start + 100))
            assert bytes(tier.read_once("2" * 32, start, length)) == content[start : start + length]
        tier.close()


def test_spare_memory_is_bounded_for_a_process_however_many_directories_it_writes_to(tmp_path: Path) -> None:
    """A daemon has a store open for each writer: each kept 16 MiB of its own, until Python's collector came to the closed ones."""
    tiers = [LocalTier(tmp_path / str(number)) for number in range(2 * limits.APPEND_BUFFERS_SPARE_MAX)]
    sinks = [tier.create_pack(f"{number:032x}") for number, tier in enumerate(tiers)]
    for sink in sinks:
        sink.write(b"x")
    assert not append_buffers.spare  # all of it is at work
    for sink in sinks:
        sink.seal()
    assert append_buffers.spare == limits.APPEND_BUFFERS_SPARE_MAX
    for sink, tier in zip(sinks, tiers, strict=True):
        sink.abort()
        tier.close()


def test_a_forked_child_does_not_write_into_its_parents_spare_memory() -> None:
    append_buffers.give(append_buffers.take())
    child = os.fork()
    if not child:
        os._exit(append_buffers.spare)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert append_buffers.spare
