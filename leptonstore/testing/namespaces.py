"""Hosts in one machine: network namespaces on a bridge, each with an address and a link of its own, whose bytes the kernel counts.

    with network(["bucket", "one", "two"]) as hosts:
        hosts["one"].address                                 # "10.213.7.2"; this process has an address on the bridge, too
        subprocess.Popen([*hosts["one"].inside, "lepton", ...])
        hosts["bucket"].sent                                 # bytes that left it

Linux, root (CAP_NET_ADMIN and CAP_SYS_ADMIN) and iproute2. For tests and benchmarks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Host:
    """One of them. `inside`: what a command is preceded by so that it runs there (it stays the same process)."""

    name: str
    namespace: str
    address: str
    link: str

    @property
    def inside(self) -> list[str]:
        """See the class."""
        return ["ip", "netns", "exec", self.namespace]

    @property
    def sent(self) -> int:
        """Bytes that left it, headers included, as the bridge's end of its link counts them."""
        return int(Path(f"/sys/class/net/{self.link}/statistics/rx_bytes").read_text())

    @property
    def received(self) -> int:
        """Bytes that reached it, likewise."""
        return int(Path(f"/sys/class/net/{self.link}/statistics/tx_bytes").read_text())


def why_not() -> str:
    """Why there can be none here; empty when there can."""
    if shutil.which("ip") is None:
        return "ip (iproute2) is not installed"
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    try:
        with network(["probe"]):
            return ""
    except subprocess.CalledProcessError as error:
        return f"this kernel or container makes no network namespaces: {error.stderr.strip()[:200]}"


@contextlib.contextmanager
def network(names: Sequence[str]) -> Iterator[dict[str, Host]]:
    """Hosts of these names, which reach each other and this process, until the end of the `with`. Raises CalledProcessError."""
    mark = secrets.token_hex(3)  # names of links have 15 characters
    bridge, third = f"lb{mark}", secrets.randbelow(254) + 1
    net = f"10.{200 + secrets.randbelow(50)}.{third}"
    made: list[str] = []
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("address", "add", f"{net}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        hosts = {}
        for at, name in enumerate(names):
            host = Host(name, f"lepton-{mark}-{at}", f"{net}.{at + 2}", f"lh{mark}{at}")
            _ip("netns", "add", host.namespace)
            made.append(host.namespace)
            _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("link", "set", host.link, "master", bridge, "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
            for link in ("eth0", "lo"):
                _ip("-n", host.namespace, "link", "set", link, "up")
            hosts[name] = host
        yield hosts
    finally:
        for namespace in made:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", namespace)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "delete", bridge)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=30)
