"""A storage daemon for tests and benchmarks: a process of its own that answers when `start` returns, and ends with its parent.

    with daemon.running(store_path) as served:          # settings by keyword: running(path, anonymous="read")
        Store.open(served.url)
        urllib.request.urlopen(served.http_url + "/healthz")
        served.token                                    # of an administrator, for Authorization: Bearer

    served = start(path); served.stop(); served.kill(); served.restart()        # the same ports, the same store

Without `name` a daemon is named after the last part of the path. Ports are free ones of loopback. `in_process=True` of `running` starts
it in threads of this process, for tests that look inside (`served.daemon`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from leptonstore.daemon.settings import SETTINGS, make_settings
from leptonstore.testing.ports import free_ports

if TYPE_CHECKING:
    from leptonstore.daemon.daemon import Daemon

START_S_MAX, STOP_S_MAX = 60.0, 60.0
_LIBC = ctypes.CDLL(None)  # loaded here: a child of a process with threads must not


class NotStarted(RuntimeError):
    """The daemon ended before it was ready. `code` is its exit code; the message has what it said."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Served:
    """A daemon that answers. `told` is its line of JSON."""

    command: list[str]
    log: Path
    environment: dict[str, str]
    told: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    daemon: Daemon | None = None  # in this process

    @property
    def url(self) -> str:
        """lepton://HOST:PORT/NAME"""
        return str(self.told["url"])

    @property
    def http_url(self) -> str:
        """http://HOST:PORT, without a path."""
        return str(self.told["http_url"])

    @property
    def token(self) -> str:
        """Of an administrator; this instance's own."""
        return Path(self.told["token_file"]).read_text().strip()

    @property
    def pid(self) -> int:
        """Of the process that it runs in."""
        return os.getpid() if self.process is None else self.process.pid

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it by a signal, and wait; its exit code."""
        if self.daemon is not None:
            self.daemon.stop()
            return 0
        if self.process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self.kill()
            raise RuntimeError(f"the daemon did not end within {STOP_S_MAX:g} s:\n{self.said()}") from None

    def kill(self) -> None:
        """As a crash: SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_S_MAX)

    def reload(self) -> None:
        """Have it read settings and certificates again, and wait until it has (or has said why not)."""
        if self.process is None:
            raise RuntimeError("a daemon in this process is given its settings: served.daemon.reload(settings)")
        before = self._reloads()
        self.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + STOP_S_MAX
        while self._reloads() == before:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the daemon did not reload:\n{self.said()}")
            threading.Event().wait(0.01)

    def restart(self) -> None:
        """Start it again where it was, after `stop` or `kill`: the same ports."""
        ports = {"--port": self.told["port"], "--http-port": self.told["http_port"]}
        kept = [*self.command]
        for option, port in ports.items():
            kept[kept.index(option) + 1] = str(port)
        self.command = kept
        _launch(self)

    def _reloads(self) -> int:
        text = self.log.read_text(errors="replace")
        return text.count("read again: ") + text.count("not reloaded")

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-5_000:]


def start(
    store: str | Path,
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    config: Path | None = None,
    inside: Sequence[str] = (),
    **settings: Any,
) -> Served:
    """Start a daemon for `store` in a process of its own. Raises NotStarted.

    folder: for its log and its audit log, NAME.audit (default: that for temporary files). environment: further variables.
    config: a file of settings. inside: a command to run it by (namespaces.Host.inside). settings: by their names in
    `leptonstore.daemon.settings`.
    """
    log = _log_in(folder)
    port, http_port = free_ports(2)  # those that it comes back to, see `restart`
    given = {"host": "127.0.0.1", "port": port, "http_port": http_port, "audit_log": f"{log}.audit", **settings}
    program = "import sys; from leptonstore.cli import main; sys.exit(main())"
    command = [*inside, sys.executable, "-c", program, "serve", str(store), "--json", *_options(given)]
    command += [] if config is None else ["--config", str(config)]
    served = Served(command, log, {**os.environ, **(environment or {})})
    _launch(served)
    return served


@contextlib.contextmanager
def running(store: str | Path, *, in_process: bool = False, **settings: Any) -> Iterator[Served]:
    """A daemon until the end of the `with`, which drains it. As `start`."""
    served = start_here(store, **settings) if in_process else start(store, **settings)
    try:
        yield served
    finally:
        if served.process is None or served.process.poll() is None:
            served.stop()
        served.log.unlink(missing_ok=True)
        Path(f"{served.log}.audit").unlink(missing_ok=True)


def start_here(store: str | Path, **settings: Any) -> Served:
    """A daemon in threads of this process. Processes that are forked from it meanwhile cannot use Flight."""
    from leptonstore.daemon.daemon import Daemon

    log = _log_in(None)
    daemon = Daemon(make_settings(str(store), **{"port": 0, "http_port": 0, "audit_log": f"{log}.audit", **settings}))
    daemon.start()
    return Served([], log, {}, daemon.to_json(), daemon=daemon)


def _options(settings: Mapping[str, Any]) -> list[str]:
    made: list[str] = []
    for name, value in settings.items():
        one = SETTINGS[name]
        if one.kind is bool:
            made += [f"--{one.option}"] if value else []
        elif one.kind == "list":
            for item in value:
                made += [f"--{one.option}", str(item)]
        else:
            made += [f"--{one.option}", str(value)]
    return made


def _log_in(folder: Path | None) -> Path:
    import tempfile

    number, path = tempfile.mkstemp(prefix="lepton-daemon-", suffix=".log", dir=folder)
    os.close(number)
    return Path(path)


def _end_with_parent() -> None:
    """In the child: a session of tests that is killed leaves no daemon behind."""
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _launch(served: Served) -> None:
    with open(served.log, "ab") as log:
        process = subprocess.Popen(
            served.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env=served.environment,
            preexec_fn=_end_with_parent,
        )
    assert process.stdout is not None
    served.process = process
    line = _first_line(process.stdout, time.monotonic() + START_S_MAX)
    if not line:
        process.kill() if process.poll() is None and not _ends(process) else None
        code = process.wait(STOP_S_MAX)
        process.stdout.close()
        raise NotStarted(f"the daemon did not start (exit code {code}):\n{served.said()}", code)
    process.stdout.close()
    served.told = json.loads(line)


def _ends(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        return False
    return True


def _first_line(stream: IO[bytes], deadline: float) -> bytes:
    """What is written until the end of a line; empty when the stream ends, or time is over, before that."""
    got = b""
    while not got.endswith(b"\n"):
        if not select.select([stream], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return b""
        part = os.read(stream.fileno(), 65_536)
        if not part:
            return b""
        got += part
    return got
