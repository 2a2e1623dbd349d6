"""The operations between daemons, and `plan`: arguments checked, answers as both planes carry them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from leptonstore.daemon.cluster import bounds
from leptonstore.daemon.cluster.membership import Membership
from leptonstore.daemon.cluster.prefetch import Plans
from leptonstore.daemon.cluster.sharing import Sharing
from leptonstore.daemon.cluster.wire import SCHEMA, Answer, Part, batch_of, parse_parts
from leptonstore.errors import BadInput
from leptonstore.store.wire.messages import Request


def block(sharing: Sharing, plans: Plans, request: Request) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Operation `block`: {from: address, here: bool} and parts -> their bytes; {from, ahead: true} -> nothing. Raises BadInput."""
    asker = text_of(request.arguments, "from")
    sharing.members.heard(asker)
    here, ahead = (flag_of(request.arguments, name) for name in ("here", "ahead"))
    parts = parse_parts(request.payload)
    if ahead:
        plans.more(f"member {asker}", [part.key for part in parts])
        return SCHEMA, iter(())
    return SCHEMA, _batches(parts, sharing.answer(parts, asker, here))


def _batches(parts: list[Part], answers: Iterable[Answer]) -> Iterator[pa.RecordBatch]:
    some, bytes_of = list[Answer](), 0
    for answer in answers:
        some.append(answer)
        bytes_of += len(answer.data)
        if bytes_of >= bounds.ANSWER_BATCH_BYTES:
            yield batch_of(some)
            some, bytes_of = [], 0
    if some:
        yield batch_of(some)


def member(members: Membership, store_id: str, request: Request) -> dict[str, Any]:
    """Operation `member`: {from: address} -> who this daemon is, and of which store. Raises BadInput."""
    members.heard(text_of(request.arguments, "from"))
    return {"store": store_id, "member": dict(vars(members.me))}


def text_of(arguments: Mapping[str, Any], name: str) -> str:
    """A text among the arguments, at most 300 characters. Raises BadInput."""
    value = arguments.get(name, "")
    if not isinstance(value, str) or len(value) > 300:
        raise BadInput(f"{name!r} must be a text of at most 300 characters")
    return value


def flag_of(arguments: Mapping[str, Any], name: str) -> bool:
    """True or false among the arguments. Raises BadInput."""
    value = arguments.get(name, False)
    if not isinstance(value, bool):
        raise BadInput(f"{name!r} must be true or false")
    return value
