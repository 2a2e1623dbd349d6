"""Where the time of a run goes. Accounting works by laps: every `lap(phase)` books the time since the previous lap.

So the phases of a step add up to its wall time by construction, those of a run to its own, and nothing is forgotten or
counted twice.

    of a step   data_wait   waiting for the loader        sync        waiting for other ranks
                h2d         moving a batch to the device  checkpoint  saving, or waiting for a save
                compute     forward, backward, optimizer  other       callbacks, logging, the loop itself
    of a run    these, and  setup       from the start to the first step: model, arenas, state of a checkpoint
                            evaluation  measuring the model on validation rows

What is measured is the time of the host. A step reads its loss once, so on an accelerator the host waits there for what
it asked for: the device's work counts as `compute` (kernels of the optimizer of step n are waited for in step n + 1), a
copy that was still under way too, and `h2d` is what it took to ask for the copy. `lepton train --profile` looks at the
device itself. What ranks wait for each other inside backward is told apart where it can be measured
(trainers.exposed_sync): under DDP; under FSDP it is part of `compute`.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass

PHASES = ("data_wait", "h2d", "compute", "sync", "checkpoint", "other")
RUN_PHASES = (*PHASES, "setup", "evaluation")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step (or of several, added up) by phase."""

    data_wait: float = 0.0
    h2d: float = 0.0
    compute: float = 0.0
    sync: float = 0.0
    checkpoint: float = 0.0
    other: float = 0.0

    @property
    def wall(self) -> float:
        """All phases together."""
        return self.data_wait + self.h2d + self.compute + self.sync + self.checkpoint + self.other

    @property
    def training(self) -> float:
        """What the steps themselves took: checkpoints (and set-up and evaluation of a run) left out."""
        return self.data_wait + self.h2d + self.compute + self.sync + self.other

    @property
    def data_wait_fraction(self) -> float:
        """Share of `training` that was spent waiting for data; 0 before the first step."""
        return self.data_wait / self.training if self.training > 0 else 0.0

    @property
    def idle(self) -> float:
        """Seconds in which the device had nothing to do for the run: waits for data, ranks and saves."""
        return self.data_wait + self.sync + self.checkpoint

    @property
    def idle_fraction(self) -> float:
        """Share of the wall time that was `idle`; 0 before the first step."""
        return self.idle / self.wall if self.wall > 0 else 0.0

    def seconds(self) -> dict[str, float]:
        """{"data_wait_s": …, "wall_s": …}, for logs."""
        return {**{f"{phase}_s": value for phase, value in asdict(self).items()}, "wall_s": self.wall}

    def rounded(self) -> dict[str, float]:
        """The same to the microsecond, for logs that people read too."""
        return {name: round(seconds, 6) for name, seconds in self.seconds().items()}


@dataclass(frozen=True)
class RunTime(StepTime):
    """Seconds of a run by phase; `wall` is what passed from its start."""

    setup: float = 0.0
    evaluation: float = 0.0

    @property
    def wall(self) -> float:
        """All phases together."""
        return self.training + self.checkpoint + self.setup + self.evaluation


class StepClock:
    """Books time on phases, from when it is made; one thread. `step()` returns what was booked since the previous `step()`."""

    def __init__(self) -> None:
        self._step = dict.fromkeys(PHASES, 0.0)
        self._total = dict.fromkeys(RUN_PHASES, 0.0)
        self._last = time.perf_counter()
        self.steps = 0  # that have been ended by `step`

    def lap(self, phase: str) -> float:
        """Book the time since the last lap on `phase`: on the step at hand, but set-up and evaluation belong to none.

        Returns these seconds.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        booked = self._step if phase in self._step else self._total
        booked[phase] += seconds
        return seconds

    def move(self, source: str, target: str, seconds: float) -> None:
        """Of what the step at hand has for `source`, `seconds` (at most all of it) were `target`, as somebody measured."""
        moved = min(max(seconds, 0.0), self._step[source])
        self._step[source] -= moved
        self._step[target] += moved

    def step(self) -> StepTime:
        """End the step: what is left of it goes to `other`."""
        self.steps += 1
        return self.between()

    def between(self) -> StepTime:
        """End what lies between two steps, as `step` does. What is booked and not ended is part of the next step."""
        self.lap("other")
        ended = StepTime(**self._step)
        for phase, seconds in self._step.items():
            self._total[phase] += seconds
            self._step[phase] = 0.0
        return ended

    @property
    def total(self) -> RunTime:
        """All ended steps together, with set-up and evaluation."""
        return RunTime(**self._total)
