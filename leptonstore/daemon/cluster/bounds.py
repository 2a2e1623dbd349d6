"""Bounds of the cluster, with their units and their reasons."""

from __future__ import annotations

from leptonstore import limits
from leptonstore.limits import GIB, KIB, MIB

# -- blocks --------------------------------------------------------------------------------------------------------
# What is kept and evicted at a time. A value of 50 KB that is read at random brings so much with it, so it should be small; a request
# to a bucket takes 10 to 30 ms, as much as the bytes of 1 to 3 MiB.
BLOCK_BYTES = 1 * MIB
# Neighbours that have one owner, so that one request brings them: 8 MiB, a part of a multipart upload (limits.WINDOW_BYTES).
STRETCH_BLOCKS = limits.WINDOW_BYTES // BLOCK_BYTES
GAP_BLOCKS_MAX = limits.RANGE_GAP_BYTES // BLOCK_BYTES  # that nobody asked for, between two that are read together
PACKS_REMEMBERED = 65_536  # whose length and header are known: 500 bytes each
PACKS_GONE_REMEMBERED = 65_536  # that were deleted here, 100 bytes each

RAM_BYTES_MIN = 16 * MIB  # of blocks; two stretches must fit
RAM_BEFORE_DISK_BYTES = 64 * MIB  # where blocks are kept on disk: those that came last
DISK_BYTES_MIN = 64 * MIB
DISK_BYTES_MAX = 16_384 * GIB  # 16 million files
DISK_FREE_BYTES_MIN = 256 * MIB  # left free of the device
DISK_FULL_PAUSE_S = 30.0  # without writes, after the device was full
PAGE_BYTES = 64 * KIB  # of a block on disk that has a check of its own: what a small read has to verify
# Blocks that came lately, of the budget: they stay while a loader goes through them, whatever their merit. Fetched ahead: half of that.
LATEST_SHARE = 1 / 8
AHEAD_SHARE = LATEST_SHARE / 2
# Copies of blocks that others own live in what the own ones leave free, and in so much of the budget in any case: what everybody reads
# all the time (dictionaries, nodes of trees) should be here.
COPIES_SHARE = 1 / 8
VICTIMS_LOOKED_AT = (
    8  # blocks among which the least wanted is looked for: as good as the least of all, but for some per cent
)
# Counters of visits, a byte each: enough that blocks which were seen once do not add up (with 8, a long scan drove everything out).
COUNTS_PER_BLOCK = 32
COUNTS_MAX = 1 << 26  # 64 MiB
VISITS_MAX = 15  # after ten times as many visits as there are blocks, all counts are halved

# -- copies --------------------------------------------------------------------------------------------------------
# A block of another's is copied when half of its bytes have been asked for: what was sent in vain is then at most twice what was needed.
COPY_ASKED_SHARE = 0.5
ASKED_REMEMBERED = 65_536  # blocks of others of which it is known how much was asked for, 100 bytes each
HOLDERS_REMEMBERED = 65_536  # own blocks of which it is known who has a copy
HOLDERS_PER_BLOCK = 4

# -- reading -------------------------------------------------------------------------------------------------------
# Blocks under way for all readers together; above FLIGHT_BLOCKS / 4 readers, four for each.
FLIGHT_BLOCKS = 128
READ_TRIES = 3  # of one part, at different members, before it is read in the bucket as it is
RECEIVED_REMEMBERED = (
    1_024  # parts that peers sent lately, of which the check is known: for the case that a reader finds damage
)
DISTRUSTED_MAX = 1_024  # packs that are read in the bucket alone, after a reader found damage
DISTRUSTED_S = 300.0

# -- calls ---------------------------------------------------------------------------------------------------------
BUCKET_THREADS = 16  # requests to the bucket at a time: 128 MiB
PEER_THREADS = 32  # requests to peers at a time
PEER_REQUEST_BYTES = 8 * MIB  # that one request asks for
PEER_REQUEST_RANGES = 4_096
ANSWER_BATCH_BYTES = 2 * MIB  # of one batch of an answer
PEER_REQUEST_S = 10.0  # all of a request: its owner may wait for the bucket
# A peer that did not answer for so long may be dead or behind a cut cable: the bucket is asked too. Not for more than a few requests
# (HEDGES_PER_REQUEST of all, and HEDGES_SAVED_MAX at a time): when all are slow, more requests would make it worse.
HEDGE_S = 2.0
HEDGES_PER_REQUEST = 0.05
HEDGES_SAVED_MAX = 8.0
DAMAGED_MAX = 3  # answers of a peer that were damaged, before it is left out

# -- members -------------------------------------------------------------------------------------------------------
MEMBERS_MAX = 1_024
MEMBER_BYTES_MAX = 1 * KIB  # of one member's document
LABEL_CHARS_MAX = 64
WEIGHT_MIN, WEIGHT_MAX = 0.01, 1_000.0
MEMBERS_LOOK_S = 5.0  # between two looks at the list, the name or the documents
AWAY_S, AWAY_S_MAX = 1.0, 30.0  # until one that did not answer is asked again, doubled each time
# Whether a member is there at all is told by whether it takes a connection; how long it may take to answer is another matter: when all
# are busy, and each leaves the slow ones out, all of them fetch everything.
CONNECT_S = 2.0
PROBE_S = 10.0
LATE_MAX = 2  # answers that came too late in a row, before a member is left out
FORGET_S = 60.0  # between two looks whether packs were deleted elsewhere, whose blocks then go

# -- documents, plans ----------------------------------------------------------------------------------------------
LOG_ENTRIES_KEPT = 4_096
LOG_ENTRIES_BYTES = 16 * MIB
PLANS_MAX = 1_024  # readers at a time
PLAN_BLOCKS_MAX = 1 << 18  # of one reader: 256 GiB ahead
PLAN_IDLE_S = 120.0  # a reader that was not heard of for so long is gone
AHEAD_S = 30.0  # after which a block that was fetched ahead, and that nobody read, makes room for the next one
