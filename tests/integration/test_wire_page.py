"""docs/WIRE.md: every operation, class of errors and limit of the code is on it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from leptonstore import errors, limits
from leptonstore.daemon import bounds
from leptonstore.daemon.operations import OPERATIONS
from leptonstore.store.wire.errors import status_of
from leptonstore.store.wire.messages import MAGIC, PROTOCOL

PAGE = (Path(__file__).parents[2] / "docs" / "WIRE.md").read_text()


def test_every_operation_is_on_the_page() -> None:
    rows = re.findall(
        r"^\| (\w+) \|.*\|.*\|$", PAGE.partition("\n## Operations\n")[2].partition("\n### ")[0], re.MULTILINE
    )
    told = {row for row in rows if row != "operation"}
    assert told == {one.name for one in OPERATIONS.values() if one.call in ("action", "get", "put")}
    assert f"This is version {PROTOCOL}" in PAGE and f'magic "{MAGIC.decode()}"' in PAGE


def test_statuses_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| ([A-Z][\w, ()]+?) \| (\d{3}) \|", PAGE, re.MULTILINE)
    named = {name: int(status) for names, status in rows for name in re.findall(r"[A-Z]\w+", names)}
    assert len(named) == 9
    for name, status in named.items():
        assert status_of(getattr(errors, name)("it")) == status


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("| the header of a request | {:.0f} KiB |", limits.WIRE_HEADER_BYTES_MAX >> 10),
        ("| {:.0f} MiB: 65,536 digests, 262,144 row numbers |", limits.WIRE_PAYLOAD_BYTES_MAX >> 20),
        ("| a batch of `put` | {:.0f} MiB |", bounds.PUT_BATCH_BYTES_MAX >> 20),
        ("| {:.0f} MiB, or one value;", bounds.BATCH_BYTES_MAX >> 20),
        ("`batch_rows` {:,.0f} |", bounds.BATCH_ROWS_MAX),
        ("| the answer of an action | {:.0f} MiB |", bounds.ANSWER_BYTES_MAX >> 20),
        ("| an error | {:.0f} KiB |", limits.WIRE_ERROR_BYTES_MAX >> 10),
        ("| refs of one publication | {:,.0f} |", bounds.PUBLISH_UPDATES_MAX),
        ("| open sessions | {:.0f}, of one credential 32 |", bounds.SESSIONS_MAX),
        ("of one credential {:.0f} |", bounds.SESSIONS_OF_ONE_MAX),
        ("{:.0f} seconds without a request end it", bounds.SESSION_IDLE_S),
        ("| {:.0f} actions, 128 gets, 32 puts;", bounds.ACTIONS_AT_ONCE),
        ("{:.0f} gets, 32 puts;", bounds.GETS_AT_ONCE),
        ("{:.0f} puts; 1,024 of each", bounds.PUTS_AT_ONCE),
        ("{:,.0f} of each wait, for 20 s |", bounds.WAITING_MAX),
        ("of each wait, for {:.0f} s |", bounds.WAIT_S),
        ("nothing for {:.0f} s (15 s", bounds.SLOW_S),
        ("({:.0f} s while others wait)", bounds.SLOW_BUSY_S),
        ("begins with {:.0f} ms", limits.WIRE_BACKOFF_S * 1000),
        ("doubles up to {:.0f} s", limits.WIRE_BACKOFF_S_MAX),
        ("gives up after {:.0f} s", limits.WIRE_RETRY_S),
        ("({:.0f} s when a store is opened)", limits.WIRE_OPEN_S),
    ],
)
def test_figures_are_those_of_the_code(words: str, value: float) -> None:
    assert words.format(value) in " ".join(PAGE.split())
