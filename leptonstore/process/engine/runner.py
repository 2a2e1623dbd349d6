"""Where a pipeline runs: Daft's native runner in this process, or Ray.

Daft and Ray send nothing home: their telemetry is switched off here, before either is imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from leptonstore import limits
from leptonstore.errors import BadInput, MissingExtra

KINDS = ("native", "ray")
_QUIET = {"DO_NOT_TRACK": "1", "DAFT_ANALYTICS_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
os.environ.update(_QUIET)
os.environ.setdefault("DAFT_PROGRESS_BAR", "0")


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
        """The micropartitions that a plan (a Daft logical plan builder) gives, as they are made, in any order."""
        from daft.context import execution_config_ctx
        from daft.runners.native_runner import NativeRunner

        with execution_config_ctx(scantask_max_parallel=limits.ENGINE_TASKS_AHEAD):
            yield from NativeRunner().run_iter_tables(plan)


def require_daft() -> None:
    """Raises MissingExtra."""
    try:
        import daft  # noqa: F401
    except ImportError as error:
        raise MissingExtra("processing", "process", error.name or "daft") from None
