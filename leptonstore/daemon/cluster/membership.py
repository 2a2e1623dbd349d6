"""Who the members are, and which of them answer.

    a list, a DNS name, or documents of live daemons in the store -> all members -> those that answer -> who owns a block

- No two members need to agree: who asks one that no longer owns a block is answered all the same; it costs a request to the bucket.
- A member that does not answer is left out at once, and its blocks have the next owners. After AWAY_S, which doubles up to AWAY_S_MAX, a
  thread asks whether it is back; only an answer brings it back, so that no read ever waits for one that is known to be dead.
- No clock of another host is looked at. Whose document counts is judged by the home (tiers/roles.py: LockHome).
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.members import Member, distinct, labelled, parse_member
from leptonstore.daemon.cluster.rendezvous import Rendezvous
from leptonstore.errors import BadInput, LeptonError
from leptonstore.tiers.roles import HeldLock, LockHome

FOLDER = "members"  # of the documents of live daemons


class Source(Protocol):
    """Where members are listed."""

    def look(self) -> Sequence[Member]:
        """All that are listed now, this daemon too or not. Raises LeptonError or OSError when it cannot be told."""

    def close(self) -> None:
        """This daemon is no member any more."""


class StaticMembers:
    """A list that never changes."""

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = distinct(members)

    def look(self) -> Sequence[Member]:
        """See Source."""
        return self._members

    def close(self) -> None:
        """Nothing to do."""


class NamedMembers:
    """The addresses of a DNS name (a headless service of Kubernetes), asked for again and again."""

    def __init__(self, name: str, port: int) -> None:
        self._name, self._port = name, port

    def look(self) -> Sequence[Member]:
        """See Source. Raises OSError: it does not resolve."""
        found = socket.getaddrinfo(self._name, self._port, type=socket.SOCK_STREAM)
        hosts = {address[0] for family, _, _, _, address in found if family in (socket.AF_INET, socket.AF_INET6)}
        return distinct(
            Member(f"[{host}]:{self._port}" if ":" in str(host) else f"{host}:{self._port}") for host in hosts
        )

    def close(self) -> None:
        """Nothing to do."""


class HeartbeatMembers:
    """Documents in the store's home that live daemons hold: nothing has to be told to anybody.

    A look lists names. Only when one came or went, and now and then, the documents are read, and those of dead daemons are removed.
    """

    def __init__(self, home: LockHome, me: Member, read_all_s: float = 300.0) -> None:
        """`me` is listed from now on. Raises NotPermitted: this user may not write there."""
        self._home, self._read_all_s = home, read_all_s
        self._mine: HeldLock = home.hold_lock(FOLDER, me.encode())
        self._names: list[str] | None = None
        self._members: tuple[Member, ...] = ()
        self._read_at = 0.0

    def look(self) -> Sequence[Member]:
        """See Source."""
        names = self._home.documents(FOLDER)
        if names != self._names or time.monotonic() - self._read_at > self._read_all_s:
            documents = self._home.live_locks(FOLDER, bounds.MEMBER_BYTES_MAX)
            self._members = distinct(_readable(documents))
            self._names, self._read_at = sorted(documents), time.monotonic()
        return self._members

    def close(self) -> None:
        """Take the document away: others see at their next look that this daemon has gone."""
        self._mine.release()


def _readable(documents: dict[str, bytes]) -> list[Member]:
    found = []
    for name in sorted(documents):
        try:
            found.append(parse_member(documents[name]))
        except BadInput:  # of a later version, or not ours: it cannot be asked for anything
            continue
    return found


@dataclass
class _Away:
    """One that did not answer. Seconds of this host's monotonic clock."""

    pause_s: float
    until: float
    why: str
    damaged: bool = False  # it answers, but not with what is stored


class Membership:
    """Any thread. `ring` is cheap; everything that waits runs on a thread of its own, from `start` to `close`."""

    def __init__(self, me: Member, source: Source, ask: Callable[[str], Member]) -> None:
        """ask(address): what a member tells of itself. Raises LeptonError when it does not answer, or is of another store."""
        self.me, self._source, self._ask = me, source, ask
        self._lock = threading.Lock()
        self._all: dict[str, Member] = {me.address: me}
        self._told: dict[str, Member] = {}  # labels and weights that members told themselves
        self._away: dict[str, _Away] = {}
        self._late: dict[str, int] = {}
        self._suspected: set[str] = set()
        self._ring = Rendezvous((me,))
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._asked = threading.Event()  # all members were asked once
        self._thread: threading.Thread | None = None
        self.why_not = ""  # what the list's keeper said when it could not be looked at

    def start(self) -> None:
        """Look once, and from now on again and again. Returns when the others know of this daemon, or do not answer at once."""
        self.look()
        self._wake.set()
        self._thread = threading.Thread(target=self._run, name="lepton-members", daemon=True)
        self._thread.start()
        self._asked.wait(bounds.CONNECT_S)

    # -- questions -----------------------------------------------------------------------------------------------

    @property
    def ring(self) -> Rendezvous:
        """The owners among those that answer, this daemon included."""
        return self._ring

    @property
    def members(self) -> list[Member]:
        """All that are listed, sorted by address."""
        with self._lock:
            return [self._all[address] for address in sorted(self._all)]

    def get(self, address: str) -> Member | None:
        """The member at `address`, when it is listed."""
        return self._all.get(address)

    def answers(self, address: str) -> bool:
        """Whether it is listed, and not left out."""
        return address in self._all and address not in self._away

    def away(self) -> dict[str, str]:
        """Those that are left out now, and why."""
        with self._lock:
            return {address: away.why for address, away in self._away.items()}

    # -- what calls tell -----------------------------------------------------------------------------------------

    def failed(self, address: str, why: str) -> None:
        """It does not answer: it is left out, and asked again later."""
        with self._lock:
            if address == self.me.address or address not in self._all:
                return
            known = self._away.get(address)
            if known is not None and known.until > time.monotonic():
                return  # several calls were under way when it went
            pause = bounds.AWAY_S if known is None else min(bounds.AWAY_S_MAX, 2 * known.pause_s)
            # Not all of a cluster at the same moment.
            self._away[address] = _Away(pause, time.monotonic() + pause * random.uniform(0.8, 1.2), why[:500])
            self._late.pop(address, None)
            self._rebuild()
        self._wake.set()

    def late(self, address: str) -> None:
        """It answered too late. A few times in a row it is as if it were dead."""
        with self._lock:
            self._late[address] = self._late.get(address, 0) + 1
            many = self._late[address] >= bounds.LATE_MAX
        if many:
            self.failed(address, "it does not answer in time")

    def heard(self, address: str) -> None:
        """It calls this daemon, so it is there: if it was left out, it is asked now whether it is back."""
        if address in self._away:
            with self._lock:
                away = self._away.get(address)
                if away is None or away.damaged:
                    return
                away.until = 0.0
            self._wake.set()

    def suspect(self, address: str) -> None:
        """A call of it takes long: ask whether it is there at all."""
        with self._lock:
            if address in self._all and address not in self._away:
                self._suspected.add(address)
        self._wake.set()

    def answered(self, address: str) -> None:
        """It answered a call."""
        if address in self._late:
            with self._lock:
                self._late.pop(address, None)

    def damaged(self, address: str, why: str) -> None:
        """What it sends is not what is stored: it is left out for as long as any."""
        with self._lock:
            if address == self.me.address or address not in self._all:
                return
            pause = bounds.AWAY_S_MAX
            self._away[address] = _Away(pause, time.monotonic() + pause, why[:500], True)
            self._rebuild()

    # -- the thread ----------------------------------------------------------------------------------------------

    def look(self) -> None:
        """See who is listed now. When that cannot be told, whoever was known stays a member."""
        try:
            found = self._source.look()
        except (LeptonError, OSError) as error:
            self.why_not = str(error)
            return
        self.why_not = ""
        with self._lock:
            listed = {member.address: self._labelled(member) for member in found}
            listed[self.me.address] = self.me
            if listed != self._all:
                self._all = listed
                for known in (self._away, self._told, self._late):
                    for address in [address for address in known if address not in listed]:
                        del known[address]
                self._rebuild()

    def _labelled(self, member: Member) -> Member:
        told = self._told.get(member.address)
        return member if told is None else labelled(member, told)

    def _rebuild(self) -> None:
        """Under the lock."""
        self._ring = Rendezvous([self._all[address] for address in sorted(self._all) if address not in self._away])

    def probe(self) -> None:
        """Ask those that were left out for long enough, and those that never told their labels."""
        with self._lock:
            now = time.monotonic()
            due = [address for address, away in self._away.items() if away.until <= now]
            due += [
                address
                for address in self._all
                if (address not in self._told or address in self._suspected)
                and address not in self._away
                and address != self.me.address
            ]
            self._suspected.clear()
        for address in due:
            if self._closing.is_set():
                return
            try:
                told = replace(self._ask(address), address=address)
            except LeptonError as error:
                self.failed(address, str(error))
                continue
            with self._lock:
                member = self._all.get(address)
                if member is None:
                    continue
                self._told[address] = told
                self._all[address] = labelled(member, told)
                self._away.pop(address, None)
                self._rebuild()

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._closing.is_set():
            self._wake.wait(self._pause_s(looked))
            self._wake.clear()
            if self._closing.is_set():
                return
            if time.monotonic() - looked >= bounds.MEMBERS_LOOK_S:
                self.look()
                looked = time.monotonic()
            self.probe()
            self._asked.set()

    def _pause_s(self, looked: float) -> float:
        with self._lock:
            times = [away.until for away in self._away.values()]
        return max(0.01, min([looked + bounds.MEMBERS_LOOK_S, *times]) - time.monotonic())

    def close(self) -> None:
        """This daemon is no member any more. Waits for a probe that is under way."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(2 * bounds.CONNECT_S)
        self._source.close()
