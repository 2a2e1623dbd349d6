"""lepton pull"""

from __future__ import annotations

import click

from leptonstore.cli.exchange import (
    exchange_options,
    open_remote,
    print_exchange,
    require_joined,
    require_names,
    transfer_progress,
)
from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.dataset.exchange import pull, refs_of
from leptonstore.store.remotes import DEFAULT


@click.command("pull")
@click.argument("names", nargs=-1, metavar="[NAME[@BRANCH]]...")
@click.option(
    "--from", "remote", default=DEFAULT, metavar="REMOTE|URL", help="Where from (default: the remote origin)."
)
@exchange_options
@store_option
@json_option
def command(
    names: tuple[str, ...],
    remote: str,
    kind: str,
    whole: bool,
    depth: int | None,
    dry_run: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Get NAME[@BRANCH] (default: main) from another store, with its history. Only what is not here travels.

    The branch here moves forward. Where both went on it stays, the remote's head is kept as NAME@origin-BRANCH (the remote's name, or
    "remote" for one without), and the exit code is 5: merge that, and push. Interrupted, it may be run again and goes on. Exit codes: 0
    done, 3 no such name or store, 5 diverged, 6 disk full, 11 the remote does not answer.

    \b
    Example:
      lepton pull birds
      lepton pull birds@v2 --from s3://bucket/birds
    """
    require_names(names, whole, "pull")
    with open_store(store) as opened:
        name, other = open_remote(opened, remote)
        with other, transfer_progress("pull") as progress:
            refs = refs_of(other, names, kind, whole)
            done = pull(opened, other, refs, name or "remote", depth, dry_run, progress)
        emit({"remote": other.url, **done.to_json()}, as_json, lambda: print_exchange(done))
        require_joined(done)
