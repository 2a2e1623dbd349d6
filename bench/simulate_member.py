"""A member of a simulated cluster: what it keeps, what it asks of the bucket and of others, and what it answers.

As leptonstore/daemon/cluster: flights.py (one request for all who wait), sharing.py (parts, copies, holders, late peers), blocks.py.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from bench.simulate_data import ALONE
from bench.simulate_events import Pipe
from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.block_files import Key
from leptonstore.daemon.cluster.flights import runs_of
from leptonstore.daemon.cluster.keep import Keep
from leptonstore.daemon.cluster.members import Member
from leptonstore.daemon.cluster.wire import Part

if TYPE_CHECKING:
    from bench.simulate_cluster import Cluster


class Held:
    """The blocks of a member: as blocks.py, memory first and what leaves it to disk. endless: all that come stay."""

    def __init__(self, ram: int, disk: int, owned: Callable[[Key], bool], endless: bool = False) -> None:
        self._levels = [Keep[Key](size) for size in (ram, disk) if size >= bounds.BLOCK_BYTES]
        self._all, self._endless, self._owned = set[Key](), endless, owned

    def __contains__(self, key: Key) -> bool:
        return key in self._all if self._endless else any(key in level for level in self._levels)

    def touch(self, key: Key) -> bool:
        """Whether it is here; then it was read."""
        if self._endless:
            return key in self._all
        for level in self._levels:
            if key in level:
                level.touch(key)
                return True
        return False

    def put(self, key: Key, size: int) -> None:
        """It came, and finds a place as an own block or a copy."""
        if self._endless:
            self._all.add(key)
        elif key not in self:
            leaving = [key]
            for level in self._levels:
                leaving = [gone for one in leaving for gone in level.add(one, size, not self._owned(one))]

    def room_for_copy(self, size: int) -> bool:
        """See Blocks."""
        return not self._endless and any(level.room_for_copy(size) for level in self._levels)


class Node:
    """A member: its daemon's blocks and requests under way, and its link."""

    def __init__(self, cluster: Cluster, member: Member, held: Held) -> None:
        self.cluster, self.member, self.held = cluster, member, held
        self.alive = True
        self.incoming, self.outgoing = Pipe(cluster.setting.link_bytes_s), Pipe(cluster.setting.link_bytes_s)
        self._flying: dict[Key, list[Callable[[], object]]] = {}
        self._queue: deque[tuple[str, int, Callable[[], object]]] = deque()  # pack, bytes, what happens then
        self._requests = 0
        self._peer_parts, self._hedged = 0, 0
        self.connection_s = 0.0  # of requests to the bucket, all together, as if nobody else was there
        self._asked: OrderedDict[Key, int] = OrderedDict()
        self._holders: dict[Key, tuple[Node, ...]] = {}
        self._near: dict[Key, Node] = {}
        self._waiting: dict[int, Callable[[], object]] = {}  # peers' requests, which are told when this dies

    # -- the bucket ----------------------------------------------------------------------------------------------

    def begin(self, keys: Iterable[Key], landed: Callable[[], object] | None = None) -> int:
        """As Flights.begin; `landed` happens once for each that is under way. Returns how many."""
        wanted = dict.fromkeys(keys)
        new = [key for key in wanted if key not in self._flying and key not in self.held]
        runs = runs_of(new, self._lacking)
        for pack, first, last in runs:
            keys = [(pack, number) for number in range(first, last + 1)]
            for key in keys:
                self._flying.setdefault(key, [])
                self.cluster.fetched[key] += 1
            self.fetch(pack, sum(map(self.cluster.data.block_bytes, keys)), partial(self._land, keys))
        count = 0
        for key in wanted:
            waiting = self._flying.get(key)
            if waiting is not None and landed is not None:
                waiting.append(landed)
                count += 1
        return count

    def _lacking(self, key: Key) -> bool:
        return key not in self._flying and key not in self.held

    def _land(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self.held.put(key, self.cluster.data.block_bytes(key))
        for key in keys:
            for landed in self._flying.pop(key):
                landed()

    def fetch(self, pack: str, size: int, done: Callable[[], object]) -> None:
        """Read so much of the bucket, as one of BUCKET_THREADS requests at a time."""
        self._queue.append((pack, size, done))
        self._next()

    def _next(self) -> None:
        while self._queue and self._requests < bounds.BUCKET_THREADS and self.alive:
            pack, size, done = self._queue.popleft()
            self._requests += 1
            self.connection_s += self.cluster.bucket.bounds.alone_s(size)
            self.cluster.bucket.get(pack, size, self.incoming, partial(self._fetched, done))

    def _fetched(self, done: Callable[[], object]) -> None:
        self._requests -= 1
        if self.alive:
            done()
            self._next()

    def owned(self, key: Key) -> bool:
        """Whether it is this member's block now."""
        return self._owner(key) is self

    def _owner(self, key: Key) -> Node:
        return self if self.cluster.setting.way == ALONE else self.cluster.owner(key)

    # -- reading -------------------------------------------------------------------------------------------------

    def read(self, parts: Sequence[Part], ready: Callable[[], object]) -> None:
        """A loader asks for these parts; `ready` happens when all are here. As Sharing.begin."""
        missing = 0

        def came() -> None:
            nonlocal missing
            missing -= 1
            if not missing:
                ready()

        own: list[Part] = []
        asked: dict[tuple[Node, bool], list[Part]] = {}
        for part in parts:
            if self.held.touch(part.key):
                self.cluster.counts["here_bytes"] += part.stop - part.start
                continue
            place = self._place(part)
            if place is None:
                own.append(part)
            else:
                asked.setdefault(place, []).append(part)
        # Counted before anything begins: what is begun may end at once.
        missing = 1 + len(asked)
        missing += self.begin((part.key for part in own), came)
        for (node, here), some in asked.items():
            self._ask(node, here, some, came)
        came()

    def _place(self, part: Part) -> tuple[Node, bool] | None:
        owner = self._owner(part.key)
        if owner is self:
            return None
        near = self._near.get(part.key)
        if near is not None and near is not owner and near.alive:
            return near, True
        return owner, False

    def _ask(self, node: Node, here: bool, parts: list[Part], came: Callable[[], object]) -> None:
        """All of `parts` of one member; once what it lacks was found elsewhere, `came` happens, and once only."""
        cluster, over = self.cluster, False

        def end() -> None:
            nonlocal over
            if not over:
                over = True
                came()

        def answered(lacking: list[Part]) -> None:
            if over:
                return
            if not lacking:
                end()
                return
            elsewhere = {part.key for part in lacking}
            for key in elsewhere:
                self._near.pop(key, None)
            self.read([part for part in parts if part.key in elsewhere], end)

        def late() -> None:
            if over:
                return
            saved = bounds.HEDGES_SAVED_MAX * cluster.setting.part
            if self._hedged < self._peer_parts * bounds.HEDGES_PER_REQUEST + saved:
                self._hedged += len(parts)
                self._directly(parts, end)
            else:
                cluster.events.at(bounds.HEDGE_S, late)

        asked = [self._or_whole(part) for part in parts]
        cluster.events.at(cluster.setting.hop_s, node.answer, self, asked, here, answered)
        cluster.events.at(bounds.HEDGE_S, late)

    def _or_whole(self, part: Part) -> Part:
        """As Sharing._or_whole: the block, once half of it was asked for, where there is room for a copy."""
        before = self._asked.get(part.key, 0)
        if before >= bounds.COPY_ASKED_SHARE * bounds.BLOCK_BYTES and self.held.room_for_copy(bounds.BLOCK_BYTES):
            self._asked.pop(part.key)
            return Part(part.pack, part.number, 0, self.cluster.data.block_bytes(part.key), True)
        self._asked[part.key] = before + part.stop - part.start
        self._asked.move_to_end(part.key)
        if len(self._asked) > bounds.ASKED_REMEMBERED:
            self._asked.popitem(last=False)
        return part

    def _directly(self, parts: Sequence[Part], done: Callable[[], object]) -> None:
        cluster, left = self.cluster, len(parts)

        def one() -> None:
            nonlocal left
            left -= 1
            if not left:
                done()

        for part in parts:
            cluster.counts["hedged_bytes"] += part.stop - part.start
            cluster.bucket.get(part.pack, part.stop - part.start, self.incoming, one, cluster.setting.weight)

    # -- the owner's side ----------------------------------------------------------------------------------------

    def answer(self, asker: Node, parts: Sequence[Part], here: bool, reply: Callable[[list[Part]], None]) -> None:
        """As Sharing.answer: `reply(what is not here)` when its bytes have come to the asker."""
        cluster = self.cluster
        if not self.alive:
            cluster.events.at(cluster.setting.hop_s, reply, list(parts))
            return
        lacking = [part for part in parts if here and not self.held.touch(part.key)]
        sent = [part for part in parts if part not in lacking]
        number = next(cluster.numbers)
        self._waiting[number] = partial(reply, list(parts))
        left = 1

        def landed() -> None:
            nonlocal left
            left -= 1
            if left or not self.alive:
                return
            del self._waiting[number]
            size = sum(part.stop - part.start for part in sent)
            now = cluster.events.now
            through = asker.incoming.reserve(now, size)
            if cluster.setting.weight == 1:
                through = max(through, self.outgoing.reserve(now, size))
            cluster.counts["peer_bytes"] += size
            asker._peer_parts += len(sent)
            if asker.member.distance(self.member):
                cluster.counts["far_bytes"] += size
            cluster.events.at(through - now + cluster.setting.hop_s, self._arrived, asker, sent, lacking, reply)

        if not here:
            for part in sent:
                self.held.touch(part.key)
            left += self.begin((part.key for part in sent), landed)
        landed()

    def _arrived(
        self, asker: Node, sent: Sequence[Part], lacking: list[Part], reply: Callable[[list[Part]], None]
    ) -> None:
        for part in sent:
            holders = self._holders.get(part.key, ())
            near = self._nearer(holders, asker)
            if near is not None:
                asker._near[part.key] = near
            if part.kept and asker.alive:
                asker.held.put(part.key, part.stop)
                kept = (asker, *(one for one in holders if one is not asker))
                self._holders[part.key] = kept[: bounds.HOLDERS_PER_BLOCK]
        reply(lacking)

    def _nearer(self, holders: Sequence[Node], asker: Node) -> Node | None:
        nearest, best = None, asker.member.distance(self.member)
        for holder in holders:
            if holder is not asker and holder.alive and asker.member.distance(holder.member) < best:
                nearest, best = holder, asker.member.distance(holder.member)
        return nearest

    def die(self) -> None:
        """Its blocks are gone, and whoever waits for it asks elsewhere."""
        self.alive = False
        self._queue.clear()
        waiting, self._waiting = list(self._waiting.values()), {}
        self.cluster.regroup()
        for refused in waiting:
            self.cluster.events.at(self.cluster.setting.hop_s, refused)
