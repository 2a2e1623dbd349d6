"""The learning rate as a pure function of the step: nothing to save, and a resumed run cannot disagree with itself.

The factor of the peak rate is

    constant    1
    cosine      half a cosine from 1 to end_factor
    one_cycle   half a cosine from start_factor to 1 over `warmup` of the steps, then one from 1 to end_factor
                (Smith & Topin 2018, "Super-convergence"; as torch's OneCycleLR without its momentum cycle)
"""

from __future__ import annotations

import math

from trainers.config import ScheduleConfig


def factor_at(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The share of the peak learning rate for `step` (0-based) of `steps`."""
    if schedule.name == "constant":
        return 1.0
    climb = round(steps * schedule.warmup) if schedule.name == "one_cycle" else 0
    if step < climb:
        return _half_cosine(schedule.start_factor, 1.0, step / climb)
    return _half_cosine(1.0, schedule.end_factor, min(1.0, (step - climb) / max(1, steps - climb)))


def _half_cosine(start: float, end: float, share: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2
