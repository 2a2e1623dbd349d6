"""lepton materialize"""

from __future__ import annotations

import click

from leptonstore import limits
from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.dataset import Dataset
from leptonstore.store.materialize import materialize


@click.command("materialize")
@click.argument("name")
@click.option("--only", is_flag=True, help="This version only, not those before it.")
@store_option
@json_option
def command(name: str, only: bool, store: str | None, as_json: bool) -> None:
    """Copy the values that dataset NAME refers to outside of the store into it, so that it needs their source no more.

    No version changes: the values keep their digests. Interrupted, it goes on where it was. `lepton gc` then removes the references.
    Exit codes: 4 an object is gone or has changed, 9 this host was not allowed to read it (`lepton references allow`).

    \b
    Example:
      lepton materialize photos
    """
    with open_store(store) as opened:
        version = Dataset.open(opened, name)
        with progress(f"materialize {name}", None, "MiB") as report:
            done = materialize(
                opened, [version.commit], not only, lambda found: report(found.plain_bytes // limits.MIB)
            )
        emit(
            {"dataset": name, "commit": version.commit, **done.to_json()},
            as_json,
            f"{name}: {done.chunks:,} chunks of {human_bytes(done.plain_bytes)} copied, {human_bytes(done.new_bytes)} new",
        )
