"""A tier that fails on purpose: for tests of whatever stands above tiers.

tier = FaultyPacks(LocalTier(place))
tier.fail_next("read", OSError(errno.EIO, "i/o error"), times=2)      the operation is not done
tier.lose_answer("delete_pack", TimeoutError("no answer"))            the operation is done, and the answer lost
tier.alter_next_read(lambda data: data[:-1])                          damaged or short bytes
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

from leptonstore.tiers.roles import PackPruner, PackSink

_T = TypeVar("_T")


class FaultyPacks:
    """PackPruner over `inner` with the faults that a test asked for; without any it is `inner`. Any thread."""

    def __init__(self, inner: PackPruner) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._before: dict[str, deque[BaseException]] = {}
        self._after: dict[str, deque[BaseException]] = {}
        self._alter: deque[Callable[[bytes], bytes]] = deque()
        self.down: BaseException | None = None  # raised by every operation while it is set

    def fail_next(self, operation: str, error: BaseException, times: int = 1) -> None:
        """The next `times` calls of `operation` (a method's name) raise `error` and do nothing."""
        self._before.setdefault(operation, deque()).extend([error] * times)

    def lose_answer(self, operation: str, error: BaseException, times: int = 1) -> None:
        """The next `times` calls are done, and raise `error` all the same."""
        self._after.setdefault(operation, deque()).extend([error] * times)

    def alter_next_read(self, alter: Callable[[bytes], bytes]) -> None:
        """The next read returns `alter` of what it should."""
        self._alter.append(alter)

    def _do(self, operation: str, call: Callable[[], _T]) -> _T:
        with self._lock:
            before, after = self._before.get(operation), self._after.get(operation)
            first = before.popleft() if before else None
            last = after.popleft() if after and first is None else None
        first = self.down or first
        if first is not None:
            raise first
        done = call()
        if last is not None:
            raise last
        return done

    @property
    def url(self) -> str:
        """That of the tier."""
        return self._inner.url

    def pack_bytes(self, pack: str) -> int | None:
        """As PackReader."""
        return self._do("pack_bytes", lambda: self._inner.pack_bytes(pack))

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """As PackReader."""
        data = self._do("read", lambda: self._inner.read(pack, offset, length))
        with self._lock:
            alter = self._alter.popleft() if self._alter else None
        return data if alter is None else alter(data)

    def packs(self) -> Iterator[str]:
        """As PackReader."""
        return iter(self._do("packs", lambda: list(self._inner.packs())))

    def create_pack(self, pack: str) -> PackSink:
        """As PackWriter."""
        return self._do("create_pack", lambda: self._inner.create_pack(pack))

    def delete_pack(self, pack: str) -> None:
        """As PackPruner."""
        self._do("delete_pack", lambda: self._inner.delete_pack(pack))
