"""lepton quota"""

from __future__ import annotations

import re

import click

from leptonstore import limits
from leptonstore.cli.runtime import emit, human_bytes, json_option, open_store, store_option
from leptonstore.store.quota import quota_bytes, setting, used_bytes

_UNITS = {
    "": 1,
    "B": 1,
    "K": limits.KIB,
    "M": limits.MIB,
    "G": limits.GIB,
    "T": 1024 * limits.GIB,
    "P": limits.GIB << 20,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?", re.IGNORECASE)


class Size(click.ParamType):
    """A number of bytes: 500M, 100GiB, 1.5T (powers of 1,024)."""

    name = "size"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{str(value)!r} is not a size: use 500MiB, 100GiB or 1.5TiB", param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])


@click.command("quota")
@store_option
@click.option("--set", "size", type=Size(), metavar="SIZE", help="The most that the store's packs may take (100GiB).")
@click.option("--none", "no_quota", is_flag=True, help="Take the quota away.")
@json_option
def command(store: str | None, size: int | None, no_quota: bool, as_json: bool) -> None:
    """Show or set the store's quota. Writing beyond it is refused (exit code 6), by every writer.

    \b
    Example:
      lepton quota --set 100GiB
    """
    if size is not None and no_quota:
        raise click.UsageError("give --set or --none, not both")
    with open_store(store) as opened:
        if size is not None or no_quota:
            opened.configure(setting(size))
        quota, used = quota_bytes(opened.state), used_bytes(opened.state)
        text = f"{human_bytes(used)} used, " + (
            "no quota"
            if quota is None
            else f"quota {human_bytes(quota)}, {human_bytes(quota - used)} left"
            if used <= quota
            else f"quota {human_bytes(quota)}: nothing can be added before `lepton gc` frees {human_bytes(used - quota)}"
        )
        emit({"store": opened.url, "quota_bytes": quota, "used_bytes": used}, as_json, text)
