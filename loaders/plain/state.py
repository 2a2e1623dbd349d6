"""The state of a loader on torch's path: which batches of which pass were handed out, and how to make the others again.

A state is a dict of JSON-able values (where the user's own `state_dict`s, and the indices of his samplers, are), with the
field names of `PlainState`. It is of one of two kinds:

    within a pass     its first `batches` batches, without the `late` ones, were handed out
    between passes    the next pass begins where the generators stood

What decides which batches come (kind and length of the dataset, samplers, batch size, drop_last and, where workers read
streams of their own, their number) must be equal in the loader that continues; a state that differs is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from loaders.plain import generators as rng_states
from loaders.plain.generators import bytes_of, text_of
from loaders.state import LoaderStateError

FORMAT = "lepton.torch-loader-state"
VERSION = 1

# Nothing that is counted here (batches, rows, workers, generators) reaches this; it keeps damaged states from looping.
COUNT_MAX = 2**48


@dataclass(frozen=True)
class Source:
    """What a loader draws from, as far as it can be told: the conditions of a state.

    kind:        "map" or "iterable".
    dataset:     the name of its class, for people.
    rows:        its length; None when it has none.
    fingerprint: of a LeptonStore dataset (version and view); None for others.
    samplers:    names of the classes of the index sampler and of what it wraps.
    """

    kind: str
    dataset: str
    rows: int | None
    fingerprint: str | None
    samplers: list[str]
    batch_size: int | None
    drop_last: bool

    def require_same(self, here: Source) -> None:
        """Raise LoaderStateError unless a loader over `here` makes the batches that this one makes."""
        if self.fingerprint != here.fingerprint:
            raise LoaderStateError(
                f"the loader state is of another version or view of the dataset (fingerprint {self.fingerprint}) than this "
                f"loader reads ({here.fingerprint}): open the version that the state was taken with"
            )
        for name in ("kind", "rows", "samplers", "batch_size", "drop_last"):
            saved, present = getattr(self, name), getattr(here, name)
            if saved != present:
                raise LoaderStateError(
                    f"the loader state over a {self.dataset} was taken with {name}={saved!r} and this loader over a "
                    f"{here.dataset} has {name}={present!r}: make the loader as it was to continue"
                )


@dataclass(frozen=True)
class PlainState:
    """between:     whether the state is between passes.
    batches:     drawn from the index sampler up to the newest one that was handed out.
    late:        index batches among them that were not handed out yet (in_order=False): they come first.
    check:       a checksum of the newest handed-out index batch, so that a sampler that gives another order is found out.
    base_seed:   what the workers were seeded from; None between passes, unless they live on.
    rng:         global generators that the samplers draw from, by name, where the pass began.
    generators:  those that were given to the loader and its samplers, where the pass began.
    epochs:      of samplers with a `set_epoch`.
    sampler:     {"sampler": …, "iterator": …} of a stateful sampler; "drain": how often it is to come to its end then; "redraw":
                 whether it is to draw the newest index batch again.
    dataset:     of a stateful dataset in the main process, where the pass began or begins; None when `streams` says it.
    workers:     num_workers.
    streams:     what each worker (the main process when workers = 0) has read: see `loaders.plain.streams`.
    last_worker: whose batch was handed out last; -1 for none.
    """

    source: Source
    between: bool
    batches: int = 0
    late: list[Any] = field(default_factory=list)
    check: int | None = None
    base_seed: int | None = None
    rng: dict[str, bytes] = field(default_factory=dict)
    generators: list[bytes] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    sampler: dict[str, Any] = field(default_factory=dict)
    dataset: Any = None
    workers: int = 0
    streams: list[dict[str, Any]] = field(default_factory=list)
    last_worker: int = -1

    def to_dict(self) -> dict[str, Any]:
        """JSON-able where the user's states and indices are."""
        state = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return {
            "format": FORMAT,
            "version": VERSION,
            **state,
            "source": dict(vars(self.source)),
            "rng": {name: text_of(value) for name, value in self.rng.items()},
            "generators": [text_of(value) for value in self.generators],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> PlainState:
        """The mirror image of `to_dict`. Raises LoaderStateError on anything else."""
        _require_format(state)
        for names, fits, kind in _KINDS:
            for name in names:
                if name not in state or not fits(state[name]):
                    raise _damaged(name, f"is missing or no {kind}")
        _require_streams(state["streams"])
        if not _is_count(state["sampler"].get("drain", 0)):
            raise _damaged("sampler", "counts its ends with no count")
        try:
            rng = {name: bytes_of(text) for name, text in state["rng"].items()}
            rng_states.require(rng)
            generators = [bytes_of(text) for text in state["generators"]]
        except ValueError as error:
            raise LoaderStateError(f"the loader state is damaged: a random generator's part: {error}") from error
        values: dict[str, Any] = {spec.name: state.get(spec.name) for spec in fields(cls)}
        return cls(**{**values, "source": _source_from(state["source"]), "rng": rng, "generators": generators})


def _require_format(state: Any) -> None:
    if isinstance(state, Mapping) and ("_snapshot" in state or "_sampler_iter_yielded" in state):
        raise LoaderStateError("this is a state of torchdata's StatefulDataLoader: continue from it with that one")
    named = state.get("format") if isinstance(state, Mapping) else type(state).__name__
    if named != FORMAT:
        raise LoaderStateError(
            f"this is no state of a loader over a torch dataset: its format is {named!r}, not {FORMAT!r}"
        )
    if state.get("version") != VERSION:
        raise LoaderStateError(
            f"the loader state has version {state.get('version')!r} and this code reads version {VERSION}: "
            "restore it with the LeptonStore that wrote it"
        )


def _damaged(name: str, why: str) -> LoaderStateError:
    return LoaderStateError(f"the loader state is damaged: its field {name!r} {why}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < COUNT_MAX


def _is_count_or_none(value: Any) -> bool:
    return value is None or _is_count(value)


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_int_or_none(value: Any) -> bool:
    return value is None or (type(value) is int and -(2**63) <= value < 2**64)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_epochs(value: Any) -> bool:
    return isinstance(value, list) and all(type(epoch) is int for epoch in value)


_Kind = tuple[tuple[str, ...], Callable[[Any], bool], str]
_KINDS: tuple[_Kind, ...] = (
    (("batches", "workers"), _is_count, "count"),
    (("check", "base_seed"), _is_int_or_none, "whole number"),
    (("last_worker",), lambda value: type(value) is int and -1 <= value < COUNT_MAX, "number of a worker"),
    (("late", "generators", "streams"), _is_list, "list"),
    (("source", "rng", "sampler"), _is_dict, "dict"),
    (("between",), lambda value: isinstance(value, bool), "bool"),
    (("epochs",), _is_epochs, "list of whole numbers"),
)
_SOURCE_KINDS: tuple[_Kind, ...] = (
    (("kind",), lambda value: value in ("map", "iterable"), "kind of dataset"),
    (("dataset",), lambda value: isinstance(value, str), "name"),
    (("rows", "batch_size"), _is_count_or_none, "count"),
    (("fingerprint",), _is_text_or_none, "text"),
    (
        ("samplers",),
        lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
        "list of names",
    ),
    (("drop_last",), lambda value: isinstance(value, bool), "bool"),
)


def _source_from(state: Mapping[str, Any]) -> Source:
    for names, fits, kind in _SOURCE_KINDS:
        for name in names:
            if name not in state or not fits(state[name]):
                raise _damaged(f"source.{name}", f"is missing or no {kind}")
    return Source(**{spec.name: state[spec.name] for spec in fields(Source)})


def _require_streams(streams: list[Any]) -> None:
    for stream in streams:
        if not isinstance(stream, dict) or not _is_count(stream.get("batches")):
            raise _damaged("streams", "has a stream without its count of batches")
        if not isinstance(stream.get("indices", []), list):
            raise _damaged("streams", "has a stream whose indices are no list")
