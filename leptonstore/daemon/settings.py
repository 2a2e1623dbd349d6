"""Settings: everything that a user may say to a daemon, each with its default, unit and bounds; and what is refused as dangerous.

    lepton serve STORE --drain 30s          an option's name is the setting's, without its unit
    drain = "30s"                           the same in a TOML file (--config); what stands on the command line wins

Sizes are numbers of bytes or "512MiB"; times are seconds or "5m" (leptonstore/quantities.py). `SETTINGS` is the only list of them: options,
the file, and docs/daemon.md (a test) follow it. Nothing of the network is imported here: `lepton serve --help` is quick.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import socket
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from leptonstore.errors import BadInput, SourceError
from leptonstore.limits import CACHE_BUDGET_BYTES_MIN, GIB, MIB, QUANTITY_MAX
from leptonstore.quantities import human_bytes, seconds_of, size_of

PORT = 7400  # of Flight; free at IANA. HTTP is on the next one
CONFIG_BYTES_MAX = MIB
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True)
class Setting:
    """What is known of one setting beside its value.

    kind: str, int, bool, "bytes", "seconds" or "list" (of texts).
    """

    name: str  # of the field of Settings
    option: str  # in the file; with -- in front on the command line
    kind: Any
    group: str
    help: str
    default: Any
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    reload: bool = False  # SIGHUP takes it over from the file

    def parse(self, given: Any) -> Any:
        """The value that a file or the command line means. Raises BadInput."""
        if self.kind == "list":
            given = [given] if isinstance(given, str) else given
            if not isinstance(given, (list, tuple)) or not all(isinstance(one, str) for one in given):
                raise self._wrong(given, "a list of texts")
            return tuple(given)
        value = self._scalar(given)
        if self.choices and value not in self.choices:
            raise self._wrong(given, f"one of {', '.join(self.choices)}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            low, high = (
                self.least if self.least is not None else 0,
                self.most if self.most is not None else float("inf"),
            )
            if not low <= value <= high:
                raise self._wrong(
                    given, f"at least {low:,}" if high == float("inf") else f"between {low:,} and {high:,}"
                )
        return value

    def _scalar(self, given: Any) -> Any:
        if self.kind == "bytes":
            return int(self._quantity(given, size_of))
        if self.kind == "seconds":
            return float(self._quantity(given, seconds_of))
        if type(given) is not self.kind:
            raise self._wrong(given, {str: "a text", int: "a whole number", bool: "true or false"}[self.kind])
        return given

    def _quantity(self, given: Any, parse: Callable[[str], float]) -> float:
        """Of a number, or of a text with a unit."""
        if type(given) in (int, float) and 0 <= given < QUANTITY_MAX:
            return float(given) if isinstance(given, float) else int(given)
        try:
            return parse(str(given))
        except BadInput as error:
            raise BadInput(f"{self.option} = {error}") from None

    def _wrong(self, given: Any, wanted: str) -> BadInput:
        return BadInput(f"{self.option} = {given!r}: give {wanted}")


def _set(default: Any, kind: Any, group: str, help: str, **more: Any) -> Any:
    return field(default=default, metadata={"kind": kind, "group": group, "help": help, **more})


@dataclass(frozen=True)
class Settings:
    """Checked when made. Raises BadInput. Immutable: any thread."""

    store: str
    name: str = _set("", str, "Listening", "The store's name in URLs (default: the last part of STORE's path).")
    host: str = _set(
        "127.0.0.1", str, "Listening", "The address to listen on; wider than loopback needs TLS, or --insecure."
    )
    port: int = _set(PORT, int, "Listening", "Of the data plane (Arrow Flight); 0 takes a free one.", most=65_535)
    http_port: int = _set(
        -1,
        int,
        "Listening",
        "Of the control plane and the dashboard; 0 takes a free one (default: the next after --port).",
        least=-1,
        most=65_535,
    )
    advertise: str = _set(
        "",
        str,
        "Listening",
        "The name or address that others reach this host by (default: --host, or the host's name).",
    )
    allow_host: tuple[str, ...] = _set(
        (), "list", "Listening", "A further name that may stand in the Host header; may be given again."
    )
    insecure: bool = _set(
        False, bool, "Security", "Listen beyond loopback without TLS: tokens and data travel in clear."
    )
    tls_cert: str = _set("", str, "Security", "Certificate chain (PEM): speak TLS on both ports. Read again on SIGHUP.")
    tls_key: str = _set("", str, "Security", "Its private key (PEM).")
    client_ca: str = _set(
        "", str, "Security", "Who signs client certificates (PEM): they may stand for a token (mTLS)."
    )
    anonymous: str = _set(
        "none", str, "Security", "What requests without a credential may do.", choices=("none", "read")
    )
    requests_rate: int = _set(0, int, "Limits", "Requests a second of one credential; 0: 20,000.", reload=True)
    bytes_rate: int = _set(
        0, "bytes", "Limits", "Bytes a second of one credential, such as 200MiB; 0: no limit.", reload=True
    )
    connections_max: int = _set(2_048, int, "Limits", "HTTP connections at a time.", least=1, most=65_535)
    cache: str = _set(
        "", str, "Cache", "Directory of the hot cache that readers on this host share (default: in /dev/shm)."
    )
    cache_bytes: int = _set(
        -1, "bytes", "Cache", "Its budget; 0: no hot cache (default: a quarter of what is free there).", least=-1
    )
    members: tuple[str, ...] = _set(
        (),
        "list",
        "Cluster",
        "HOST:PORT of the daemons that share this store's bucket, this one among them; or dns:NAME, or store.",
    )
    rack: str = _set("", str, "Cluster", "Where this daemon stands: the nearest one is asked first.")
    zone: str = _set("", str, "Cluster", "As --rack, one step wider.")
    cluster_secret: str = _set(
        "", str, "Cluster", "File with the secret by which its daemons know each other (default: the store keeps one)."
    )
    block_cache: str = _set(
        "", str, "Cluster", "Directory for blocks of packs that this daemon answers for (default: in memory only)."
    )
    block_cache_bytes: int = _set(2 * GIB, "bytes", "Cluster", "Budget of those blocks.", least=64 * MIB)
    drain_wait_s: float = _set(
        0.0,
        "seconds",
        "Ending",
        "After SIGTERM, go on so long while /readyz says 503, for load balancers to look.",
        most=86_400,
    )
    drain_s: float = _set(30.0, "seconds", "Ending", "Then wait so long for requests under way.", most=86_400)
    log_format: str = _set(
        "text", str, "Logs", "What the daemon says on stderr: lines for people, or JSON.", choices=("text", "json")
    )
    log_level: str = _set("info", str, "Logs", "The least that it says.", choices=("debug", "info", "warning", "error"))
    access_log: str = _set(
        "",
        str,
        "Logs",
        "File for one line of JSON per HTTP request, opened anew on SIGHUP; - is stderr (default: none).",
    )
    audit_log: str = _set(
        "",
        str,
        "Logs",
        "File for writes and denials, one line of JSON each (default: in the user's state directory).",
    )

    def __post_init__(self) -> None:
        if not self.store:
            raise BadInput("which store? give its path or URL: lepton serve STORE")
        if self.store.startswith(("lepton://", "lepton+tls://")):
            raise BadInput(f"{self.store} is served by a daemon already; give the path or bucket that it serves")
        if not self.name:
            object.__setattr__(self, "name", _name_of(self.store))
        if not _NAME.fullmatch(self.name):
            raise BadInput(
                f"name = {self.name!r}: give letters, digits, '.', '_' and '-' (at most 100), such as --name data"
            )
        if self.http_port == -1:
            object.__setattr__(self, "http_port", self.port + 1 if self.port else 0)
        if self.http_port > 65_535 or (self.port and self.port == self.http_port):
            raise BadInput(f"http-port = {self.http_port}: give another port than --port {self.port}")
        if 0 < self.cache_bytes < CACHE_BUDGET_BYTES_MIN:
            raise BadInput(
                f"cache-bytes = {self.cache_bytes:,}: give at least {CACHE_BUDGET_BYTES_MIN:,}, or 0 for no hot cache"
            )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise BadInput("give --tls-cert and --tls-key together")
        if self.client_ca and not self.tls_cert:
            raise BadInput("--client-ca checks certificates of clients: it needs --tls-cert and --tls-key too")
        if self.advertise and not re.fullmatch(r"[A-Za-z0-9.:\[\]-]{1,255}", self.advertise):
            raise BadInput(f"advertise = {self.advertise!r}: give a name or an address, without a port")
        for one in self.allow_host:
            if not re.fullmatch(r"[A-Za-z0-9._:\[\]-]{1,255}", one):
                raise BadInput(f"allow-host = {one!r}: give a name or an address as it stands in a Host header")
        if not is_loopback(self.host) and not self.tls_cert and not self.insecure:
            raise BadInput(
                f"other machines can reach {self.host}, and without TLS everybody on the way reads tokens and data: give --tls-cert and "
                "--tls-key, or --insecure where the network is trusted, or listen on 127.0.0.1"
            )

    @property
    def tls(self) -> bool:
        """Whether both planes speak TLS."""
        return bool(self.tls_cert)


def _described(one: dataclasses.Field[Any]) -> Setting:
    more = dict(one.metadata)
    option = re.sub(r"_s$", "", one.name).replace("_", "-")
    return Setting(one.name, option, default=one.default, **more)


SETTINGS: dict[str, Setting] = {
    one.name: _described(one) for one in dataclasses.fields(Settings) if one.name != "store"
}


def table() -> str:
    """Markdown: every setting, its default, and whether SIGHUP takes it over. docs/daemon.md has it; a test compares."""
    lines = ["| setting | default | |", "| --- | --- | --- |"]
    for one in SETTINGS.values():
        again = " Taken over by SIGHUP." if one.reload else ""
        lines.append(f"| `{one.option}` | {_shown(one)} | {one.help}{again} |")
    return "\n".join(lines)


def _shown(one: Setting) -> str:
    if one.default in ("", ()) or one.default == -1:
        return ""
    if one.kind == "seconds":
        return f"{one.default:g} s"
    if one.kind == "bytes":
        return human_bytes(one.default) if one.default else "0"
    return str(one.default).lower() if one.kind is bool else str(one.default)


def make_settings(store: str = "", config: str | Path | None = None, **given: Any) -> Settings:
    """Settings from a TOML file (or none) and from `given` (names of fields; None: not given), which win. Raises BadInput, SourceError."""
    told = {} if config is None else read_config(config)
    unknown = given.keys() - SETTINGS.keys()
    if unknown:
        raise BadInput(f"there is no setting {sorted(unknown)[0]!r}")
    told |= {name: SETTINGS[name].parse(value) for name, value in given.items() if value is not None}
    if store:
        told["store"] = store
    return Settings(**{"store": "", **told})


def read_config(path: str | Path) -> dict[str, Any]:
    """What a TOML file says, by field. Raises SourceError (unreadable, no TOML), BadInput (unknown, or of a wrong kind)."""
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
        if len(data) > CONFIG_BYTES_MAX:
            raise SourceError(
                f"{path} is larger than {CONFIG_BYTES_MAX:,} bytes: it is no settings of a daemon", str(path)
            )
        told = tomllib.loads(data.decode())
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}", str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is no TOML: {error}", str(path)) from None
    by_option = {one.option: one for one in SETTINGS.values()}
    found: dict[str, Any] = {}
    for key, value in told.items():
        option = key.replace("_", "-")
        if option == "store" and isinstance(value, str):
            found["store"] = value
        elif option in by_option:
            found[by_option[option].name] = by_option[option].parse(value)
        else:
            raise BadInput(f"{path} says {key!r}, which is no setting; there are store, {', '.join(sorted(by_option))}")
    return found


def reloaded(before: Settings, after: Settings) -> tuple[Settings, list[str]]:
    """`before` with what SIGHUP may change taken from `after`; and the options that differ but need a restart."""
    taken = {name: getattr(after, name) for name, one in SETTINGS.items() if one.reload}
    kept = [
        one.option for name, one in SETTINGS.items() if not one.reload and getattr(before, name) != getattr(after, name)
    ]
    return dataclasses.replace(before, **taken), kept


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`. Raises BadInput when there is no such host."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise BadInput(f"there is no host {host!r} to listen on") from None
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def _name_of(store: str) -> str:
    """A name for URLs, of what is allowed in one."""
    parsed = urlparse(store)
    path = parsed.path if "://" in store else str(Path(store).expanduser().absolute())
    last = path.rstrip("/").rpartition("/")[2] or parsed.netloc
    return re.sub(r"[^A-Za-z0-9._-]", "-", last).lstrip(".-_")[:100] or "store"
