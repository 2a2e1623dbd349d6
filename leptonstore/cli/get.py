"""lepton get"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np

from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset import Dataset
from leptonstore.errors import BadInput

_SHOWN_BYTES = 64


@click.command("get")
@click.argument("name")
@click.argument("row", type=int)
@store_option
@click.option("--column", help="Only this column.")
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="Write the column's bytes here; - is stdout.")
@json_option
def command(name: str, row: int, store: str | None, column: str | None, output: str | None, as_json: bool) -> None:
    """Print row ROW of dataset NAME[@REF], or write one of its values to a file.

    \b
    Example:
      lepton get mnist 0
      lepton get birds 17 --column image -o bird.jpg
    """
    if output and not column:
        raise BadInput("-o writes one value: name it with --column")
    with open_store(store) as opened:
        dataset = Dataset.open(opened, name)
        if not -len(dataset) <= row < len(dataset):
            raise BadInput(f"row {row}: {name} has {len(dataset)} rows")
        dataset.fields([column] if column else None)  # an unknown column is named before anything is read
        found: dict[str, Any] = dataset[row]
        values = {column: found[column]} if column else found
        if output and column:
            data = _bytes(values[column])
            if output == "-":
                sys.stdout.buffer.write(data)
            else:
                Path(output).write_bytes(data)
            return
        emit(values, as_json, lambda: click.echo("\n".join(f"{key}: {_shown(value)}" for key, value in values.items())))


def _bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return value if isinstance(value, bytes) else str(value).encode()


def _shown(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, bytes):
        more = "…" if len(value) > _SHOWN_BYTES else ""
        return f"{len(value)} bytes: {value[:_SHOWN_BYTES].hex()}{more}"
    return value
