"""Where a part of a block is read: here, at a member nearby that has a copy, at its owner, in the bucket.

    read -> here? -> mine: flights.py -> a holder nearby -> its owner -> the next owner -> the bucket

Invariants:
- Whoever is asked answers from here or from the bucket, and asks nobody else: no call waits for a call that waits for it.
- Bytes of a peer that do not match their check are asked for elsewhere. Whether they are what the pack holds, only readers can tell, by
  their digests: `distrust` then reads the pack in the bucket alone, and compares what peers sent of it lately.
- A member that is asked and does not answer costs its readers a request elsewhere, never an error.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.block_files import Key
from leptonstore.daemon.cluster.blocks import Blocks
from leptonstore.daemon.cluster.flights import Fetch, Flights
from leptonstore.daemon.cluster.membership import Membership
from leptonstore.daemon.cluster.peers import PeerDamaged, PeerLate
from leptonstore.daemon.cluster.recent import Recent
from leptonstore.daemon.cluster.windowed import Windows
from leptonstore.daemon.cluster.wire import CHECK_BYTES, DATA, NO_PACK, NOT_HERE, UNAVAILABLE, Answer, Part, parts_of
from leptonstore.digest import Buffer, digest_of
from leptonstore.errors import LeptonError, TierUnavailable

Resolve = Callable[[], Buffer]


class Calls(Protocol):
    """What is asked of Peers (peers.py)."""

    def fetch(self, address: str, parts: Sequence[Part], mine: str, here: bool) -> list[Answer | None]:
        """See Peers."""


class _Place(NamedTuple):
    address: str
    here: bool  # it is asked for what it has only


class Sharing:
    """Any thread. Not in a child process made by fork."""

    def __init__(
        self, fetch: Fetch, size: Callable[[str], int | None], blocks: Blocks, members: Membership, peers: Calls
    ) -> None:
        """fetch: see Flights. size: bytes of a pack, None when there is none."""
        self._size, self.blocks, self.members, self._peers = size, blocks, members, peers
        blocks.owned = self.owned
        self.flights = Flights(fetch, blocks, self.owned, self._count)
        self._windows = Windows()
        self._calls = ThreadPoolExecutor(bounds.PEER_THREADS, "lepton-peers")
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter()  # here, bucket, peer, answered, hedged, damaged; with _bytes: of these
        self._asked: Recent[Key, int] = Recent(bounds.ASKED_REMEMBERED)  # of others' blocks: bytes that were asked for
        self._holders: Recent[Key, tuple[str, ...]] = Recent(bounds.HOLDERS_REMEMBERED)  # of own ones: who has a copy
        self._near: Recent[Key, str] = Recent(bounds.ASKED_REMEMBERED)  # of others': who nearby has a copy
        self._received: deque[tuple[Part, str, bytes]] = deque(maxlen=bounds.RECEIVED_REMEMBERED)
        self._distrusted: Recent[str, float] = Recent(bounds.DISTRUSTED_MAX)  # pack -> until when
        self._strikes: Counter[str] = Counter()
        self.read_by_plan: Callable[[Key], None] = lambda key: None  # told of each block that a reader reads

    def _count(self, name: str, bytes_of: int) -> None:
        with self._lock:
            self.counts[name] += 1
            self.counts[f"{name}_bytes"] += bytes_of

    def told(self) -> dict[str, int]:
        """The counts."""
        with self._lock:
            return dict(self.counts)

    def owned(self, key: Key) -> bool:
        """Whether this member owns a block."""
        return self.members.ring.owner(*key) is self.members.me

    # -- reading -------------------------------------------------------------------------------------------------

    def read_many(self, wanted: Sequence[tuple[str, int, int]]) -> Iterator[Buffer]:
        """See ManyReader: the first requests are under way when this returns."""
        split = [parts_of(*one) for one in wanted]
        resolves = self._windows.in_order([part for parts in split for part in parts], self.begin)
        return self._joined([len(parts) for parts in split], resolves)

    def _joined(self, counts: Sequence[int], resolves: Iterator[Resolve]) -> Iterator[Buffer]:
        for count in counts:
            if count == 1:
                yield next(resolves)()
            else:
                yield b"".join([next(resolves)() for _ in range(count)])

    def begin(self, parts: Sequence[Part]) -> list[Resolve]:
        """What waits for each of `parts`. The requests for what is not here are under way."""
        resolves: list[Resolve | None] = [self._here(part) for part in parts]
        missing = [at for at, resolve in enumerate(resolves) if resolve is None]
        own: list[int] = []
        asked: defaultdict[_Place, list[int]] = defaultdict(list)
        for at in missing:
            part = parts[at]
            if self._is_distrusted(part.pack):
                resolves[at] = self.flights.direct(part.pack, part.offset, part.stop - part.start).result
                continue
            place = self._place(part, frozenset())
            if place is None:
                own.append(at)
            else:
                asked[place].append(at)
        flying = self.flights.begin(parts[at].key for at in own)
        for at in own:
            resolves[at] = partial(self._landed, parts[at], flying.get(parts[at].key))
        for place, positions in asked.items():
            for some in _requests(parts, positions):
                answers = self._calls.submit(self._ask, place, [parts[at] for at in some], frozenset[str]())
                for number, at in enumerate(some):
                    resolves[at] = partial(self._arrived, parts[at], place.address, answers, number)
        return [resolve for resolve in resolves if resolve is not None]

    def _here(self, part: Part) -> Resolve | None:
        self.read_by_plan(part.key)
        data = self.blocks.read(part.key, part.start, part.stop)
        if data is None:
            return None
        self._count("here", len(data))
        return lambda: data

    def _landed(self, part: Part, flying: Future[Buffer] | None) -> Buffer:
        """An own block's part."""
        for _ in range(bounds.READ_TRIES):
            if flying is not None:
                return memoryview(flying.result())[part.start : part.stop]
            data = self.blocks.read(part.key, part.start, part.stop)  # it was here when the flight would have begun
            if data is not None:
                return data
            flying = self.flights.begin([part.key]).get(part.key)
        return self._direct(part)  # it comes and goes: there is next to no room

    def _direct(self, part: Part) -> Buffer:
        return self.flights.direct(part.pack, part.offset, part.stop - part.start).result()

    def _place(self, part: Part, tried: frozenset[str]) -> _Place | None:
        """Whom to ask; None: this member itself."""
        if not tried:
            owner = self.members.ring.owner(*part.key)
            if owner is self.members.me:
                return None
            near = self._near.get(part.key)
            if near is not None and near != owner.address and self.members.answers(near):
                return _Place(near, True)
            return _Place(owner.address, False)
        for member in self.members.ring.order(*part.key):
            if member is self.members.me:
                return None
            if member.address not in tried:
                return _Place(member.address, False)
        return None

    # -- asking peers --------------------------------------------------------------------------------------------

    def _ask(self, place: _Place, parts: Sequence[Part], tried: frozenset[str]) -> list[Buffer]:
        """On a thread of the calls: all parts, from `place` or elsewhere. Raises what the bucket says in the end."""
        asked = [self._or_whole(part) for part in parts]
        answers = self._call(place, asked)
        found: list[Buffer | None] = [
            self._accepted(place, part, whole, answer)
            for part, whole, answer in zip(parts, asked, answers, strict=True)
        ]
        left = [at for at, data in enumerate(found) if data is None]
        if left:
            # A holder that has it no more does not keep its owner from being asked.
            tried = tried if place.here else tried | {place.address}
            for at, data in zip(left, self._elsewhere([parts[at] for at in left], tried), strict=True):
                found[at] = data
        return [data for data in found if data is not None]

    def _call(self, place: _Place, parts: Sequence[Part]) -> Sequence[Answer | None]:
        me = self.members.me.address
        try:
            answers = self._peers.fetch(place.address, parts, me, place.here)
        except PeerLate:
            self.members.late(place.address)
        except PeerDamaged as error:
            self._strike(place.address, str(error))
        except TierUnavailable as error:
            self.members.failed(place.address, str(error))
        else:
            self.members.answered(place.address)
            if any(answer is None for answer in answers):
                self._strike(place.address, "what it sends does not match its check")
            return answers
        return [None] * len(parts)

    def _elsewhere(self, parts: Sequence[Part], tried: frozenset[str]) -> list[Buffer]:
        if len(tried) >= bounds.READ_TRIES:
            return [self._direct(part) for part in parts]
        for part in parts:
            self._near.forget(part.key)
        groups: dict[_Place | None, list[int]] = {}
        for at, part in enumerate(parts):
            groups.setdefault(self._place(part, tried), []).append(at)
        data: dict[int, Buffer] = {}
        for place, positions in groups.items():
            some = [parts[at] for at in positions]
            if place is None:
                flying = self.flights.begin(part.key for part in some)
                found = [self._landed(part, flying.get(part.key)) for part in some]
            else:
                found = self._ask(place, some, tried)
            data.update(zip(positions, found, strict=True))
        return [data[at] for at in range(len(parts))]

    def _or_whole(self, part: Part) -> Part:
        """The whole block instead, when so much of it was asked for that a copy of it pays, and there is room for one."""
        before = self._asked.get(part.key) or 0
        if before >= bounds.COPY_ASKED_SHARE * bounds.BLOCK_BYTES and self.blocks.room_for_copy(bounds.BLOCK_BYTES):
            self._asked.forget(part.key)
            return Part(part.pack, part.number, 0, bounds.BLOCK_BYTES, True)
        self._asked.set(part.key, before + part.stop - part.start)
        return part

    def _accepted(self, place: _Place, part: Part, asked: Part, answer: Answer | None) -> Buffer | None:
        """The bytes of `part`; None when they have to be had elsewhere."""
        if answer is None or answer.state != DATA:
            return None
        data = answer.data
        if len(data) < asked.stop - asked.start and not self._ends_there(asked, len(data)):
            self._strike(place.address, "it sends less than there is")
            return None
        self._count("peer", len(data))
        self._received.append((asked, place.address, digest_of(data)[:CHECK_BYTES]))
        if answer.holder is not None and self.members.get(answer.holder) is not None:
            self._near.set(part.key, answer.holder)
        if asked.kept:
            self.blocks.put(part.key, data, copy=True)
            return memoryview(data)[part.start : part.stop]
        return data

    def _ends_there(self, part: Part, length: int) -> bool:
        try:
            size = self._size(part.pack)
        except (LeptonError, OSError):
            return False
        return size is not None and length == max(
            0, min(part.stop, size - part.number * bounds.BLOCK_BYTES) - part.start
        )

    def _arrived(self, part: Part, address: str, answers: Future[list[Buffer]], number: int) -> Buffer:
        """Waits for what was asked of a peer; not for ever."""
        wait_s = bounds.HEDGE_S
        while True:
            try:
                return answers.result(wait_s)[number]
            except TimeoutError:
                if answers.done():  # it says so itself, of the bucket
                    raise
            wait_s = bounds.HEDGE_S / 8
            self.members.suspect(address)
            if not self.members.answers(address) or self._may_hedge():
                self._count("hedged", part.stop - part.start)
                return self._direct(part)

    def _may_hedge(self) -> bool:
        with self._lock:
            saved = self.counts["peer"] * bounds.HEDGES_PER_REQUEST + bounds.HEDGES_SAVED_MAX
            if self.counts["hedged"] >= saved:
                return False
        return True

    # -- the owner's side ----------------------------------------------------------------------------------------

    def answer(self, parts: Sequence[Part], asker: str, here: bool) -> Iterator[Answer]:
        """What the member at `asker` is told of `parts`, in order. here: of what is here only."""
        resolves = self._windows.in_order(parts, partial(self._begin_here if here else self._begin_own))
        for part, resolve in zip(parts, resolves, strict=True):
            yield self._answered(part, resolve, asker)

    def _begin_here(self, parts: Sequence[Part]) -> list[Callable[[], Buffer | None]]:
        return [partial(self.blocks.read, part.key, part.start, part.stop) for part in parts]

    def _begin_own(self, parts: Sequence[Part]) -> list[Callable[[], Buffer | None]]:
        flying = self.flights.begin(part.key for part in parts if part.key not in self.blocks)
        return [partial(self._landed, part, flying.get(part.key)) for part in parts]

    def _answered(self, part: Part, resolve: Callable[[], Buffer | None], asker: str) -> Answer:
        try:
            data = resolve()
        except FileNotFoundError:
            return Answer(NO_PACK)
        except (LeptonError, OSError):
            return Answer(UNAVAILABLE)
        if data is None:
            return Answer(NOT_HERE)
        self._count("answered", len(data))
        holders = self._holders.get(part.key) or ()
        if part.kept and self.members.get(asker) is not None:
            kept = (asker, *(one for one in holders if one != asker))
            self._holders.set(part.key, kept[: bounds.HOLDERS_PER_BLOCK])
        return Answer(DATA, data, self._nearer(holders, asker))

    def _nearer(self, holders: Sequence[str], asker: str) -> str | None:
        """Who of `holders` is nearer to the asker than this member, the nearest first."""
        member, best = self.members.get(asker), None
        if member is None or not holders:
            return None
        distance = member.distance(self.members.me)
        for address in holders:
            holder = self.members.get(address)
            if holder is None or address == asker or not self.members.answers(address):
                continue
            if member.distance(holder) < distance:
                best, distance = address, member.distance(holder)
        return best

    # -- damage --------------------------------------------------------------------------------------------------

    def distrust(self, pack: str) -> bool:
        """A reader found damage in this pack: forget what is here of it, and read it in the bucket for a while.

        What peers sent of it lately is compared with the bucket; who sent something else is left out. False when it was read in the bucket
        already: then it is damaged there.
        """
        if self._is_distrusted(pack):
            return False
        self._distrusted.set(pack, time.monotonic() + bounds.DISTRUSTED_S)
        self.blocks.forget(lambda key: key[0] == pack)
        suspects = {address: (part, check) for part, address, check in list(self._received) if part.pack == pack}
        for address, (part, check) in suspects.items():
            try:
                data = self._direct(part)
            except (LeptonError, OSError):
                break
            if digest_of(data)[:CHECK_BYTES] != check:
                self._count("damaged", len(data))
                self.members.damaged(address, "what it sent is not what the bucket holds")
        return True

    def _is_distrusted(self, pack: str) -> bool:
        until = self._distrusted.get(pack)
        return until is not None and time.monotonic() < until

    def _strike(self, address: str, why: str) -> None:
        with self._lock:
            self.counts["damaged"] += 1
            self._strikes[address] += 1
            many = self._strikes[address] >= bounds.DAMAGED_MAX
            if many:
                del self._strikes[address]
        if many:
            self.members.damaged(address, why)

    # -- the end -------------------------------------------------------------------------------------------------

    def forget(self, wanted: Callable[[str], bool]) -> None:
        """Blocks of the packs for which `wanted` says so: they were deleted, or erased."""
        self.blocks.forget(lambda key: wanted(key[0]))

    def close(self) -> None:
        """What is under way is waited for."""
        self._calls.shutdown(cancel_futures=True)
        self.flights.close()


def _requests(parts: Sequence[Part], positions: Sequence[int]) -> Iterator[list[int]]:
    """Positions of what one request asks for."""
    some, bytes_of = list[int](), 0
    for at in positions:
        length = parts[at].stop - parts[at].start
        if some and (bytes_of + length > bounds.PEER_REQUEST_BYTES or len(some) >= bounds.PEER_REQUEST_RANGES):
            yield some
            some, bytes_of = [], 0
        some.append(at)
        bytes_of += length
    if some:
        yield some
