"""What a notebook shows of a store: small tables, everything escaped, no scripts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from leptonstore import limits

if TYPE_CHECKING:
    from leptonstore.store.store import Store


class Markup(str):
    """HTML that was made here: it is not escaped again."""

    __slots__ = ()


def html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], note: str = "") -> str:
    """A table; every text that is no Markup is escaped."""
    top = "".join(f"<th style='text-align:left'>{_cell(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td style={_LEFT}>{_cell(value)}</td>' for value in row)}</tr>" for row in rows)
    below = f"<div>{escape(note)}</div>" if note else ""
    return (
        f"<div><b>{escape(caption)}</b><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>{below}</div>"
    )


_LEFT = "'text-align:left'"


def _cell(value: str) -> str:
    return value if isinstance(value, Markup) else escape(value)


def store_html(store: Store) -> str:
    """The refs of a store, as this process last saw them."""
    refs = sorted(store.state.refs.items())
    rows = []
    for name, record in refs[: limits.HTML_LINES_MAX]:
        kind, of, branch = name.split("/", 2)
        when = datetime.fromtimestamp(record.time_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M")
        rows.append([kind, f"{of}@{branch}", record.commit[:12], when, record.author])
    more = len(refs) - len(rows)
    note = f"and {more:,} more" if more else "" if refs else "nothing here yet"
    return html_table(f"Store {store.url}", ["kind", "name", "commit", "time (UTC)", "author"], rows, note)
