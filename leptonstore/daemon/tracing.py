"""Spans of OpenTelemetry around requests, when its API is installed and something collects them; else nothing.

    with tracing.span("flight get", headers, {"lepton.dataset": "mnist"}) as span:      headers: of the request, by name in lower case
        ...

A request that carries W3C trace context (traceparent, tracestate) continues its caller's trace, on both planes; `headers()` is what a
request to another daemon carries on. Attributes hold names and numbers, never credentials or values. Any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from leptonstore.errors import LeptonError
from leptonstore.version import __version__

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    _THERE = True
except ModuleNotFoundError:
    _THERE = False

CONTEXT = ("traceparent", "tracestate")  # headers
_CONTEXT_CHARS_MAX = 1_024  # of both headers; the RFC asks for 512 of tracestate


@contextmanager
def span(
    name: str, headers: Mapping[str, str] | None = None, attributes: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """A span for what happens inside; None where there is no API. An error is written into it by its class, and a bug with its trace."""
    begun = begin(name, headers, attributes)
    if begun is None:
        yield None
        return
    try:
        with trace.use_span(begun, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            yield begun
    except Exception as error:
        if not isinstance(error, LeptonError):
            begun.record_exception(error)
        end(begun, type(error).__name__)
        raise
    end(begun)


def begin(name: str, headers: Mapping[str, str] | None = None, attributes: Mapping[str, Any] | None = None) -> Any:
    """A span that `end` ends, from any thread; None where there is no API. It is nobody's current span."""
    if not _THERE:
        return None
    given = {key: (headers or {}).get(key, "") for key in CONTEXT}
    carried = {key: value for key, value in given.items() if value and len(value) <= _CONTEXT_CHARS_MAX}
    parent = TraceContextTextMapPropagator().extract(carried) if carried else None
    tracer = trace.get_tracer("leptonstore.daemon", __version__)
    return tracer.start_span(name, parent, trace.SpanKind.SERVER, dict(attributes or {}))


def end(begun: Any, outcome: str = "ok", name: str = "", attributes: Mapping[str, Any] | None = None) -> None:
    """End what `begin` has begun. outcome: "ok", or the class of an error. name: what it is called, where that was not known."""
    if begun is None:
        return
    if name:
        begun.update_name(name)
    begun.set_attributes(dict(attributes or {}))
    if outcome != "ok":
        begun.set_status(trace.Status(trace.StatusCode.ERROR, outcome))
    begun.end()


def headers() -> dict[str, str]:
    """What a request to another daemon carries, so that its spans belong to the current one's trace; empty where there is none."""
    carrier: dict[str, str] = {}
    if _THERE:
        TraceContextTextMapPropagator().inject(carrier)
    return carrier
