"""Where a pipeline runs: Daft's native runner in this process, or Ray.

Daft and Ray send nothing home: their telemetry is switched off here, before either is imported. Nor does Daft speak to the user: a failure
is an exception here, and what it logs of it besides would be told twice.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from leptonstore import limits
from leptonstore.errors import BadInput, MissingExtra
from leptonstore.process.engine.pieces import Step

if TYPE_CHECKING:
    from leptonstore.process.engine.jobs import Job, Range, Result

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


class Lost(Exception):
    """A part of a cluster went away, and some results with it; the next who asks gets another."""


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

    def results(self, job: Job, step: Step, todo: Sequence[Range]) -> Iterator[list[Result]]:
        """The results of some rows as they are made, in any order; those of the native runner may also lie with the caller (workers.py).

        Raises what Daft makes of errors (on Ray: LeptonErrors), ClusterLost, and Lost when what is missing may be asked for again.
        """
        if self.kind == "ray":
            from leptonstore.process.engine.cluster import ray_results

            yield from ray_results(job, step, todo, self.address, self.parallel)
            return
        from daft.context import execution_config_ctx
        from daft.runners.native_runner import NativeRunner

        with execution_config_ctx(scantask_max_parallel=limits.ENGINE_TASKS_AHEAD):
            for part in NativeRunner().run_iter_tables(job.plan(todo)):
                yield job.results(part)

    def require(self) -> None:
        """Raise MissingExtra when what it needs is not installed, BadInput when something else has its name."""
        for module, extra in (("daft", "process"), ("ray", "cluster")):
            if module == "daft" or self.kind == "ray":
                spec = find_spec(module)
                if spec is not None and spec.submodule_search_locations is None:
                    # A script ray.py would be run by each `import ray`, and start a process for Ray, which imports it, too: without end.
                    raise BadInput(f"{spec.origin} is imported in the place of the package {module}: rename it")
                try:
                    import_module(module)
                except ImportError as error:
                    raise MissingExtra(f"the runner {self.kind}", extra, error.name or module) from None
