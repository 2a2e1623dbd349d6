"""All of it, for the daemon: a cluster of this daemon alone is its block cache.

cluster = Cluster(bucket, config.store_id.hex(), settings)
store = Store(cluster.tier(home), config, ...)          for each Store object a home of its own
cluster.block(request), .member(request), .plan(...)     what Service answers
cluster.close()
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from leptonstore.daemon.cluster import answers, bounds
from leptonstore.daemon.cluster.block_files import BlockFiles, Key
from leptonstore.daemon.cluster.blocks import Blocks
from leptonstore.daemon.cluster.cooperative import CooperativeTier, Known
from leptonstore.daemon.cluster.members import Member, parse_members
from leptonstore.daemon.cluster.membership import HeartbeatMembers, Membership, NamedMembers, Source, StaticMembers
from leptonstore.daemon.cluster.peers import Peers, PeerTls
from leptonstore.daemon.cluster.prefetch import Plans
from leptonstore.daemon.cluster.secret import is_peer, peer_token, require_secret, shared_secret
from leptonstore.daemon.cluster.sharing import Sharing
from leptonstore.daemon.cluster.wire import parts_of
from leptonstore.digest import Digest
from leptonstore.errors import BadInput, LeptonError
from leptonstore.format import pack as lpk
from leptonstore.limits import MIB
from leptonstore.store import Store
from leptonstore.store.wire.messages import Request
from leptonstore.tiers.roles import StoreHome

STORE, DNS = "store", "dns:"
log = logging.getLogger("lepton.daemon")
_LISTS_PER_PLAN = 256  # large values of one plan whose pieces are looked up


@dataclass(frozen=True)
class ClusterSettings:
    """What a daemon is told. members: "" (it is alone), "store" (documents in the store's home), "dns:NAME:PORT", or a list of
    "HOST:PORT[/RACK[/ZONE]]". me: as others reach it. secret: None for the store's own."""

    me: Member
    members: str = ""
    ram_bytes: int = 256 * MIB
    disk: Path | None = None
    disk_bytes: int = 0
    secret: bytes | None = None
    tls: PeerTls | None = None


class Cluster:
    """Any thread; not in a child process made by fork."""

    def __init__(self, bucket: StoreHome, store_id: str, settings: ClusterSettings) -> None:
        """bucket: the store's home, for this object alone. Raises BadInput, NotPermitted, TierUnavailable."""
        self.settings, self.store_id, self._bucket = settings, store_id, bucket
        self._secret: bytes | None = None if settings.secret is None else require_secret(settings.secret)
        if self._secret is None and settings.members:
            self._secret = shared_secret(bucket)
        files = None if settings.disk is None else BlockFiles(settings.disk, settings.disk_bytes)
        self.blocks = Blocks(settings.ram_bytes, files)
        self.peers = Peers(settings.me.address, lambda: peer_token(self._secret or b""), store_id, settings.tls)
        self.members = Membership(settings.me, _source(settings, bucket), self.peers.ask)
        self._known = Known()
        self._closing = threading.Event()
        self._keeping: threading.Thread | None = None
        fetch: Callable[[str, int, int], Any] = getattr(bucket, "read_plain", bucket.read)
        self.sharing = Sharing(fetch, self._pack_bytes, self.blocks, self.members, self.peers)
        self.plans = Plans(self.sharing, self.peers.ahead, self.blocks.budget)

    def start(self, listed: Callable[[], Collection[str]] | None = None) -> None:
        """From now on others are looked for, if there can be any. Call it when the data plane answers.

        listed(): the packs that the log lists by now. It is called now and then: of others no blocks stay here.
        """
        if listed is not None:
            self._keeping = threading.Thread(target=self._keep, args=(listed,), name="lepton-forget", daemon=True)
            self._keeping.start()
        if self.settings.members:
            self.members.start()

    def _keep(self, listed: Callable[[], Collection[str]]) -> None:
        while not self._closing.wait(bounds.FORGET_S):
            try:
                self.keep_only(listed())
            except (
                LeptonError,
                OSError,
            ) as error:  # the home is away: nothing can have been deleted that we would hear of
                log.debug("packs cannot be looked up: %s", error)

    def _pack_bytes(self, pack: str) -> int | None:
        size = self._known.sizes.get(pack)
        if size is None:
            size = self._bucket.pack_bytes(pack)
            if size is not None:
                self._known.sizes.set(pack, size)
        return size

    def tier(self, home: StoreHome) -> CooperativeTier:
        """`home`, with its packs read through the cluster."""
        return CooperativeTier(home, self.sharing, self._known)

    # -- what Service answers ------------------------------------------------------------------------------------

    def is_peer(self, authorization: str | None) -> bool:
        """Whether a request's `authorization` is that of a member: it gets the scope `peer`, and no other."""
        return self._secret is not None and is_peer(authorization, self._secret)

    def block(self, request: Request) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Operation `block`. Raises BadInput."""
        return answers.block(self.sharing, self.plans, request)

    def member(self, request: Request) -> dict[str, Any]:
        """Operation `member`."""
        return answers.member(self.members, self.store_id, request)

    def plan(self, store: Store, reader: str, digests: Sequence[Digest], more: bool = False) -> int:
        """Operation `plan`: what `reader`, whose name is unique among all clients, will read. Returns how many blocks that touches.

        more: after what it told before; else its former plan ends. No digests and no more: it reads no longer.
        """
        keys = list(dict.fromkeys(blocks_of(store, digests)))
        if more:
            self.plans.more(reader, keys)
        else:
            self.plans.set(reader, keys)
        return len(keys)

    def gone(self, reader: str) -> None:
        """A reader's connection has ended."""
        self.plans.gone(reader)

    def addresses(self) -> list[str]:
        """The members that answer, this one included: for clients that look for another one."""
        return [member.address for member in self.members.members if self.members.answers(member.address)]

    def snapshot(self) -> dict[str, Any]:
        """For metrics and the dashboard: members, what is held, and counts since the start."""
        away = self.members.away()
        return {
            "me": self.members.me.address,
            "members": [
                {**vars(member), "answers": member.address not in away, "why": away.get(member.address, "")}
                for member in self.members.members
            ],
            "blocks": {
                "bytes": self.blocks.bytes,
                "budget": self.blocks.budget,
                "reads": dict(self.blocks.counts),
                "damaged": 0 if self.blocks.files is None else self.blocks.files.damaged,
            },
            "parts": self.sharing.told(),
            "plans": self.plans.readers,
        }

    # -- upkeep --------------------------------------------------------------------------------------------------

    def keep_only(self, packs: Collection[str]) -> None:
        """Forget blocks of packs that the log does not list: after a refresh, and at the start (garbage collection, erasure)."""
        if self.blocks.packs() - set(packs):
            self.sharing.forget(lambda pack: pack not in packs)

    def close(self) -> None:
        """This daemon is no member any more."""
        log.info("blocks of packs: %s", json.dumps(self.snapshot()))
        self._closing.set()
        if self._keeping is not None:
            self._keeping.join()
        self.members.close()
        self.plans.close()
        self.sharing.close()
        self.peers.close()
        self.blocks.close()
        self._bucket.close()


def blocks_of(store: Store, digests: Sequence[Digest]) -> Iterator[Key]:
    """The blocks that reading `digests` will touch, in that order, each as often as it turns up."""
    lists = 0
    for digest, place in zip(digests, store.locate_many(digests), strict=True):
        if place is None:
            continue
        yield from _keys(place.pack, place.row.offset, place.row.end)
        if place.row.kind == lpk.KIND_CHUNK_LIST and lists < _LISTS_PER_PLAN:
            lists += 1
            pieces = store.pieces(digest) or ()
            for piece in filter(None, store.locate_many([piece for piece, _ in pieces])):
                yield from _keys(piece.pack, piece.row.offset, piece.row.end)


def _keys(pack: str, start: int, end: int) -> Iterator[Key]:
    return (part.key for part in parts_of(pack, start, end - start))


def _source(settings: ClusterSettings, home: StoreHome) -> Source:
    text = settings.members.strip()
    if text == STORE:
        return HeartbeatMembers(home, settings.me)
    if text.startswith(DNS):
        name, _, port = text[len(DNS) :].rpartition(":")
        if not name or not port.isdigit():
            raise BadInput(f"{text!r} names no members: give dns:NAME:PORT")
        return NamedMembers(name, int(port))
    members = parse_members(text)
    if text and settings.me.address not in {member.address for member in members}:
        raise BadInput(f"this daemon is {settings.me.address}, which is not in its list of members {text!r}")
    return StaticMembers(members or (settings.me,))
