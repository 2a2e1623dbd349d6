"""lepton check"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import click

from leptonstore import limits
from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.cli.served_jobs import run_job
from leptonstore.store import CheckReport, check_store


class Share(click.ParamType):
    """A part of a whole: 0.1, 10% or 1."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """From 0 to 1."""
        text = str(value)
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            share = -1.0
        if not 0 < share <= 1:
            self.fail(f"{text!r} is not a share: use 10%, or a number over 0 and up to 1", param, ctx)
        return share


@click.command("check")
@store_option
@click.option(
    "--read-data",
    is_flag=False,
    flag_value="100%",
    type=Share(),
    metavar="[=SHARE]",
    help="Read and verify every byte, not only the structure; with a share (10% or 0.1), that of a random sample of packs.",
)
@click.option("--seed", type=int, help="Which packs a share picks: the seed that an earlier check reported.")
@json_option
def command(store: str | None, read_data: float | None, seed: int | None, as_json: bool) -> int:
    """Find what is damaged or missing, in every tier. Changes nothing.

    Exit codes: 0 clean, 4 something is damaged (`lepton repair` is next), 11 nothing is, as far as could be seen: a tier does
    not answer. Of a store behind a daemon (lepton://) the daemon does it, as a job; Ctrl-C stops that.

    \b
    Example:
      lepton check --read-data
      lepton check --read-data=10%
    """
    with open_store(store) as opened:
        if opened.is_served:
            told = run_job(opened, "check", {"read_data": read_data or 0.0, "seed": -1 if seed is None else seed})
            emit({"store": opened.url, **told}, as_json, lambda: _print(_Served(told), told["problems"]))
            return 0 if told["clean"] else 4 if told["damaged"] or told["problems_more"] else 11
        total = sum(record.bytes for record in opened.state.packs.values())
        with progress("check", max(1, total // limits.MIB), "MiB") as report:
            found = check_store(opened, read_data or False, lambda done, _: report(done // limits.MIB), seed)
        emit(
            {"store": opened.url, **found.to_json()},
            as_json,
            lambda: _print(found, [one.line() for one in found.problems]),
        )
    return 0 if found.clean else 4 if found.damaged or found.problems_more else 11


class _Served(CheckReport):
    """What a daemon's job tells, without the findings: those are lines."""

    def __init__(self, told: dict[str, Any]) -> None:
        names = {one.name for one in fields(CheckReport)} - {"problems"}
        super().__init__(**{name: value for name, value in told.items() if name in names})


def _print(found: CheckReport, lines: Sequence[str]) -> None:
    for line in lines:
        click.echo(line)
    if found.problems_more:
        click.echo(f"… and {found.problems_more:,} more findings")
    read = ""
    if found.read_share:
        sample = "" if found.read_share == 1 else f" ({found.read_share:.0%} of the data; --seed {found.seed})"
        read = f", {human_bytes(found.bytes_read)} read{sample}"
    referred = f", {found.references:,} references" if found.references else ""
    click.echo(f"{found.packs:,} packs, {found.records:,} records{referred}, {found.versions:,} versions{read}")
    if found.unlisted_packs:
        click.echo(f"{found.unlisted_packs:,} packs of interrupted writers are not in use (harmless; `lepton gc`)")
    if found.clean:
        click.echo("clean")
    elif not found.damaged and not found.problems_more:
        click.echo("clean as far as could be seen: run it again when every tier answers")
    else:
        count = len(found.problems) + found.problems_more
        if all(problem.kind in ("reference", "unavailable") for problem in found.problems):
            click.echo(f"{count:,} problems: put the objects back as they were, or import the data again")
            return
        click.echo(f"{count:,} problems: run `lepton repair`, with --from when there is a copy")
