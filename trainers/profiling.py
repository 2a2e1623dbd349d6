"""`lepton train --profile`: what some steps in mid-run did, where the time of the run went, and what to change.

Until the window begins nothing is recorded and nothing is paid. The window is ACTIVE_STEPS long, after WARMUP_STEPS in which
the profiler is on and not believed. Two sources, as a profiler slows down what it looks at:

    phases      of all steps outside the window, by the clock that every run has (trainers.clock)
    operations  of the steps inside, by torch.profiler; on an accelerator by the time of the device

Written to the directory: trace.json (chrome://tracing, ui.perfetto.dev), profile.txt, profile.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.profiler import ProfilerActivity, profile, schedule

from leptonstore.errors import SourceError
from trainers.clock import PHASES, StepTime

if TYPE_CHECKING:
    from trainers.result import StepEvent

WARMUP_STEPS, ACTIVE_STEPS = 3, 10
BEFORE_STEPS_MAX = 50  # by then caches are warm, and a profile of a long run need not be waited for
OPERATIONS_SHOWN = 12
# What ranks do for each other inside forward and backward passes.
BETWEEN_RANKS = ("c10d::", "FSDP::", "gloo:", "nccl:", "ncclDevKernel", "record_param_comms")
# From these shares of the steps' time on, something is worth changing.
WAIT_SHARE, SYNC_SHARE, COPY_SHARE, SAVE_SHARE, OTHER_SHARE = 0.05, 0.15, 0.10, 0.05, 0.15


@dataclass(frozen=True)
class Operation:
    """One kind of operation: seconds a step, without those of operations inside it; share of all; calls a step."""

    name: str
    seconds: float
    share: float
    calls: float


@dataclass(frozen=True)
class ProfileReport:
    """steps: how many the phases are of; phases: seconds a step. profiled: how many the operations are of."""

    steps: int
    phases: dict[str, float]
    profiled: int
    device: str
    operations: tuple[Operation, ...]
    loader: dict[str, Any]
    advice: tuple[str, ...]
    trace: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        wall = sum(self.phases.values())
        lines = [f"a step takes {_time(wall)} (mean of {self.steps:,} steps outside the profile)"]
        for name, seconds in sorted(self.phases.items(), key=lambda phase: -phase[1]):
            if seconds > 0:
                lines.append(f"  {name:<12} {_time(seconds):>9}  {seconds / wall:>6.1%}  {_bar(seconds / wall)}")
        if self.operations:
            lines.append(f"inside compute, by operation ({self.profiled} steps profiled, time of the {self.device}):")
            for one in self.operations:
                lines.append(f"  {one.name[:44]:<44} {_time(one.seconds):>9}  {one.share:>6.1%}  {one.calls:>6,.0f} x")
        if stages := self.loader.get("stages"):
            told = ", ".join(
                f"{name} {_time(seconds)}" for name, seconds in sorted(stages.items(), key=lambda s: -s[1])
            )
            lines.append(f"work of the loader in all, over its threads: {told}")
        lines.append("what to change:")
        lines += [f"  - {line}" for line in self.advice]
        lines.append(f"trace       {self.trace}  (open it in ui.perfetto.dev)")
        return "\n".join(lines)


class Profile:
    """Follows a run by its steps. One thread. `folder` is made when there is something to write.

    Raises SourceError when it cannot be written.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self.folder, self._device = Path(folder), device
        self._first = 0  # the step before the window, 0 until the first step has been seen
        self._active = 0
        self._running: profile | None = None
        self._done: profile | None = None
        self._outside: list[StepTime] = []
        self._skipped = False
        self._count = 0
        self.reported = False

    def step(self, event: StepEvent) -> None:
        """A step of the run has ended. The first one is not looked at: it opens files and fills caches."""
        if self._skipped:  # it paid for the end of the recording
            self._skipped = False
            return
        if not self._first:
            left = event.steps - event.step
            self._active = max(1, min(ACTIVE_STEPS, left - WARMUP_STEPS))
            before = max(0, left - WARMUP_STEPS - self._active) // 2
            self._first = event.step + max(1, min(before, BEFORE_STEPS_MAX))
            return
        if self._running is None:
            self._outside.append(event.time)
            if event.step == self._first and self._done is None:
                self._start()
            return
        self._running.step()
        self._count += 1
        if self._count == WARMUP_STEPS + self._active:
            self.close()
            self._skipped = True

    def close(self) -> None:
        """End the recording, if it runs."""
        if self._running is not None:
            self._running.stop()
            self._running, self._done = None, self._running

    def report(self, loader: Mapping[str, Any], facts: Mapping[str, Any]) -> ProfileReport:
        """Write the files, and say what they say.

        loader: `LoaderStats.to_dict()` of the training loader. facts: what else advice goes by, as far as it is known:
        "dataset", "rows" (of a global batch), "precision", "compile", "asynchronous" (checkpoints).
        """
        self.close()
        self.reported = True
        count = len(self._outside)
        phases = {name: sum(getattr(one, name) for one in self._outside) / max(1, count) for name in PHASES}
        operations = self._operations()
        report = ProfileReport(
            steps=count,
            phases=phases,
            profiled=max(0, self._count - WARMUP_STEPS),
            device=self._device,
            operations=tuple(operations[:OPERATIONS_SHOWN]),
            loader=dict(loader),
            advice=tuple(advice(phases, operations, loader, facts)),
            trace=str(self.folder / "trace.json"),
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._done is not None:
                self._done.export_chrome_trace(report.trace)
            (self.folder / "profile.txt").write_text(report.text() + "\n", encoding="utf-8")
            (self.folder / "profile.json").write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise SourceError(
                f"cannot write the profile to {self.folder}: {error.strerror}", str(self.folder)
            ) from None
        return report

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if self._device == "cuda" else [])
        plan = schedule(wait=0, warmup=WARMUP_STEPS, active=self._active, repeat=1)
        self._running = profile(activities=activities, schedule=plan)
        self._running.start()

    def _operations(self) -> list[Operation]:
        if self._done is None or self._count <= WARMUP_STEPS:
            return []
        steps = self._count - WARMUP_STEPS
        on_device = self._device == "cuda"
        found = []
        for event in self._done.key_averages():
            microseconds = event.self_device_time_total if on_device else event.self_cpu_time_total
            if microseconds > 0 and not event.key.startswith("ProfilerStep"):
                found.append((event.key, microseconds / 1e6, event.count))
        total = sum(seconds for _, seconds, _ in found)
        ranked = sorted(found, key=lambda one: -one[1])
        return [Operation(name, seconds / steps, seconds / total, count / steps) for name, seconds, count in ranked]


def advice(
    phases: Mapping[str, float],
    operations: list[Operation],
    loader: Mapping[str, Any],
    facts: Mapping[str, Any],
) -> list[str]:
    """What to change, the largest gain first; one line that says so when there is nothing. Arguments as `Profile.report`."""
    wall = sum(phases.values())
    if wall <= 0:
        return ["no step ended outside the profile: train for some more"]
    share = {name: seconds / wall for name, seconds in phases.items()}
    found: list[tuple[float, str]] = []
    if share["data_wait"] >= WAIT_SHARE:
        stages = loader.get("stages") or {}
        slowest = max(stages, key=lambda name: stages[name], default="")
        step_ms = (wall - phases["data_wait"]) * 1e3
        what = f", mostly {slowest}" if slowest else ""
        doctor = (
            f"lepton doctor loader {facts.get('dataset', 'DATASET')} --batch-size {facts.get('rows', 'ROWS')} --shuffle"
        )
        line = f"{share['data_wait']:.0%} of a step waits for data{what}: `{doctor} --step-ms {step_ms:.2g}` tries what would help"
        found.append((share["data_wait"], line))
    if share["sync"] >= SYNC_SHARE:
        found.append(
            (
                share["sync"],
                f"{share['sync']:.0%} waits for other ranks: larger batches or --set accumulate=N make it rarer; "
                "ranks that differ in speed (look at their data_wait) make it longer",
            )
        )
    if share["h2d"] >= COPY_SHARE:
        found.append(
            (share["h2d"], f"{share['h2d']:.0%} copies batches to the device: let the loader copy ahead (device)")
        )
    if share["checkpoint"] >= SAVE_SHARE:
        cure = (
            "save less often" if facts.get("asynchronous") else "--set checkpoint.asynchronous=true, or save less often"
        )
        found.append((share["checkpoint"], f"{share['checkpoint']:.0%} saves checkpoints: {cure}"))
    if share["other"] >= OTHER_SHARE:
        found.append(
            (
                share["other"],
                f"{share['other']:.0%} is neither data nor model: callbacks, or steps so short that the loop shows",
            )
        )
    found += _of_compute(share["compute"], operations, facts)
    ranked = [line for _, line in sorted(found, key=lambda one: -one[0])]
    return ranked or [f"nothing stands out: {share['compute']:.0%} of a step computes"]


def _of_compute(share: float, operations: list[Operation], facts: Mapping[str, Any]) -> list[tuple[float, str]]:
    found: list[tuple[float, str]] = []
    if share < 0.5 or not operations:
        return found
    total = sum(one.share for one in operations)
    heavy = sum(
        one.share for one in operations if any(word in one.name for word in ("conv", "mm", "linear", "attention"))
    )
    updates = sum(
        one.share for one in operations if "ptimizer" in one.name or "_foreach" in one.name or "_fused" in one.name
    )
    between = sum(one.share for one in operations if one.name.startswith(BETWEEN_RANKS))
    calls = sum(one.calls for one in operations if one.name.startswith("aten::"))
    if heavy >= 0.5 * total and facts.get("precision") == "float32":
        found.append(
            (
                share * 0.4,
                f"{heavy:.0%} of compute multiplies matrices in float32: --set precision=bf16, if accuracy bears it",
            )
        )
    if updates >= 0.2 * total:
        found.append(
            (
                share * updates,
                f"{updates:.0%} of compute updates weights: larger batches, or --set accumulate=N, make it rarer",
            )
        )
    if between >= SYNC_SHARE:
        line = f"{between:.0%} of compute gathers and adds up between ranks: larger batches, or --set accumulate=N, make it rarer"
        found.append((share * between, line))
    elif heavy < 0.5 * total and not facts.get("compile") and calls >= 100:
        found.append((share * 0.2, f"a step is {calls:,.0f} small operations: --set compile=true makes fewer of them"))
    return found


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _bar(share: float) -> str:
    return "#" * round(share * 40)
