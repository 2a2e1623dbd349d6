"""What a kind of job is, and what a running one is given: its options, a way to tell how far it is, and to learn that it is to stop.

Stopping is cooperative: a job asks (`tell`, `wait`) between steps that each leave the store whole, so a stop loses nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from leptonstore.daemon.maintenance import bounds
from leptonstore.errors import BadInput, Stopped, listed
from leptonstore.store import Store


class Progress(NamedTuple):
    """How far a job is: `done` of `total` (0: not known) in `unit`."""

    done: int = 0
    total: int = 0
    unit: str = ""


class Work:
    """One running job, seen from inside. Any thread."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.progress, self.note = Progress(), ""
        self._stop = threading.Event()

    def tell(self, done: int, total: int = 0, unit: str = "", note: str | None = None) -> None:
        """Say how far it is, and in a line what is being done. Raises Stopped when it is to stop."""
        self.progress = Progress(done, total, unit)
        if note is not None:
            self.note = note[: bounds.NOTE_CHARS_MAX]
        self.go_on()

    def go_on(self) -> None:
        """Raises Stopped when it is to stop."""
        if self._stop.is_set():
            raise Stopped("stopped on request")

    def wait(self, seconds: float) -> None:
        """Do nothing for so long. Raises Stopped as soon as it is to stop."""
        if self._stop.wait(max(0.0, seconds)):
            self.go_on()

    def stop(self) -> None:
        """Let it stop at its next step."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()


@dataclass(frozen=True)
class Option:
    """One option of a kind of job: its type (bool, int or float; int does for float), its default and its range."""

    type: type
    default: Any
    what: str
    low: float = float("-inf")
    high: float = float("inf")

    def check(self, name: str, value: object) -> Any:
        """`value`, when it is one. Raises BadInput."""
        kinds = (int, float) if self.type is float else (self.type,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.type is not bool):
            raise BadInput(f"option {name!r} is {str(value)[:80]!r}: it must be a {self.type.__name__}")
        if self.type is not bool and not self.low <= value <= self.high:  # type: ignore[operator]
            raise BadInput(f"option {name!r} is {value}: it must be from {self.low:g} to {self.high:g}")
        return value


@dataclass(frozen=True)
class Kind:
    """A kind of job. `run` does it, on a store of its own, and returns what is to be told of it (JSON-able).

    It asks `work` often whether it is to stop; then it raises Stopped, and everything that it did is kept.
    """

    name: str
    what: str  # a line for people
    run: Callable[[Store, Work], dict[str, Any]]
    options: Mapping[str, Option] = field(default_factory=dict)

    def checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Every option, as given or its default. Raises BadInput for one that is unknown, of another type or out of range."""
        for name in given:
            if name not in self.options:
                known = listed(sorted(self.options), none="none")
                raise BadInput(f"a job of kind {self.name!r} has no option {str(name)[:80]!r}; there is: {known}")
        return {
            name: option.check(name, given[name]) if name in given else option.default
            for name, option in self.options.items()
        }
