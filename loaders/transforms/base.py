"""What a transform of samples is, and how a plain function becomes one.

A transform is called with a value, and with a numpy Generator when it is random:

    deterministic   __call__(value) -> value
    random          __call__(value, rng) -> value       all of its randomness comes from rng (loaders/transforms/keys.py)

Its name, version and parameters say what it does: they stand in the fingerprint of a program, and in the keys of the decoded-column
cache. Whoever changes what a transform computes raises its version.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

Values: TypeAlias = npt.NDArray[Any] | Sequence[Any]  # of a column: an array, or a list


class Transform:
    """Base of the registered transforms. Immutable after construction; called from any thread, by several at once.

    version         of what it computes.
    deterministic   whether it is called with the value alone; else with (value, rng).
    cacheable       whether its results may be kept (deterministic ones whose name and version say what they compute).
    threads         whether it spends most of its time without the GIL, so that threads help.
    """

    version: int = 1
    deterministic: bool = True
    cacheable: bool = True
    threads: bool = False

    @property
    def name(self) -> str:
        """`package.module:Class`."""
        return f"{type(self).__module__}:{type(self).__qualname__}"

    def parameters(self) -> dict[str, Any]:
        """What the constructor was given, JSON-able; defaults included."""
        return {}

    def libraries(self) -> dict[str, str]:
        """Libraries that decide the result, and their versions."""
        return {}

    def __call__(self, value: Any, rng: Any = None) -> Any:
        raise NotImplementedError(f"{type(self).__qualname__} has no __call__")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.parameters().items())})"


class FunctionTransform(Transform):
    """A callable of the user's. It is random when it has a parameter `rng`.

    Nothing is known of it: it runs in threads only when it says so (an attribute `threads`), and its results are never kept.
    """

    cacheable = False

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.deterministic = not _takes_rng(function)
        self.threads = bool(getattr(function, "threads", False))

    @property
    def name(self) -> str:
        """`package.module:function`."""
        named = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        return f"{named.__module__}:{named.__qualname__}"

    def __call__(self, value: Any, rng: Any = None) -> Any:
        # By name, so that a function's other defaults stay in their places.
        return self.function(value) if self.deterministic else self.function(value, rng=rng)


class SampleFailed(Exception):
    """A transform raised. `index`: which of the values it was given; `step`: its name; the cause is its error."""

    def __init__(self, index: int, step: str) -> None:
        super().__init__(f"{step} failed")
        self.index, self.step = index, step

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleFailed, (self.index, self.step), {"__cause__": self.__cause__}


def as_transform(step: Any) -> Transform:
    """A step of a chain as a Transform. Raises TypeError for what cannot be called."""
    if isinstance(step, Transform):
        return step
    if not callable(step) or isinstance(step, type):
        made = f"; did you mean {step.__name__}(...)?" if isinstance(step, type) else ""
        raise TypeError(f"a transform is a callable of one sample's value, not {step!r}{made}")
    return FunctionTransform(step)


def described(steps: list[Transform]) -> str:
    """Names, versions, parameters and libraries of some steps: one canonical line of JSON."""
    return json.dumps(
        [[step.name, step.version, step.parameters(), step.libraries()] for step in steps],
        sort_keys=True,
        separators=(",", ":"),
    )


def _takes_rng(function: Callable[..., Any]) -> bool:
    try:
        return "rng" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # of C, without a signature
        return False
