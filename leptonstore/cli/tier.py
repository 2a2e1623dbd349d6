"""lepton tier: where a store keeps its packs."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from leptonstore.cli.prices import prices_option, read_prices
from leptonstore.cli.runtime import Size, emit, human_bytes, json_option, open_store, progress, store_option
from leptonstore.cli.served_jobs import run_job
from leptonstore.errors import BadInput, Conflict, NotPermitted, RefMissing, TierUnavailable, listed
from leptonstore.store import Store
from leptonstore.store.gc import collect
from leptonstore.store.moves import Move, MovePlan, apply_moves, leaving, plan_for
from leptonstore.store.placement import FEATURE, HOME, Placement, TierSetting, places_of
from leptonstore.store.prices import DEFAULT_TABLE, Price, month, price_of
from leptonstore.store.reads import FILE as READS_FILE
from leptonstore.store.reads import halve_reads, load_reads
from leptonstore.store.tier_mark import claim_tier
from leptonstore.tiers.block import open_block
from leptonstore.tiers.block_format import format_block
from leptonstore.tiers.block_scan import volume_path

_SCHEME = re.compile(r"[a-z0-9+.-]+:/")


@click.group("tier")
def command() -> None:
    """Where a store keeps its packs: several tiers, and what moves between them.

    The home is one of them; the others hold packs only. All take --json. Exit code 11: a tier does not answer.

    \b
    Example:
      lepton tier add cold s3://bucket/cold
      lepton tier set home --watermark 200GiB
      lepton tier plan
      lepton tier apply
    """


def _change(store: Store, placement: Placement) -> None:
    store.configure(placement.setting(), (FEATURE,) if len(placement.tiers) > 1 else ())


@command.command("ls")
@store_option
@json_option
def ls(store: str | None, as_json: bool) -> None:
    """Show the tiers, the nearest first, and what is in them.

    \b
    Example:
      lepton tier ls
    """
    with open_store(store) as opened:
        tiers = [_described(opened, at, tier) for at, tier in enumerate(opened.placement.tiers)]

        def text() -> None:
            for tier in tiers:
                mark = f", watermark {human_bytes(tier['watermark'])}" if tier["watermark"] is not None else ""
                new = ", new packs go here" if tier["write_to"] else ""
                what = tier["error"] or f"{tier['packs']:,} packs, {human_bytes(tier['bytes'])}"
                click.echo(f"{tier['name']:<12} {what}{mark}{new}  {tier['url']}")
            if opened.placement.copies > 1:
                click.echo(f"each pack is kept in {opened.placement.copies} tiers")
            for ref, name in sorted(opened.placement.pins.items()):
                click.echo(f"pinned: {ref} to {name}")

        value = {"tiers": tiers, "copies": opened.placement.copies, "pins": opened.placement.pins}
        emit(value, as_json, text)


def _described(store: Store, at: int, setting: TierSetting) -> dict[str, Any]:
    tier = store.tier.tiers[at]
    found: dict[str, Any] = {**asdict(setting), "url": tier.url, "write_to": setting.name == store.placement.write_to}
    try:
        held = set(tier.packs()) & store.state.packs.keys()
    except (OSError, TierUnavailable, NotPermitted) as error:
        return {**found, "packs": None, "bytes": None, "error": str(error)}
    return {**found, "packs": len(held), "bytes": sum(store.state.packs[pack].bytes for pack in held), "error": ""}


@command.command("add")
@click.argument("name")
@click.argument("url")
@store_option
@click.option("--watermark", type=Size(), metavar="SIZE", help="From so many bytes on, packs move to the next tier.")
@click.option("--nearest", is_flag=True, help="Nearer than all others (default: farther).")
@click.option("--write-here", is_flag=True, help="New packs go to this tier.")
@json_option
def add(
    name: str, url: str, store: str | None, watermark: int | None, nearest: bool, write_here: bool, as_json: bool
) -> None:
    """Add tier NAME at URL: a directory, or whatever can hold packs.

    \b
    Example:
      lepton tier add cold s3://bucket/birds
      lepton tier add disk block:///dev/sdb
      lepton tier add fast /nvme/birds --nearest --watermark 500GiB
    """
    with open_store(store) as opened:
        before = opened.placement
        if name in before.names:
            raise BadInput(f"there is a tier {name!r} already; `lepton tier set {name}` changes it")
        new = TierSetting(name, str(Path(url).expanduser().absolute()) if not _SCHEME.match(url) else url, watermark)
        tiers = (new, *before.tiers) if nearest else (*before.tiers, new)
        placement = replace(before, tiers=tiers, write_to=name if write_here else before.write_to)
        placement.setting()  # says what is wrong before anything is made
        claim_tier(new.url, opened)
        _change(opened, placement)
        emit(
            {"tier": name, "url": new.url, "tiers": list(placement.names)},
            as_json,
            f"tiers: {', '.join(placement.names)}",
        )


@command.command("set")
@click.argument("name")
@store_option
@click.option("--watermark", type=Size(), metavar="SIZE", help="From so many bytes on, packs move to the next tier.")
@click.option("--no-watermark", is_flag=True, help="Nothing moves on for space.")
@click.option("--write-here", is_flag=True, help="New packs go to this tier.")
@click.option(
    "--copies", type=click.IntRange(1), help="In how many tiers each pack is kept (of the store, not of NAME)."
)
@json_option
def set_(
    name: str,
    store: str | None,
    watermark: int | None,
    no_watermark: bool,
    write_here: bool,
    copies: int | None,
    as_json: bool,
) -> None:
    """Change tier NAME.

    \b
    Example:
      lepton tier set home --watermark 200GiB
      lepton tier set home --copies 2
    """
    with open_store(store) as opened:
        before = opened.placement
        at = before.position(name)
        tier = before.tiers[at]
        tier = replace(tier, watermark=None if no_watermark else tier.watermark if watermark is None else watermark)
        placement = replace(
            before,
            tiers=(*before.tiers[:at], tier, *before.tiers[at + 1 :]),
            write_to=name if write_here else before.write_to,
            copies=copies or before.copies,
        )
        _change(opened, placement)
        value = {**asdict(tier), "write_to": placement.write_to, "copies": placement.copies}
        emit(value, as_json, f"{name} is changed; `lepton tier plan` shows what would move")


@command.command("pin")
@click.argument("ref")
@click.argument("tier", required=False)
@store_option
@click.option("--off", is_flag=True, help="Unpin.")
@json_option
def pin(ref: str, tier: str | None, store: str | None, off: bool, as_json: bool) -> None:
    """Keep what REF reaches in TIER (default: the nearest). REF is NAME or NAME@BRANCH of a dataset, or a ref's full name.

    \b
    Example:
      lepton tier pin birds@main home
      lepton tier pin birds --off
    """
    with open_store(store) as opened:
        full = _ref(opened, ref)
        pins = dict(opened.placement.pins)
        if off:
            pins.pop(full, None)
        else:
            pins[full] = tier or opened.placement.names[0]
        _change(opened, replace(opened.placement, pins=pins))
        said = (
            f"{full} is not pinned" if off else f"{full} is pinned to {pins[full]}; `lepton tier apply` brings it there"
        )
        emit({"pins": pins}, as_json, said)


def _ref(store: Store, name: str) -> str:
    dataset, _, branch = name.partition("@")
    for candidate in (name, f"dataset/{dataset}/{branch or 'main'}"):
        if candidate in store.state.refs:
            return candidate
    raise RefMissing(f"there is no ref {name!r}; there is: {listed(sorted(store.state.refs))}")


@command.command("prices")
@json_option
def prices(as_json: bool) -> None:
    """Print the table of prices that `plan` and `lepton train` go by, to be edited.

    \b
    Example:
      lepton tier prices > prices.toml
      lepton tier plan --prices prices.toml
    """
    known = read_prices(None)
    told = {"prices": [asdict(one) for one in known.tiers], "devices": [asdict(one) for one in known.devices]}
    emit(told, as_json, DEFAULT_TABLE.rstrip())


@command.command("plan")
@store_option
@prices_option
@json_option
def plan(store: str | None, table: Path | None, as_json: bool) -> None:
    """Show what `apply` would move, and what each tier holds and costs before and after it.

    \b
    Example:
      lepton tier plan
    """
    with open_store(store) as opened:
        found = plan_for(opened, load_reads(opened.cache_path(READS_FILE)))
        emit(*_told(opened, found, read_prices(table).tiers, as_json))


def _told(
    store: Store, found: MovePlan, table: list[Price], as_json: bool
) -> tuple[dict[str, Any], bool, Callable[[], None]]:
    costs: list[dict[str, Any]] = []
    for at, name in enumerate(store.placement.names):
        price = price_of(table, store.tier.tiers[at].url)
        before, after = found.before[name], found.after[name]
        costs.append(
            {
                "tier": name,
                "bytes": before,
                "bytes_after": after,
                "month": month(price, before),
                "month_after": month(price, after),
            }
        )
    value = {
        "moves": [asdict(move) for move in found.moves],
        "bytes": sum(move.bytes for move in found.moves if move.target is not None),
        "tiers": costs,
        "notes": found.notes,
    }

    def text() -> None:
        for why, line in _summary(found.moves).items():
            click.echo(f"{why}: {line}")
        for cost in costs:
            paid = "no price" if cost["month"] is None else f"{cost['month']:.2f} -> {cost['month_after']:.2f} a month"
            click.echo(
                f"{cost['tier']:<12} {human_bytes(cost['bytes']):>10} -> {human_bytes(cost['bytes_after']):>10}   {paid}"
            )
        for note in found.notes[:10]:
            click.echo(f"note: {note}")
        click.echo("`lepton tier apply` does it" if found.moves else "nothing has to move")

    return value, as_json, text


def _summary(moves: list[Move]) -> dict[str, str]:
    lines: dict[str, str] = {}
    for why in dict.fromkeys(move.why for move in moves):
        mine = [move for move in moves if move.why == why]
        ways = sorted({f"{move.leaves or move.source} -> {move.target or 'nowhere'}" for move in mine})
        packs = "1 pack" if len(mine) == 1 else f"{len(mine):,} packs"
        lines[why] = f"{packs}, {human_bytes(sum(move.bytes for move in mine))} ({', '.join(ways)})"
    return lines


@command.command("apply")
@store_option
@json_option
def apply(store: str | None, as_json: bool) -> None:
    """Move packs as `plan` says: copy, read back, publish, then delete. May be interrupted and run again.

    \b
    Example:
      lepton tier apply
    """
    with open_store(store) as opened:
        if opened.is_served:
            _told_moved(run_job(opened, "tiers", {}), as_json)
            return
        reads = opened.cache_path(READS_FILE)
        found = plan_for(opened, load_reads(reads))
        _apply(opened, found.moves, as_json, found.notes)
        halve_reads(reads)


def _apply(store: Store, moves: list[Move], as_json: bool, notes: list[str]) -> None:
    with progress("move packs", sum(move.bytes for move in moves), "bytes", advance=True) as tell:
        report = apply_moves(store, moves, tell)
    _told_moved({**asdict(report), "notes": notes}, as_json)


def _told_moved(told: dict[str, Any], as_json: bool) -> None:
    text = (
        f"{told['moved']:,} packs moved, {human_bytes(told['bytes_copied'])} copied, {told['deleted']:,} copies deleted"
    )
    if told["skipped"]:
        text += f"; {told['skipped']:,} were left, because somebody changed them meanwhile"
    emit(told, as_json, "\n".join([text, *(f"note: {note}" for note in told["notes"][:10])]))


@command.command("rm")
@click.argument("name")
@store_option
@json_option
def rm(name: str, store: str | None, as_json: bool) -> None:
    """Take tier NAME out of use: its packs move to the next one; as the farthest, what is needed of them is written anew.

    \b
    Example:
      lepton tier rm cold
    """
    with open_store(store) as opened:
        before = opened.placement
        at = before.position(name)
        if name == HOME:
            raise BadInput("the home cannot be taken out of use: it holds the log")
        if name in before.pins.values():
            raise BadInput(f"something is pinned to {name}; unpin it before (`lepton tier ls`)")
        if before.write_to == name:
            _change(opened, replace(before, write_to=HOME))
        moves = list(leaving(opened, name))
        with progress("move packs", sum(move.bytes for move in moves), "bytes", advance=True) as tell:
            apply_moves(opened, moves, tell)
        left = {pack for pack in opened.state.packs if name in places_of(opened.state, pack)}
        if left:
            collect(opened, retire=left)
            opened.refresh()
            left = {pack for pack in opened.state.packs if name in places_of(opened.state, pack)}
        if left:
            raise Conflict(f"{len(left)} packs are still in tier {name}: others work on them; run it again")
        tiers = (*before.tiers[:at], *before.tiers[at + 1 :])
        write_to = HOME if before.write_to == name else before.write_to
        placement = replace(opened.placement, tiers=tiers, write_to=write_to, copies=min(before.copies, len(tiers)))
        _change(opened, placement)
        emit({"removed": name, "tiers": list(placement.names)}, as_json, f"tiers: {', '.join(placement.names)}")


@command.command("format-block")
@click.argument("path")
@click.option("--size", type=Size(), metavar="SIZE", help="How large (100G). Of a block device: all of it by default.")
@click.option("--force", is_flag=True, help="Also where there is something: it is lost.")
@json_option
def format_block_(path: str, size: int | None, force: bool, as_json: bool) -> None:
    """Make PATH a block volume for packs: a file of fixed size, or a raw block device.

    The space of a file is taken at once. A file or device that holds something, or is a volume already, is refused (exit code 2) without
    --force, and one that is in use always (5). Exit code 6: the filesystem has less space than SIZE.

    \b
    Example:
      lepton tier format-block /data/volume --size 100G
      lepton tier format-block /dev/nvme1n1
    """
    place = volume_path(path)
    made = format_block(place, size, force=force)
    told = {
        "url": open_block(place).url,
        "volume_id": str(uuid.UUID(bytes=made.volume_id)),
        "size_bytes": made.size,
        "capacity_bytes": made.capacity,
        "unit_bytes": made.unit,
    }
    text = f"{told['url']}: a volume of {human_bytes(made.size)} that holds {human_bytes(made.capacity)} of packs"
    emit(told, as_json, text)
