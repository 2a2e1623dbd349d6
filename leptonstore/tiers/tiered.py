"""Packs in several tiers, the nearest first: reads fall through to the next tier that has a copy; new packs go to one of them.

    read -> where it was found last -> nearest ... farthest -> the error that says most
    create_pack -> the tier that is written to          delete_pack -> every tier that can

A tier that does not answer is passed over: what another tier has stays readable. Which pack should be where is not decided
here (leptonstore/store/placement.py); this only finds it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import TypeVar

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import NotPermitted, TierUnavailable
from leptonstore.tiers.roles import Distrusting, ManyReader, PackPruner, PackReader, PackSink, PackStreamer

_T = TypeVar("_T")
_Data = TypeVar("_Data", bound=Sized)


class TieredPacks:
    """PackPruner over the packs of several tiers. Any thread."""

    def __init__(self, tiers: Sequence[PackReader], write_to: int = 0) -> None:
        """As `use`."""
        self._lock = threading.Lock()
        self._found: OrderedDict[str, int] = OrderedDict()  # pack -> the tier that had it last: a hint
        self._reads: Counter[str] = Counter()  # pack -> bytes read: what promotion and demotion go by
        self._bytes_read: Counter[str] = Counter()  # URL of a tier -> bytes read of its packs
        self._unsaved, self._saved_s = 0, time.monotonic()
        self.save_reads: Callable[[], None] = lambda: (
            None
        )  # called now and then, by a thread that reads: `take_reads` is due
        self._once = 0  # how many are in `waiting_once`
        self._silent: dict[int, str] = {}  # position -> what it said then
        self.use(tiers, write_to)

    def use(self, tiers: Sequence[PackReader], write_to: int = 0) -> None:
        """tiers: the nearest first. write_to: the position of the one that gets new packs, which must be a PackWriter."""
        with self._lock:
            self.tiers, self.write_to = tuple(tiers), write_to
            self._urls = tuple(tier.url for tier in tiers)
            # Asked once: whether an object plays a role is found out by looking at each of its attributes.
            self._many = {at: tier for at, tier in enumerate(tiers) if isinstance(tier, ManyReader)}
            self._nearest = tiers[0] if isinstance(tiers[0], PackStreamer) else None
            self._found.clear()  # they name positions
            self._silent.clear()

    @property
    def url(self) -> str:
        """The tiers, the nearest first."""
        return ", ".join(tier.url for tier in self.tiers)

    def _order(self, pack: str) -> list[int]:
        with self._lock:
            first = self._found.get(pack, 0)
        return sorted(range(len(self.tiers)), key=lambda at: (at != first, at))

    def _remember(self, pack: str, at: int) -> None:
        with self._lock:
            self._found[pack] = at
            self._found.move_to_end(pack)
            if len(self._found) > limits.TIERED_PACKS_REMEMBERED:
                self._found.popitem(last=False)

    @contextmanager
    def waiting_once(self) -> Iterator[None]:
        """Until the end of this block, a tier that did not answer is not asked again: waiting for one takes up to OBJECT_RETRY_S.

        One of several that this user may not read counts as one that does not answer. For those who look at everything (check,
        filling an index). Other threads are told the same meanwhile.
        """
        with self._lock:
            self._once += 1
        try:
            yield
        finally:
            with self._lock:
                self._once -= 1
                if not self._once:
                    self._silent.clear()

    def ask(self, at: int, question: Callable[[PackReader], _T]) -> _T:
        """What the tier at position `at` says. Raises as it does; TierUnavailable at once when it is not asked again."""
        tier, said = self.tiers[at], self._silent.get(at)
        if said is not None:
            raise TierUnavailable(said, tier.url)
        try:
            return question(tier)
        except (TierUnavailable, NotPermitted) as error:
            with self._lock:
                once = self._once > 0 and len(self.tiers) > 1
                if once:
                    self._silent[at] = str(error)
            if once and isinstance(error, NotPermitted):
                raise TierUnavailable(str(error), tier.url) from None
            raise

    def _first(self, pack: str, ask: Callable[[PackReader], _T | None]) -> tuple[int, _T] | None:
        """The first tier that answers with something, and what; None when each says that it has none.

        Raises the error of the nearest tier that could not say, unless another has it.
        """
        failed: Exception | None = None
        for at in self._order(pack):
            try:
                answer = self.ask(at, ask)
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
        if len(self.tiers) == 1:
            return self._told(0, self.tiers[0].read(pack, offset, length))
        found = self._first(pack, lambda tier: tier.read(pack, offset, length))
        if found is None:
            raise FileNotFoundError(f"pack {pack} is in none of {self.url}")
        at, data = found
        self._count(pack, len(data))
        return self._told(at, data)

    def _told(self, at: int, data: _Data) -> _Data:
        """`data`, which was read of the tier at position `at`."""
        with self._lock:
            if at < len(self._urls):  # else the tiers were changed meanwhile
                self._bytes_read[self._urls[at]] += len(data)
        return data

    @property
    def bytes_read(self) -> dict[str, int]:
        """URL of a tier -> bytes of packs that this object read of it: records and footers, as they are stored."""
        with self._lock:
            return dict(self._bytes_read)

    def _count(self, pack: str, count: int) -> None:
        with self._lock:
            self._reads[pack] += count
            self._unsaved += count
            due = self._unsaved >= limits.READS_SAVE_BYTES and time.monotonic() - self._saved_s >= limits.READS_SAVE_S
            if due:
                self._unsaved, self._saved_s = 0, time.monotonic()  # nobody else does it now
        if due:
            self.save_reads()

    def take_reads(self) -> Counter[str]:
        """Pack -> bytes that were read of it since the last call, while there were several tiers."""
        with self._lock:
            reads, self._reads = self._reads, Counter()
        return reads

    def read_once(self, pack: str, offset: int, length: int) -> Buffer:
        """As PackStreamer.read_once, of the nearest tier; what is farther away is read as usual."""
        nearest = self._nearest
        if nearest is not None and (len(self.tiers) == 1 or self._order(pack)[0] == 0):
            try:
                return self._told(0, nearest.read_once(pack, offset, length))
            except (OSError, TierUnavailable, NotPermitted):
                if len(self.tiers) == 1:
                    raise
        return self.read(pack, offset, length)

    @property
    def one_copy(self) -> bool:
        """Whether what was read is the only copy that there can be: damage is damage."""
        return len(self.tiers) == 1 and not isinstance(self.tiers[0], Distrusting)

    @property
    def far(self) -> bool:
        """Whether some of it is where a request takes longer than its bytes: many are then asked for together (`read_many`)."""
        return bool(self._many)

    def read_many(self, wanted: Sequence[tuple[str, int, int]]) -> Iterator[Buffer]:
        """As ManyReader: what is in a tier that reads many better is read together, the rest one by one."""
        if len(self.tiers) == 1:
            begun = self._many[0].read_many(wanted) if self._many else (self.tiers[0].read(*one) for one in wanted)
            return (self._told(0, data) for data in begun)
        places = [self._order(pack)[0] for pack, _, _ in wanted]
        running = {
            at: tier.read_many([one for one, place in zip(wanted, places, strict=True) if place == at])
            for at, tier in self._many.items()
            if at not in self._silent
        }
        return self._merged(wanted, places, running)  # a generator of its own: the requests have begun

    def _merged(
        self, wanted: Sequence[tuple[str, int, int]], places: list[int], running: dict[int, Iterator[Buffer]]
    ) -> Iterator[Buffer]:
        for (pack, offset, length), at in zip(wanted, places, strict=True):
            data: Buffer | None = None
            if at in running:
                try:
                    data = next(running[at])
                except (OSError, TierUnavailable, NotPermitted):
                    if len(self.tiers) == 1:
                        raise
                    del running[at]  # it has ended: what else it has is asked for one by one, and elsewhere
            if data is None:
                yield self.read(pack, offset, length)
                continue
            if len(self.tiers) > 1:
                self._count(pack, len(data))
            yield self._told(at, data)

    def last_of(self, pack: str) -> str:
        """URL of the tier that the pack was read from last; all of them when it is not known."""
        with self._lock:
            at = self._found.get(pack, 0 if len(self.tiers) == 1 else None)
        return self.url if at is None else self.tiers[at].url

    def pass_over(self, pack: str) -> bool:
        """What was read of this pack is damaged: read it elsewhere from now on. False when no other tier has a copy."""
        with self._lock:
            worse = self._found.get(pack)
        self.forget_packs([pack])  # by the time that it is read again, somebody may have replaced it
        read = self.tiers[worse or 0]
        if isinstance(read, Distrusting) and read.distrust(pack):
            return True
        for at in range(len(self.tiers)):
            try:
                if at != worse and self.ask(at, lambda tier: tier.pack_bytes(pack)) is not None:
                    self._remember(pack, at)
                    return True
            except (OSError, TierUnavailable, NotPermitted):
                continue
        return False

    def forget_packs(self, packs: Iterable[str]) -> None:
        """These are gone, or are to be looked at anew: let go of their files, whose space would not be free before."""
        for pack in packs:
            with self._lock:
                self._found.pop(pack, None)
            for tier in self.tiers:
                if hasattr(tier, "forget_pack"):
                    tier.forget_pack(pack)

    def after_fork(self) -> None:
        """In a child process: another thread of the parent may have held the lock; what the parent read is the parent's to tell."""
        self._lock = threading.Lock()
        self._reads, self._bytes_read, self._unsaved = Counter(), Counter(), 0
        for tier in self.tiers:
            if hasattr(tier, "after_fork"):
                tier.after_fork()

    def close(self) -> None:
        """Close what is open; reading again reopens."""
        for tier in self.tiers:
            if hasattr(tier, "close"):
                tier.close()

    def where(self, pack: str) -> list[int]:
        """Positions of all tiers that have it. Raises TierUnavailable or OSError when one cannot say."""
        positions = range(len(self.tiers))
        return [at for at in positions if self.ask(at, lambda tier: tier.pack_bytes(pack)) is not None]

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
        tier = self.tiers[self.write_to]
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


class AbsentTier:
    """Stands for a tier that this machine cannot open, and says why to whoever needs it."""

    def __init__(self, url: str, why: str) -> None:
        self.url, self._why = url, why

    def _absent(self) -> TierUnavailable:
        return TierUnavailable(f"tier {self.url} cannot be opened here: {self._why}", self.url)

    def pack_bytes(self, pack: str) -> int | None:
        """Raises TierUnavailable."""
        raise self._absent()

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """Raises TierUnavailable."""
        raise self._absent()

    def packs(self) -> Iterator[str]:
        """Raises TierUnavailable."""
        raise self._absent()

    def create_pack(self, pack: str) -> PackSink:
        """Raises TierUnavailable."""
        raise self._absent()

    def delete_pack(self, pack: str) -> None:
        """Raises TierUnavailable."""
        raise self._absent()
