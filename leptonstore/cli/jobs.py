"""lepton jobs"""

from __future__ import annotations

import time
from typing import Any

import click

from leptonstore.cli.runtime import emit, json_option, open_store, store_option
from leptonstore.cli.served_jobs import ask
from leptonstore.daemon.maintenance.kinds import KINDS, kind_of
from leptonstore.daemon.maintenance.schedule import Plan, no_setting, plan_of, plans, setting
from leptonstore.errors import BadInput
from leptonstore.store import Store


@click.group("jobs")
def command() -> None:
    """Maintenance of a store that a daemon serves: what runs, what ran last, and when it runs by itself.

    \b
    Example:
      lepton jobs start scrub --store lepton://127.0.0.1:7400/store
      lepton jobs ls --json --store lepton://127.0.0.1:7400/store
    """


@command.command("ls")
@store_option
@json_option
def ls(store: str | None, as_json: bool) -> None:
    """List jobs of the daemon, of other daemons of the store, and the schedule.

    \b
    Example:
      lepton jobs ls --store lepton://127.0.0.1:7400/store
    """
    with open_store(store) as opened:
        told = ask(_served(opened), "jobs")
        emit(told, as_json, "\n".join(_lines(told)))


def _lines(told: dict[str, Any]) -> list[str]:
    lines = [
        f"{job['id']}  {job['kind']:<7} {job['state']:<9} {_when(job['began'])} of {job['by'] or 'nobody'}  "
        f"{_how_far(job)}{job['error'] or job['note']}"
        for job in told["jobs"]
    ]
    lines += [f"{other['job']}  {other['kind']:<7} on {other['host']}, of {other['by']}" for other in told["elsewhere"]]
    for kind in told["kinds"]:
        plan, last = kind["schedule"], kind["last"]
        every = "" if plan is None else f"every {plan['every_hours']:g} h{' when idle' if plan['idle'] else ''}"
        ended = f"last {last['state']} {_when(last['ended'])} on {last['host']}" if last else ""
        if every or ended:
            lines.append(f"{kind['name']}: " + ", ".join(filter(None, (every, ended))))
    return lines or ["no job runs, none ran, and none is scheduled"]


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _how_far(job: dict[str, Any]) -> str:
    done, total, unit = (job["progress"][name] for name in ("done", "total", "unit"))
    return f"{done:,}{f' of {total:,}' if total else ''} {unit}  " if job["ended"] is None and (done or total) else ""


@command.command("start")
@click.argument("kind", type=click.Choice(sorted(KINDS)))
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of that kind of job.")
@store_option
@json_option
def start(kind: str, options: tuple[str, ...], store: str | None, as_json: bool) -> None:
    """Have the daemon begin a job, and do not wait for it.

    \b
    Example:
      lepton jobs start scrub -o bytes_per_s=20000000 --store lepton://127.0.0.1:7400/store
    """
    with open_store(store) as opened:
        job = ask(_served(opened), "job", {"kind": kind, "options": _options(kind, options)})["job"]
        emit(job, as_json, f"job {job['id']} ({kind}) runs; `lepton jobs stop {job['id']}` stops it")


@command.command("stop")
@click.argument("job")
@store_option
@json_option
def stop(job: str, store: str | None, as_json: bool) -> None:
    """Let JOB stop at its next step. What it did is kept, and the next one goes on.

    \b
    Example:
      lepton jobs stop 0123456789abcdef --store lepton://127.0.0.1:7400/store
    """
    with open_store(store) as opened:
        found = ask(_served(opened), "stop", {"job": job})["job"]
        emit(found, as_json, f"job {found['id']} ({found['kind']}): {found['state']}")


@command.command("schedule")
@click.argument("kind", type=click.Choice(sorted(KINDS)))
@click.option("--every", type=float, metavar="HOURS", help="So long after the last one has ended.")
@click.option("--idle", is_flag=True, help="Only while the daemon has nothing else to do.")
@click.option("-o", "--option", "options", multiple=True, metavar="NAME=VALUE", help="An option of that kind of job.")
@click.option("--none", "never", is_flag=True, help="Not by itself any more.")
@store_option
@json_option
def schedule(
    kind: str,
    every: float | None,
    idle: bool,
    options: tuple[str, ...],
    never: bool,
    store: str | None,
    as_json: bool,
) -> None:
    """Show or set when the store's daemons begin a job of KIND by themselves. It is a setting of the store: all of its daemons follow it.

    \b
    Example:
      lepton jobs schedule gc --every 24 --idle
      lepton jobs schedule scrub --every 168 -o bytes_per_s=20000000
    """
    if never and every is not None:
        raise click.UsageError("give --every or --none, not both")
    with open_store(store) as opened:
        if never:
            opened.configure(no_setting(kind))
        elif every is not None:
            told = {"every_hours": every, "idle": idle, "options": _options(kind, options)}
            opened.configure(setting(plan_of(kind, told)))
        elif idle or options:
            raise click.UsageError("--idle and --option belong to --every")
        plan = plans(opened.state.settings).get(kind)
        emit({"kind": kind, "schedule": None if plan is None else plan.to_json()}, as_json, _shown(kind, plan))


def _shown(kind: str, plan: Plan | None) -> str:
    if plan is None:
        return f"{kind}: not by itself"
    more = "".join(f", {name}={value}" for name, value in plan.options.items())
    return f"{kind}: every {plan.every_hours:g} hours{', when idle' if plan.idle else ''}{more}"


def _served(store: Store) -> Store:
    if not store.is_served:
        raise BadInput(
            f"{store.url} is no store behind a daemon: give its lepton:// URL, or run the work itself (`lepton gc`, `lepton check`)"
        )
    return store


def _options(kind: str, given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE of each, as the kind's options are typed. Raises BadInput."""
    known, found = kind_of(kind).options, dict[str, Any]()
    for one in given:
        name, sign, text = one.partition("=")
        if not sign or name not in known:
            raise BadInput(f"--option {one!r}: use NAME=VALUE with one of {', '.join(sorted(known)) or 'none'}")
        try:
            found[name] = _BOOLS[text.lower()] if known[name].type is bool else known[name].type(text)
        except (KeyError, ValueError):
            raise BadInput(f"--option {one!r}: it must be a {known[name].type.__name__}") from None
    return found


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
