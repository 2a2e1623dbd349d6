"""Service: what a daemon does for a request, whichever plane it came by.

    act(principal, request)       -> dict (JSON-able) or bytes            an "action"
    stream(principal, request)    -> (schema, record batches)             a "get": lazily, one batch at a time
    receive(principal, request, schema, batches, ack) -> dict             a "put": batches are taken as they come

Each looks the operation up (operations.py), asks whether the principal may do it, checks the arguments, and does it in the thread of the
caller. Errors are LeptonErrors that name nothing of this host (redact.py); anything else is a bug, which is logged under an id, and the
client is told that id.

Planes authenticate, count, limit how much runs at once, and cut off who is slow (flight.py, http/). Other parts of the daemon add
their operations by `add`: jobs.py, cluster/.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from leptonstore.cache import HotCache
from leptonstore.cache.chunks import CachedChunks
from leptonstore.daemon import bounds
from leptonstore.daemon.arguments import Arguments
from leptonstore.daemon.holding import Leases
from leptonstore.daemon.operations import OPERATIONS, Of, Operation, Scope
from leptonstore.daemon.publishing import MayReach, Publisher
from leptonstore.daemon.reading import GET_SCHEMA, HISTORY_SCHEMA, Reading
from leptonstore.daemon.redact import Redactor
from leptonstore.daemon.sessions import Put, Session, Sessions, put_batches
from leptonstore.daemon.settings_asked import require_settings
from leptonstore.daemon.sight import Sight, store_wide_only
from leptonstore.daemon.tables import Tables, dataset_named
from leptonstore.digest import Digest
from leptonstore.errors import BadInput, LeptonError, StoreMissing, TooBusy
from leptonstore.store import Store
from leptonstore.store.log import LogState, Proposal
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.messages import PROTOCOL, Request, digests_of
from leptonstore.version import __version__

if TYPE_CHECKING:
    from leptonstore.daemon.access import Principal

Batches: TypeAlias = Iterator[pa.RecordBatch]
Act: TypeAlias = "Callable[[Principal, Request], dict[str, Any] | bytes]"
Stream: TypeAlias = "Callable[[Principal, Request], tuple[pa.Schema, Batches]]"
Ack: TypeAlias = Callable[[Put], None]
Planned: TypeAlias = "Callable[[Principal, str, Sequence[Digest], bool], None]"
Told: TypeAlias = "Callable[[Principal, str, dict[str, Any]], None]"

_SETTINGS_MAX = 64  # of one `append`
_SWEEP_S = 5.0
log = logging.getLogger("lepton.daemon")


class Service:
    """The operations of a daemon over one open `store`, which the caller closes after this. Any thread.

    name:       of the store, as clients know it; by default the last part of its place.
    open_store: a new Store object of the same store, one for each write session (default: store.again).
    cache:      the hot cache of the host; without one, pages are kept in this process alone.
    sight:      what a principal may see (reachable.py); by default who may read the whole store sees all, others nothing.
    may_reach:  see Publisher.
    """

    def __init__(
        self,
        store: Store,
        name: str = "",
        *,
        open_store: Callable[[], Store] | None = None,
        cache: HotCache | None = None,
        sight: Sight = store_wide_only,
        may_reach: MayReach | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.name = name or PurePath(store.url).name or "store"
        self.cache = cache
        # What `hello` tells of the daemon; whoever starts it fills them in.
        self.http_url = ""
        self.members: Callable[[], list[str]] = list
        self.planned: Planned | None = None  # what a reader will read next (cluster/, or the hot cache)
        self.told: Told | None = None  # what a reader tells of itself (metrics)
        chunks = None
        if cache is not None:
            chunks = CachedChunks(store, cache, None if store.sealer is None else store.stored_name)
        self.reading = Reading(store, sight, chunks)
        self.tables = Tables(store, sight, cache)
        self.sessions = Sessions(open_store or store.again, clock)
        self.publisher = Publisher(store, may_reach)
        self.leases = Leases(store, clock)
        self._sight = sight
        self._draining = False
        self._acts: dict[str, Act] = {
            "hello": self._hello,
            "state": self._state,
            "find": self._find,
            "lease": self._lease,
            "release": self._release,
            "plan": self._plan,
            "tell": self._tell,
            "open": self._open,
            "flush": self._flush,
            "publish": self._publish,
            "close": self._close,
            "append": self._append,
        }
        self._streams: dict[str, Stream] = {
            "get": self._get,
            "rows": self._rows,
            "take": self._take,
            "history": self._history,
        }
        self._ended = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="lepton-sweep", daemon=True)
        self._sweeper.start()

    def add(self, op: str, do: Act | Stream) -> None:
        """Have another part of the daemon do an operation of the table. `do` gets a principal that may, and the request."""
        if OPERATIONS[op].call == "action":
            self._acts[op] = do  # type: ignore[assignment]
        else:
            self._streams[op] = do  # type: ignore[assignment]

    # -- for planes ----------------------------------------------------------------------------------------------------

    def act(self, principal: Principal, request: Request) -> dict[str, Any] | bytes:
        """Do an action. Raises LeptonError and nothing else."""
        try:
            self._allowed(principal, request, "action")
            if request.op not in self._acts:
                raise BadInput(f"this daemon does not do {request.op!r}")
            return self._acts[request.op](principal, request)
        except BaseException as error:
            raise self.failure(error, request.op) from None

    def stream(self, principal: Principal, request: Request) -> tuple[pa.Schema, Batches]:
        """The answer of a "get": its schema, and its batches, which are made as they are asked for. Both raise LeptonError alone."""
        try:
            self._allowed(principal, request, "get")
            if request.op not in self._streams:
                raise BadInput(f"this daemon does not do {request.op!r}")
            schema, batches = self._streams[request.op](principal, request)
        except BaseException as error:
            raise self.failure(error, request.op) from None
        return schema, self._guarded(batches, request.op)

    def receive(
        self, principal: Principal, request: Request, schema: pa.Schema, batches: Iterable[pa.RecordBatch], ack: Ack
    ) -> dict[str, Any]:
        """Take a "put": {records, bytes}, as in the last acknowledgement. Raises LeptonError, and what `batches` and `ack` raise."""
        try:
            self._allowed(principal, request, "put")
            told = Arguments(request.op, request.arguments)
            with self.sessions.use(principal, told.text("session")) as session:
                total = put_batches(session, schema, iter(batches), ack)
                return {**total._asdict(), "new_bytes": session.store.new_bytes}
        except pa.ArrowException:
            raise  # of the plane: the client went away, or sent no Arrow
        except BaseException as error:
            raise self.failure(error, request.op) from None

    def operation(self, request: Request) -> Operation:
        """The row of the table. Raises BadInput."""
        operation = OPERATIONS.get(request.op)
        if operation is None:
            raise BadInput(f"there is no operation {request.op[:40]!r}")
        return operation

    def failure(self, error: BaseException, op: str) -> LeptonError:
        """What a client may be told of `error`. A bug is logged here, with its traceback."""
        if isinstance(error, LeptonError):
            return self._redactor().error(error)
        if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            raise error
        if isinstance(error, MemoryError):
            return TooBusy("the daemon has no memory left for this: ask for less at a time", 5.0)
        identity = wire_errors.new_identity()
        log.error("internal error %s in %r", identity, op, exc_info=error)
        return wire_errors.internal(identity)

    def drain(self) -> None:
        """From now on no write session is opened; what is under way goes on."""
        self._draining = True
        self.sessions.closed = True

    def close(self) -> None:
        """Close sessions (what they have not published is forgotten) and leases. The store stays open."""
        self._ended.set()
        self._sweeper.join()
        self.sessions.close_all()
        self.leases.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _allowed(self, principal: Principal, request: Request, call: str) -> None:
        operation = self.operation(request)
        if operation.call != call:
            raise BadInput(f"{request.op!r} is asked for as {operation.call!r}, not as {call!r}")
        dataset = None
        if operation.of is Of.DATASET:
            dataset = dataset_named(Arguments(request.op, request.arguments).text("dataset"))
        principal.require(operation, dataset)
        # A client's connection may outlive the daemon that it was made to: another one may listen there by now.
        if request.arguments.get("of") not in (None, self.store.config.store_id.hex()):
            raise StoreMissing(
                "this daemon serves another store than the one that was opened: open it anew, by its name"
            )

    def _guarded(self, batches: Batches, op: str) -> Batches:
        try:
            yield from batches
        except GeneratorExit:
            raise
        except BaseException as error:
            raise self.failure(error, op) from None
        finally:
            if hasattr(batches, "close"):
                batches.close()

    def _redactor(self) -> Redactor:
        places = [self.store.url, str(self.store.cache_path("")), *(tier.url for tier in self.store.tier.tiers)]
        if self.cache is not None:
            places.append(str(self.cache.path))
        return Redactor(places)

    def _sweep(self) -> None:
        while not self._ended.wait(_SWEEP_S):
            try:
                self.sessions.expire()
                self.leases.expire()
            except Exception:
                log.exception("cleaning up after clients failed")

    # -- operations ----------------------------------------------------------------------------------------------------

    def _hello(self, principal: Principal, request: Request) -> dict[str, Any]:
        config = self.store.config
        body: dict[str, Any] = {
            "protocol": PROTOCOL,
            "version": __version__,
            "store": {
                "name": self.name,
                "id": config.store_id.hex(),
                "chunks": vars(config.chunks),
                "zstd_level": config.zstd_level,
                "encrypted": config.encryption is not None,
            },
            "sequence": self.store.state.sequence,
            "http": self.http_url,
            "members": self.members(),
            "principal": {
                "name": principal.name,
                "grants": [{"scope": grant.scope.value, "dataset": grant.dataset} for grant in principal.grants],
            },
        }
        boot = Arguments("hello", request.arguments).text("boot", None, most=100)
        if boot is not None and boot == boot_id() and self.cache is not None and principal.may(Scope.READ):
            body["cache"] = {"path": str(self.cache.path), "id": boot}
        return body

    def _state(self, principal: Principal, request: Request) -> dict[str, Any]:
        known = Arguments("state", request.arguments).number("known", 0, 1 << 62, None)
        return self.reading.state(principal, known)

    def _find(self, principal: Principal, request: Request) -> bytes:
        digests = digests_of(request.payload)
        told = Arguments("find", request.arguments)
        id = told.text("session", None)
        if id is None:
            return self.reading.find(principal, digests, self._mine(principal, told))
        with self.sessions.use(principal, id) as session:
            return self.reading.find(principal, digests, session, rely=True)

    def _get(self, principal: Principal, request: Request) -> tuple[pa.Schema, Batches]:
        told = Arguments("get", request.arguments)
        mine = self._mine(principal, told)
        return GET_SCHEMA, self.reading.get(principal, digests_of(request.payload), told.flag("whole", True), mine)

    def _mine(self, principal: Principal, told: Arguments) -> Session | None:
        """The session whose work a request may read besides; None without one, or when it has ended."""
        id = told.text("mine", None)
        return None if id is None else self.sessions.peek(principal, id)

    def _rows(self, principal: Principal, request: Request) -> tuple[pa.Schema, Batches]:
        return self.tables.rows(principal, Arguments("rows", request.arguments))

    def _take(self, principal: Principal, request: Request) -> tuple[pa.Schema, Batches]:
        return self.tables.take(principal, Arguments("take", request.arguments), bytes(request.payload))

    def _history(self, principal: Principal, request: Request) -> tuple[pa.Schema, Batches]:
        since = Arguments("history", request.arguments).number("since", 0, 1 << 62, 0)
        return HISTORY_SCHEMA, self.reading.history(principal, since)

    def _lease(self, principal: Principal, request: Request) -> dict[str, Any]:
        told = Arguments("lease", request.arguments)
        commit, id = told.commit("commit"), told.text("lease", None, most=64)
        visible = self._sight(principal)
        if visible is not None and not visible([bytes.fromhex(commit)])[0]:
            raise BadInput(f"version {commit[:12]} is none of this credential's datasets")
        return {"lease": self.leases.take(principal, commit, id), "renew_s": bounds.LEASE_IDLE_S / 3}

    def _release(self, principal: Principal, request: Request) -> dict[str, Any]:
        self.leases.release(principal, Arguments("release", request.arguments).text("lease", most=64))
        return {}

    def _plan(self, principal: Principal, request: Request) -> dict[str, Any]:
        told = Arguments("plan", request.arguments)
        reader, more = (
            told.text("reader", most=100),
            told.flag("more", False),
        )  # more: it goes on where the last one ended
        digests = digests_of(request.payload)
        visible = self._sight(principal)
        if visible is not None:
            digests = [digest for digest, seen in zip(digests, visible(digests), strict=True) if seen]
        if self.planned is not None:
            self.planned(principal, reader, digests, more)
        return {"planned": len(digests) if self.planned is not None else 0}

    def _tell(self, principal: Principal, request: Request) -> dict[str, Any]:
        reader = Arguments("tell", request.arguments).text("reader", most=100)
        figures = {
            name: value if not isinstance(value, str) else value[:200]
            for name, value in list(request.arguments.items())[:32]
            if name != "reader" and isinstance(value, int | float | str) and not isinstance(value, bool)
        }
        if self.told is not None:
            self.told(principal, reader, figures)
        return {}

    def _open(self, principal: Principal, request: Request) -> dict[str, Any]:
        scoped = not principal.may(Scope.WRITE)
        sees = (lambda digests: self._seen(principal, digests)) if scoped else None
        base = Arguments("open", request.arguments).number("base", 0, 1 << 62, None)
        session = self.sessions.open(principal, sees, base)
        return {"session": session.id, "idle_s": bounds.SESSION_IDLE_S, "sequence": session.store.state.sequence}

    def _seen(self, principal: Principal, digests: Sequence[Digest]) -> Sequence[bool]:
        visible = self._sight(principal)
        return [True] * len(digests) if visible is None else visible(digests)

    def _flush(self, principal: Principal, request: Request) -> dict[str, Any]:
        with self.sessions.use(principal, Arguments("flush", request.arguments).text("session")) as session:
            with session.alone:
                session.store.flush()
            return {"sequence": session.store.state.sequence, "new_bytes": session.store.new_bytes}

    def _publish(self, principal: Principal, request: Request) -> dict[str, Any]:
        id = Arguments("publish", request.arguments).text("session", None)
        if id is None:
            return self.publisher.publish(principal, None, request.arguments)
        with self.sessions.use(principal, id) as session:
            return self.publisher.publish(principal, session, request.arguments)

    def _close(self, principal: Principal, request: Request) -> dict[str, Any]:
        self.sessions.close(principal, Arguments("close", request.arguments).text("session"))
        return {}

    def _append(self, principal: Principal, request: Request) -> dict[str, Any]:
        told = Arguments("append", request.arguments)
        settings = told.mapping("settings")
        requires = told.names("requires") or []
        if len(settings) > _SETTINGS_MAX or len(requires) > _SETTINGS_MAX:
            raise BadInput(f"'append' takes at most {_SETTINGS_MAX} settings and features")

        def propose(state: LogState) -> Proposal:
            require_settings(state, settings, requires)
            return Proposal("settings", settings=settings, requires=tuple(requires), author=principal.name)

        self.store.append(propose)
        return {"sequence": self.store.state.sequence}


def boot_id() -> str:
    """Names this start of this host: who tells the same one shares its memory. Empty where there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""
