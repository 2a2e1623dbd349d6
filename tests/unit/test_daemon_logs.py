"""A daemon's logs: lines that machines and people read, and never a secret; and its spans."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from leptonstore.daemon import tracing
from leptonstore.daemon.logs import LineLog, configure, without_secrets
from leptonstore.errors import BadInput

TOKEN = "lepton_0123456789abcdef_" + "aB3-_" * 8 + "xyz"


@pytest.fixture
def restored() -> Iterator[None]:
    """Logging as it was."""
    before = {
        name: (list(logging.getLogger(name).handlers), logging.getLogger(name).level)
        for name in ("lepton", "leptonstore")
    }
    yield
    for name, (handlers, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = handlers, True
        logger.setLevel(level)


@pytest.mark.usefixtures("restored")
def test_a_line_of_json_holds_what_happened_and_no_secret() -> None:
    out = io.StringIO()
    configure(True, stream=out)
    log = logging.getLogger("lepton.daemon")
    try:
        raise ValueError(f"authorization: Bearer {TOKEN}")
    except ValueError:
        log.exception("request %s with %s failed\nhere", "9f86", TOKEN, extra={"request": "9f86", "seconds": 0.5})
    (line,) = out.getvalue().splitlines()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["request"], told["seconds"]) == ("error", "lepton.daemon", "9f86", 0.5)
    assert told["exception"] == "ValueError" and "test_daemon_logs" in told["traceback"]
    assert TOKEN not in line and "[secret]" in line


@pytest.mark.usefixtures("restored")
def test_plain_lines_are_for_people_and_a_second_call_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(False, stream=first)
    configure(False, "warning", second)
    logging.getLogger("lepton.daemon").info("not this")
    logging.getLogger("lepton.daemon").warning("token %s", TOKEN)
    assert (first.getvalue(), second.getvalue()) == ("", "lepton: token [secret]\n")
    with pytest.raises(BadInput, match="level"):
        configure(False, "loud")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"Bearer {TOKEN}", "Bearer [secret]"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic [secret]"),
        (f'{{"token": "{TOKEN}"}}', '{"token": "[secret]"}'),
        ("lepton_reader_wait_seconds_total 5", "lepton_reader_wait_seconds_total 5"),
        ("the bearer of news", "the bearer of news"),
    ],
)
def test_what_looks_like_a_credential_is_hidden_and_nothing_else(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_a_line_log_goes_on_in_the_file_that_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "access.jsonl"
    log = LineLog(str(path))
    log.write('{"n": 1}')
    path.rename(tmp_path / "old")
    log.write('{"n": 2}')
    log.reopen()
    log.write(f"with {TOKEN}")
    log.close()
    assert (tmp_path / "old").read_text() == '{"n": 1}\n{"n": 2}\n'
    assert path.read_text() == "with [secret]\n"
    log.write("after its end")
    assert log.lost == 1
    with pytest.raises(BadInput, match="cannot write the log"):
        LineLog(str(tmp_path / "no" / "folder"))


def test_a_full_disk_loses_lines_and_stops_nobody() -> None:
    log = LineLog("/dev/full")
    log.write("a line")
    assert log.lost == 1
    log.close()


def test_a_span_continues_its_callers_trace_and_tells_no_values() -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    spans = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    trace.set_tracer_provider(provider)
    if trace.get_tracer_provider() is not provider:
        pytest.skip("another test has set the one provider that a process has")
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with tracing.span("http get", {"traceparent": caller}, {"lepton.request_id": "9f86"}):
        assert tracing.headers()["traceparent"].split("-")[1] == caller.split("-")[1]
    with pytest.raises(ValueError, match="bad"), tracing.span("http put", {"traceparent": "00-" + "x" * 5_000}):
        raise ValueError("bad")
    with pytest.raises(BadInput), tracing.span("flight get"):
        raise BadInput("of a client")
    first, second, third = spans.get_finished_spans()
    assert f"{first.context.trace_id:032x}" == caller.split("-")[1] and first.parent.span_id == int(
        caller.split("-")[2], 16
    )
    assert dict(first.attributes) == {"lepton.request_id": "9f86"}
    assert second.parent is None and second.status.description == "ValueError" and second.events
    assert third.status.description == "BadInput" and not third.events
