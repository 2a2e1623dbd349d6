"""lepton gc"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import click

from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.cli.served_jobs import run_job
from leptonstore.store.gc import GcReport, collect

_LABELS = {"mark": "find what is needed", "compare": "compare packs", "repack": "repack", "delete": "delete packs"}


@click.command("gc")
@store_option
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option(
    "--repack/--no-repack", default=True, help="Copy live data out of packs that are mostly garbage, or small."
)
@json_option
def command(store: str | None, dry_run: bool, repack: bool, as_json: bool) -> None:
    """Remove what no version, reader or writer needs.

    Others may read and write meanwhile, and it may be interrupted: the next run goes on. Exit codes: 0 done, 4 the
    store is damaged, so that nothing was removed, 5 other collections were faster, 6 disk full, 11 a tier does not answer, so that
    nothing was removed. Of a store behind a daemon (lepton://) the daemon does it, as a job; Ctrl-C stops that.

    \b
    Example:
      lepton gc --dry-run
    """
    with open_store(store) as opened:
        if opened.is_served:
            done = _served(run_job(opened, "gc", {"dry_run": dry_run, "repack": repack}))
        else:
            with stages() as report:
                done = collect(opened, dry_run, repack, report)
        emit({"store": opened.url, **done.to_json()}, as_json, lambda: print_report(done))


@contextlib.contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """One bar for each stage of a collection."""
    with contextlib.ExitStack() as stack:
        current, advance = "", lambda done: None

        def report(what: str, done: int, total: int) -> None:
            nonlocal current, advance
            if what != current:
                stack.close()
                current = what
                unit = "chunks" if what == "mark" else "steps" if what == "compare" else "packs"
                advance = stack.enter_context(progress(_LABELS.get(what, what), total or None, unit))
            advance(done)

        yield report


def _served(told: dict[str, Any]) -> GcReport:
    """What a daemon's job tells."""
    return GcReport(**{one.name: told[one.name] for one in fields(GcReport) if one.name in told})


def print_report(done: GcReport) -> None:
    """For people."""
    would = "would be " if done.dry_run else ""
    share = done.live_bytes / done.stored_bytes if done.stored_bytes else 1.0
    click.echo(f"{done.packs:,} packs, {human_bytes(done.stored_bytes)}, of which {share:.1%} are needed")
    if done.repacked:
        click.echo(f"{done.repacked:,} packs {would}repacked ({human_bytes(done.repacked_bytes)} copied)")
    click.echo(
        f"{done.packs_removed:,} packs {would}removed, {human_bytes(done.bytes_freed)} {would}freed, {done.seconds:.1f} s"
    )
    for count, what in (
        (done.rescued, "packs that were condemned are needed again"),
        (done.spared, "packs without a version are spared for writers that are at work"),
        (done.leases, "versions are held by readers that are at work"),
        (done.missing, "chunks that versions need are in no pack: run `lepton check`"),
    ):
        if count:
            click.echo(f"{count:,} {what}")
    if done.repack_stopped:
        click.echo(f"repacking stopped: {done.repack_stopped}")
