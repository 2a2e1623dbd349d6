"""Small records are encoded in batches: those under 4 KiB together in groups, all with a dictionary where that pays.

    put -> shelf (SHELF_BYTES, or `finish`) -> batch -> groups -> choose a dictionary -> encode -> append

A value of 1 KB has no context of its own: compressed alone it stays more than twice as large as among its neighbours. A dictionary is that
context, kept once in each pack that uses it; a group of at most 16 KiB adds a little, and divides what a record costs.

The policy, for each batch: measure some of it without a dictionary and with the current one. The current one stays while it does what
it did when it was tested first; when it does less, or there is none, another is trained on the rest of the batch. A dictionary is used
when it saves more on this batch than it costs in this pack. After attempts that failed (incompressible records, records that
share nothing) some batches pass without one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import zstandard

from leptonstore import codec, limits
from leptonstore.codec import Dictionary
from leptonstore.digest import Buffer, Digest
from leptonstore.format import pack as lpk


class Record(NamedTuple):
    """A record that waits to be encoded."""

    digest: Digest
    kind: int
    plain: Buffer
    plane_width: int = 0


class Unit(NamedTuple):
    """What becomes one record of a pack: one that was put, or a group of them."""

    plain: Buffer
    members: tuple[Record, ...]

    @property
    def plane_width(self) -> int:
        """Of the one member."""
        return self.members[0].plane_width if len(self.members) == 1 else 0


def units_of(batch: Sequence[Record]) -> list[Unit]:
    """Groups of short records in the order of the batch, and the others one by one."""
    units: list[Unit] = []
    group: list[Record] = []
    lengths: list[int] = []

    def close() -> None:
        if group:
            plain = group[0].plain if len(group) == 1 else lpk.encode_group([record.plain for record in group])
            units.append(Unit(plain, tuple(group)))
            group.clear()
            lengths.clear()

    for record in batch:
        short = len(record.plain) <= limits.GROUP_MEMBER_BYTES_MAX and record.kind == lpk.KIND_CHUNK
        if not short or record.plane_width:
            units.append(Unit(record.plain, (record,)))
            continue
        if lpk.group_bytes([*lengths, len(record.plain)]) > limits.GROUP_BYTES_MAX:
            close()
        group.append(record)
        lengths.append(len(record.plain))
    close()
    return units


class Shelf:
    """Small records that wait for company. The caller locks."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> list[Record]:
        """Keep it; returns the batch when it is full, else nothing."""
        self._records.append(record)
        self._bytes += len(record.plain)
        return self.take() if self._bytes >= limits.SHELF_BYTES else []

    def take(self) -> list[Record]:
        """Everything, in the order in which it came; the shelf is empty after."""
        records, self._records, self._bytes = self._records, [], 0
        return records


class _Trained(NamedTuple):
    dictionary: Dictionary
    cost: int  # stored bytes of the dictionary
    share: float  # of plain bytes, that held-out units took with it


class DictionaryPolicy:
    """Chooses the dictionary of each batch. Any thread; one at a time trains while the others wait for what it finds."""

    def __init__(self, level: int) -> None:
        self._level = level
        self._lock = threading.Lock()
        self._current: _Trained | None = None
        self._failures = 0
        self._trusted = 0  # batches for which the current one is not tested again
        self._wait = 0  # batches until the next attempt

    def choose(self, units: Sequence[Unit], held: Callable[[Dictionary], bool]) -> Dictionary | None:
        """The dictionary for these, None for none. `held`: whether the pack to be written has a dictionary already."""
        total = sum(len(unit.plain) for unit in units)
        if len(units) < 2 or total < limits.DICTIONARY_BATCH_BYTES_MIN:
            return None
        with self._lock:
            if self._trusted and self._current is not None and held(self._current.dictionary):
                self._trusted -= 1  # it has just been tested on a batch like this one
                return self._current.dictionary
        test = [unit.plain for unit in units[:: limits.DICTIONARY_TEST_EVERY]]
        rest = [unit for index, unit in enumerate(units) if index % limits.DICTIONARY_TEST_EVERY]
        without = self._share(test, None)
        with self._lock:
            best: _Trained | None = None
            if self._current is not None:
                share = self._share(test, self._current.dictionary)
                cost = 0 if held(self._current.dictionary) else self._current.cost
                if _pays(without, share, total, cost):
                    best = self._current
                    if share <= best.share * limits.DICTIONARY_DRIFT:
                        self._trusted = limits.DICTIONARY_TRUST
                        return best.dictionary
                    without = share  # a new one has to be better than this
            trained = self._train([record.plain for unit in rest for record in unit.members], test)
            if trained is not None and _pays(without, trained.share, total, trained.cost):
                self._current = trained
                return trained.dictionary
            return None if best is None else best.dictionary

    def _share(self, test: Sequence[Buffer], dictionary: Dictionary | None) -> float:
        taken = sum(len(codec.encode(plain, self._level, 0, dictionary).payload) for plain in test)
        return taken / max(1, sum(map(len, test)))

    def _train(self, samples: Sequence[Buffer], test: Sequence[Buffer]) -> _Trained | None:
        """Under the lock. None when there is too little to learn from, or attempts have failed lately."""
        if len(samples) < limits.DICTIONARY_RECORDS_MIN:
            return None
        if self._wait:
            self._wait -= 1
            return None
        samples = samples[:: 1 + sum(map(len, samples)) // limits.DICTIONARY_SAMPLE_BYTES_MAX]
        size = min(limits.DICTIONARY_TRAINED_BYTES_MAX, sum(map(len, samples)) // 8)
        self._wait = limits.DICTIONARY_REST
        try:
            # Without k and d zstd searches for the best ones: five times as long, and no byte less here.
            trained = zstandard.train_dictionary(
                size, [bytes(plain) for plain in samples], k=1024, d=8, level=self._level
            )
        except (zstandard.ZstdError, ValueError):  # too few or too uniform samples: zstd says so
            self._failed()
            return None
        dictionary = Dictionary(trained.as_bytes())
        cost = len(codec.encode(dictionary.data).payload) + lpk.RECORD_HEADER_BYTES
        share = self._share(test, dictionary)
        if share > self._share(test, None) * (1 - limits.DICTIONARY_GAIN_MIN):
            self._failed()
        else:
            self._failures = 0
        return _Trained(dictionary, cost, share)

    def _failed(self) -> None:
        self._failures += 1
        self._wait = min(1 << self._failures, limits.DICTIONARY_BACKOFF_MAX)


def _pays(without: float, share: float, total: int, cost: int) -> bool:
    """Whether shrinking `total` bytes to `share` instead of `without` of them is worth `cost` stored bytes."""
    return share <= without * (1 - limits.DICTIONARY_GAIN_MIN) and (without - share) * total > cost
