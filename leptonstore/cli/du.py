"""lepton du"""

from __future__ import annotations

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.errors import RefMissing
from leptonstore.store.usage import NameUsage, Usage, VersionUsage, measure

_WIDTHS = "{:>10}  {:>10}  {:>10}  {:>10}  {}"


@click.command("du")
@click.argument("name", required=False)
@store_option
@click.option("--versions", is_flag=True, help="A line for every version, not only for every name.")
@json_option
def command(name: str | None, store: str | None, versions: bool, as_json: bool) -> None:
    """Show what each dataset, checkpoint and model takes: unique bytes (free without it) and shared ones.

    NAME shows the versions of one. Sorted by unique bytes.

    \b
    Example:
      lepton du
      lepton du mnist
    """
    with open_store(store) as opened:
        usage = measure(opened)
        if name is not None:
            usage.names = [one for one in usage.names if name in (one.name, one.name.split("/", 1)[1])]
            if not usage.names:
                raise RefMissing(f"nothing is called {name!r} in {opened.url}; `lepton ls` shows what there is")
        emit({"store": opened.url, **usage.to_json()}, as_json, lambda: _print(usage, versions or name is not None))


def _print(usage: Usage, versions: bool) -> None:
    click.echo(_WIDTHS.format("unique", "shared", "stored", "logical", "name"))
    for one in usage.names:
        _line(one, one.name)
        if versions:
            for version in sorted(one.versions, key=lambda version: -version.unique):
                _line(version, f"  {version.label.removeprefix(one.name)[1:]}")
    click.echo(
        f"\n{human_bytes(usage.pack_bytes)} in {usage.packs:,} packs: {human_bytes(usage.live_bytes)} in use, "
        f"{human_bytes(usage.garbage_bytes)} not"
    )
    if usage.quota_bytes is not None:
        click.echo(f"quota {human_bytes(usage.quota_bytes)}")
    if usage.unlisted_packs:
        click.echo(f"{usage.unlisted_packs:,} packs of interrupted writers: {human_bytes(usage.unlisted_bytes)}")
    if usage.free_bytes:
        click.echo(f"`lepton gc` frees {human_bytes(usage.free_bytes)} at once, and more where it rewrites packs")
    if usage.missing:
        click.echo(f"{usage.missing:,} chunks are missing or damaged and not counted: run `lepton check`")


def _line(one: NameUsage | VersionUsage, label: str) -> None:
    sizes = (one.unique, one.shared, one.stored, one.logical)
    click.echo(_WIDTHS.format(*map(human_bytes, sizes), label))
