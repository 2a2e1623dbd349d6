"""The process that talks to a Ray cluster for another one (cluster.py).

It joins a cluster, or starts one of its own on this host, with a node for each worker, since a worker is a process only where it is the one
of its node. On a pipe jobs come, and results go. When that ends, or the other process does, this one ends, and its own cluster with it.

Daft's part on Ray ("Flotilla") is one actor that plans and one on each node that works. It replaces working actors that die and gives their
tasks to others. When the planning actor dies, the caller is told of a loss, and gets another one when it asks for what is missing.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

from leptonstore import limits
from leptonstore.errors import ClusterLost, LeptonError
from leptonstore.process.engine.cluster import END, LOSS, RESULTS, TOLD, lost
from leptonstore.process.engine.failures import received
from leptonstore.process.engine.jobs import Job, Range, Result
from leptonstore.process.engine.pieces import Step

# Of Ray, by name: it is not imported for that. Daft sometimes keeps the text of an exception alone.
_LOSSES = (
    "ActorDiedError",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectFetchTimedOutError",
    "ObjectLostError",
    "OwnerDiedError",
    "RaySystemError",
    "WorkerCrashedError",
)


def is_loss(error: BaseException) -> bool:
    """Whether an exception says that a part of a cluster went away, so that the work may be given to others."""
    seen: BaseException | None = error
    while seen is not None:
        known = {kind.__name__ for kind in type(seen).__mro__}
        if any(name in known or name in str(seen) for name in _LOSSES):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@dataclass
class _Session:
    """The cluster. own: when it is ours. head: host and port of what every part of it talks to. planner: Daft's RayRunner."""

    address: str | None
    own: Any
    head: tuple[str, int] | None
    planner: Any = None

    def results(self, job: Job, step: Step, todo: Sequence[Range]) -> Iterator[list[Result]]:
        """Raises what Daft and Ray make of errors."""
        import ray

        if self.planner is None:
            from daft.runners.ray_runner import RayRunner

            self.planner = RayRunner(None)
        # Where every worker can have it, once for each host. It stays there: Ray keeps what was pickled outside of its own messages.
        shared = _Shared(ray.cloudpickle.dumps(ray.put(step)))
        job = replace(job, lent=replace(job.lent, shared=shared))
        for part in self.planner.run_iter_tables(job.plan(todo)):
            yield job.results(part)

    def said(self, error: Exception) -> tuple[str, Any]:
        """What the caller is to hear of an error."""
        told = received(error)
        if told is not None:
            return TOLD, told
        if self.head is not None and not _answers(self.head, limits.ENGINE_CLUSTER_LOOK_S):
            return TOLD, lost(self.address)
        line = f"{type(error).__name__}: {_line(error)}"
        if not is_loss(error):
            return TOLD, error if isinstance(error, LeptonError) else LeptonError(line)
        self._end_planner()
        return LOSS, line

    def _end_planner(self) -> None:
        """The next plan gets a planning actor, and working actors, of its own."""
        import ray

        planner, self.planner = getattr(self.planner, "flotilla_plan_runner", None), None
        if planner is not None:
            with suppress(Exception):
                ray.kill(planner.runner)

    def close(self) -> None:
        """Leave the cluster; end it when it is our own."""
        import ray

        with suppress(Exception):  # of a cluster that is gone, nothing more can be had
            ray.shutdown()
        if self.own is not None:
            with suppress(Exception):
                self.own.shutdown()


@dataclass(frozen=True)
class _Shared:
    """A step in the object store of a cluster. reference: as Ray pickles it, which says whose it is; Daft's pickle would leave that out."""

    reference: bytes

    def __call__(self) -> Step:
        import ray

        step: Step = ray.get(ray.cloudpickle.loads(self.reference))
        return step


def _start(workers: int) -> _Session:
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
        cluster = Cluster(initialize_head=True, head_node_args=node)
        for _ in range(workers - 1):
            cluster.add_node(**node)
        _init(cluster.address)
    except (RuntimeError, OSError, ConnectionError) as error:
        raise ClusterLost(f"Ray does not start on this host: {_line(error)}; see its logs under /tmp/ray") from None
    return _Session(None, cluster, _host_and_port(cluster.address))


def _init(address: str) -> None:
    import ray

    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)


def _join(address: str) -> _Session:
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
    return _Session(address, None, head)


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


def _serve(caller: Connection, session: _Session) -> None:
    """Until the caller ends."""
    from daft import pickle

    with suppress(EOFError, OSError):
        while True:
            job, step, todo = pickle.loads(caller.recv_bytes())
            try:
                for results in session.results(job, step, todo):
                    caller.send((RESULTS, results))
            except OSError:
                raise
            except Exception as error:
                caller.send(session.said(error))
            else:
                caller.send((END, None))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(limits.ENGINE_CLUSTER_LOOK_S)
    os._exit(1)  # Ray's reaper ends a cluster of our own


def main(descriptor: str, address: str, workers: str) -> None:
    """Connect, and serve. descriptor: of the pipe. address: empty for a cluster of our own."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    caller = Connection(int(descriptor))
    try:
        session = _join(address) if address else _start(int(workers))
    except LeptonError as error:
        caller.send((TOLD, error))
        return
    caller.send((END, None))
    _serve(caller, session)
    session.close()
