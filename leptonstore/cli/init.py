"""lepton init"""

from __future__ import annotations

import click

from leptonstore import limits
from leptonstore.cli.runtime import emit, json_option, store_url
from leptonstore.store import Store
from leptonstore.store.config import StoreConfig


@click.command("init")
@click.argument("path", required=False)
@click.option("--zstd-level", type=int, default=limits.ZSTD_LEVEL, show_default=True, help="1 (fast) to 19 (small).")
@json_option
def command(path: str | None, zstd_level: int, as_json: bool) -> None:
    """Make a new store at PATH (default: $LEPTON_STORE, else ./.lepton).

    \b
    Example:
      lepton init /data/store
    """
    with Store.create(store_url(path), StoreConfig(zstd_level=zstd_level)) as store:
        emit({"store": store.url, "id": store.config.store_id.hex()}, as_json, f"new store at {store.url}")
