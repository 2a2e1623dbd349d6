"""Blocks on their way from the bucket: of all that ask this member for one, one request is made."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.block_files import Key
from leptonstore.daemon.cluster.blocks import Blocks
from leptonstore.digest import Buffer
from leptonstore.errors import TierUnavailable

Fetch = Callable[[str, int, int], Buffer]  # pack, offset, length -> bytes, fewer where the pack ends


class Flights:
    """Any thread. What is fetched is kept in `blocks` before whoever waits is told."""

    def __init__(
        self, fetch: Fetch, blocks: Blocks, owned: Callable[[Key], bool], count: Callable[[str, int], None]
    ) -> None:
        """fetch: one request to the bucket; raises FileNotFoundError, OSError or LeptonError. owned: whether a block is this member's."""
        self._fetch, self._blocks, self._owned, self._count = fetch, blocks, owned, count
        self._lock = threading.Lock()
        self._flying: dict[Key, Future[Buffer]] = {}
        self._threads = ThreadPoolExecutor(bounds.BUCKET_THREADS, "lepton-bucket")

    def begin(self, keys: Iterable[Key]) -> dict[Key, Future[Buffer]]:
        """A future of each that is not here: one that is under way, or a new one. Near ones are one request."""
        found: dict[Key, Future[Buffer]] = {}
        new: list[Key] = []
        with self._lock:
            for key in keys:
                if key in found:
                    continue
                flying = self._flying.get(key)
                if flying is None:
                    if key in self._blocks:  # kept before it stops flying
                        continue
                    flying = self._flying[key] = Future()
                    new.append(key)
                found[key] = flying
            runs = runs_of(new, self._lacking)
            for pack, first, last in runs:  # what lies between is under way, too: whoever asks for it now need not
                for number in range(first, last + 1):
                    self._flying.setdefault((pack, number), Future())
        for pack, first, last in runs:
            try:
                self._threads.submit(self._land, pack, range(first, last + 1))
            except RuntimeError:  # closed meanwhile
                self._end(pack, range(first, last + 1), TierUnavailable("the daemon ends"))
        return found

    def _lacking(self, key: Key) -> bool:
        return key not in self._flying and key not in self._blocks

    def direct(self, pack: str, offset: int, length: int) -> Future[Buffer]:
        """Exactly so many bytes, which are not kept."""
        return self._threads.submit(self._exactly, pack, offset, length)

    def _exactly(self, pack: str, offset: int, length: int) -> memoryview:
        data = memoryview(self._fetch(pack, offset, length)).cast("B")
        self._count("bucket", len(data))
        return data

    def _land(self, pack: str, numbers: range) -> None:
        size = bounds.BLOCK_BYTES
        try:
            data = self._exactly(pack, numbers[0] * size, len(numbers) * size)
        except BaseException as error:  # told to all who wait
            self._end(pack, numbers, error)
            return
        for number in numbers:
            key, block = (pack, number), data[(number - numbers[0]) * size :][:size]
            if len(block):
                self._blocks.put(key, block, copy=not self._owned(key))
            with self._lock:
                future = self._flying.pop(key)
            future.set_result(block)

    def _end(self, pack: str, numbers: range, error: BaseException) -> None:
        for number in numbers:
            with self._lock:
                future = self._flying.pop((pack, number), None)
            if future is not None:
                future.set_exception(error)

    def close(self) -> None:
        """What is under way is waited for."""
        self._threads.shutdown()


def runs_of(keys: Iterable[Key], lacking: Callable[[Key], bool]) -> list[tuple[str, int, int]]:
    """(pack, first, last) of each request: within one stretch, with gaps of GAP_BLOCKS_MAX at most, of blocks that are `lacking`."""
    runs: list[tuple[str, int, int]] = []
    for pack, number in sorted(keys):
        if runs and runs[-1][0] == pack:
            _, first, last = runs[-1]
            one_stretch = first // bounds.STRETCH_BLOCKS == number // bounds.STRETCH_BLOCKS
            near = number - last - 1 <= bounds.GAP_BLOCKS_MAX
            if one_stretch and near and all(lacking((pack, between)) for between in range(last + 1, number)):
                runs[-1] = pack, first, number
                continue
        runs.append((pack, number, number))
    return runs
