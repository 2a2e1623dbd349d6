"""/v1/<operation>: the operations of the data plane over HTTP, for processes that cannot use Flight, and for curl.

    POST /v1/<op>                  application/octet-stream: the request as LWR1 (docs/WIRE.md); application/json: its arguments alone
    an "action"                    -> JSON, or bytes
    a "get"                        -> an Arrow IPC stream
    POST /v1/put?session=ID        the body is an Arrow IPC stream -> {"records", "bytes"} when all of it is there

Who asks is known before anything of a body is read.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from leptonstore import limits
from leptonstore.daemon.bounds import PUT_BATCH_BYTES_MAX
from leptonstore.daemon.flight import subject_of
from leptonstore.daemon.http.arrow_body import ArrowBody, put_messages
from leptonstore.daemon.http.ask import query_of
from leptonstore.daemon.http.bounds import PUT_READ_S, PUTS_MAX
from leptonstore.daemon.http.failures import Failed, failed
from leptonstore.daemon.http.sending import ArrowStream
from leptonstore.daemon.operations import OPERATIONS, Of, Operation
from leptonstore.errors import BadInput, Damaged, TooBusy
from leptonstore.store.wire.messages import Request, parse
from leptonstore.web.bodies import Bodies

if TYPE_CHECKING:
    from leptonstore.daemon.http.app import ControlPlane, One

_BODY_BYTES_MAX = 8 + limits.WIRE_HEADER_BYTES_MAX + limits.WIRE_PAYLOAD_BYTES_MAX
_HELD_BYTES_MAX = 64 * _BODY_BYTES_MAX  # of all bodies that are being read or answered: as many as there are places
_CALLS = frozenset({"action", "get", "put"})


class Gateway:
    """Of one control plane; for its event loop."""

    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._bodies = Bodies(_HELD_BYTES_MAX, PUT_READ_S)
        self._puts = ThreadPoolExecutor(PUTS_MAX, thread_name_prefix="lepton-http-put")
        self._putting = 0

    def close(self) -> None:
        """Nothing more is taken."""
        self._puts.shutdown(wait=False, cancel_futures=True)

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        name = scope["path_params"]["op"]
        operation = OPERATIONS.get(name)
        if operation is None or operation.call not in _CALLS:
            raise Failed("NotFound", "there is no such operation; /openapi.json lists them", 404)

        async def run(one: One) -> None:
            if operation.call == "put":
                response = await self._put(one, operation, receive)
                await response(scope, receive, send)
                return
            await self._plane.work.run(self._let_in, one, operation)
            async with self._bodies.read(HttpRequest(scope, receive), _BODY_BYTES_MAX) as body:
                request = _request(one, operation, body)
                one.what = subject_of(request)
                answer = await self._plane.work.run(self._done, one, operation, request, len(body))
            await answer(scope, receive, send)

        await self._plane.serve(operation, scope, run)

    # -- in threads ------------------------------------------------------------------------------------------------

    def _let_in(self, one: One, operation: Operation) -> None:
        """Who asks, and whether that one may at all, as far as that can be said before the body is read."""
        principal = one.authenticate()
        if operation.of is not Of.DATASET:
            principal.require(operation)

    def _done(self, one: One, operation: Operation, request: Request, size: int) -> ASGIApp:
        principal, service = one.principal, self._plane.service
        assert principal is not None
        self._plane.access.charge(principal, operation, size, one.note.client)
        if operation.call == "get":
            schema, batches = service.stream(principal, request)
            return ArrowStream(schema, batches, self._plane.work)
        answer = service.act(principal, request)
        if isinstance(answer, bytes):
            return Response(answer, media_type="application/octet-stream")
        return _json(answer)

    # -- put -------------------------------------------------------------------------------------------------------

    async def _put(self, one: One, operation: Operation, receive: Receive) -> Response:
        if self._putting >= PUTS_MAX:
            raise TooBusy(f"{PUTS_MAX} writes are under way already: try again later", 1.0)
        await self._plane.work.run(self._let_in, one, operation)
        principal = one.principal
        assert principal is not None
        self._plane.access.charge(principal, operation, 0, one.note.client)
        sessions = query_of(one.scope["query_string"]).get("session", [])
        if len(sessions) != 1:
            raise BadInput("a put names its session once: /v1/put?session=ID")
        request = Request("put", {"session": sessions[0]})
        body = ArrowBody(receive, asyncio.get_running_loop())
        self._putting += 1
        try:
            taken = await asyncio.get_running_loop().run_in_executor(self._puts, self._received, one, request, body)
        finally:
            body.close()
            self._putting -= 1
        return _json(taken)

    def _received(self, one: One, request: Request, body: ArrowBody) -> dict[str, Any]:
        assert one.principal is not None
        schema, batches = put_messages(body, PUT_BATCH_BYTES_MAX)
        try:
            taken = self._plane.service.receive(one.principal, request, schema, batches, lambda total: None)
        except Damaged as error:  # what was sent is: no fault of this side
            raise failed(error, 400) from None
        self._plane.access.spend(one.principal, body.bytes_in, one.note.client)
        return taken


def _request(one: One, operation: Operation, body: bytes) -> Request:
    """What a body asks for. Raises BadInput."""
    kind = one.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if one.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Failed("BadInput", "bodies must not be compressed", 415)
    if kind == "application/json":
        return Request(operation.name, _arguments(body))
    if kind != "application/octet-stream":
        raise Failed("BadInput", "a body is application/octet-stream (LWR1), or application/json", 415)
    request = parse(body)
    if request.op != operation.name:
        raise BadInput("the operation of the path and that of the body differ")
    return request


def _arguments(body: bytes) -> dict[str, Any]:
    if len(body) > limits.WIRE_HEADER_BYTES_MAX:
        raise BadInput(f"arguments have at most {limits.WIRE_HEADER_BYTES_MAX} bytes")
    try:
        found = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise BadInput("the body is no JSON") from None
    if not isinstance(found, dict):
        raise BadInput("the body is no JSON object of arguments")
    found.pop("op", None)
    return found


def _json(value: dict[str, Any]) -> Response:
    return Response(json.dumps(value, separators=(",", ":")), media_type="application/json")
