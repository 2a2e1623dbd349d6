"""The hot cache of a host: decoded pages, values and arenas in RAM or on NVMe, shared by all processes without a server.

    get(key) -> index (lock-free, in a mapped file) -> segment file (mapped read-only) -> memoryview, valid while it is referenced

directory  where a cache may live, and the lock of those who change it
table      the mapped file that all processes share: segment slots, index, counters
segments   segment files: preallocated, mapped, pinned by whoever looks at them, removed when nobody does
plans      who will ask for what: the order of keys that live clients registered
eviction   which values are worth their bytes, and which segments go
flight     of all that miss a key, one fetches
forks      what a forked child must not keep
hot        HotCache, Lease: what others use
chunks     CachedChunks: the chunks of a store through it

The cache knows keys (32 bytes) and bytes; whoever puts a value has verified it. Nothing here is durable, and nothing is believed: each
value carries a check, and what does not match is a miss.
"""

from leptonstore.cache.hot import HotCache, Lease

__all__ = ["HotCache", "Lease"]
