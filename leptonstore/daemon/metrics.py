"""What a daemon counts: for Prometheus (/metrics, names lepton_*), and as `snapshot()` for people (the dashboard).

    call = metrics.begin("get", client="ci")        one request, on either plane
    call.moved(bytes_out=1_048_576)                 as its bytes go, so that a long stream is seen while it runs
    call.end()                                      or end("ChunkMissing"): the outcome is "ok" or the class of an error

Labels of Prometheus are bounded: operations and outcomes that exist, never what a client sent. Clients are told apart in `snapshot`
alone: the CLIENTS_MAX that were last active. Everything here may be called from any thread.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from bisect import bisect_left
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from leptonstore.errors import MissingExtra

try:
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Metric,
        ProcessCollector,
        generate_latest,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise MissingExtra("serving a store", "server", error.name or "") from None

CONTENT_TYPE = CONTENT_TYPE_LATEST
OK = "ok"
SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)
WINDOW_S = 60  # over which rates are told; `series` has a point for each second of it
CLIENTS_MAX = 1_000  # that are told apart, about 4 KiB each; who was silent for longest is forgotten first
READERS_MAX = 1_000  # loaders that have told what they waited
LATENCIES_MAX = 512  # of each operation, the last ones: quantiles are of what happens now
LABELS_MAX = 200  # operations, and outcomes of each, that are told apart: more than there are; further ones are "other"

Reading = Callable[[], float | Mapping[str, float]]
log = logging.getLogger("lepton.daemon")


class Metrics:
    """Of one daemon. `clock` is time.monotonic, or a test's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._began, self._began_at = clock(), time.time()
        self._all = _Tally()
        self._operations: dict[str, _Operation] = {}
        self._clients: OrderedDict[str, _Tally] = OrderedDict()
        self._readers: OrderedDict[tuple[str, str], dict[str, Any]] = OrderedDict()
        self._waited_s = 0.0
        self._refused: dict[str, int] = {}
        self._readings = _Readings()
        self._registry = registry = CollectorRegistry()
        registry.register(_Counted(self))
        registry.register(self._readings)
        ProcessCollector(registry=registry)

    def begin(self, operation: str, client: str = "") -> Call:
        """A request under way. `client` is what people know it by (a principal's name); "" for nobody in particular."""
        with self._lock:
            label, counted = self._operation(operation)
            counted.running += 1
        return Call(self, label, client, self._clock())

    def count(
        self,
        operation: str,
        outcome: str = OK,
        *,
        bytes_in: int = 0,
        bytes_out: int = 0,
        seconds: float = 0.0,
        client: str = "",
    ) -> None:
        """A request that has ended, in one call."""
        with self._lock:
            label, _ = self._operation(operation)
        self._move(label, client, bytes_in, bytes_out)
        self._end(label, client, outcome, seconds)

    def refuse(self, reason: str) -> None:
        """Something was refused before there was an operation. `reason`: one of a few words of ours."""
        with self._lock:
            self._refused[reason] = self._refused.get(reason, 0) + 1

    def gauge(self, name: str, help: str, read: Reading, label: str = "") -> None:
        """A figure that is asked for whenever figures are wanted. `name` starts with lepton_.

        read: gives the figure; with `label`, a mapping of that label's few values to figures. It must be quick and may be called from any
        thread; what it raises is logged, and the figure left out. A second gauge of a name replaces the first.
        """
        self._readings.add(name, help, read, label, GaugeMetricFamily)

    def counter(self, name: str, help: str, read: Reading, label: str = "") -> None:
        """As `gauge`, for a figure that only grows (Prometheus adds _total to its name)."""
        self._readings.add(name, help, read, label, CounterMetricFamily)

    def told(self, client: str, reader: str, figures: Mapping[str, float | str]) -> None:
        """What a loader says of itself (operation `tell`), in place of what it said before: figures of its whole life.

        Known figures, all optional: waited_s (for data), elapsed_s, rows, bytes, dataset, epoch, step. The caller has checked their types.
        """
        with self._lock:
            before = self._readers.pop((client, reader), {})
            self._readers[client, reader] = {**figures, "at": self._clock()}
            while len(self._readers) > READERS_MAX:
                self._readers.popitem(last=False)
            self._waited_s += max(0.0, float(figures.get("waited_s", 0.0)) - float(before.get("waited_s", 0.0)))

    def text(self) -> bytes:
        """In Prometheus' text format, of the type CONTENT_TYPE. Blocks for as long as the gauges do."""
        return generate_latest(self._registry)

    def snapshot(self) -> dict[str, Any]:
        """What happens now, for people. JSON-able:

        began         Unix time            uptime_s
        rates         {requests, errors, bytes_in, bytes_out} per second, over the last WINDOW_S (or since the start)
        series        {requests, errors, bytes_in, bytes_out}: lists, one number for each of the last WINDOW_S seconds, oldest first
        total         {requests, errors, bytes_in, bytes_out} since the start
        operations    [{operation, requests, errors, running, bytes_in, bytes_out, p50_s, p99_s (null: none yet)}], busiest first
        clients       [{client, requests, errors, bytes_in, bytes_out, rates: {...}, idle_s}], most bytes per second first
        readers       [{client, reader, idle_s, stall (waited_s / elapsed_s, null when not told), ...what it told}], most stalled first
        refused       {reason: count}
        gauges        {name: number, or {label's value: number}}: every gauge and counter
        """
        now = self._clock()
        with self._lock:
            operations = [counted.to_dict(name) for name, counted in self._operations.items()]
            clients: list[dict[str, Any]] = [
                {
                    "client": name,
                    **tally.total(),
                    "rates": tally.rates(now, self._span(now)),
                    "idle_s": now - tally.last,
                }
                for name, tally in self._clients.items()
            ]
            readers = [
                {"client": client, "reader": reader, "idle_s": now - figures["at"], "stall": _stall(figures)}
                | {name: value for name, value in figures.items() if name != "at"}
                for (client, reader), figures in self._readers.items()
            ]
            told = {
                "began": self._began_at,
                "uptime_s": now - self._began,
                "rates": self._all.rates(now, self._span(now)),
                "series": self._all.series(now),
                "total": self._all.total(),
                "refused": dict(self._refused),
            }
        operations.sort(key=lambda each: (-each["requests"], each["operation"]))
        clients.sort(key=lambda each: _bytes_per_s(each["rates"]), reverse=True)
        readers.sort(key=lambda each: -(each["stall"] or 0.0))
        return told | {
            "operations": operations,
            "clients": clients,
            "readers": readers,
            "gauges": self._readings.values(),
        }

    def _span(self, now: float) -> float:
        """Seconds over which a rate is meant: since the start, until the window is full."""
        return min(float(WINDOW_S), max(now - self._began, 1.0))

    def _operation(self, name: str) -> tuple[str, _Operation]:
        if name not in self._operations and len(self._operations) >= LABELS_MAX:
            name = "other"
        return name, self._operations.setdefault(name, _Operation())

    def _client(self, name: str) -> _Tally:
        tally = self._clients.pop(name, None) or _Tally()
        self._clients[name] = tally  # the last one is who was active last
        while len(self._clients) > CLIENTS_MAX:
            self._clients.popitem(last=False)
        return tally

    def _move(self, label: str, client: str, bytes_in: int, bytes_out: int) -> None:
        if not bytes_in and not bytes_out:
            return
        now = self._clock()
        with self._lock:
            counted = self._operations[label]
            counted.bytes_in += bytes_in
            counted.bytes_out += bytes_out
            self._all.add(now, 0, 0, bytes_in, bytes_out)
            if client:
                self._client(client).add(now, 0, 0, bytes_in, bytes_out)

    def _end(self, label: str, client: str, outcome: str, seconds: float, ran: bool = False) -> None:
        now, failed = self._clock(), outcome != OK
        with self._lock:
            self._operations[label].ended(outcome, seconds, ran)
            self._all.add(now, 1, failed, 0, 0)
            if client:
                self._client(client).add(now, 1, failed, 0, 0)

    def families(self) -> list[Metric]:
        """What was counted, as Prometheus' families."""
        requests = CounterMetricFamily("lepton_requests", "Requests answered", labels=["operation", "outcome"])
        moved = CounterMetricFamily("lepton_bytes", "Bytes of requests and answers", labels=["operation", "direction"])
        running = GaugeMetricFamily("lepton_requests_running", "Requests under way", labels=["operation"])
        seconds = HistogramMetricFamily(
            "lepton_request_seconds", "From a request to the end of its answer", labels=["operation"]
        )
        refused = CounterMetricFamily("lepton_refused", "Refused before there was an operation", labels=["reason"])
        waited = CounterMetricFamily("lepton_reader_wait_seconds", "That loaders waited for data, as they told")
        with self._lock:
            for name, counted in self._operations.items():
                for outcome, number in counted.outcomes.items():
                    requests.add_metric([name, outcome], number)
                moved.add_metric([name, "in"], counted.bytes_in)
                moved.add_metric([name, "out"], counted.bytes_out)
                running.add_metric([name], counted.running)
                seconds.add_metric([name], counted.buckets(), counted.seconds)
            for reason, number in self._refused.items():
                refused.add_metric([reason], number)
            waited.add_metric([], self._waited_s)
        return [requests, moved, running, seconds, refused, waited]


class Call:
    """One request under way, as `Metrics.begin` gives it. Ends once; what is counted after that is ignored."""

    def __init__(self, metrics: Metrics, operation: str, client: str, began: float) -> None:
        self._metrics, self._operation, self._began = metrics, operation, began
        self._ended = False
        self.client = client  # may be set later, when it is known who asks
        self.bytes_in = self.bytes_out = 0

    def moved(self, *, bytes_in: int = 0, bytes_out: int = 0) -> None:
        """Bytes that came in or went out. For streams: once a batch."""
        self.bytes_in += bytes_in
        self.bytes_out += bytes_out
        self._metrics._move(self._operation, self.client, bytes_in, bytes_out)

    def end(self, outcome: str = OK) -> float:
        """Returns the seconds that it took."""
        seconds = self._metrics._clock() - self._began
        if not self._ended:
            self._ended = True
            self._metrics._end(self._operation, self.client, outcome, seconds, ran=True)
        return seconds


class _Tally:
    """Four numbers, since the start and for each second of the window."""

    NAMES = ("requests", "errors", "bytes_in", "bytes_out")

    def __init__(self) -> None:
        self.last = 0.0
        self._total = [0, 0, 0, 0]
        self._seconds: deque[list[int]] = deque()  # [second, requests, errors, bytes_in, bytes_out], none for idle ones

    def add(self, now: float, *numbers: int) -> None:
        self.last, second = now, int(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0, 0, 0])
            self._forget(second)
        current = self._seconds[-1]
        for at, number in enumerate(numbers):
            self._total[at] += number
            current[at + 1] += number

    def total(self) -> dict[str, int]:
        return dict(zip(self.NAMES, self._total, strict=True))

    def rates(self, now: float, span_s: float) -> dict[str, float]:
        self._forget(int(now))
        sums = [sum(second[at] for second in self._seconds) for at in range(1, 5)]
        return {name: total / span_s for name, total in zip(self.NAMES, sums, strict=True)}

    def series(self, now: float) -> dict[str, list[int]]:
        first = int(now) - WINDOW_S + 1
        points = {name: [0] * WINDOW_S for name in self.NAMES}
        for second, *numbers in self._seconds:
            if second >= first:
                for name, number in zip(self.NAMES, numbers, strict=True):
                    points[name][second - first] += number
        return points

    def _forget(self, second: int) -> None:
        while self._seconds and self._seconds[0][0] <= second - WINDOW_S:
            self._seconds.popleft()


class _Operation:
    """What is counted of one operation."""

    def __init__(self) -> None:
        self.requests = self.errors = self.running = self.bytes_in = self.bytes_out = 0
        self.seconds = 0.0
        self.outcomes: dict[str, int] = {}
        self._latencies: deque[float] = deque(maxlen=LATENCIES_MAX)
        self._buckets = [0] * (len(SECONDS) + 1)

    def ended(self, outcome: str, seconds: float, ran: bool) -> None:
        if outcome not in self.outcomes and len(self.outcomes) >= LABELS_MAX:
            outcome = "other"
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1
        self.requests += 1
        self.errors += outcome != OK
        self.running -= ran
        self.seconds += seconds
        self._latencies.append(seconds)
        self._buckets[bisect_left(SECONDS, seconds)] += 1

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus wants them: requests that took at most so long."""
        edges = [*(str(edge) for edge in SECONDS), "+Inf"]
        return list(zip(edges, itertools.accumulate(self._buckets), strict=True))

    def to_dict(self, name: str) -> dict[str, Any]:
        ordered = sorted(self._latencies)
        return {
            "operation": name,
            "requests": self.requests,
            "errors": self.errors,
            "running": self.running,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "p50_s": ordered[len(ordered) // 2] if ordered else None,
            "p99_s": ordered[len(ordered) * 99 // 100] if ordered else None,
        }


class _Counted(Collector):
    """What a Metrics has counted, for Prometheus."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics.families()


class _Readings(Collector):
    """Figures that are asked for when they are wanted."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str, Reading, str, type[GaugeMetricFamily] | type[CounterMetricFamily]]] = {}

    def add(
        self,
        name: str,
        help: str,
        read: Reading,
        label: str,
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    ) -> None:
        self._known = {
            **self._known,
            name: (help, read, label, family),
        }  # replaced whole: others go through it meanwhile

    def values(self) -> dict[str, Any]:
        told: dict[str, Any] = {}
        for name, (_, read, label, _) in self._known.items():
            if (value := _read(name, read, label)) is not None:
                told[name] = value
        return told

    def collect(self) -> Iterable[Metric]:
        for name, (help, read, label, family) in self._known.items():
            value = _read(name, read, label)
            if value is None:
                continue
            made = family(name, help, labels=[label] if label else None)
            if isinstance(value, dict):
                for key, number in value.items():
                    made.add_metric([key], number)
            else:
                made.add_metric([], value)
            yield made

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is read when it is registered


def _read(name: str, read: Reading, label: str) -> float | dict[str, float] | None:
    try:
        value = read()
        if isinstance(value, Mapping):
            return {str(key): float(number) for key, number in value.items()} if label else None
        return None if label else float(value)
    except Exception:
        log.warning("the figure %s could not be read", name, exc_info=True)
        return None


def _bytes_per_s(rates: Mapping[str, float]) -> float:
    return rates["bytes_in"] + rates["bytes_out"]


def _stall(figures: Mapping[str, Any]) -> float | None:
    elapsed = float(figures.get("elapsed_s", 0.0))
    return min(1.0, float(figures.get("waited_s", 0.0)) / elapsed) if elapsed > 0 else None
