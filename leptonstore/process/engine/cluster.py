"""The runner ray: a process of its own talks to the cluster (ray_driver.py), this one to that.

Ray ends the process that uses it when its node or the head of the cluster goes away: at once or after a minute, and without a word. It
takes signals, starts threads, and knows one cluster at a time. None of that is for a caller's process; when the other one ends, that is
ClusterLost. It lives until another cluster is asked for or this process ends, so the next pass finds workers that are warm.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Pipe

from leptonstore import limits
from leptonstore.errors import ClusterLost
from leptonstore.process.engine.jobs import Job, Range, Result
from leptonstore.process.engine.pieces import Step
from leptonstore.process.engine.runner import Lost

_guard = threading.RLock()  # one plan at a time
_driver: _Driver | None = None
_MAIN = "import sys; from leptonstore.process.engine.ray_driver import main; main(*sys.argv[1:])"
RESULTS, END, TOLD, LOSS = "results", "end", "told", "loss"  # what the other process says


class _Driver:
    """The other process. asked: address and workers."""

    def __init__(self, asked: tuple[str | None, int]) -> None:
        """Raises ClusterLost."""
        self.asked = asked
        self._said, theirs = Pipe()
        address, workers = asked
        paths = os.pathsep.join(path for path in sys.path if path)  # operations of the user's may stand beside a script
        silent = str(max(1, int(limits.ENGINE_CLUSTER_SILENT_S_MAX)))
        environment = {**os.environ, "PYTHONPATH": paths, "RAY_gcs_rpc_server_reconnect_timeout_s": silent}
        command = [sys.executable, "-c", _MAIN, str(theirs.fileno()), address or "", str(workers)]
        self._process = subprocess.Popen(
            command,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which ends that one
        )
        theirs.close()
        self.hear()  # it is connected, or says why not

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def send(self, data: bytes) -> None:
        """A job. Raises ClusterLost."""
        try:
            self._said.send_bytes(data)
        except OSError:
            raise lost(self.asked[0]) from None

    def hear(self) -> list[Result] | None:
        """Some results, None at their end. Raises what it raised, Lost, ClusterLost."""
        try:
            kind, said = self._said.recv()
        except (EOFError, OSError):
            raise lost(self.asked[0]) from None
        if kind == LOSS:
            raise Lost(said)
        if kind == TOLD:
            raise said
        results: list[Result] | None = said if kind == RESULTS else None
        return results

    def end(self) -> None:
        """Ends it, and a cluster of its own."""
        self._said.close()  # which it takes for the end
        try:
            self._process.wait(limits.ENGINE_CLUSTER_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def ray_results(
    job: Job, step: Step, todo: Sequence[Range], address: str | None, workers: int
) -> Iterator[list[Result]]:
    """As Runner.results. Threads: one after another."""
    from daft import pickle

    with _guard:
        driver = _connected(address, workers)
        ended = False
        try:
            driver.send(pickle.dumps((job, step, list(todo))))
            while (results := driver.hear()) is not None:
                yield results
            ended = True
        except Lost:
            ended = True
            raise
        except ClusterLost:
            raise
        except Exception:
            ended = True  # it said so
            raise
        finally:
            if not ended:  # or nobody wants the rest
                disconnect()


def _connected(address: str | None, workers: int) -> _Driver:
    """Raises ClusterLost."""
    global _driver
    asked = address, 0 if address else workers
    was_there = _driver is not None and _driver.asked == asked
    if _driver is not None and (_driver.asked != asked or not _driver.alive):
        disconnect()
    if _driver is None:
        try:
            _driver = _Driver(asked)
        except ClusterLost:
            if was_there:  # it told a loss first, and then nobody answered
                raise lost(address) from None
            raise
        atexit.register(disconnect)
    return _driver


def disconnect() -> None:
    """Leave the cluster; one on this host that is our own ends."""
    global _driver
    with _guard:
        driver, _driver = _driver, None
        if driver is not None:
            with suppress(OSError):
                driver.end()


def _after_fork_in_child() -> None:
    global _guard, _driver
    _guard, _driver = threading.RLock(), None  # the parent's: two that talk on one pipe would get each other's rows


os.register_at_fork(after_in_child=_after_fork_in_child)


def lost(address: str | None) -> ClusterLost:
    """The error of a cluster that went away."""
    place = "the Ray cluster on this host" if address is None else f"the Ray cluster at {address}"
    return ClusterLost(f"{place} went away: nothing was published; look after it (`ray status`), and run it again")
