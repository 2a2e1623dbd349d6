"""A member of the cluster: where it answers, where it stands, and how much of the blocks it takes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from leptonstore.daemon.cluster import bounds
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput

_ADDRESS = re.compile(r"(?:[A-Za-z0-9]([A-Za-z0-9._-]{0,252}[A-Za-z0-9])?|\[[0-9a-fA-F:.]{2,64}\]):([0-9]{1,5})")
_LABEL = re.compile(rf"[A-Za-z0-9._:-]{{0,{bounds.LABEL_CHARS_MAX}}}")
SAME_RACK, SAME_ZONE, FAR = 0, 1, 2


@dataclass(frozen=True)
class Member:
    """`address` ("host:port" of its data plane) is its name: after a restart it owns the same blocks. Labels may be empty.

    weight: its share of the blocks, as a ratio to others' weights.
    """

    address: str
    rack: str = ""
    zone: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        found = _ADDRESS.fullmatch(self.address)
        if found is None or not 0 < int(found[2]) < 65_536:
            raise BadInput(f"{self.address[:200]!r} is no address of a member: give HOST:PORT")
        for name, label in (("rack", self.rack), ("zone", self.zone)):
            if not _LABEL.fullmatch(label):
                raise BadInput(f"{label[:200]!r} is no label for a {name}: use letters, digits and . _ : -")
        if not (math.isfinite(self.weight) and bounds.WEIGHT_MIN <= self.weight <= bounds.WEIGHT_MAX):
            raise BadInput(
                f"{self.weight} is no weight for {self.address}: give {bounds.WEIGHT_MIN} to {bounds.WEIGHT_MAX}"
            )

    def distance(self, other: Member) -> int:
        """SAME_RACK, SAME_ZONE or FAR. Members without labels stand in one rack."""
        if self.zone != other.zone:
            return FAR
        return SAME_RACK if self.rack == other.rack else SAME_ZONE

    def encode(self) -> bytes:
        """As a document."""
        return json.dumps(vars(self)).encode()


def parse_member(data: Buffer) -> Member:
    """The member that a document tells of. Raises BadInput."""
    try:
        body = json.loads(bytes(data))
        if not isinstance(body, dict):
            raise ValueError("no object")
        return member_of(body)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"a member's document does not parse: {error}") from None


def member_of(body: dict[str, object]) -> Member:
    """From plain JSON. Raises BadInput."""
    address, rack, zone = (body.get(name, "") for name in ("address", "rack", "zone"))
    weight = body.get("weight", 1.0)
    if not all(isinstance(text, str) for text in (address, rack, zone)):
        raise BadInput("a member's address and labels must be text")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise BadInput("a member's weight must be a number")
    return Member(str(address), str(rack), str(zone), float(weight))


def parse_members(text: str) -> tuple[Member, ...]:
    """A static list: "HOST:PORT[/RACK[/ZONE]]", separated by commas. Raises BadInput."""
    found = []
    for part in filter(None, (one.strip() for one in text.split(","))):
        address, _, labels = part.partition("/")
        rack, _, zone = labels.partition("/")
        found.append(Member(address, rack, zone))
    return distinct(found)


def distinct(members: Iterable[Member]) -> tuple[Member, ...]:
    """Sorted by address, the last one of each. Raises BadInput when there are too many."""
    by_address = {member.address: member for member in members}
    if len(by_address) > bounds.MEMBERS_MAX:
        raise BadInput(f"{len(by_address)} members: a cluster has {bounds.MEMBERS_MAX} at most")
    return tuple(by_address[address] for address in sorted(by_address))


def labelled(member: Member, told: Member) -> Member:
    """`member` with the labels and the weight that it told itself."""
    return replace(member, rack=told.rack, zone=told.zone, weight=told.weight)
