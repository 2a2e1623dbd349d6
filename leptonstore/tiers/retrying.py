"""A tier that is asked again when it fails for a moment: for tiers whose library does not do it (fsspec, network mounts).

What is no matter of patience is not tried again: a pack that is not there, a permission, a full device, damaged bytes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from leptonstore import limits
from leptonstore.errors import TierUnavailable
from leptonstore.tiers.roles import PackPruner, PackSink

_T = TypeVar("_T")
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class RetryingPacks:
    """PackPruner that asks `inner` up to `tries` times, waiting longer each time, at random. Any thread.

    A pack that is being written is not begun again here: whoever writes has its bytes and knows what to do.
    """

    def __init__(
        self,
        inner: PackPruner,
        tries: int = limits.RETRY_TRIES,
        wait: Callable[[float], None] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        """wait, rng: how it waits and by which chance, for tests."""
        self._inner, self._tries, self._wait, self._rng = inner, tries, wait, rng or random.Random()
        self.retried = 0  # how often it asked again

    @property
    def url(self) -> str:
        """That of the tier."""
        return self._inner.url

    def _ask(self, what: str, call: Callable[[], _T]) -> _T:
        for number in range(self._tries):
            try:
                return call()
            except _FINAL:
                raise
            except (OSError, TierUnavailable) as error:
                if number + 1 == self._tries:
                    raise TierUnavailable(
                        f"{self.url} failed {self._tries} times to {what} ({error}): run it again when it is back",
                        self.url,
                    ) from error
                self.retried += 1
                # "Full jitter" (Brooker 2015): the whole wait is random, so that clients that failed together do not come back together.
                self._wait(self._rng.uniform(0, limits.RETRY_WAIT_S * 2**number))
        raise AssertionError("at least one try")

    def pack_bytes(self, pack: str) -> int | None:
        """As PackReader. Raises TierUnavailable."""
        return self._ask(f"look for pack {pack}", lambda: self._inner.pack_bytes(pack))

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """As PackReader. Raises FileNotFoundError or TierUnavailable."""
        return self._ask(f"read pack {pack}", lambda: self._inner.read(pack, offset, length))

    def packs(self) -> Iterator[str]:
        """As PackReader. Raises TierUnavailable."""
        yield from self._ask("list its packs", lambda: list(self._inner.packs()))

    def create_pack(self, pack: str) -> PackSink:
        """As PackWriter. Raises TierUnavailable."""
        return self._ask(f"begin pack {pack}", lambda: self._inner.create_pack(pack))

    def delete_pack(self, pack: str) -> None:
        """As PackPruner. Raises TierUnavailable."""
        self._ask(f"delete pack {pack}", lambda: self._inner.delete_pack(pack))
