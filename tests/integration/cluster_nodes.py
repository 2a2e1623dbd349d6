"""Members of a cluster in one process, over one bucket in memory: calls are calls of functions, and can be made to fail."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.blocks import Blocks
from leptonstore.daemon.cluster.cooperative import CooperativeTier, Known
from leptonstore.daemon.cluster.members import Member
from leptonstore.daemon.cluster.membership import Membership, StaticMembers
from leptonstore.daemon.cluster.sharing import Sharing
from leptonstore.daemon.cluster.wire import Answer, Part, answers_of, batch_of, parse_parts, payload_of
from leptonstore.digest import Buffer
from leptonstore.errors import TierUnavailable
from leptonstore.tiers.object import ObjectTier
from leptonstore.tiers.open import open_tier


@dataclass
class Nodes:
    """`calls` counts what members asked of each other; `before` may raise, or wait; `alter` changes what is answered."""

    url: str
    members: Sequence[Member]
    ram_bytes: int = bounds.RAM_BYTES_MIN
    nodes: dict[str, Node] = field(default_factory=dict)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)  # who asked whom
    before: Callable[[str, str], None] = lambda mine, address: None
    alter: Callable[[str, list[Answer]], list[Answer]] = lambda address, answers: answers
    fetched: Counter[tuple[str, int]] = field(
        default_factory=Counter
    )  # (pack, block) -> times it left the bucket as a block
    requests: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> Nodes:
        """All members."""
        for member in self.members:
            self.nodes[member.address] = Node(self, member)
        return self

    def close(self) -> None:
        """All members."""
        for node in self.nodes.values():
            node.sharing.close()

    @property
    def listed(self) -> list[Node]:
        """In the order of their addresses."""
        return [self.nodes[address] for address in sorted(self.nodes)]


class Node:
    """One member."""

    def __init__(self, nodes: Nodes, me: Member) -> None:
        self.nodes, self.me = nodes, me
        tier = open_tier(nodes.url)
        assert isinstance(tier, ObjectTier)
        self.bucket = tier
        self.members = Membership(me, StaticMembers(nodes.members), self.ask)
        self.members.look()
        self.sharing = Sharing(self.fetch_block, tier.pack_bytes, Blocks(nodes.ram_bytes), self.members, self)
        self.known = Known()
        self.alive = True

    def tier(self) -> CooperativeTier:
        """A home over it."""
        return CooperativeTier(self.bucket, self.sharing, self.known)

    def fetch_block(self, pack: str, offset: int, length: int) -> Buffer:
        """From the bucket, counted."""
        data = self.bucket.read_plain(pack, offset, length)
        with self.nodes.lock:
            self.nodes.requests += 1
            if length % bounds.BLOCK_BYTES:
                return data  # a pack's frame, or a part that is read as it is
            for number in range(offset // bounds.BLOCK_BYTES, -(-(offset + len(data)) // bounds.BLOCK_BYTES)):
                self.nodes.fetched[pack, number] += 1
        return data

    def fetch(self, address: str, parts: Sequence[Part], mine: str, here: bool) -> list[Answer | None]:
        """See Calls: through the bytes of requests and answers."""
        with self.nodes.lock:
            self.nodes.calls[mine, address] += 1
        self.nodes.before(mine, address)
        other = self.nodes.nodes[address]
        if not other.alive:
            raise TierUnavailable(f"member {address} does not answer", address)
        asked = parse_parts(payload_of(parts))
        answers = self.nodes.alter(address, list(other.sharing.answer(asked, mine, here)))
        return answers_of(batch_of(answers), parts)

    def ask(self, address: str) -> Member:
        """See Membership."""
        other = self.nodes.nodes.get(address)
        if other is None or not other.alive:
            raise TierUnavailable(f"member {address} does not answer", address)
        return other.me
