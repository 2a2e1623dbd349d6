"""What a daemon counts: the same figures for Prometheus and for people, whatever clients do."""

from __future__ import annotations

import json
import math
import threading
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from leptonstore.daemon import metrics as module
from leptonstore.daemon.metrics import OK, WINDOW_S, Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """name and values of labels -> value."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["get", "find", "put"]),
        st.sampled_from([OK, "ChunkMissing", "TooBusy"]),
        st.integers(0, 10**6),
        st.integers(0, 10**6),
        st.floats(0, 100),
        st.sampled_from(["", "ci", "laptop"]),
        st.floats(0, 20),  # seconds until the next
    ),
    max_size=30,
)


@given(CALLS)
def test_both_views_add_up_to_what_happened(calls: list[tuple[str, str, int, int, float, str, float]]) -> None:
    clock = Clock()
    metrics = Metrics(clock)
    ended: list[tuple[float, str, int, int, str]] = []
    for operation, outcome, bytes_in, bytes_out, seconds, client, pause in calls:
        metrics.count(operation, outcome, bytes_in=bytes_in, bytes_out=bytes_out, seconds=seconds, client=client)
        ended.append((clock.now, outcome, bytes_in, bytes_out, client))
        clock.now += pause
    told, counted = metrics.snapshot(), samples(metrics)
    assert json.loads(json.dumps(told)) == told
    for (operation, outcome), number in Counter((call[0], call[1]) for call in calls).items():
        assert counted["lepton_requests_total", operation, outcome] == number
    assert told["total"]["requests"] == len(calls)
    assert told["total"]["bytes_out"] == sum(call[3] for call in calls)
    assert sum(each["bytes_in"] for each in told["operations"]) == sum(call[2] for call in calls)
    # The last minute, to the second.
    recent = [each for each in ended if int(each[0]) > int(clock.now) - WINDOW_S]
    assert sum(told["series"]["requests"]) == len(recent)
    assert sum(told["series"]["errors"]) == sum(each[1] != OK for each in recent)
    span = min(WINDOW_S, max(clock.now - 1_000.0, 1.0))
    assert math.isclose(told["rates"]["bytes_out"], sum(each[3] for each in recent) / span, abs_tol=1e-9)
    for client in told["clients"]:
        assert client["requests"] == sum(each[4] == client["client"] for each in ended)


def test_a_stream_is_seen_while_it_runs() -> None:
    metrics = Metrics()
    call = metrics.begin("get")
    call.client = "ci"  # known only now
    call.moved(bytes_out=1_000)
    (operation,) = metrics.snapshot()["operations"]
    assert (operation["running"], operation["bytes_out"], operation["requests"]) == (1, 1_000, 0)
    assert metrics.snapshot()["clients"][0]["bytes_out"] == 1_000
    call.end()
    call.end("ChunkMissing")  # it has ended already
    (operation,) = metrics.snapshot()["operations"]
    assert (operation["running"], operation["requests"], operation["errors"]) == (0, 1, 0)


def test_latencies_fall_into_the_buckets_that_they_are_within() -> None:
    metrics = Metrics()
    for seconds in (0.0005, 0.0006, 1.0, 500.0):
        metrics.count("get", seconds=seconds)
    counted = samples(metrics)
    assert counted["lepton_request_seconds_bucket", "0.0005", "get"] == 1
    assert counted["lepton_request_seconds_bucket", "0.001", "get"] == 2
    assert counted["lepton_request_seconds_bucket", "1.0", "get"] == 3
    assert counted["lepton_request_seconds_bucket", "+Inf", "get"] == 4


def test_labels_and_clients_are_bounded_whatever_is_sent() -> None:
    metrics = Metrics()
    for number in range(module.LABELS_MAX + 50):
        metrics.count(f"operation {number}")
        metrics.count("get", f"outcome {number}")
    for number in range(module.CLIENTS_MAX + 10):
        metrics.count("get", client=f"client {number}")
        metrics.told("ci", f"reader {number}", {"waited_s": 1.0})
    told = metrics.snapshot()
    assert len(told["operations"]) <= module.LABELS_MAX + 1
    assert len(told["clients"]) == module.CLIENTS_MAX and len(told["readers"]) == module.READERS_MAX
    outcomes = [name for name in samples(metrics) if name[0] == "lepton_requests_total"]
    assert len(outcomes) <= 2 * module.LABELS_MAX + 2
    assert not any("client" in label or "reader " in label for name in samples(metrics) for label in name)


def test_a_figure_that_cannot_be_read_leaves_the_others() -> None:
    metrics = Metrics()
    metrics.gauge("lepton_good", "Good", lambda: 3)
    metrics.gauge("lepton_broken", "Broken", lambda: 1 / 0)
    metrics.gauge("lepton_tiers_bytes", "By tier", lambda: {"local": 5, "bucket": 7}, "tier")
    metrics.counter("lepton_hits", "Hits", lambda: 11)
    assert metrics.snapshot()["gauges"] == {
        "lepton_good": 3.0,
        "lepton_tiers_bytes": {"local": 5.0, "bucket": 7.0},
        "lepton_hits": 11.0,
    }
    counted = samples(metrics)
    assert counted["lepton_tiers_bytes", "bucket"] == 7 and counted["lepton_hits_total",] == 11
    assert not any(name[0] == "lepton_broken" for name in counted)


def test_what_loaders_waited_adds_up_over_what_they_tell() -> None:
    metrics = Metrics()
    metrics.told("ci", "a", {"waited_s": 2.0, "elapsed_s": 10.0, "dataset": "mnist@main"})
    metrics.told("ci", "a", {"waited_s": 5.0, "elapsed_s": 20.0, "dataset": "mnist@main"})
    metrics.told("ci", "b", {"waited_s": 0.0, "elapsed_s": 4.0})
    assert samples(metrics)["lepton_reader_wait_seconds_total",] == 5.0
    first, second = metrics.snapshot()["readers"]
    assert (first["reader"], first["stall"], second["stall"]) == ("a", 0.25, 0.0)


def test_threads_lose_no_count() -> None:
    metrics = Metrics()

    def count() -> None:
        for _ in range(500):
            call = metrics.begin("get", "ci")
            call.moved(bytes_out=3)
            call.end()

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (operation,) = metrics.snapshot()["operations"]
    assert (operation["requests"], operation["bytes_out"], operation["running"]) == (2_000, 6_000, 0)
