"""What a server counts, for Prometheus. Labels are bounded: routes and statuses that exist, never what a client sent."""

from __future__ import annotations

from leptonstore.errors import MissingExtra

try:
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        ProcessCollector,
        generate_latest,
    )

    from leptonstore.web.guard import Note
except ModuleNotFoundError as error:
    raise MissingExtra("serving a model", "serve", error.name or "") from None

CONTENT_TYPE = CONTENT_TYPE_LATEST
ROUTES = ("/predict", "/schema", "/metrics", "/healthz", "/readyz")
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Of one server; watches its requests (leptonstore.web.guard). Any thread."""

    def __init__(self, model: str, commit: str) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("lepton_model_info", "The model that is served", ["model", "commit"], registry=registry).labels(
            model, commit
        ).set(1)
        self.queue_rows = Gauge("lepton_queue_rows", "Rows that wait for the model", registry=registry)
        self.held_bytes = Gauge("lepton_body_bytes_held", "Bytes of bodies in memory", registry=registry)
        self._requests = Counter("lepton_requests", "Requests answered", ["route", "status"], registry=registry)
        self._refused = Counter(
            "lepton_refused", "Requests refused, by the type of the error", ["type"], registry=registry
        )
        self._seconds = Histogram(
            "lepton_request_seconds",
            "From the headers of a request to its answer",
            ["route"],
            buckets=SECONDS,
            registry=registry,
        )
        self._body_bytes = Counter("lepton_body_bytes", "Bytes of bodies", ["direction"], registry=registry)
        self._in_flight = Gauge(
            "lepton_requests_in_flight", "Requests that are being read or answered", registry=registry
        )
        self.queue_seconds = Histogram(
            "lepton_queue_seconds", "That rows waited for the model", buckets=SECONDS, registry=registry
        )
        self.model_seconds = Histogram(
            "lepton_model_seconds", "That the model took for a batch", buckets=SECONDS, registry=registry
        )
        self.batch_rows = Histogram("lepton_batch_rows", "Rows of a batch", buckets=ROWS, registry=registry)
        self.batch_requests = Histogram("lepton_batch_requests", "Requests of a batch", buckets=ROWS, registry=registry)

    def began(self, note: Note) -> None:
        """A request has come."""
        self._in_flight.inc()

    def refused(self, kind: str) -> None:
        """A request, or a connection."""
        self._refused.labels(kind).inc()

    def moved(self, note: Note, bytes_in: int, bytes_out: int) -> None:
        """Bytes of a request: its note has them in the end."""

    def ended(self, note: Note, seconds: float) -> None:
        """A request has been answered."""
        route = note.path if note.path in ROUTES else "other"
        self._in_flight.dec()
        self._requests.labels(route, str(note.status)).inc()
        self._seconds.labels(route).observe(seconds)
        self._body_bytes.labels("in").inc(note.bytes_in)
        self._body_bytes.labels("out").inc(note.bytes_out)

    def on_batch(self, rows: int, requests: int, seconds: float) -> None:
        """One batch that the model has computed."""
        self.batch_rows.observe(rows)
        self.batch_requests.observe(requests)
        self.model_seconds.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format, of the type CONTENT_TYPE."""
        return generate_latest(self._registry)
