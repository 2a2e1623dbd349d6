"""lepton quota"""

from __future__ import annotations

import click

from leptonstore.cli.runtime import Size, emit, human_bytes, json_option, open_store, store_option
from leptonstore.cli.served_jobs import run_job
from leptonstore.dataset.refs import check_name
from leptonstore.store import Store
from leptonstore.store.dataset_quota import heads_of, measure, quota_of, quotas, set_quota, to_json
from leptonstore.store.quota import quota_bytes, setting, used_bytes


@click.command("quota")
@click.argument("name", required=False)
@store_option
@click.option("--set", "size", type=Size(), metavar="SIZE", help="The most that it may take (100GiB).")
@click.option("--none", "no_quota", is_flag=True, help="Take the quota away.")
@click.option("--measure", "again", is_flag=True, help="Count anew what NAME takes: after forget, gc or erase.")
@json_option
def command(store: str | None, name: str | None, size: int | None, no_quota: bool, again: bool, as_json: bool) -> None:
    """Show or set the quota of the store, or of dataset NAME. Writing beyond it is refused (exit code 6), by every writer.

    The store's quota bounds its packs. That of a dataset bounds the stored bytes of all of its versions, branches and tags, with
    those of chunks that other datasets have, too; setting it reads the trees of all of them once.

    \b
    Example:
      lepton quota --set 100GiB
      lepton quota photos --set 20GiB
    """
    if (size is not None) + no_quota + again > 1:
        raise click.UsageError("give one of --set, --none and --measure")
    if name is None and again:
        raise click.UsageError("--measure needs the NAME of a dataset: what the store takes is always known")
    with open_store(store) as opened:
        if name is None:
            _of_store(opened, setting(None if no_quota else size) if size is not None or no_quota else {}, as_json)
        else:
            _of_dataset(opened, check_name(name), size, no_quota, again, as_json)


def _of_store(store: Store, change: dict[str, int | None], as_json: bool) -> None:
    if change:
        store.configure(change)
    quota = quota_bytes(store.state)
    used = None if store.is_served else used_bytes(store.state)  # a client is told of no packs
    named = quotas(store.state)
    value = {
        "store": store.url,
        "quota_bytes": quota,
        "used_bytes": used,
        "datasets": {name: to_json(one) for name, one in named.items()},
    }
    lines = [_line(used, quota, "`lepton gc`")]
    lines += [f"{name}: {_line(one.used, one.bytes, '`lepton forget`')}" for name, one in named.items()]
    emit(value, as_json, "\n".join(lines))


def _of_dataset(store: Store, name: str, size: int | None, no_quota: bool, again: bool, as_json: bool) -> None:
    if size is not None or no_quota:
        if not no_quota and not heads_of(store.state, name):
            click.echo(f"lepton: warning: there is no dataset {name!r} yet", err=True)
        set_quota(store, name, None if no_quota else size, not store.is_served)
    elif again and not store.is_served:
        measure(store, name)
    if store.is_served and not no_quota and (size is not None or again):
        run_job(store, "quotas", {})
        store.refresh()
    quota = quota_of(store.state, name)
    text = f"{name}: " + ("no quota" if quota is None else _line(quota.used, quota.bytes, "`lepton forget`"))
    emit({"store": store.url, "name": name, **to_json(quota)}, as_json, text)


def _line(used: int | None, quota: int | None, what: str) -> str:
    if used is None:
        return "no quota of the store" if quota is None else f"quota {human_bytes(quota)}"
    if quota is None:
        return f"{human_bytes(used)} used, no quota"
    if used <= quota:
        return f"{human_bytes(used)} used, quota {human_bytes(quota)}, {human_bytes(quota - used)} left"
    return f"{human_bytes(used)} used, quota {human_bytes(quota)}: nothing can be added before {what} frees {human_bytes(used - quota)}"
