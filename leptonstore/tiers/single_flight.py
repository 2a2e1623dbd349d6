"""Equal reads at the same time become one: threads that miss the same chunk of a far tier wait for the first of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future

from leptonstore.tiers.roles import PackPruner, PackSink


class SingleFlightPacks:
    """PackPruner whose equal reads share one read of `inner`. Any thread. What fails fails for all who waited."""

    def __init__(self, inner: PackPruner) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self._flying: dict[tuple[str, int, int], Future[bytes]] = {}
        self.shared = 0  # reads that another one's answer served

    @property
    def url(self) -> str:
        """That of the tier."""
        return self._inner.url

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """As PackReader. Raises what the read that is shared raises."""
        key = pack, offset, length
        with self._lock:
            flying = self._flying.get(key)
            if flying is None:
                mine = self._flying[key] = Future()
            else:
                self.shared += 1
        if flying is not None:
            return flying.result()
        try:
            mine.set_result(self._inner.read(pack, offset, length))
        except BaseException as error:
            mine.set_exception(error)
        finally:
            with self._lock:
                del self._flying[key]
        return mine.result()

    def pack_bytes(self, pack: str) -> int | None:
        """As PackReader."""
        return self._inner.pack_bytes(pack)

    def packs(self) -> Iterator[str]:
        """As PackReader."""
        return self._inner.packs()

    def create_pack(self, pack: str) -> PackSink:
        """As PackWriter."""
        return self._inner.create_pack(pack)

    def delete_pack(self, pack: str) -> None:
        """As PackPruner."""
        self._inner.delete_pack(pack)
