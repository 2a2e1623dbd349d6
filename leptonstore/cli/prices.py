"""--prices: the table that costs go by."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

from leptonstore.errors import BadInput
from leptonstore.store.prices import DEFAULT_TABLE, DevicePrice, Price, parse_device_prices, parse_prices

_F = TypeVar("_F", bound=Callable[..., Any])


class Prices(NamedTuple):
    """What a table says."""

    tiers: list[Price]
    devices: list[DevicePrice]


def prices_option(command: _F) -> _F:
    """--prices FILE, as the argument `table`."""
    return click.option(
        "--prices",
        "table",
        envvar="LEPTON_PRICES",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="What tiers and devices cost (default: $LEPTON_PRICES); see `lepton tier prices`.",
    )(command)


def read_prices(table: Path | None) -> Prices:
    """The table in a file, or the one that comes with LeptonStore. Raises BadInput."""
    if table is None:
        text, what = DEFAULT_TABLE, "of LeptonStore"
    else:
        try:
            text, what = table.read_text(encoding="utf-8"), str(table)
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"price table {table} cannot be read: {error}") from None
    return Prices(parse_prices(text, what), parse_device_prices(text, what))
