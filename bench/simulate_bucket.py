"""The bucket of a simulation: request limits for each partition of the keys, latency, bandwidths, 503 with backoff, what it costs.

Keys are packs/<2 hex>/<pack>, so a bucket can be partitioned up to 256 times by the first byte of a pack's random name. How far it is, S3
decides by itself, from the load of the last minutes ("a temporary HTTP 503 until the optimization completes"): `partitions` says it here,
and 1 is a bucket that nobody read before.

A refused request is repeated as obstore does it (object_store's decorrelated jitter, bounds of leptonstore/limits.py). One that was
refused too often is an error for its reader; here it is counted (`given_up`) and begins anew, so that the epoch has an end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from bench.simulate_events import Events, Pipe
from leptonstore import limits
from leptonstore.store.prices import DEFAULT_TABLE, Price, parse_prices, price_of

BACKOFF_S = 0.1  # object_store's first wait; doubles
ANSWER_BYTES = 600  # of headers, HTTP's and TCP's, around each answer
MTU_SHARE = (
    66 / 65_536
)  # of headers on a link that takes 64 KiB at a time (segmentation offload), as in a network namespace


@dataclass(frozen=True)
class BucketLimits:
    """What a bucket gives. Figures of S3 Standard as its user guide has them ("Performance guidelines", "Performance design patterns",
    read in November 2026): 5,500 GET and 3,500 PUT a second and partitioned prefix; first byte of small objects after some 100 to 200 ms;
    85 to 90 MB/s a request. It names no bound for a bucket's bandwidth: a terabit is ours.
    """

    gets_s: float = 5_500.0
    puts_s: float = 3_500.0
    partitions: int = 1
    burst_s: float = 0.1  # of these rates that may come at once
    first_byte_s: float = 0.1  # median of a lognormal distribution
    first_byte_s_p99: float = 0.4
    refusal_s: float = 0.02  # until a 503
    connection_bytes_s: float = 85e6
    bytes_s: float = 125e9

    @property
    def sigma(self) -> float:
        """Of the first byte's distribution."""
        return math.log(self.first_byte_s_p99 / self.first_byte_s) / 2.326

    def alone_s(self, size: float) -> float:
        """A request of so many bytes, on average, when there is no other."""
        return self.first_byte_s * math.exp(self.sigma**2 / 2) + size / self.connection_bytes_s


@dataclass
class Counts:
    """Of one kind of request."""

    requests: float = 0.0
    bytes: float = 0.0
    refused: float = 0.0
    given_up: float = 0.0


def s3_price(table: str = DEFAULT_TABLE) -> Price:
    """What S3 costs by a price table (`lepton tier prices` prints the one that comes with LeptonStore; users edit theirs)."""
    price = price_of(parse_prices(table, "of the simulation"), "s3://")
    if price is None:
        raise ValueError("the price table has no price for s3://")
    return price


def dollars(price: Price, gets: float, puts: float, egress_bytes: float) -> float:
    """Of requests, and of bytes that leave the region (within one S3 takes nothing for them)."""
    return gets / 1000 * price.get_1000 + puts / 1000 * price.put_1000 + egress_bytes / limits.GIB * price.egress_gib


class Bucket:
    """share: of its limits that is there for what is simulated, where that stands for a larger whole of equal parts."""

    def __init__(self, events: Events, bounds: BucketLimits, rng: random.Random, share: float = 1.0) -> None:
        self.bounds, self.gets, self.puts = bounds, Counts(), Counts()
        self._events, self._rng, self.share = events, rng, share
        self.pipe = Pipe(bounds.bytes_s * share)
        self._next = {"get": [0.0] * bounds.partitions, "put": [0.0] * bounds.partitions}

    def get(self, pack: str, size: float, node: Pipe, done: Callable[[], object], weight: float = 1.0) -> None:
        """Read `size` bytes of a pack through `node`'s link; `done` happens when they are there. weight: so many equal requests."""
        self._try("get", pack, size, node, done, weight, 0, BACKOFF_S)

    def put(self, pack: str, size: float, node: Pipe, done: Callable[[], object]) -> None:
        """Write so many bytes."""
        self._try("put", pack, size, node, done, 1.0, 0, BACKOFF_S)

    def _try(
        self,
        kind: str,
        pack: str,
        size: float,
        node: Pipe,
        done: Callable[[], object],
        weight: float,
        tries: int,
        wait_s: float,
    ) -> None:
        counts, rate = (self.gets, self.bounds.gets_s) if kind == "get" else (self.puts, self.bounds.puts_s)
        events, partition = self._events, int(pack[:2], 16) % self.bounds.partitions
        free_at = max(self._next[kind][partition], events.now)
        if free_at > events.now + self.bounds.burst_s:
            counts.refused += weight
            if tries >= limits.OBJECT_RETRIES_MAX:
                counts.given_up += weight
                tries, wait_s = 0, BACKOFF_S
            longer_s = min(limits.OBJECT_BACKOFF_S_MAX, self._rng.uniform(BACKOFF_S, 2 * wait_s))
            events.at(
                self.bounds.refusal_s + wait_s, self._try, kind, pack, size, node, done, weight, tries + 1, longer_s
            )
            return
        self._next[kind][partition] = free_at + weight / (rate * self.share)
        sent = size * (1 + MTU_SHARE) + ANSWER_BYTES
        counts.requests += weight
        counts.bytes += sent * weight
        first_byte_s = self.bounds.first_byte_s * math.exp(self.bounds.sigma * self._rng.gauss(0, 1))
        events.at(first_byte_s, self._send, sent, node, done, weight)

    def _send(self, sent: float, node: Pipe, done: Callable[[], object], weight: float) -> None:
        now = self._events.now
        alone = now + sent / self.bounds.connection_bytes_s
        through = max(alone, self.pipe.reserve(now, sent * weight), node.reserve(now, sent))
        self._events.at(through - now, done)
