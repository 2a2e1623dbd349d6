"""lepton references"""

from __future__ import annotations

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.errors import BadInput
from leptonstore.store.references_check import count_references
from leptonstore.tiers.external import root_of


@click.group("references")
def command() -> None:
    """Show where values stand that were imported with --reference, and say whether this host may read there. All take --json.

    A store that somebody else wrote could refer to anything. So each host reads below a root only after it was allowed there: by an import
    on this host, or by `allow`. It is remembered in the user's cache directory.

    \b
    Example:
      lepton references ls
      lepton references allow s3://bucket/photos
    """


@command.command("ls")
@store_option
@json_option
def ls(store: str | None, as_json: bool) -> None:
    """List the roots below which this store refers to objects, how much stands there, and whether this host may read it.

    \b
    Example:
      lepton references ls
    """
    with open_store(store) as opened:
        counts = count_references(opened) if opened.references.used else {}
        found = [
            (root, *counts.get(number, (0, 0)), root in opened.references.allowed)
            for number, root in opened.references.roots.items()
        ]

        def text() -> None:
            for root, count, size, allowed in found:
                may = "allowed here" if allowed else "not allowed on this host"
                click.echo(f"{root}  {count:,} values, {human_bytes(size)}, {may}")
            if not found:
                click.echo("this store refers to nothing outside of it")

        listed = [dict(zip(("root", "references", "bytes", "allowed"), one, strict=True)) for one in found]
        emit({"store": opened.url, "roots": listed}, as_json, text)


@command.command("allow")
@click.argument("root")
@store_option
@json_option
def allow(root: str, store: str | None, as_json: bool) -> None:
    """Let this host read what the store refers to below ROOT (a URL as `references ls` shows it, or a folder).

    \b
    Example:
      lepton references allow s3://bucket/photos
    """
    with open_store(store) as opened:
        known = opened.references.roots.values()
        if root_of(root) not in known:
            raise BadInput(
                f"this store refers to nothing below {root_of(root)}; it does below: {', '.join(known) or 'nothing'}"
            )
        kept = opened.references.allow(root)
        emit({"root": kept, "allowed": True}, as_json, f"{kept} may be read on this host")


@command.command("disallow")
@click.argument("root")
@store_option
@json_option
def disallow(root: str, store: str | None, as_json: bool) -> None:
    """Take that back: values below ROOT cannot be read on this host any more.

    \b
    Example:
      lepton references disallow s3://bucket/photos
    """
    with open_store(store) as opened:
        kept = opened.references.disallow(root)
        emit({"root": kept, "allowed": False}, as_json, f"{kept} is not read on this host any more")
