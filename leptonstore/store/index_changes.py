"""Changes of an index: packs in, packs out, each step in a short transaction that can be done again after a crash.

    in     register (packs entry, incomplete; ordinal; members) -> insert sorted rows, slice by slice -> complete
    away   its footer cannot be read now, because its tier does not answer: known without rows, and tried again when somebody asks
    out    delete or replace every place of the pack, slice by slice -> forget the pack

Invariants:
- Between `register` and the end of "out", `members` names every row of the pack that may be in `chunks` or `copies`. So whatever a
  crash left behind is found again: an incomplete pack is added once more (what is there is kept), or removed.
- Every digest that is in `copies` is in `chunks` too: removing a place there moves the oldest copy up.
One process at a time changes an index (Index.sync holds a lock between processes); any number read meanwhile.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

import numpy as np

from leptonstore import limits
from leptonstore.digest import DIGEST_BYTES
from leptonstore.store import index_rows
from leptonstore.store.environment import Environment
from leptonstore.store.index_rows import KEY_AND_PLACE, PREFIX_BYTES, Rows

LAYOUT = b"3"
_ADDING, _COMPLETE, _AWAY = range(3)  # how far a pack is
ORDINALS_MAX = (1 << 32) - 1
_APPLIED = struct.Struct("<Q32s")
_PACK = struct.Struct("<IB")
_KEY = struct.Struct(">I")
_COUNT = struct.Struct("<Q")


# -- what it is complete for -------------------------------------------------------------------------------------------


def applied(environment: Environment) -> tuple[int, bytes] | None:
    """(sequence, digest of that entry) up to which it is complete; None when it is not, or has another layout."""

    def work(txn: Any) -> tuple[int, bytes] | None:
        value = txn.get(b"applied", db=environment.meta)
        if value is None or txn.get(b"layout", db=environment.meta) != LAYOUT or len(value) != _APPLIED.size:
            return None
        sequence, head = _APPLIED.unpack(value)
        return sequence, head

    return environment.read(work)


def other_layout(environment: Environment) -> bool:
    """Whether something is in it that this version does not read."""
    found = environment.read(
        lambda txn: (txn.get(b"layout", db=environment.meta), txn.stat(environment.chunks)["entries"])
    )
    return found[0] != LAYOUT and (found[0] is not None or bool(found[1]))


def mark(environment: Environment, txn: Any, sequence: int, head: bytes) -> None:
    """It is complete up to this log entry."""
    txn.put(b"layout", LAYOUT, db=environment.meta)
    txn.put(b"applied", _APPLIED.pack(sequence, head), db=environment.meta)


def clear(environment: Environment, txn: Any) -> None:
    """Make it empty, where it is: other processes see that. Ordinals go on, because processes remember their packs."""
    for database in (environment.chunks, environment.copies, environment.packs, environment.names, environment.members):
        txn.drop(database, delete=False)
    txn.delete(b"applied", db=environment.meta)
    txn.delete(b"away", db=environment.meta)
    txn.put(b"layout", LAYOUT, db=environment.meta)


# -- packs ---------------------------------------------------------------------------------------------------------------


def stream(
    environment: Environment, database: Any, batch: int, after: bytes = b""
) -> Iterator[list[tuple[bytes, bytes]]]:
    """(key, value) of all of `database` by key, in batches; no transaction is open between them."""

    def work(txn: Any) -> list[tuple[bytes, bytes]]:
        cursor = txn.cursor(db=database)
        found = cursor.set_range(after) if after else cursor.first()
        if found and cursor.key() == after:
            found = cursor.next()
        rows = cursor.iternext() if found else iter(())
        return list(itertools.islice(rows, batch))

    while rows := environment.read(work):
        yield rows
        after = rows[-1][0]


def difference(environment: Environment, packs: dict[str, Any], with_away: bool = True) -> tuple[list[str], list[str]]:
    """(packs in here that are not in `packs`, complete or not; packs of `packs` that are not completely in here).

    with_away: those that were away are among the latter.
    """
    gone: list[str] = []
    done = (_COMPLETE,) if with_away else (_COMPLETE, _AWAY)
    complete = 0
    for rows in stream(environment, environment.packs, limits.INDEX_GET_BATCH):
        for key, value in rows:
            pack = key.hex()
            if pack not in packs:
                gone.append(pack)
            elif value[-1] in done:
                complete += 1
    # The newest stand at the end, and how many there are is known: mostly a few look-ups find them.
    new: list[str] = []
    names = reversed(packs)
    while len(new) < len(packs) - complete and (batch := list(itertools.islice(names, limits.INDEX_GET_BATCH))):
        new += environment.read(lambda txn, batch=batch: _without(txn, environment.packs, batch, done))  # type: ignore[misc]
    return gone, new[::-1]


def _without(txn: Any, database: Any, packs: list[str], done: tuple[int, ...]) -> list[str]:
    values = [txn.get(bytes.fromhex(pack), db=database) for pack in packs]
    return [pack for pack, value in zip(packs, values, strict=True) if value is None or value[-1] not in done]


def away(environment: Environment) -> list[str]:
    """Packs whose tier did not answer when their footers were wanted."""
    left = environment.read(lambda txn: _count(environment, txn, b"away"))
    found: list[str] = []
    rows = stream(environment, environment.packs, limits.INDEX_GET_BATCH) if left else iter(())
    while len(found) < left and (batch := next(rows, None)):
        found += [key.hex() for key, value in batch if value[-1] == _AWAY]
    return found


def _count(environment: Environment, txn: Any, name: bytes) -> int:
    value = txn.get(name, db=environment.meta)
    count: int = _COUNT.unpack(value)[0] if value is not None else 0
    return count


def register(environment: Environment, txn: Any, packs: Sequence[tuple[str, Rows]]) -> None:
    """Give each pack an ordinal, write it into its entries, and remember their digests. Raises OverflowError."""
    ordinal = first = _count(environment, txn, b"next")
    for pack, entries in packs:
        key = bytes.fromhex(pack)
        known = txn.get(key, db=environment.packs)
        if known is not None:  # a crash interrupted its addition, or it was away
            mine = _PACK.unpack(known)[0]
        else:
            mine, ordinal = ordinal, ordinal + 1
        if mine > ORDINALS_MAX:
            raise OverflowError("the index has used all pack ordinals")
        entries["ordinal"] = mine
        _put_pack(environment, txn, key, mine, _ADDING)
        txn.put(_KEY.pack(mine), key, db=environment.names)
        txn.put(_KEY.pack(mine), index_rows.prefixes_of(entries), db=environment.members)
    if ordinal != first:
        txn.put(b"next", _COUNT.pack(ordinal), db=environment.meta)


def _put_pack(environment: Environment, txn: Any, key: bytes, ordinal: int, how_far: int) -> None:
    before = txn.get(key, db=environment.packs)
    change = (how_far == _AWAY) - (before is not None and before[-1] == _AWAY)
    if change:
        count = _count(environment, txn, b"away") + change
        txn.put(b"away", _COUNT.pack(count), db=environment.meta)
    txn.put(key, _PACK.pack(ordinal, how_far), db=environment.packs)


def complete(environment: Environment, txn: Any, packs: Iterable[str], away: Set[str]) -> None:
    """All rows of these packs are in; those that are `away` have none yet."""
    for pack in packs:
        key = bytes.fromhex(pack)
        ordinal = _PACK.unpack(txn.get(key, db=environment.packs))[0]
        _put_pack(environment, txn, key, ordinal, _AWAY if pack in away else _COMPLETE)


def name_of(environment: Environment, ordinal: int) -> str | None:
    """The id of a pack; None when it has been removed."""
    name = environment.pack_names.get(ordinal)
    if name is None:
        value = environment.read(lambda txn: txn.get(_KEY.pack(ordinal), db=environment.names))
        if value is None:
            return None
        if len(environment.pack_names) >= limits.INDEX_PACK_NAMES_MAX:
            environment.pack_names.clear()
        name = environment.pack_names[ordinal] = value.hex()
    return name


# -- rows ----------------------------------------------------------------------------------------------------------------


def insert_sorted(environment: Environment, entries: Rows) -> None:
    """Add sorted entries of registered packs, in as many transactions as keep each small."""
    start = 0
    while start < len(entries):
        at_end = environment.read(lambda txn, start=start: _goes_at_end(environment, txn, entries[start:]))  # type: ignore[misc]
        rows = limits.INDEX_BATCH_ROWS if at_end else limits.INDEX_COMMIT_ROWS
        part = entries[start : start + rows]
        environment.write(lambda txn, part=part: insert(environment, txn, part))  # type: ignore[misc]
        start += rows


def _goes_at_end(environment: Environment, txn: Any, entries: Rows) -> bool:
    cursor = txn.cursor(db=environment.chunks)
    return bool(len(entries)) and (not cursor.last() or cursor.key() < entries[:1].tobytes()[:DIGEST_BYTES])


def insert(environment: Environment, txn: Any, entries: Rows) -> None:
    """Add sorted entries of registered packs. A place that is there stays first; what is there already is not added again."""
    if not len(entries):
        return
    first = index_rows.first_of_digest(entries)
    main = entries if first.all() else entries[first]
    append = _goes_at_end(environment, txn, main)  # then pages are filled to their end
    items = KEY_AND_PLACE.iter_unpack(main.tobytes())
    consumed, added = txn.cursor(db=environment.chunks).putmulti(items, overwrite=False, append=append)
    more = entries if added < consumed else entries[~first]
    for digest, place in KEY_AND_PLACE.iter_unpack(more.tobytes()):
        if txn.get(digest, db=environment.chunks)[:4] != place[:4]:
            txn.put(digest + _copy_key(place), place, db=environment.copies, overwrite=False)


def _copy_key(place: bytes) -> bytes:
    """Big-endian, so that a digest's copies are in the order in which their packs came."""
    return place[3::-1]


def remove_packs(environment: Environment, packs: list[str]) -> None:
    """Remove every place in these packs; where a digest has a copy elsewhere, that one is used from now on."""
    batch: list[tuple[bytes, int]] = []
    first = 0
    for at, pack in enumerate(packs):
        batch.append(environment.read(lambda txn, pack=pack: _members_of(environment, txn, pack)))  # type: ignore[misc]
        if (
            at + 1 == len(packs)
            or sum(len(prefixes) for prefixes, _ in batch) >= limits.INDEX_BATCH_ROWS * PREFIX_BYTES
        ):
            _remove_rows(environment, batch)
            gone = packs[first : at + 1]
            environment.write(lambda txn, gone=gone: _forget(environment, txn, gone))  # type: ignore[misc]
            batch, first = [], at + 1


def _members_of(environment: Environment, txn: Any, pack: str) -> tuple[bytes, int]:
    ordinal = _PACK.unpack(txn.get(bytes.fromhex(pack), db=environment.packs))[0]
    return txn.get(_KEY.pack(ordinal), db=environment.members) or b"", ordinal


def _remove_rows(environment: Environment, packs: list[tuple[bytes, int]]) -> None:
    prefixes = np.frombuffer(b"".join(prefixes for prefixes, _ in packs), "u8")
    ordinals = np.repeat([ordinal for _, ordinal in packs], [len(prefixes) // PREFIX_BYTES for prefixes, _ in packs])
    order = np.argsort(prefixes.byteswap(), kind="stable")  # the digests' order: neighbours share pages
    for start in range(0, len(order), limits.INDEX_COMMIT_ROWS):
        some = order[start : start + limits.INDEX_COMMIT_ROWS]
        rows = list(zip(prefixes[some].tolist(), ordinals[some].tolist(), strict=True))
        environment.write(lambda txn, rows=rows: _remove_places(environment, txn, rows))  # type: ignore[misc]


def _remove_places(environment: Environment, txn: Any, rows: list[tuple[int, int]]) -> None:
    cursor = txn.cursor(db=environment.chunks)
    for number, ordinal in rows:
        prefix, mine = number.to_bytes(PREFIX_BYTES, "little"), ordinal.to_bytes(4, "little")
        found = []  # with this prefix: nearly always one
        more = cursor.set_range(prefix)
        while more and cursor.key().startswith(prefix):
            found.append(cursor.item())
            more = cursor.next()
        for digest, place in found:
            txn.delete(digest + _copy_key(mine), db=environment.copies)
            if place[:4] == mine:
                _remove_first(environment, txn, digest)


def _remove_first(environment: Environment, txn: Any, digest: bytes) -> None:
    copies = txn.cursor(db=environment.copies)
    if copies.set_range(digest) and copies.key().startswith(digest):
        txn.put(digest, copies.value(), db=environment.chunks)
        copies.delete()
    else:
        txn.delete(digest, db=environment.chunks)


def _forget(environment: Environment, txn: Any, packs: list[str]) -> None:
    for pack in packs:
        key = bytes.fromhex(pack)
        ordinal = _PACK.unpack(txn.get(key, db=environment.packs))[0]
        _put_pack(environment, txn, key, ordinal, _ADDING)  # it is away no more
        txn.delete(key, db=environment.packs)
        txn.delete(_KEY.pack(ordinal), db=environment.names)
        txn.delete(_KEY.pack(ordinal), db=environment.members)
