"""`python -m bench.records`: what small similar records cost, stored one by one.

100,000 JSON events of about 1 KB (seeded: nested, with ids, timestamps, names, floats, hexadecimal digits) are put one by one and stored
four times: as the store does it (groups of at most 16 KiB with a dictionary), each as a record of its own without a dictionary, in
groups without a dictionary, and as pages of 64 KiB. Bytes are those of whole packs: dictionaries, headers and footers included;
`payload` leaves out what LPK1 adds to each record.

Contract: as stored, <= 0.5x of the same one by one without dictionaries and <= 1.15x of 64 KiB pages; one read decodes <= 16 KiB.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench import harness
from bench.harness import Figure
from leptonstore import limits
from leptonstore.format import pack as lpk
from leptonstore.store import Store, reader

RECORDS, RECORDS_QUICK = 100_000, 10_000
PAGE_BYTES = 64 * limits.KIB
_FIRST = (
    "Ada",
    "Ben",
    "Carla",
    "Deniz",
    "Elif",
    "Farid",
    "Gita",
    "Hugo",
    "Ines",
    "Jonas",
    "Katya",
    "Liam",
    "Mei",
    "Noor",
)
_LAST = (
    "Adler",
    "Brandt",
    "Costa",
    "Dogan",
    "Eriksen",
    "Ferrari",
    "Gupta",
    "Haddad",
    "Jensen",
    "Kim",
    "Lopez",
    "Meyer",
)
_WORDS = tuple(
    re.findall(
        r"\S+",
        """latency budget refused because the upstream queue was full: retry later with a smaller batch. model loaded,
        checkpoint restored, shard finished, validation loss improved; early stop after three epochs without progress""",
    )
)
_AGENTS = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{}.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS {}_4 like Mac OS X) AppleWebKit/605.1.15",
    "python-requests/2.{}.0",
)


def events(count: int, seed: int = 0) -> Iterator[bytes]:
    """`count` JSON documents of about 1 KB each; the same ones for the same seed."""
    rng = random.Random(seed)
    now = datetime.datetime(2026, 1, 1)
    for number in range(count):
        now += datetime.timedelta(milliseconds=rng.randrange(1, 4000))
        yield json.dumps(_event(rng, number, now)).encode()


def _event(rng: random.Random, number: int, now: datetime.datetime) -> dict[str, Any]:
    started = now - datetime.timedelta(seconds=rng.randrange(3600))
    first, last = rng.choice(_FIRST), rng.choice(_LAST)
    return {
        "event_id": f"{rng.getrandbits(128):032x}",
        "sequence": 1_000_000 + number,
        "type": rng.choice(("click", "view", "purchase", "error", "upload")),
        "timestamp": now.isoformat(timespec="milliseconds") + "Z",
        "trace": {"trace_id": f"{rng.getrandbits(128):032x}", "span_id": f"{rng.getrandbits(64):016x}"},
        "user": {
            "id": rng.randrange(10**6, 10**7),
            "name": f"{first} {last}",
            "email": f"{first}.{last}{rng.randrange(99)}@example.com".lower(),
            "plan": rng.choice(("free", "team", "enterprise")),
            "verified": rng.random() < 0.8,
        },
        "session": {
            "id": f"{rng.getrandbits(64):016x}",
            "started": started.isoformat(timespec="seconds") + "Z",
            "ip": ".".join(str(rng.randrange(256)) for _ in range(4)),
            "user_agent": rng.choice(_AGENTS).format(rng.randrange(10, 125)),
        },
        "location": {"latitude": round(rng.uniform(-60, 60), 5), "longitude": round(rng.uniform(-180, 180), 5)},
        "request": {
            "method": rng.choice(("GET", "POST", "PUT")),
            "path": f"/api/v2/{rng.choice(('datasets', 'runs', 'models'))}/{rng.randrange(10**5)}/items",
            "status": rng.choice((200, 200, 200, 201, 204, 404, 500)),
            "duration_ms": round(rng.lognormvariate(3, 1), 3),
            "bytes": rng.randrange(200, 200_000),
        },
        "metrics": {"loss": round(rng.random(), 6), "accuracy": round(rng.random(), 4)},
        "features": [round(rng.gauss(0, 1), 4) for _ in range(8)],
        "tags": rng.sample(("beta", "mobile", "eu", "us", "gpu", "batch", "internal", "retry"), rng.randrange(1, 4)),
        "message": " ".join(rng.choice(_WORDS) for _ in range(rng.randrange(8, 20))),
    }


class Stored(NamedTuple):
    """What one way of storing costs."""

    packs: int  # bytes of all packs
    payload: int  # bytes of all payloads, dictionaries included
    put_s: float
    get_us: float  # one value, in random order, from a store that was just opened
    decoded_max: int  # plain bytes that the read of one record decodes, dictionaries apart
    dictionaries: int


def store_them(folder: Path, values: list[bytes]) -> Stored:
    """Put each value, flush, reopen, and read a thousand of them at random."""
    cache = folder / "cache"
    with Store.create(folder / "store", cache_dir=cache) as store:
        start = time.perf_counter()
        digests = [store.put(value) for value in values]
        store.flush()
        put_s = time.perf_counter() - start
    with Store.open(folder / "store", cache_dir=cache) as store:
        picked = random.Random(1).sample(range(len(values)), min(1000, len(values)))
        start = time.perf_counter()
        for index in picked:
            if store.get(digests[index]) != values[index]:
                raise AssertionError(f"value {index} did not come back as it was put")
        get_us = (time.perf_counter() - start) / len(picked) * 1e6
        places = [store.locate(store.stored_name(digest)) for digest in digests]
        decoded = max(place.row.unpacked for place in places if place is not None)
        records = {
            (pack, row.offset): row
            for pack in store.state.packs
            for row in reader.read_footer(store.tier, pack, store.config.store_id)
        }
        packs = sum(record.bytes for record in store.state.packs.values())
    dictionaries = sum(row.kind == lpk.KIND_DICTIONARY for row in records.values())
    payload = sum(row.stored for row in records.values())
    return Stored(packs, payload, put_s, get_us, decoded, dictionaries)


def pages(values: list[bytes]) -> list[bytes]:
    """The values one after another, in pages of about 64 KiB."""
    out, page = [], bytearray()
    for value in values:
        page += value
        if len(page) >= PAGE_BYTES:
            out.append(bytes(page))
            page = bytearray()
    return [*out, bytes(page)] if page else out


@contextlib.contextmanager
def without(*, groups: bool) -> Iterator[None]:
    """For comparison only, there is no such setting: no batch has enough records to train on, and no record is short enough."""
    usual = limits.DICTIONARY_RECORDS_MIN, limits.GROUP_MEMBER_BYTES_MAX
    limits.DICTIONARY_RECORDS_MIN = 1 << 62
    if groups:
        limits.GROUP_MEMBER_BYTES_MAX = -1
    try:
        yield
    finally:
        limits.DICTIONARY_RECORDS_MIN, limits.GROUP_MEMBER_BYTES_MAX = usual


def measure(arguments: argparse.Namespace) -> list[Figure]:
    """The three ways, one after another, on the same values."""
    values = list(events(RECORDS_QUICK if arguments.quick else RECORDS, arguments.seed))
    plain = sum(map(len, values))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = store_them(folder / "ours", values)
        with without(groups=True):
            alone = store_them(folder / "alone", values)
        with without(groups=False):
            grouped = store_them(folder / "grouped", values)
        paged = store_them(folder / "paged", pages(values))
    count, megabytes = len(values), plain / 1e6
    return [
        Figure("plain", plain / count, "B/record"),
        Figure("stored", ours.packs / count, "B/record", "<= 0.5", "one by one", alone.packs / count),
        Figure("stored_of_groups", ours.packs / count, "B/record", "", "groups, no dictionary", grouped.packs / count),
        Figure("stored_of_pages", ours.packs / count, "B/record", "<= 1.15", "64 KiB pages", paged.packs / count),
        Figure("payload", ours.payload / count, "B/record", "<= 0.5", "one by one", alone.payload / count),
        Figure("payload_of_pages", ours.payload / count, "B/record", "<= 1.15", "64 KiB pages", paged.payload / count),
        Figure("decoded_per_read", ours.decoded_max, "bytes", f"<= {16 * limits.KIB}"),
        Figure("dictionaries", ours.dictionaries, "records"),
        Figure("put", megabytes / ours.put_s, "MB/s", "", "one by one", megabytes / alone.put_s),
        Figure("get", ours.get_us, "us/record", "", "one by one", alone.get_us),
    ]


if __name__ == "__main__":
    parser = harness.parser("records", __doc__ or "")
    parser.add_argument("--seed", type=int, default=0, help="of the generated values (default 0)")
    harness.main("records", parser.parse_args(), measure)
