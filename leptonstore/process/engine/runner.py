"""Where a pipeline runs: Daft's native runner in this process, or Ray.

Daft and Ray send nothing home: their telemetry is switched off here, before either is imported. Nor does Daft speak to the user: a failure
is an exception here, and what it logs of it besides would be told twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from leptonstore import limits
from leptonstore.errors import BadInput, MissingExtra
from leptonstore.process.engine.pieces import Step

KINDS = ("native", "ray")
_QUIET = {"DO_NOT_TRACK": "1", "DAFT_ANALYTICS_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ.update(_QUIET)
for _name in (
    "DAFT_PROGRESS_BAR",
    "DAFT_SHOW_QUERY_ID",
):  # the bar is ours; the name of a query says nothing to anybody
    os.environ.setdefault(_name, "0")
if (_log := logging.getLogger("daft_local_execution")).level == logging.NOTSET:  # Daft asks once: before it is imported
    _log.setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Runner:
    """kind: "native" (this process, its threads) or "ray". address: of a Ray cluster; None: Ray on this host, with `workers` workers.

    Raises BadInput.
    """

    kind: str = "native"
    address: str | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"there is no runner {self.kind!r}; there are: {', '.join(KINDS)}")
        if self.kind == "native" and self.address is not None:
            raise BadInput(f"the native runner takes no address ({self.address}); ask for the runner ray")
        if self.workers is not None and self.workers < 1:
            raise BadInput(f"a runner needs at least one worker, not {self.workers}")

    @property
    def parallel(self) -> int:
        """How many pieces of work are done at once, about."""
        return self.workers or os.cpu_count() or 1

    def results(self, plan: Any) -> Iterator[Any]:
        """The micropartitions that a plan (a Daft logical plan builder) gives, as they are made, in any order.

        Raises what Daft or Ray make of errors, MissingExtra, ClusterLost.
        """
        if self.kind == "ray":
            from leptonstore.process.engine.cluster import ray_results

            yield from ray_results(plan, self.address, self.parallel)
            return
        from daft.context import execution_config_ctx
        from daft.runners.native_runner import NativeRunner

        with execution_config_ctx(scantask_max_parallel=limits.ENGINE_TASKS_AHEAD):
            yield from NativeRunner().run_iter_tables(plan)

    def shared(self, step: Step) -> Callable[[], Step] | None:
        """What gives workers the step, small enough to be sent with each task; None where they are in this process. Raises ClusterLost."""
        if self.kind == "native":
            return None
        from leptonstore.process.engine.cluster import shared

        return shared(step, self.address, self.parallel)

    def require(self) -> None:
        """Raise MissingExtra when what it needs is not installed."""
        for module, extra in (("daft", "process"), ("ray", "cluster")):
            if module == "daft" or self.kind == "ray":
                try:
                    import_module(module)
                except ImportError as error:
                    raise MissingExtra(f"the runner {self.kind}", extra, error.name or module) from None


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
