"""Bounds of the daemon's data plane, each with its unit and its reason. (Those of requests on the wire stand in leptonstore/limits.py.)"""

from __future__ import annotations

from leptonstore.limits import MIB

# -- answers -----------------------------------------------------------------------------------------------------------
# A record batch on the wire: below 1 MiB what a batch costs by itself (0.2 ms of Python, gRPC and Arrow) shows; above, memory grows and
# nothing gets faster. Fewer bytes only at an end.
BATCH_BYTES = 2 * MIB
BATCH_BYTES_MIN = 1 * MIB
BATCH_BYTES_MAX = 32 * MIB  # however many rows a client asks for in one batch
BATCH_ROWS_MAX = 1 << 20  # that a client may ask for in one batch
GET_WHOLE_BYTES_MAX = 8 * MIB  # of a large value that is sent whole; of a longer one its client asks for the pieces
ROWS_AT_ONCE = 1 << 20  # whose numbers a stream holds: 8 bytes each
TAKE_BYTES = 16 * MIB  # of rows in any order that are gathered at a time
DATASETS_OPEN_MAX = 32  # versions with their nodes and pages kept in memory
FIND_READS_MAX = 1_024  # chunk lists that one `find` reads to say how long their values are

# -- write sessions ----------------------------------------------------------------------------------------------------
SESSIONS_MAX = (
    256  # each is a Store object: up to IN_FLIGHT_BYTES_MAX of memory while it is written to, some descriptors
)
SESSIONS_OF_ONE_MAX = 32  # of one principal, so that one does not take all
SESSION_IDLE_S = (
    600.0  # without a request, then what was put and not published is forgotten; a client that computes longer flushes
)
PUT_BATCH_BYTES_MAX = 64 * MIB  # of one batch of `put`: what waits to be encoded is bounded by as much
PUBLISH_UPDATES_MAX = (
    1_000  # refs in one log entry; names of 1,000 refs are 250 KiB, so WIRE_HEADER_BYTES_MAX is met first
)
PUBLISH_LOOK_BACK = 4_096  # log entries that are searched for the id of a publication whose answer got lost
PUBLISHED_REMEMBERED = 4_096  # publications whose answers are known without a search: 200 bytes each

# -- what readers hold -------------------------------------------------------------------------------------------------
LEASES_MAX = 4_096  # a locked file, or a renewed object, each
LEASES_OF_ONE_MAX = 2_048  # of one credential, so that one does not take all; a reader holds one for each version
LEASE_IDLE_S = 600.0  # a client asks again after a third of this; one that died lets go then
PLANS_MAX = 256  # readers whose plan is known
READERS_MAX = 1_024  # readers that told what they wait for, 500 bytes each

# -- how much at once (Flight) -----------------------------------------------------------------------------------------
ACTIONS_AT_ONCE = 32
# Streams: each has a batch in memory that is sent and one that is made, 128 * 2 * BATCH_BYTES = 512 MiB at worst.
GETS_AT_ONCE = 128
# Of them, those for whom a batch is being made: of 64 clients at chunks of 256 KiB on two cores p99 is 9x p50 when all may, 3.0x when
# 32 may, 1.8x when 16 may. Fewer would let the latency of a bucket show, for which they wait, too.
WORKING_PER_CORE = 16
PEERS_AT_ONCE = 64  # of other daemons of the cluster, beside all else: two batches and four blocks each, 512 MiB
PUTS_AT_ONCE = 32  # each with at most PUT_BATCH_BYTES_MAX received: 2 GiB at worst
WAITING_MAX = 1_024  # of each kind; each is a thread that sleeps
WAIT_S = 20.0  # in the queue; a client that gets an answer later has given up
ANSWER_BYTES_MAX = 64 * MIB  # of an action: the state of a store with 10^5 refs has 30 MiB
DRAIN_S = 30.0  # for what is under way when the daemon ends

# -- connections (connections.py) --------------------------------------------------------------------------------------
LOOK_S = 0.2  # between two looks at them
LOOK_SHARE = 20  # a look is at most a twentieth of the time of one core
KNOWN_WITHIN_S = 20.0  # for the first request of a connection; gRPC's own clients make it in milliseconds
UNKNOWN_MAX = 256  # connections that have not authenticated a request yet
# A request of WIRE_HEADER_BYTES_MAX + WIRE_PAYLOAD_BYTES_MAX is on its way, and what gRPC reads ahead on several streams.
UNASKED_BYTES_MAX = 16 * MIB
UNASKED_BYTES_PER_S = 1 * MIB  # of HTTP/2's own
SLOW_S = 60.0  # a client that reads (or sends) nothing for so long holds a thread and two batches
SLOW_BUSY_S = 15.0  # the same while others wait for a place
