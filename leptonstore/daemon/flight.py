"""FlightServer: the data plane. Arrow Flight's three calls carry the operations of the service; docs/WIRE.md.

    do_action(type=op, body=LWR1)      -> one result: JSON, or bytes
    do_get(ticket=LWR1)                -> record batches
    do_put(command=LWR1, batches)      -> metadata messages: JSON {"records", "bytes"} for each batch, and once more at the end

Every call: authenticate (before anything of the request is read) -> parse -> charge -> a place (admission.py) -> do it -> audit, count.
Errors travel as JSON in FlightError.extra_info (store/wire/errors.py).

gRPC has a thread for each call and no limit of its own, so what limits is here and in connections.py, which cuts off clients that do not
read, do not ask, or send more than they may.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.flight as fl

from leptonstore.daemon import bounds, tracing
from leptonstore.daemon.admission import Admission
from leptonstore.daemon.connections import Connections
from leptonstore.daemon.operations import OPERATIONS, Scope
from leptonstore.daemon.service import Service
from leptonstore.daemon.sessions import Put
from leptonstore.errors import BadInput, LeptonError, NotAuthenticated, NotPermitted, TierUnavailable, TooBusy
from leptonstore.store.wire import errors as wire_errors
from leptonstore.store.wire.messages import Request, parse

if TYPE_CHECKING:
    from leptonstore.daemon.access import Access
    from leptonstore.daemon.metrics import Metrics
    from leptonstore.daemon.principals import Principal

_METHODS = (fl.FlightMethod.DO_ACTION, fl.FlightMethod.DO_GET, fl.FlightMethod.DO_PUT)
_FINISHING = ("find", "put", "flush", "publish", "close")  # what goes on in a session while the daemon drains
_MESSAGE_CHARS = 300  # of the gRPC status, for clients that know no LWR1
_CALL = "lepton"
_LOOK_AGAIN_S = 0.1  # whether sessions are done
_CUT_AGAIN_S = 0.2  # a client that is cut off may come again before the port is closed
log = logging.getLogger("lepton.daemon")


class Call(fl.ServerMiddleware):
    """One RPC, from its headers to its end. gRPC tells the end by `call_completed`, whatever ended it."""

    def __init__(self, authorization: str | None, trace: Mapping[str, str] | None = None) -> None:
        self.authorization, self.trace = authorization, trace or {}
        self._at_end: list[Callable[[], None]] = []
        self._ended = False
        self._guard = threading.Lock()

    def at_end(self, do: Callable[[], None]) -> None:
        """Have something done when the call ends, once; now, when it has."""
        with self._guard:
            if not self._ended:
                self._at_end.append(do)
                return
        do()

    def end(self) -> None:
        """May be called several times."""
        with self._guard:
            self._ended, todo, self._at_end = True, self._at_end, []
        for do in todo:
            try:
                do()
            except Exception:  # what else is to be done must not be left out: a place that nobody leaves is lost
                log.exception("the end of a call failed")

    def sending_headers(self) -> None:
        """None of ours."""

    def call_completed(self, exception: BaseException | None) -> None:
        """The call is over."""
        self.end()


class _Calls(fl.ServerMiddlewareFactory):
    def __init__(self, refused: Callable[[str], None] | None) -> None:
        self._refused = refused

    def start_call(self, info: fl.CallInfo, headers: Mapping[str, list[Any]]) -> Call:
        # Refused here, whoever asks: pyarrow tells what a handler of some of these raises with its traceback, paths of this host included.
        if info.method not in _METHODS:
            if self._refused is not None:
                self._refused("no operation")
            raise flight_error(BadInput("this daemon has no such call: its operations are actions, gets and puts"))
        values = headers.get("authorization", [])
        # Two are no credential, rather than the better of the two.
        value = values[0] if len(values) == 1 else None if not values else ""
        trace = {name: headers[name][0] for name in tracing.CONTEXT if isinstance(headers.get(name, [None])[0], str)}
        return Call(value if isinstance(value, str) or value is None else "", trace)


class _Asked:
    """One request that was let in: who, what, since when; and what became of it."""

    def __init__(self, server: FlightServer, call: Call, context: fl.ServerCallContext, op: str) -> None:
        self._server, self.call, self.op = server, call, op
        self.turn = server.connections.began(context.peer())
        self.address = self.turn.peer.rpartition(":")[0]
        self.principal: Principal | None = None
        self.bytes_in = self.bytes_out = 0
        self.what = ""
        self._began = time.monotonic()
        self._span = tracing.begin(f"flight {op}", call.trace)
        self._outcome: LeptonError | str = "ok"
        call.at_end(self._end)

    def failed(self, error: BaseException) -> fl.FlightError:
        """`error` as it is told, and counted."""
        told = self._server.service.failure(error, self.op)
        self._outcome = told
        return flight_error(told)

    def _end(self) -> None:
        server, outcome = self._server, self._outcome
        server.connections.ended(self.turn)
        seconds = time.monotonic() - self._began
        operation = OPERATIONS.get(self.op)
        if self.principal is not None:
            server.access.spend(self.principal, self.bytes_out, self.address)
        told = outcome if isinstance(outcome, str) else type(outcome).__name__
        tracing.end(self._span, told, f"flight {self.op[:40]}", {"lepton.bytes_out": self.bytes_out})
        denied = isinstance(outcome, NotPermitted)
        if denied or (operation is not None and operation.writes):
            server.access.audit(self.principal, operation or self.op[:40], self.what, outcome, self.address)
        if server.metrics is not None:
            server.metrics.count(
                self.op if operation is not None else "other",
                told,
                bytes_in=self.bytes_in,
                bytes_out=self.bytes_out,
                seconds=seconds,
                client="" if self.principal is None else self.principal.name,
            )


class FlightServer(fl.FlightServerBase):
    """Serves `service` from the moment it is made, on `host` and `port` (0: a free one, see `port`). End it with `drain`, then `shutdown`.

    certificates: (certificate, key) in PEM, for TLS. client_roots: PEM of the authorities of client certificates; with them every client
    has to have one. Raises BadInput when the port cannot be had.
    """

    def __init__(
        self,
        service: Service,
        access: Access,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        metrics: Metrics | None = None,
        certificates: tuple[bytes, bytes] | None = None,
        client_roots: bytes | None = None,
    ) -> None:
        self.service, self.access, self.metrics = service, access, metrics
        waiting, wait_s = bounds.WAITING_MAX, bounds.WAIT_S
        self.admissions = {
            "action": Admission("requests", bounds.ACTIONS_AT_ONCE, waiting, wait_s),
            "get": Admission("reads", bounds.GETS_AT_ONCE, waiting, wait_s),
            "put": Admission("writes", bounds.PUTS_AT_ONCE, waiting, wait_s),
            # Of their own: clients' reads wait for peers, and two daemons whose places clients hold would wait for each other.
            "peer": Admission("requests of other daemons", bounds.PEERS_AT_ONCE, waiting, wait_s),
        }
        # Who is inside is at work, or waits until its client has read. At work are only so many, first come first served: the
        # interpreter runs one thread at a time, and any, so that of 64 that ask some waited thirty times as long as most.
        cores = len(os.sched_getaffinity(0))
        self._work = Admission("reads at work", bounds.WORKING_PER_CORE * cores, bounds.GETS_AT_ONCE, None)
        self.connections = Connections(getattr(metrics, "refuse", None))
        self.connections.busy = lambda: any(admission.waiting for admission in self.admissions.values())
        self._ahead = ThreadPoolExecutor(
            bounds.GETS_AT_ONCE + bounds.PEERS_AT_ONCE, "lepton-ahead"
        )  # one for each stream at most
        self._draining = False
        self._under_way = 0
        self._idle = threading.Condition()
        bracketed = f"[{host}]" if ":" in host else host
        scheme = "grpc+tcp" if certificates is None else "grpc+tls"
        try:
            super().__init__(
                f"{scheme}://{bracketed}:{port}",
                tls_certificates=None if certificates is None else [certificates],
                verify_client=client_roots is not None,
                root_certificates=client_roots,
                middleware={_CALL: _Calls(getattr(metrics, "refuse", None))},
            )
        except (pa.ArrowException, OSError):
            raise BadInput(f"cannot listen on {host}:{port}: is it taken, or another host's address?") from None
        self.connections.watch(self.port)

    # -- the calls of Flight -------------------------------------------------------------------------------------------

    def do_action(self, context: fl.ServerCallContext, action: fl.Action) -> list[fl.Result]:
        """An action: one result."""
        asked = self._asked(context, action.type)
        try:
            principal, request = self._let_in(asked, context, "action", action.body)
            if request.op != action.type:
                raise BadInput("the type of an action and the operation of its body differ")
            answer = self.service.act(principal, request)
            data = answer if isinstance(answer, bytes) else json.dumps(answer, separators=(",", ":")).encode()
            if len(data) > bounds.ANSWER_BYTES_MAX:
                raise BadInput(f"the answer to {request.op!r} has {len(data):,} bytes: ask for less")
            asked.bytes_out = len(data)
            asked.turn.theirs()
            return [fl.Result(pa.py_buffer(data))]
        except BaseException as error:
            raise asked.failed(error) from None

    def do_get(self, context: fl.ServerCallContext, ticket: fl.Ticket) -> fl.FlightDataStream:
        """A stream of record batches, each made while gRPC sends the one before."""
        asked = self._asked(context, "get")
        try:
            principal, request = self._let_in(asked, context, "get", ticket.ticket)
            # Not other daemons: whom a client's read waits for must not wait for it.
            work = nullcontext if is_peers(request) else self._work.place
            with work():
                schema, batches = self.service.stream(principal, request)
            asked.turn.theirs()
            return fl.GeneratorStream(schema, _Sent(asked, schema, batches, self._ahead, work))
        except BaseException as error:
            raise asked.failed(error) from None

    def do_put(
        self,
        context: fl.ServerCallContext,
        descriptor: fl.FlightDescriptor,
        reader: fl.MetadataRecordBatchReader,
        writer: fl.FlightMetadataWriter,
    ) -> None:
        """A stream of record batches from the client, each acknowledged."""
        asked = self._asked(context, "put")
        try:
            if descriptor.descriptor_type is not fl.DescriptorType.CMD:
                self._authenticated(asked, context)
                raise BadInput("a put names its session by a command")
            principal, request = self._let_in(asked, context, "put", descriptor.command)

            asked.turn.allowed = bounds.PUT_BATCH_BYTES_MAX

            def batches() -> Iterator[pa.RecordBatch]:
                while True:
                    asked.turn.theirs()
                    try:
                        chunk = reader.read_chunk()
                    except StopIteration:
                        return
                    finally:
                        asked.turn.ours()
                    if chunk.data is not None:
                        # Flight believes what a stream says of its offsets; whoever follows a false one reads other memory.
                        chunk.data.validate(full=True)
                        asked.bytes_in += chunk.data.nbytes
                        self.connections.account(asked.turn, chunk.data.nbytes)
                        yield chunk.data

            def ack(total: Put) -> None:
                asked.turn.theirs()
                writer.write(json.dumps(total._asdict()).encode())
                asked.turn.ours()

            asked.turn.theirs()
            done = self.service.receive(principal, request, reader.schema, batches(), ack)
            self.access.spend(principal, asked.bytes_in, asked.address)
            asked.turn.theirs()
            writer.write(json.dumps({**done, "done": True}).encode())
        except BaseException as error:
            raise asked.failed(_arrow_to_input(error)) from None

    # -- inside --------------------------------------------------------------------------------------------------------

    def _asked(self, context: fl.ServerCallContext, op: str) -> _Asked:
        call = context.get_middleware(_CALL)
        asked = _Asked(self, call, context, op)
        with self._idle:
            self._under_way += 1
        call.at_end(self._over)
        return asked

    def _over(self) -> None:
        with self._idle:
            self._under_way -= 1
            self._idle.notify_all()

    def _authenticated(self, asked: _Asked, context: fl.ServerCallContext) -> Principal:
        name = context.peer_identity().decode("utf-8", "replace") or None
        asked.principal = self.access.authenticate(asked.call.authorization, name, asked.address)
        self.connections.known(asked.turn)
        return asked.principal

    def _let_in(self, asked: _Asked, context: fl.ServerCallContext, call: str, body: Any) -> tuple[Principal, Request]:
        """Who asks, and what, once there is a place for it."""
        principal = self._authenticated(asked, context)
        self.connections.account(asked.turn, len(body))
        request = parse(body)
        if self._draining and not (request.op in _FINISHING and request.arguments.get("session")):
            raise TooBusy("the daemon is about to end: ask again, or ask another one", 1.0)
        operation = self.service.operation(request)
        asked.op = request.op
        asked.bytes_in = len(body)
        asked.what = subject_of(request)
        self.access.charge(principal, operation, len(body), asked.address)
        admission = self.admissions["peer" if is_peers(request) else call]
        admission.enter()
        asked.call.at_end(admission.leave)
        return principal, request

    # -- ending --------------------------------------------------------------------------------------------------------

    @property
    def under_way(self) -> int:
        """Calls that have begun and not ended."""
        return self._under_way

    def drain(self, wait_s: float = bounds.DRAIN_S) -> bool:
        """Refuse new requests (TooBusy), and wait for those under way, and for write sessions to make durable what they have; whether all
        was done in time. `shutdown` has to follow."""
        self._draining = True
        self.service.drain()
        until = time.monotonic() + wait_s
        with self._idle:
            while self._under_way or self.service.sessions.unflushed:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._idle.wait(min(left, _LOOK_AGAIN_S))
        return True

    def shutdown(self) -> None:
        """Cut off what is still under way, and close the port. Returns when every call has ended."""
        self._draining = True
        self.connections.close()
        ending = threading.Event()

        def cut() -> None:
            while True:
                self.connections.cut_all()
                if ending.wait(_CUT_AGAIN_S):
                    return

        with self._idle:
            idle = not self._under_way
        cutter = threading.Thread(target=cut, name="lepton-cut", daemon=True)
        if not idle:
            cutter.start()
        try:
            super().shutdown()
        finally:
            ending.set()
        self._ahead.shutdown()


class _Sent:
    """The batches of a stream as gRPC asks for them. While a large one is sent, another thread makes the next: one, so that a client that
    does not read costs two batches."""

    def __init__(
        self,
        asked: _Asked,
        schema: pa.Schema,
        batches: Iterator[pa.RecordBatch],
        ahead: ThreadPoolExecutor,
        work: Callable[[], AbstractContextManager[None]],
    ) -> None:
        """work: held while a batch is made."""
        self._asked, self._schema, self._batches, self._ahead, self._work = asked, schema, batches, ahead, work
        self._next: Future[pa.RecordBatch | None] | None = None
        asked.call.at_end(self._close)

    def __iter__(self) -> _Sent:
        return self

    def __next__(self) -> pa.RecordBatch:
        self._asked.turn.ours()
        try:
            batch = self._make() if self._next is None else self._next.result()
            self._next = None
        except BaseException as error:
            raise self._asked.failed(error) from None
        if batch is None:
            raise StopIteration
        self._asked.bytes_out += batch.nbytes
        if batch.nbytes >= bounds.BATCH_BYTES_MIN:  # a small one is not worth a thread, or is the last
            self._next = self._ahead.submit(self._make)
        self._asked.turn.theirs()
        return batch

    def _make(self) -> pa.RecordBatch | None:
        with self._work():
            batch = next(self._batches, None)
        if batch is not None and batch.schema != self._schema:  # pyarrow would tell the client, with a traceback
            raise RuntimeError(f"a batch of {batch.schema} in a stream of {self._schema}")
        return batch

    def _close(self) -> None:
        pending, self._next = self._next, None
        if pending is not None and not pending.cancel():
            pending.exception()  # until it is made: a generator that runs cannot be closed
        self._batches.close()  # type: ignore[attr-defined]


def flight_error(error: LeptonError) -> fl.FlightError:
    """The error as Flight tells it: the class of Flight's that is nearest, and all of it in extra_info."""
    if isinstance(error, NotAuthenticated):
        kind = fl.FlightUnauthenticatedError
    elif isinstance(error, NotPermitted):
        kind = fl.FlightUnauthorizedError
    elif isinstance(error, TooBusy | TierUnavailable):
        kind = fl.FlightUnavailableError
    else:
        kind = fl.FlightServerError
    return kind(str(error)[:_MESSAGE_CHARS], wire_errors.encode(error))


def is_peers(request: Request) -> bool:
    """Whether only other daemons of a cluster ask for this."""
    return OPERATIONS[request.op].scope is Scope.PEER


def subject_of(request: Request) -> str:
    """What a request is about, for the audit log: names, never values."""
    updates = request.arguments.get("updates")
    if isinstance(updates, list):
        names = [str(one.get("name"))[:200] for one in updates[:8] if isinstance(one, dict)]
        return ", ".join(names) + (f" and {len(updates) - 8} more" if len(updates) > 8 else "")
    settings = request.arguments.get("settings")
    if isinstance(settings, dict):
        return ", ".join(str(name)[:100] for name in list(settings)[:8])
    for name in ("dataset", "kind", "name", "token", "job"):
        if isinstance(request.arguments.get(name), str):
            return str(request.arguments[name])[:200]
    return ""


def _arrow_to_input(error: BaseException) -> BaseException:
    """What Arrow says of a stream that is none: the client's fault. (When the client has gone, nobody reads the answer.)"""
    if isinstance(error, pa.ArrowException | OSError) and not isinstance(error, LeptonError):
        return BadInput("the stream of a put is no Arrow stream, or ended early")
    return error
