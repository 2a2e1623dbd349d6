"""What push, pull and clone share: options, the line of progress, and what they print."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from leptonstore.cli.runtime import human_bytes, status
from leptonstore.cli.secret import given_remote_secret, remote_secret_options
from leptonstore.dataset.exchange import Exchange
from leptonstore.dataset.refs import MAIN
from leptonstore.errors import BadInput, Conflict
from leptonstore.format.commit import KINDS
from leptonstore.store import Store
from leptonstore.store.remotes import remote_url
from leptonstore.store.transfer import TransferReport

_F = TypeVar("_F", bound=Callable[..., Any])
_DONE = {
    "new": "is new",
    "forward": "moved on",
    "forced": "was replaced",
    "equal": "is the same",
    "ahead": "is older there",
    "diverged": "has diverged",
}


def kind_option(command: _F) -> _F:
    """--kind"""
    text = "What the names are (default: dataset)."
    return click.option("--kind", type=click.Choice(KINDS), default="dataset", help=text)(command)


def depth_option(command: _F) -> _F:
    """--depth"""
    text = "Of a name that is new there: only the newest N versions. What came before counts as forgotten."
    return click.option("--depth", type=click.IntRange(min=1), metavar="N", help=text)(command)


def exchange_options(command: _F) -> _F:
    """--kind, --all, --depth, --dry-run and the secrets of the remote."""
    command = remote_secret_options(command)
    command = click.option("--dry-run", is_flag=True, help="Only say what would travel.")(command)
    text = "All branches and tags of each NAME; without a NAME, of everything."
    command = click.option("--all", "whole", is_flag=True, help=text)(command)
    return depth_option(kind_option(command))


def require_names(names: tuple[str, ...], whole: bool, verb: str) -> None:
    """Raise BadInput for neither names nor --all, and for a path or URL among the names, which no name can be."""
    if not names and not whole:
        raise BadInput(f"say what to {verb}: NAME[@BRANCH], or --all")
    for name in names:
        if "/" in name:
            option = "--to" if verb == "push" else "--from"
            raise BadInput(f"{name!r} is a place, not a name; did you mean {option} {name}?")


def open_remote(store: Store, name_or_url: str) -> tuple[str, Store]:
    """(its name, "" for none; the remote store). Raises NotFound, WrongKey, TierUnavailable."""
    name, url = remote_url(store, name_or_url)
    return name, Store.open(url, unlock=given_remote_secret())


@contextlib.contextmanager
def transfer_progress(label: str) -> Iterator[Callable[[TransferReport], None]]:
    """A line that says what has been sent."""
    with status(label) as tell:
        yield lambda report: tell(lambda: _so_far(report))


def _so_far(report: TransferReport) -> str:
    rate = f" at {human_bytes(report.bytes_sent / report.seconds)}/s" if report.seconds > 0 else ""
    there = f", {report.chunks_present:,} were there" if report.chunks_present else ""
    return f"{report.chunks_sent:,} chunks, {human_bytes(report.bytes_sent)} sent{rate}{there}"


def print_exchange(done: Exchange) -> None:
    """For people."""
    report = done.report
    for move in done.moves:
        old = f"{move.old[:12]} -> " if move.old and move.moves else ""
        click.echo(f"{move.label} {_DONE[move.action]}: {old}{move.new[:12]}")
    would = "would travel" if report.dry_run else f"travelled in {report.seconds:.1f} s"
    rate = f" ({human_bytes(report.bytes_sent / report.seconds)}/s)" if report.bytes_sent and not report.dry_run else ""
    click.echo(
        f"{report.commits:,} versions, {report.chunks_sent:,} chunks, {human_bytes(report.bytes_sent)} {would}{rate}; "
        f"{human_bytes(report.bytes_saved)} were there already"
    )
    for end, counts in report.requests.items():
        told = ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()) if not kind.startswith("bytes_"))
        if told:
            click.echo(f"requests to the {end}: {told}")


def require_joined(done: Exchange) -> None:
    """Raise Conflict when a branch has diverged and the remote's head is kept beside it."""
    told = []
    for move in done.moves:
        if move.ref not in done.kept:
            continue
        kind, name, branch = move.ref.split("/", 2)
        kept = done.kept[move.ref].split("/", 2)[2]
        into = name if branch == MAIN else f"{name}@{branch}"
        fix = f"merge that (`lepton merge {name}@{kept} --into {into}`), then push"
        if kind != "dataset" or move.tag:
            fix = "keep the one that you want"
        heads = f"{(move.old or '')[:12]} here, {move.new[:12]} there, kept as @{kept}"
        told.append(f"{move.label} has diverged: {heads}: {fix}")
    if told:
        raise Conflict("; ".join(told))
