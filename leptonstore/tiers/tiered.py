"""Packs in several tiers, the nearest first: reads fall through to the next tier that has a copy; new packs go to one of them.

    read -> where it was found last -> nearest ... farthest -> the error that says most
    create_pack -> the tier that is written to          delete_pack -> every tier that can

A tier that does not answer is passed over: what another tier has stays readable. Which pack should be where is not decided
here (leptonstore/store/placement.py); this only finds it.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from leptonstore import limits
from leptonstore.errors import NotPermitted, TierUnavailable
from leptonstore.tiers.roles import PackPruner, PackReader, PackSink

_T = TypeVar("_T")


class TieredPacks:
    """PackPruner over the packs of several tiers. Any thread."""

    def __init__(self, tiers: Sequence[PackReader], write_to: int = 0) -> None:
        """tiers: the nearest first. write_to: the position of the one that gets new packs, which must be a PackWriter."""
        self.tiers = list(tiers)
        self._write_to = write_to
        self._lock = threading.Lock()
        self._found: OrderedDict[str, int] = OrderedDict()  # pack -> the tier that had it last: a hint
        self.reads: Counter[tuple[int, str]] = Counter()  # (tier, pack) -> bytes read: what promotion goes by

    @property
    def url(self) -> str:
        """The tiers, the nearest first."""
        return ", ".join(tier.url for tier in self.tiers)

    def _order(self, pack: str) -> list[int]:
        with self._lock:
            first = self._found.get(pack)
        order = list(range(len(self.tiers)))
        return order if first is None else [first, *(at for at in order if at != first)]

    def _remember(self, pack: str, at: int) -> None:
        with self._lock:
            self._found[pack] = at
            self._found.move_to_end(pack)
            if len(self._found) > limits.TIERED_PACKS_REMEMBERED:
                self._found.popitem(last=False)

    def _first(self, pack: str, ask: Callable[[PackReader], _T | None]) -> tuple[int, _T] | None:
        """The first tier that answers with something, and what; None when each says that it has none.

        Raises the error of the nearest tier that could not say, unless another has it.
        """
        failed: Exception | None = None
        for at in self._order(pack):
            try:
                answer = ask(self.tiers[at])
            except FileNotFoundError:
                continue
            except (OSError, TierUnavailable, NotPermitted) as error:
                failed = failed or error
                continue
            if answer is not None:
                self._remember(pack, at)
                return at, answer
        if failed is not None:
            raise failed
        return None

    def pack_bytes(self, pack: str) -> int | None:
        """Size of a pack in bytes, None when no tier has it. Raises what a tier said that could not tell."""
        found = self._first(pack, lambda tier: tier.pack_bytes(pack))
        return None if found is None else found[1]

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """As PackReader.read, from the first tier that can. Raises FileNotFoundError only when each tier says so."""
        found = self._first(pack, lambda tier: tier.read(pack, offset, length))
        if found is None:
            raise FileNotFoundError(f"pack {pack} is in none of {self.url}")
        at, data = found
        with self._lock:
            self.reads[at, pack] += len(data)
        return data

    def pass_over(self, pack: str) -> bool:
        """What was read of this pack is damaged: read it elsewhere from now on. False when no other tier has a copy."""
        with self._lock:
            worse = self._found.get(pack)
        for at, tier in enumerate(self.tiers):
            try:
                if at != worse and tier.pack_bytes(pack) is not None:
                    self._remember(pack, at)
                    return True
            except (OSError, TierUnavailable, NotPermitted):
                continue
        return False

    def where(self, pack: str) -> list[int]:
        """Positions of all tiers that have it. Raises TierUnavailable or OSError when one cannot say."""
        return [at for at, tier in enumerate(self.tiers) if tier.pack_bytes(pack) is not None]

    def packs(self) -> Iterator[str]:
        """Ids of the packs of all tiers, each once. Raises TierUnavailable or OSError when one cannot say."""
        seen: set[str] = set()
        for tier in self.tiers:
            for pack in tier.packs():
                if pack not in seen:
                    seen.add(pack)
                    yield pack

    def create_pack(self, pack: str) -> PackSink:
        """Begin a pack in the tier that is written to. Raises NotPermitted when that is read-only."""
        tier = self.tiers[self._write_to]
        if not hasattr(tier, "create_pack"):
            raise NotPermitted(f"{tier.url} can only be read: choose another tier for new packs (`lepton tier ls`)")
        sink: PackSink = tier.create_pack(pack)
        return sink

    def delete_pack(self, pack: str) -> None:
        """Remove every copy. Raises TierUnavailable or OSError when a tier cannot; the others are asked all the same."""
        with self._lock:
            self._found.pop(pack, None)
        failed: Exception | None = None
        for tier in self.tiers:
            if isinstance(tier, PackPruner):
                try:
                    tier.delete_pack(pack)
                except (OSError, TierUnavailable, NotPermitted) as error:
                    failed = failed or error
        if failed is not None:
            raise failed
