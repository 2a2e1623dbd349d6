"""What the commands that edit a dataset share: options, the branch that is edited, and what is said afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import pyarrow as pa

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.dataset import Dataset, Source
from leptonstore.dataset.importers import FORMATS, open_source
from leptonstore.errors import BadInput, SchemaError
from leptonstore.format.schema import type_to_json

_F = TypeVar("_F", bound=Callable[..., Any])
# What is done with the dataset: (version, message and author, how to report progress) -> new version.
Edit = Callable[[Dataset, dict[str, Any], Callable[[int], None]], Dataset]


def edit_options(command: _F) -> _F:
    """--message, --author, --store, --json."""
    message = click.option("-m", "--message", default="", help="What this version is (default: the edit in words).")
    author = click.option("--author", default="", help="Who made it (default: the user).")
    return message(author(store_option(json_option(command))))


format_option = click.option(
    "--format", "source_format", type=click.Choice(sorted(FORMATS)), help="What SRC is (default: found out)."
)


def rows_of(path: str, source_format: str | None) -> Source:
    """The rows of a file. Raises SourceError, SchemaError."""
    return open_source(path, source_format)


def run_edit(
    name: str,
    edit: Edit,
    store: str | None,
    message: str,
    author: str,
    as_json: bool,
    total: int | None = None,
    said: dict[str, Any] | None = None,
) -> None:
    """Edit the newest version of NAME[@BRANCH] and say what came of it."""
    with open_store(store) as opened:
        before = Dataset.open(opened, name)
        with progress(f"edit {before.name}", total) as report:
            made = edit(before, {"message": message, "author": author}, report)
        changed = made.commit != before.commit
        value = {
            "dataset": made.name,
            "branch": made.ref,
            "commit": made.commit,
            "rows": len(made),
            "rows_before": len(before),
            "new_bytes": opened.new_bytes,
            "changed": changed,
            **(said or {}),
        }
        text = f"{made.name}@{made.ref} is {made.commit[:12]}: {made.commit_object.message}; {len(made):,} rows, "
        text += f"{human_bytes(opened.new_bytes)} new"
        emit(value, as_json, text if changed else f"{made.name}@{made.ref} is {made.commit[:12]} (nothing changed)")


def type_of(text: str) -> pa.DataType:
    """int32, float64, string, date32, timestamp[us] … as Arrow calls them. Raises BadInput."""
    try:
        found = pa.type_for_alias(text)
        type_to_json(found, text)
    except (ValueError, SchemaError):
        raise BadInput(f"no type {text!r}; say int32, float64, string, bool, date32, timestamp[us] …") from None
    return found


def value_of(text: str) -> Any:
    """A number, true, false or null where the text is one, else the text."""
    words = {"true": True, "false": False, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
