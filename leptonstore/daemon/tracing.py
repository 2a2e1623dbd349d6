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

_CONTEXT_CHARS_MAX = 1_024  # of both headers; the RFC asks for 512 of tracestate


@contextmanager
def span(
    name: str, headers: Mapping[str, str] | None = None, attributes: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """A span for what happens inside; None where there is no API. An error is written into it by its class, and a bug with its trace."""
    if not _THERE:
        yield None
        return
    given = {key: (headers or {}).get(key, "") for key in ("traceparent", "tracestate")}
    carried = {key: value for key, value in given.items() if value and len(value) <= _CONTEXT_CHARS_MAX}
    parent = TraceContextTextMapPropagator().extract(carried) if carried else None
    tracer = trace.get_tracer("leptonstore.daemon", __version__)
    with tracer.start_as_current_span(
        name,
        context=parent,
        kind=trace.SpanKind.SERVER,
        attributes=dict(attributes or {}),
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        try:
            yield made
        except Exception as error:
            made.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
            if not isinstance(error, LeptonError):
                made.record_exception(error)
            raise


def headers() -> dict[str, str]:
    """What a request to another daemon carries, so that its spans belong to the current one's trace; empty where there is none."""
    carrier: dict[str, str] = {}
    if _THERE:
        TraceContextTextMapPropagator().inject(carrier)
    return carrier
