"""Values and changes of rows, for people (short, one line) and for machines (JSON)."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Iterable, Mapping
from typing import Any

import click
import numpy as np

from leptonstore.cli.runtime import human_bytes
from leptonstore.cli.table import json_value
from leptonstore.dataset.diff import ADDED, CHANGED, REMOVED, LargeValue, RowChange
from leptonstore.dataset.merge import RowConflict
from leptonstore.digest import digest_of

_TEXT_MAX = 60  # characters of one value on a line
_BYTES_MAX = 16  # bytes that are shown; longer ones are told by size and digest
_JSON_BYTES_MAX = 1_024
SIGNS = {ADDED: ("+", "green"), REMOVED: ("-", "red"), CHANGED: ("~", "yellow")}


def shown(value: Any) -> str:
    """A value in a few characters: what is long by its size and its digest."""
    if value is None:
        return "null"
    if isinstance(value, LargeValue):
        return f"<{human_bytes(value.size)} {value.digest[:12]}>"
    if isinstance(value, bytes):
        if len(value) <= _BYTES_MAX:
            return f"0x{value.hex()}"
        return f"<{human_bytes(len(value))} {digest_of(value).hex()[:12]}>"
    if isinstance(value, np.ndarray):
        value = value.tolist()
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    if len(text) <= _TEXT_MAX:
        return text
    return f"{text[: _TEXT_MAX - 1]}… ({len(value) if isinstance(value, (str, list)) else len(text):,} long)"


def as_json(value: Any) -> Any:
    """A value as every command has it in JSON (`json_value`), but long bytes and those that were not read as {"digest", "size"}."""
    if isinstance(value, LargeValue):
        return {"digest": value.digest, "size": value.size}
    if isinstance(value, bytes) and len(value) > _JSON_BYTES_MAX:
        return {"digest": digest_of(value).hex(), "size": len(value)}
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal)):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(one) for one in value]
    return json_value(value)


def print_changes(changes: Iterable[RowChange]) -> None:
    """A screen of changed rows, their keys aligned."""
    lines = [(change, values(change.key)) for change in changes]
    width = max((len(key) for _, key in lines), default=0)
    for change, key in lines:
        sign, colour = SIGNS[change.kind]
        if change.kind == CHANGED:
            rest = "  ".join(f"{n}: {shown(change.old[n])} -> {shown(change.new[n])}" for n in change.columns)
        else:
            record = change.new or change.old
            rest = values({name: value for name, value in record.items() if name not in change.key})
        click.secho(f"{sign} {key:<{width}}  {rest}".rstrip(), fg=colour)


def change_json(change: RowChange) -> dict[str, Any]:
    """One line of `lepton diff --json`."""
    body = as_json(vars(change))
    return {name: value for name, value in body.items() if value not in (None, [], {}) or name == "key"}


def print_conflicts(conflicts: Iterable[RowConflict]) -> None:
    """Rows that both sides changed, with what each version has there."""
    for one in conflicts:
        where = values(one.key) or f"row {one.row}"
        click.secho(f"! {where}: {one.why}", fg="red", bold=True)
        for label, record in (("base", one.base), ("ours", one.ours), ("theirs", one.theirs)):
            click.echo(f"    {label:<7} {'no such row' if record is None else values(record)}")


def values(record: Mapping[str, Any]) -> str:
    """name=value, one after another."""
    return "  ".join(f"{name}={shown(value)}" for name, value in record.items())
