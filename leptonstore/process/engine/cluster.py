"""Ray: a cluster that is there, or one of our own on this host, for as long as this process lives.

Daft's part on Ray ("Flotilla") is one actor that plans and one on each node that works. It replaces working actors that die and gives their
tasks to others. What it does not survive is met here: when the planning actor dies, another one is made for what is still to be done
(passes.py), and a cluster that is gone is told of. Without its head Ray ends the process that uses it after a minute, whatever that is at;
so whether the head answers is looked at from time to time, beside the results.

Own clusters have a node for each worker, since a worker is a process only where it is the one of its node.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from leptonstore import limits
from leptonstore.errors import ClusterLost
from leptonstore.process.engine.pieces import Step
from leptonstore.process.engine.runner import is_loss

_guard = threading.Lock()
_session: _Session | None = None  # Ray knows one cluster in a process


@dataclass
class _Session:
    """What this process is connected to. cluster: one of our own. head: host and port of what every part of a cluster talks to."""

    asked: tuple[str | None, int]
    cluster: Any
    head: tuple[str, int] | None
    runner: Any = None  # Daft's RayRunner; None: to be made
    planners: list[Any] = field(default_factory=list)


def ray_results(plan: Any, address: str | None, workers: int) -> Iterator[Any]:
    """The micropartitions of a plan. Raises ClusterLost, and what Daft and Ray make of errors of the plan's own."""
    session = _connected(address, workers)
    if session.runner is None:
        from daft.runners.ray_runner import RayRunner

        logging.getLogger("daft.runners.ray_runner").setLevel(
            logging.ERROR
        )  # "will reuse the existing Ray context": so it should
        session.runner = RayRunner(None)
    try:
        yield from _watched(session.runner.run_iter_tables(plan), session)
    except ClusterLost:
        session.runner = None
        disconnect()
        raise
    except BaseException as error:
        # A plan that failed has ended. One that is given up still runs, and what lost its planner needs another.
        if not isinstance(error, Exception) or is_loss(error):
            _end_planner(session)
        raise


@dataclass(frozen=True)
class _Shared:
    """A step in the object store of a cluster. reference: as Ray pickles it, which says whose it is; Daft's pickle would leave that out."""

    reference: bytes

    def __call__(self) -> Step:
        import ray

        step: Step = ray.get(ray.cloudpickle.loads(self.reference))
        return step


def shared(step: Step, address: str | None, workers: int) -> _Shared:
    """Put a step where every worker of the cluster can have it, once for each host. Raises ClusterLost.

    It stays there as long as this process is connected: Ray keeps what was pickled outside of its own messages.
    """
    import ray

    _connected(address, workers)
    return _Shared(ray.cloudpickle.dumps(ray.put(step)))


def _watched(results: Iterator[Any], session: _Session) -> Iterator[Any]:
    """`results`, which another thread waits for, while this one looks after the head of the cluster."""
    out: queue.Queue[tuple[str, Any]] = queue.Queue(8)
    closed = threading.Event()

    def say(kind: str, said: Any) -> None:
        while not closed.is_set():
            with suppress(queue.Full):
                out.put((kind, said), timeout=1.0)
                return

    def fetch() -> None:
        try:
            for one in results:
                say("result", one)
                if closed.is_set():
                    return
            say("end", None)
        except BaseException as error:
            say("error", error)

    threading.Thread(target=fetch, name="lepton-ray", daemon=True).start()
    seen = time.monotonic()
    try:
        while True:
            try:
                kind, said = out.get(timeout=limits.ENGINE_CLUSTER_LOOK_S)
            except queue.Empty:
                if session.head is None or _answers(session.head, limits.ENGINE_CLUSTER_LOOK_S):
                    seen = time.monotonic()
                elif time.monotonic() - seen > limits.ENGINE_CLUSTER_SILENT_S_MAX:
                    raise lost(session) from None
                continue
            if kind == "end":
                return
            if kind == "error":
                if session.head is not None and not _answers(session.head, limits.ENGINE_CLUSTER_LOOK_S):
                    raise lost(session) from said
                raise said
            yield said
    finally:
        closed.set()


def lost(session: _Session | None = None) -> ClusterLost:
    """The error of a cluster that went away."""
    session = session or _session
    asked = None if session is None else session.asked[0]
    place = "the Ray cluster on this host" if asked is None else f"the Ray cluster at {asked}"
    return ClusterLost(f"{place} went away: nothing was published; look after it (`ray status`), and run it again")


def _connected(address: str | None, workers: int) -> _Session:
    """The session with that cluster; one with another is ended. Raises ClusterLost."""
    global _session
    import ray

    with _guard:
        asked = address, 0 if address else workers
        if _session is not None and (_session.asked != asked or not ray.is_initialized()):
            _disconnect()
        if _session is None:
            if address is None and ray.is_initialized():  # the caller's own: that is what is meant
                _session = _Session(asked, None, None)
            else:
                _session = _join(address, asked) if address else _start(workers, asked)
        return _session


def _start(workers: int, asked: tuple[str | None, int]) -> _Session:
    """A cluster of our own, with a node for each worker."""
    from ray.cluster_utils import Cluster

    os.environ.setdefault("RAY_DISABLE_DASHBOARD", "1")
    logging.getLogger("ray").setLevel(logging.ERROR)
    cpus = max(1, (os.cpu_count() or 1) // workers)
    node: dict[str, Any] = {
        "num_cpus": cpus,
        "object_store_memory": limits.ENGINE_OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        with _importing_as_here():
            cluster = Cluster(initialize_head=True, head_node_args=node)
            for _ in range(workers - 1):
                cluster.add_node(**node)
        _init(cluster.address)
    except (RuntimeError, OSError, ConnectionError) as error:
        raise ClusterLost(f"Ray does not start on this host: {_line(error)}; see its logs under /tmp/ray") from None
    atexit.register(disconnect)
    return _Session(asked, cluster, _host_and_port(cluster.address))


def _init(address: str) -> None:
    """Connect; signals go on to whom they went before."""
    import ray

    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    if before is not None:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _importing_as_here() -> Iterator[None]:
    """Inside, processes that are started find the modules that this one finds: operations of the user's may stand beside a script."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def _join(address: str, asked: tuple[str | None, int]) -> _Session:
    import ray

    head = _host_and_port(address)
    if head is not None and not _answers(head, limits.ENGINE_CLUSTER_WAIT_S):
        raise ClusterLost(
            f"no Ray cluster answers at {address}; start one (`ray start --head`), correct the address, or run without"
        )
    try:
        _init(address)
    except (RuntimeError, OSError, ConnectionError, ValueError) as error:
        raise ClusterLost(f"no Ray cluster takes us in at {address}: {_line(error)}; see `ray status` there") from None
    if head is None and not address.startswith("ray://"):
        head = _host_and_port(ray.get_runtime_context().gcs_address)
    return _Session(asked, None, head)


def disconnect() -> None:
    """Leave the cluster; end it when it is our own."""
    with _guard:
        _disconnect()


def _disconnect() -> None:
    global _session
    import ray

    session, _session = _session, None
    if session is None:
        return
    with suppress(Exception):  # of a cluster that is gone, nothing more can be had
        ray.shutdown()
    if session.cluster is not None:
        with suppress(Exception):
            session.cluster.shutdown()


def _end_planner(session: _Session) -> None:
    """Give up what runs. The next plan gets a planning actor, and working actors, of its own."""
    import ray

    runner, session.runner = session.runner, None
    planner = getattr(runner, "flotilla_plan_runner", None)
    if planner is not None:
        with suppress(Exception):
            ray.kill(planner.runner)


def _host_and_port(address: str) -> tuple[str, int] | None:
    """Of an address, None when it does not name one ("auto")."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return (host.strip("[]"), int(port)) if host and port.isdigit() else None


def _answers(head: tuple[str, int], timeout_s: float) -> bool:
    """Whether something takes a connection there."""
    try:
        with socket.create_connection(head, timeout=timeout_s):
            return True
    except OSError:
        return False


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
