"""The cooperative cache of a simulation: who asks whom for which part of which block, as leptonstore/daemon/cluster does it.

The product's own are the rules that decide bytes: owners (`Rendezvous`), what stays (`Keep`, in memory and behind it on disk), which
blocks one request brings (`runs_of`), parts of a range (`parts_of`), the order of rows (`loaders.Order`), and all bounds. Simulated: time
and transport (bench/simulate_member.py): one request to the bucket for all who ask, 16 at a time for each member; parts first, the whole
block once half of it was asked for; owners tell askers of nearer holders; a second request to the bucket when a peer is late; a member that
dies, and its loader that goes to another.

Aggregated, where events are statistically the same (tracked < members):
- `tracked` loaders are followed. What all others of the cluster read in the same step is drawn at once, and of that only the blocks that
  nobody has asked for yet: which are fetched, and when, is all that others decide for them. Each is a request of its own.
- Members without a loader that is followed keep all of their own blocks; `Setting` refuses what leaves no room for them.
- Answers of peers then go through the asker's link alone: all links carry the same on average.
- A request that a followed loader makes because a peer is late counts for all that it stands for.

Left out: reading ahead by plans (it moves requests, not bytes), hot caches, and what a daemon's processors can do.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from functools import partial

import numpy as np

from bench.simulate_bucket import Bucket
from bench.simulate_data import CLUSTER, DIRECT, Data, Setting
from bench.simulate_events import Events
from bench.simulate_member import Held, Node
from leptonstore.daemon.cluster.block_files import Key
from leptonstore.daemon.cluster.members import Member
from leptonstore.daemon.cluster.rendezvous import Rendezvous
from loaders.order import Order


class Loader:
    """One epoch beside a member: `ahead` steps are read ahead, each is consumed for a while, and waits are written down."""

    def __init__(self, cluster: Cluster, number: int, node: Node) -> None:
        setting = cluster.setting
        self._cluster, self.number, self._node = cluster, number, node
        # A global batch of all loaders, of which each reads its share, or an epoch of its own.
        self._order = Order(setting.rows, seed=setting.seed if setting.together else setting.seed + number)
        self._stride = setting.global_batch if setting.together else setting.batch
        self._first = number * setting.batch if setting.together else 0
        self.steps = max(0, -(-(setting.rows - self._first) // self._stride))
        self._ready, self._next, self._busy, self._idle_from = set[int](), 0, False, 0.0
        self.waits = list[float]()
        self.ended_at = 0.0

    def start(self) -> None:
        """Begin the epoch."""
        for step in range(min(self._cluster.setting.ahead, self.steps)):
            self._begin(step)

    def rows(self, step: int) -> np.ndarray:
        """What the loader reads then."""
        first = self._first + step * self._stride
        return self._order.rows_at(first, min(first + self._cluster.setting.batch, self._cluster.setting.rows))

    def _begin(self, step: int) -> None:
        cluster = self._cluster
        cluster.others(step)
        values = [cluster.data.parts(row) for row in self.rows(step).tolist()]
        ready = partial(self._came, step)
        if cluster.setting.way != DIRECT:
            self._node.read([part for parts in values for part in parts], ready)
            return
        left = len(values)

        def one() -> None:
            nonlocal left
            left -= 1
            if not left:
                ready()

        for parts in values:
            self._node.fetch(parts[0].pack, cluster.setting.value_bytes, one)

    def _came(self, step: int) -> None:
        if step not in self._ready:  # it was asked for twice, when its daemon died
            self._ready.add(step)
            self._go_on()

    def _go_on(self) -> None:
        setting, now = self._cluster.setting, self._cluster.events.now
        if self._busy or self._next not in self._ready:
            return
        self.waits.append(now - self._idle_from)
        self._busy, step = True, self._next
        if setting.killed_at is not None and self.number == 1 and step == int(setting.killed_at * self.steps):
            self._cluster.kill(self._node)
        if step + setting.ahead < self.steps:
            self._begin(step + setting.ahead)
        self._cluster.events.at(setting.batch * setting.value_bytes / setting.consumed_bytes_s, self._consumed)

    def _consumed(self) -> None:
        self._busy, self._idle_from = False, self._cluster.events.now
        self._next += 1
        self.ended_at = self._idle_from
        self._go_on()

    def move(self, dead: Node, other: Node) -> None:
        """If its daemon is the dead one: what did not come is asked of another."""
        if self._node is dead:
            self._node = other
            for step in range(self._next, min(self._next + self._cluster.setting.ahead, self.steps)):
                if step not in self._ready:
                    self._begin(step)


class Cluster:
    """All members of a setting, over one bucket."""

    def __init__(self, setting: Setting, events: Events, bucket: Bucket) -> None:
        self.setting, self.events, self.bucket = setting, events, bucket
        rng = random.Random(setting.seed)
        self.data = Data(setting, rng)
        self.counts: Counter[str] = (
            Counter()
        )  # here_bytes, peer_bytes, far_bytes (of these, from another rack), hedged_bytes
        self.fetched: Counter[Key] = Counter()  # requests to the bucket, by block
        self.numbers = itertools.count()
        self._members = tuple(
            Member(f"10.{at >> 16}.{at >> 8 & 255}.{at & 255}:7400", rack=f"rack{at % setting.racks}")
            for at in range(setting.members)
        )
        self._numbers = {member: at for at, member in enumerate(self._members)}
        self._nodes: dict[int, Node] = {}
        self._ring = Rendezvous(self._members)
        self._drawn = -1  # steps of others, and the blocks that nobody asked for in them
        self._unasked = np.zeros(self.data.blocks, np.bool_)
        self._unasked[self.data.numbers_of(np.arange(setting.rows))] = setting.weight > 1 and setting.way == CLUSTER
        self._draws = np.random.default_rng(setting.seed)
        self._epoch = Order(setting.rows, seed=setting.seed)
        followed = setting.followed
        numbers = [at * setting.members // followed for at in range(followed)]
        self._followed = frozenset(numbers)
        self.loaders = [Loader(self, number, self.node(number)) for number in numbers]

    def node(self, number: int) -> Node:
        """A member by its number; made when it is needed."""
        found = self._nodes.get(number)
        if found is None:
            size, setting = self.setting.data_bytes, self.setting
            node_of = partial(self._is_owner, number)
            endless = number not in self._followed
            held = Held(int(setting.ram_share * size), int(setting.disk_share * size), node_of, endless)
            found = self._nodes[number] = Node(self, self._members[number], held)
        return found

    def _is_owner(self, number: int, key: Key) -> bool:
        return self.node(number).owned(key)

    def owner(self, key: Key) -> Node:
        """The member that fetches this block."""
        return self.node(self._numbers[self._ring.owner(*key)])

    @property
    def nodes(self) -> list[Node]:
        """Those that had something to do."""
        return list(self._nodes.values())

    def others(self, step: int) -> None:
        """Blocks that loaders which are not followed are the first to ask for, up to this step of theirs."""
        setting = self.setting
        while self._drawn < step and self._unasked.any():
            self._drawn += 1
            if setting.together:
                first = min(self._drawn * setting.global_batch, setting.rows)
                rows = self._epoch.rows_at(first, min(first + setting.batch * setting.members, setting.rows))
            else:
                rows = self._draws.integers(setting.rows, size=(setting.members - setting.followed) * setting.batch)
            asked = np.zeros_like(self._unasked)
            asked[self.data.numbers_of(rows)] = True
            new = np.flatnonzero(asked & self._unasked)
            self._unasked[new] = False
            for number in new.tolist():
                key = self.data.key(number)
                self.owner(key).begin([key])

    def kill(self, node: Node) -> None:
        """It is gone, and its loader reads through another one."""
        node.die()
        other = next(other for other in self._nodes.values() if other.alive)
        for loader in self.loaders:
            loader.move(node, other)

    def regroup(self) -> None:
        """Owners among those that live."""
        dead = {node.member for node in self._nodes.values() if not node.alive}
        self._ring = Rendezvous([member for member in self._members if member not in dead])

    def run(self) -> None:
        """The epoch of all loaders."""
        for loader in self.loaders:
            loader.start()
        self.events.run()
