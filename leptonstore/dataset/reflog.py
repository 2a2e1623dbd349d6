"""What the log remembers: which version a ref pointed to at a time, and who published a version when.

The log is read from its start: that takes some 50 us an entry. Times are those of the writers' clocks.
"""

from __future__ import annotations

import datetime
import re
import time
from dataclasses import dataclass
from typing import Any

from leptonstore.errors import BadInput, RefMissing
from leptonstore.store import Store

_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:?\d\d.*)?")


@dataclass(frozen=True)
class Published:
    """The log entry by which a ref first led to a version. `time_s` is seconds since the epoch."""

    ref: str
    time_s: float
    author: str
    host: str
    sequence: int


def publications(store: Store) -> dict[str, Published]:
    """Commit -> its first publication. A version that came with a later one (a transfer of history) has none of its own; one that
    stands for an erased one has that one's."""
    out: dict[str, Published] = {}
    for entry in store.history():
        add_publications(out, entry)
    for erased in store.state.replaced:
        standing = store.state.stands_for(erased)
        if erased in out and (standing not in out or out[erased].sequence < out[standing].sequence):
            out[standing] = out[erased]
    return out


def add_publications(known: dict[str, Published], entry: dict[str, Any]) -> None:
    """What a further log entry publishes, into what is known of those before it."""
    for ref in entry.get("refs", ()):
        if ref["new"] is not None and ref["new"] not in known:
            known[ref["new"]] = Published(
                ref["name"], entry["time_ns"] / 1e9, entry["author"], entry["host"], entry["sequence"]
            )


def is_date(text: str) -> bool:
    """Whether `text` is meant as a point in time rather than as a name."""
    return _DATE.fullmatch(text) is not None


def parse_date(text: str, end_of_day: bool = False) -> float:
    """ISO 8601, local time unless it says otherwise -> seconds since the epoch. Raises BadInput.

    A date without a time is the day's beginning, or with `end_of_day` the beginning of the next one.
    """
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"{text!r} is not a date: write 2026-11-01, or 2026-11-01T12:30") from None
    if end_of_day and len(text) <= len("2026-11-01"):
        found += datetime.timedelta(days=1)
    return found.timestamp()


def commit_at(store: Store, full: str, text: str) -> str:
    """The commit that ref `full` pointed to at the time `text` (a day means its end; today: now).

    Raises BadInput (no date, or one that is not over), RefMissing (the ref did not exist then).
    """
    limit = parse_date(text, end_of_day=True)
    now = time.time()
    today = datetime.datetime.fromtimestamp(now).date().isoformat()
    if limit > now and text != today:
        raise BadInput(
            f"{text} lies in the future: nobody knows what {full} will be; leave the date out for its newest version"
        )
    commit, first = None, None
    for entry in store.history():
        for ref in entry["refs"]:
            if ref["name"] == full:
                first = entry["time_ns"] if first is None else first
                if entry["time_ns"] / 1e9 < limit or text == today:
                    commit = ref["new"]
    if commit is None:
        when = (
            "" if first is None else f"; it began at {datetime.datetime.fromtimestamp(first / 1e9):%Y-%m-%dT%H:%M:%S}"
        )
        raise RefMissing(f"{full} did not exist at {text}{when}")
    return str(commit)
