"""lepton serve"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from leptonstore.cli.runtime import human_bytes, json_option
from leptonstore.cli.secret import given_secret, secret_options
from leptonstore.daemon.settings import SETTINGS, Setting, Settings, make_settings

if TYPE_CHECKING:
    from leptonstore.daemon.daemon import Daemon


def _setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """An option for each setting, with its help and default."""
    for one in reversed(SETTINGS.values()):
        command = click.option(f"--{one.option}", one.name, **_looks(one))(command)
    return command


def _looks(one: Setting) -> dict[str, Any]:
    default = (
        f"{one.default:g} s"
        if one.kind == "seconds"
        else human_bytes(one.default)
        if one.kind == "bytes"
        else one.default
    )
    shown = one.default not in ("", (), False, 0, 0.0, -1) and "(default" not in one.help
    text = one.help[:-1] + f" [default: {default}]." if shown else one.help
    if one.kind is bool:
        return {"is_flag": True, "default": None, "help": text}
    if one.choices:
        return {"type": click.Choice(one.choices), "help": text}
    names = {"seconds": "TIME", "bytes": "SIZE", "list": "TEXT", int: "NUMBER", str: "TEXT"}
    return {
        "type": int if one.kind is int else str,
        "multiple": one.kind == "list",
        "metavar": names[one.kind],
        "help": text,
    }


@click.command("serve")
@click.argument("store", metavar="STORE", required=False)
@click.option("--config", metavar="FILE.toml", help="Settings, by the names of the options below; options win.")
@_setting_options
@secret_options
@json_option
def command(store: str | None, config: str | None, as_json: bool, **given: Any) -> int:
    """Serve STORE to other machines: Arrow Flight for data, HTTP for people and programs, a dashboard.

    Everything that takes a store's path takes its URL then: lepton://HOST:PORT/NAME. Only this machine is let in, unless --host says
    otherwise; wider needs TLS, or --insecure. Clients show a token (`lepton token add`); those of the same user on this host
    need none. SIGTERM or Ctrl-C lets requests under way finish; a second one ends at once; SIGHUP reads certificates and settings again.
    docs/daemon.md says more.

    \b
    Example:
      lepton serve ./store
      lepton ls --store lepton://127.0.0.1:7400/store
      lepton serve s3://bucket/store --host 0.0.0.0 --tls-cert cert.pem --tls-key key.pem
      lepton serve --config /etc/lepton/serve.toml
    """
    told = {name: _given(SETTINGS[name], value) for name, value in given.items()}

    def settings() -> Settings:
        return make_settings(store or "", config, **told)

    found = settings()
    from leptonstore.daemon.daemon import Daemon
    from leptonstore.daemon.logs import configure
    from leptonstore.daemon.running import run

    configure(found.log_format == "json", found.log_level)
    daemon = Daemon(found, unlock=given_secret())

    def ready() -> None:
        _tell(daemon, as_json)

    return run(daemon, ready, lambda: daemon.reload(settings()))


def _given(one: Setting, value: Any) -> Any:
    """None where the command line did not say it."""
    return None if one.kind == "list" and not value else value


def _tell(daemon: Daemon, as_json: bool) -> None:
    """Where it is and how to use it: one screen, or one line."""
    import json

    if as_json:
        click.echo(json.dumps(daemon.to_json()))
    else:
        for line in _screen(daemon):
            click.echo(line)
    sys.stdout.flush()


def _screen(daemon: Daemon) -> list[str]:
    settings = daemon.settings
    lines = [
        f"Serving {settings.store} as {settings.name!r}",
        "",
        f"  store      {daemon.url}",
        f"  HTTP       {daemon.http_url}  (/healthz /readyz /metrics /openapi.json)",
    ]
    if login := daemon.login_url():
        lines.append(f"  dashboard  {login}  (once)")
    lines += [
        "",
        "  Use the store's URL wherever a path would do:",
        f"    lepton ls --store {daemon.url}",
        f'    Dataset.open("{daemon.url}", NAME)',
    ]
    if daemon.token_file:
        more = f"lepton token add {_short(settings.store)} --name WHO --grant read"
        lines.append(f"  You need no token on this host; for others: {more}")
    if settings.insecure and not settings.tls:
        lines.append("  WARNING: without TLS, whoever is on the network's way reads tokens and data.")
    lines += ["", "  Ctrl-C ends it when requests under way are done; once more ends it at once."]
    return lines


def _short(store: str) -> str:
    if "://" in store:
        return store
    path = Path(store)
    return (
        str(path)
        if not path.is_absolute() or not path.is_relative_to(Path.cwd())
        else str(path.relative_to(Path.cwd()))
    )
