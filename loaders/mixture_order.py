"""The order of a mixture: which row of which source stands at each position, while weights change.

    MixtureOrder   the strategy: sources, weights, schedule, and the log of the changes made in mid-run. Immutable: a change makes another
    MixtureEpoch   an epoch of it: an EpochOrder that also counts

`loaders.mixing` says which draw of which source stands at a position. Draw d of a source is position d mod n of its pass d div n, where a
pass is an epoch of n positions of the source's own order, with a seed of its own: BLAKE3's key derivation, context "lepton.mixture.v1",
over (seed, epoch, whether epochs begin anew) and the source's name. So another source beside it changes nothing in a source's own order.

Positions are counted from the start of the run: position p of epoch e is e * length + p, and sources go through their passes whatever
the epochs are. With `stop` an epoch has no length that is known before, so each begins anew, with its own seeds, and positions count from
its start.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3

from loaders.mixing import POSITION_MAX, WEIGHT_TOTAL, Mixing, Weights, weights_text, whole_weights
from loaders.order import ORDER_ROWS_MAX, SEED_MAX, BoundOrder, ByPosition, OrderStrategy, Rows
from loaders.state import LoaderStateError

CONTEXT = "lepton.mixture.v1"
NAME = "mixture"
VERSION = 1
STOPS = (None, "first", "all")
CHANGES_MAX = 1 << 16  # changes in mid-run; more of them are a schedule, which takes no room in a state
_NAME_CHARS = 8  # of a source, in a state
_ID_CHARS = 12  # hex digits of a source's digest there
_EPOCHS_KEPT = 4  # orders of epochs that are kept: finding one takes milliseconds where there is much to count


class Change(NamedTuple):
    """From position `position` of epoch `epoch` on, these weights hold."""

    epoch: int
    position: int
    weights: Weights


@dataclass(frozen=True)
class MixtureOrder:
    """An OrderStrategy (loaders.order) for the source of a `Mixture`, which makes it: see there for the parameters.

    ids:      name and fingerprint of each source, shortened (`source_id`).
    orders:   how each source is ordered within its passes.
    schedule: (position since the start of the run, weights), ascending.
    log:      changes in mid-run, ascending.
    """

    names: tuple[str, ...]
    ids: tuple[str, ...]
    weights: Weights
    orders: tuple[OrderStrategy, ...]
    schedule: tuple[tuple[int, Weights], ...] = ()
    samples_per_epoch: int | None = None
    stop: str | None = None
    log: tuple[Change, ...] = ()

    def bind(self, source: Any) -> BoundMixture:
        """For the source of the mixture. Raises ValueError for any other, and for a source with weight and without rows."""
        if tuple(getattr(source, "names", ())) != self.names:
            raise ValueError(f"the order of a mixture of {', '.join(self.names)} needs that mixture as its dataset")
        return BoundMixture(self, source)

    def spec(self) -> dict[str, Any]:
        """Some 200 bytes, and at most 32 for each source and each weight changed in mid-run (a change names all sources)."""
        orders = repr([strategy.spec() for strategy in self.orders])
        return {
            "name": NAME,
            "version": VERSION,
            "sources": list(self.ids),
            "weights": _text(_packed(self.weights)),
            "schedule": blake3(repr(self.schedule).encode()).hexdigest()[:16] if self.schedule else "",
            "orders": blake3(orders.encode()).hexdigest()[:16],
            "samples": self.samples_per_epoch,
            "stop": self.stop,
            "log": _text(b"".join(_varint(at.epoch) + _varint(at.position) + _packed(at.weights) for at in self.log)),
        }

    def changed(self, epoch: int, position: int, weights: Mapping[str, float]) -> MixtureOrder:
        """The order with other weights from a position on. Changes logged there or beyond are taken back: the run now goes this way.

        Raises ValueError as `whole_weights`, or for too many changes.
        """
        before = tuple(change for change in self.log if change[:2] < (epoch, position))
        if len(before) >= CHANGES_MAX:
            raise ValueError(f"weights were changed {CHANGES_MAX} times in mid-run: declare the changes as a schedule")
        return replace(self, log=(*before, Change(epoch, position, whole_weights(weights, self.names))))

    def restored(self, spec: Mapping[str, Any]) -> MixtureOrder:
        """The order that a state was taken with: this one, with the state's log.

        Raises LoaderStateError that names what differs: sources, weights, schedule, and so on. What is no mixture's spec is left to
        the comparison of states.
        """
        if spec.get("name") != NAME or spec.get("version") != VERSION:
            return self
        own = self.spec()
        self._require_same_sources(spec.get("sources"))
        for key, what in (("weights", "the weights"), ("schedule", "the schedule"), ("orders", "the sources' orders"),
                          ("samples", "samples_per_epoch"), ("stop", "stop")):  # fmt: skip
            if spec.get(key) != own[key]:
                raise LoaderStateError(
                    f"the loader state was taken with another mixture: {what} differ, "
                    f"{_shown(key, spec.get(key), self.names)} there and {_shown(key, own[key], self.names)} here; "
                    "make the mixture as it was, restore, and then change it (set_weights)"
                )
        return replace(self, log=_unpacked_log(spec.get("log"), len(self.names)))

    def _require_same_sources(self, saved: object) -> None:
        if not isinstance(saved, list) or not all(isinstance(one, str) for one in saved):
            raise LoaderStateError("the loader state is damaged: the sources of its mixture are no list of names")
        if tuple(saved) == self.ids:
            return
        gone, new = [one for one in saved if one not in self.ids], [one for one in self.ids if one not in saved]
        if not gone and not new:
            why = "the same sources stand in another order"
        else:
            there = ", ".join(one.partition(":")[0] for one in gone) or "none"
            here = ", ".join(name for name, one in zip(self.names, self.ids, strict=True) if one in new) or "none"
            why = (
                f"only the state has: {there}; only this loader has: {here} (another version or view is another source)"
            )
        raise LoaderStateError(
            f"the loader state is of a mixture of other sources: {why}. Make the mixture of the sources that the state names: "
            f"{', '.join(saved)[:200]}"
        )


class BoundMixture:
    """A mixture's order that knows its sources. Immutable but for a cache; pickles; any thread."""

    def __init__(self, order: MixtureOrder, source: Any) -> None:
        self.order = order
        self.parts = [
            _Part(name, int(offset), strategy.bind(part))
            for name, offset, strategy, part in zip(
                order.names, source.offsets, order.orders, source.parts, strict=True
            )
        ]
        rows = sum(part.length for part in self.parts)
        self._length = rows if order.samples_per_epoch is None else order.samples_per_epoch
        held = [order.weights, *(weights for _, weights in order.schedule), *(change.weights for change in order.log)]
        for weights in held:
            for part, weight in zip(self.parts, weights, strict=True):
                if weight and not part.length:
                    raise ValueError(
                        f"source {part.name!r} of the mixture has no rows: give it weight 0, or leave it out"
                    )
        self._epochs: dict[tuple[int, int], MixtureEpoch] = {}

    def epoch(self, seed: int, epoch: int) -> MixtureEpoch:
        """The order of one epoch. Raises ValueError for a seed or epoch out of range."""
        for name, value in (("seed", seed), ("epoch", epoch)):
            if not 0 <= value <= SEED_MAX:
                raise ValueError(f"{name} of an order must be between 0 and {SEED_MAX}, not {value}")
        found = self._epochs.get((seed, epoch))
        if found is None:
            found = self._made(seed, epoch)
            kept = list(self._epochs.items())[1 - _EPOCHS_KEPT :]
            self._epochs = {**dict(kept), (seed, epoch): found}  # another one: threads read it
        return found

    def counts(self, seed: int, epoch: int, position: int) -> dict[str, int]:
        """Samples of each source before a position, since the start of the run."""
        counts = self.epoch(seed, epoch).counts(position)
        if self.order.stop is not None:
            for earlier in range(epoch):
                order = self._made(seed, earlier)
                counts = counts + order.counts(order.length)
        return dict(zip(self.order.names, counts.tolist(), strict=True))

    def weights(self, epoch: int, position: int) -> dict[str, float]:
        """The weights that hold at a position; they add up to 1."""
        starts, weights = self._stretches(epoch)
        at = position + self._first(epoch)
        held = weights[sum(start <= at for start in starts) - 1]
        return {name: share / WEIGHT_TOTAL for name, share in zip(self.order.names, held, strict=True)}

    def _first(self, epoch: int) -> int:
        """The position that the first of the epoch is."""
        first = 0 if self.order.stop is not None else epoch * self._length
        if first + self._length > POSITION_MAX:
            raise ValueError(f"epoch {epoch} of a mixture begins at position {first}, beyond {POSITION_MAX}")
        return first

    def _stretches(self, epoch: int) -> tuple[list[int], list[Weights]]:
        """Where weights change, and to what, up to the end of the epoch."""
        order = self.order
        if order.stop is None:
            logged = [(at.epoch * self._length + at.position, at.weights) for at in order.log]
            end = self._first(epoch) + self._length
            entries = sorted((*order.schedule, *logged), key=lambda entry: entry[0])
            held = {0: order.weights, **{at: weights for at, weights in entries if at < end}}  # of several, the last
        else:
            before = [change.weights for change in order.log if change.epoch < epoch]
            here = {change.position: change.weights for change in order.log if change.epoch == epoch}
            held = {0: before[-1] if before else order.weights, **here}
        return list(held), list(held.values())

    def _made(self, seed: int, epoch: int) -> MixtureEpoch:
        first = self._first(epoch)
        starts, weights = self._stretches(epoch)
        anew = self.order.stop is not None
        mixing = Mixing(np.array(starts, np.int64), np.array(weights, np.int64), derived(seed, epoch, anew, ""))
        seeds = tuple(derived(seed, epoch, anew, part.name) for part in self.parts)
        length = self._exhausted(mixing, weights, starts[-1]) if anew else self._length
        return MixtureEpoch(self.order, seed, epoch, first, length, mixing, tuple(self.parts), seeds)

    def _exhausted(self, mixing: Mixing, weights: list[Weights], changed: int) -> int:
        """Positions until the first source has had all its rows, or all have that still have weight; at least `changed`."""
        needed = np.array([part.length for part in self.parts], np.int64)
        top = np.full(len(needed), ORDER_ROWS_MAX, np.int64)
        reached = np.diagonal(mixing.counts(top)) >= needed
        # Without weight at the end, a source that has rows left is not waited for.
        waited = reached | (np.array(weights[-1]) > 0)
        waited &= (np.array(weights) > 0).any(axis=0)
        late = waited & ~reached
        if late.any() and (self.order.stop == "all" or late[waited].all()):
            slow = self.parts[int(np.flatnonzero(late)[0])].name
            raise ValueError(
                f"{slow!r} is not exhausted after {ORDER_ROWS_MAX} samples: give it more weight, or no stop="
            )
        low, high = np.zeros(len(needed), np.int64), top
        while (low < high).any():  # bisection: counts grow with the position
            middle = (low + high) // 2
            enough = np.diagonal(mixing.counts(middle)) >= needed
            low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
            low = np.minimum(low, high)
        ends = low[waited & reached]
        end = ends.min() if self.order.stop == "first" else ends.max()
        return max(int(end), changed)


@dataclass(frozen=True)
class MixtureEpoch(ByPosition):
    """An EpochOrder (loaders.order) over the rows of a MixtureSource. Equal where its arguments are."""

    order: MixtureOrder
    seed: int
    epoch: int
    first: int
    samples: int
    _mixing: Mixing = field(repr=False, compare=False)
    _parts: tuple[_Part, ...] = field(repr=False, compare=False)
    _seeds: tuple[int, ...] = field(repr=False, compare=False)

    unit = "samples"

    @property
    def length(self) -> int:
        """Samples of the epoch."""
        return self.samples

    def counts(self, position: int) -> Rows:
        """Samples of each source before a position of the epoch: since the start of the run, with `stop` since that of the epoch."""
        if not 0 <= position <= self.length:
            raise ValueError(f"position {position} is outside an epoch of {self.length} samples")
        return self._mixing.counts(np.array([self.first + position], np.int64))[0]

    def _evaluate(self, positions: Rows) -> Rows:
        labels, draws = self._mixing.draws(positions + self.first)
        out = np.empty(len(positions), np.int64)
        for number in np.flatnonzero(np.bincount(labels, minlength=len(self._parts))).tolist():
            at = np.flatnonzero(labels == number)
            part = self._parts[number]
            out[at] = part.offset + part.rows(self._seeds[number], draws[at])
        return out


@dataclass(frozen=True)
class _Part:
    """One source: the number of its first row, and its own order, whose passes all have the same length."""

    name: str
    offset: int
    bound: BoundOrder
    length: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "length", self.bound.epoch(0, 0).length)

    def rows(self, seed: int, draws: Rows) -> Rows:
        """The rows of some draws, by their number."""
        passes = draws // self.length
        within = draws - passes * self.length
        out = np.empty(len(draws), np.int64)
        for number in np.unique(passes).tolist():
            order = self.bound.epoch(seed, number)
            if order.length != self.length:
                raise ValueError(
                    f"the order of source {self.name!r} has passes of {self.length} and of {order.length} positions: "
                    "in a mixture all have to be of one length"
                )
            at = np.flatnonzero(passes == number)
            out[at] = order.rows_of(within[at])
        return out


def derived(seed: int, epoch: int, anew: bool, name: str) -> int:
    """64 bits for a source of the mixture, or (without a name) for where sources stand."""
    material = struct.pack("<QQ?", seed, epoch if anew else 0, anew) + name.encode()
    return int.from_bytes(blake3(material, derive_key_context=CONTEXT).digest(length=8), "little")


def source_id(name: str, fingerprint: str) -> str:
    """A source as a state names it: what a person can read of it, and what tells two versions apart. At most 21 characters."""
    digest = blake3(f"{name}\0{fingerprint}".encode()).hexdigest()
    return f"{name[:_NAME_CHARS]}:{digest[:_ID_CHARS]}"


# -- the log, in a state ---------------------------------------------------------------------------------------------


def _packed(weights: Weights) -> bytes:
    """4 bytes each, without the last, which is what is left of WEIGHT_TOTAL."""
    return struct.pack(f"<{len(weights) - 1}I", *weights[:-1])


def _unpacked(packed: bytes) -> Weights:
    weights = struct.unpack(f"<{len(packed) // 4}I", packed)
    if sum(weights) > WEIGHT_TOTAL:
        raise ValueError("weights")
    return (*weights, WEIGHT_TOTAL - sum(weights))


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the high bit says that more follow."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _unpacked_log(text: object, sources: int) -> tuple[Change, ...]:
    try:
        data, at, out = _bytes(text), 0, list[Change]()
        size = 4 * (sources - 1)
        while at < len(data):
            numbers = []
            for bound in (SEED_MAX, ORDER_ROWS_MAX):
                number = shift = 0
                while True:
                    number |= (data[at] & 0x7F) << shift
                    shift, at = shift + 7, at + 1
                    if number > bound or shift > 70:
                        raise ValueError("number")
                    if not data[at - 1] & 0x80:
                        break
                numbers.append(number)
            weights = data[at : at + size]
            at += size
            if len(weights) < size or (out and tuple(numbers) <= out[-1][:2]) or len(out) == CHANGES_MAX:
                raise ValueError("change")
            out.append(Change(numbers[0], numbers[1], _unpacked(weights)))
    except (ValueError, IndexError):
        raise LoaderStateError("the loader state is damaged: the log of its mixture does not parse") from None
    return tuple(out)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _bytes(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError("text")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


def _shown(key: str, value: object, names: Sequence[str]) -> str:
    """A field of a spec, for a message."""
    if key != "weights":
        return repr(value)
    try:
        return weights_text(_unpacked(_bytes(value)), names)
    except (ValueError, struct.error):
        return repr(value)[:80]
