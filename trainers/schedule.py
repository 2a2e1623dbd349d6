"""The learning rate as a pure function of the step: nothing to save, and a resumed run cannot disagree with itself.

The factor of the peak rate, after a climb over `warmup` of the steps (one_cycle: 0.3 if not given; the others: none), is

    constant    1; climbs in a straight line from start_factor
    linear      a straight line from 1 to end_factor; climbs in a straight line from start_factor
    cosine      half a cosine from 1 to end_factor; climbs in a straight line from start_factor
    one_cycle   half a cosine from 1 to end_factor; climbs by half a cosine from start_factor
                (Smith & Topin 2018, "Super-convergence"; as torch's OneCycleLR without its momentum cycle)
    reference   what a function (step, steps, **params) says
"""

from __future__ import annotations

import math
from collections.abc import Callable

from leptonstore.errors import BadInput
from trainers.config import ScheduleConfig
from trainers.reference import require_takes, resolve, told

ONE_CYCLE_WARMUP = 0.3

Schedule = Callable[[int], float]


def build_schedule(config: ScheduleConfig, steps: int) -> Schedule:
    """The factor by step (0-based) of a run of `steps`. Raises BadInput when a reference does not fit; the function that is
    returned raises it when a user's function gives no finite number of at least 0."""
    if config.reference is None:
        return lambda step: factor_at(config, step, steps)
    function, name = resolve(config.reference), told(config.reference)
    require_takes(function, f"schedule {name}", 0, steps, **config.params)

    def factor(step: int) -> float:
        value = float(function(step, steps, **config.params))
        if not 0 <= value < math.inf:
            raise BadInput(
                f"schedule {name} gave {value} at step {step} of {steps}; it must give a number of at least 0"
            )
        return value

    return factor


def factor_at(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """The share of the peak learning rate of a named schedule for `step` (0-based) of `steps`."""
    one_cycle = schedule.name == "one_cycle"
    warmup = schedule.warmup if schedule.warmup is not None else ONE_CYCLE_WARMUP if one_cycle else 0.0
    climb = round(steps * warmup)
    if step < climb:
        return (_half_cosine if one_cycle else _line)(schedule.start_factor, 1.0, step / climb)
    if schedule.name == "constant":
        return 1.0
    fall = _line if schedule.name == "linear" else _half_cosine
    return fall(1.0, schedule.end_factor, min(1.0, (step - climb) / max(1, steps - climb)))


def _line(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _half_cosine(start: float, end: float, share: float) -> float:
    return start + (end - start) * (1 - math.cos(math.pi * share)) / 2
