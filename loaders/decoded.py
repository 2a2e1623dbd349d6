"""The decoded-column cache: what the first steps of a chain make of a value, kept in the hot cache of the host.

    chain    DecodeImage, Resize(256) | RandomResizedCrop(224), RandomHorizontalFlip, Normalize
             the head: deterministic  | the tail: done for every epoch
    first    value -- head -- pixels -- tail -- batch        a thread of the loader; the pixels go into the cache
    then     pixels ---------------- tail -- batch           nothing is read of the store, and nothing decoded

The head is the longest run of deterministic, registered transforms whose results are worth keeping (`Transform.cacheable`). They are
kept under (digest of the value; names, versions and parameters of the head's steps; versions of the libraries that computed them), so
that a filtered version keeps its decodes and another decoder starts anew. A record is

    magic 8 "LDECODE1" | dtype 8: numpy's text, padded with zeros | dimensions u64 | each of them u64 | zeros to a multiple of 64 | elements

What does not fit the cache is decoded again each time it is asked for: the hot cache keeps what is needed soonest (`loaders.plan`).
Memory: height x width x 3 bytes of each image, once for the host: 262 KB at Resize(256) of 500 x 375, about five times the JPEG.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loaders.source import ColumnSource, Keys, Source
from loaders.transforms.base import SampleFailed, Transform, Values, as_transform, described
from loaders.transforms.images import DecodeImage
from loaders.transforms.keys import SampleKeys
from loaders.transforms.program import Buffer, Collate, Program, compile_chain, output_spec
from loaders.wrapped import WrappedSource

if TYPE_CHECKING:
    from loaders.source import DerivedColumn

MAGIC = b"LDECODE1"
KINDS = "biuf"  # of numpy dtypes whose elements are plain bytes
DIMENSIONS_MAX = 8
_ALIGN = 64


class Undecoded(NamedTuple):
    """A value that is not in the cache, and the key under which what is made of it will be (None: it is null)."""

    value: Any
    key: bytes | None

    @property
    def nbytes(self) -> int:
        """Of the value."""
        return 0 if self.value is None else len(self.value)


def split_chain(chain: Sequence[Any]) -> tuple[list[Transform], list[Transform]]:
    """Its head, whose results may be kept, and its tail."""
    steps = [as_transform(step) for step in chain]
    count = next((at for at, step in enumerate(steps) if not (step.deterministic and step.cacheable)), len(steps))
    # How far a decoder shrinks hangs on what is kept of an image, which the tail decides: pixels would not be those without the cache.
    if any(isinstance(step, DecodeImage) and step.scaled for step in steps):
        count = 0
    return steps[:count], steps[count:]


class DecodedSource(WrappedSource[ColumnSource]):
    """A ColumnSource whose columns in `heads` come decoded where they are in the cache. See Source.

    Raises ValueError for a dataset that is not read through a hot cache, or a column that does not hold bytes or text.
    """

    def __init__(self, source: ColumnSource, heads: Mapping[str, list[Transform]]) -> None:
        super().__init__(source)
        self._derived = {name: source.derived(name, described(head)) for name, head in heads.items()}

    def derived(self, name: str) -> DerivedColumn:
        """Where the decoded values of a column are."""
        return self._derived[name]

    def gather(self, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[Any] | list[Any]]:
        """See Source. Of a column in `heads`: arrays, and `Undecoded` for what is to be decoded.

        The arrays lie in the cache, read-only: let go of them with the batch.
        """
        whole = self._inner
        found: dict[str, npt.NDArray[Any] | list[Any]] = {
            name: each.take(rows, 0) for name, each in whole.arena.items()
        }
        found.update(whole.read(rows, without=self._derived))
        for name, derived in self._derived.items():
            found[name] = _looked(derived, rows)
        return {spec.name: found[spec.name] for spec in self.columns}

    def future_keys(self, rows: npt.NDArray[np.int64], sizes: Sequence[int]) -> Keys:
        """See Source."""
        return self._inner.future_keys(rows, sizes, {name: one.key_rows for name, one in self._derived.items()})


class DecodedProgram:
    """Of a column of a DecodedSource: decodes what was not there and keeps it, then the tail. See Program."""

    def __init__(self, head: Program, tail: Program, derived: DerivedColumn, fingerprint: str) -> None:
        self._head, self._tail, self._derived, self._fingerprint = head, tail, derived, fingerprint

    @property
    def threads(self) -> bool:
        """See Program."""
        return self._head.threads and self._tail.threads

    @property
    def fingerprint(self) -> str:
        """See Program: that of the whole chain, as the cache changes no result."""
        return self._fingerprint

    def buffer(self, rows: int) -> Buffer:
        """See Program."""
        return self._tail.buffer(rows)

    def sample(self, values: Values, keys: SampleKeys, out: Buffer, first: int) -> None:
        """See Program."""
        for i, value in enumerate(values):
            one = keys.part(i, i + 1)
            try:
                decoded = self._decoded(value, one) if isinstance(value, Undecoded) else value
                self._tail.sample([decoded], one, out, first + i)
            except SampleFailed as failed:
                raise SampleFailed(i, failed.step) from failed.__cause__

    def _decoded(self, value: Undecoded, keys: SampleKeys) -> Any:
        out = self._head.buffer(1)
        self._head.sample([value.value], keys, out, 0)
        made = out[0]
        if value.key is not None and _fits(made):
            self._derived.put(value.key, packed(made))
        return made

    def batch(self, out: Buffer, keys: SampleKeys) -> Any:
        """See Program."""
        return self._tail.batch(out, keys)


class DecodedColumns:
    """The columns of a loader of which decoded values are kept, and the programs of all columns that have a chain.

    Raises ValueError where there is nothing to keep: no hot cache, or no chain that begins with a transform whose results may be kept.
    """

    def __init__(self, source: Source, chains: Mapping[str, Sequence[Any]], collate: Mapping[str, Collate]) -> None:
        specs = {spec.name: spec for spec in source.columns}
        split = {name: split_chain(chain) for name, chain in chains.items()}
        self._heads = {name: head for name, (head, _) in split.items() if head and not specs[name].fixed}
        if not self._heads:
            raise ValueError(
                "decoded_cache keeps what the first transforms of a chain make of encoded values, such as DecodeImage(), and "
                "no chain here begins with one that is deterministic and registered"
            )
        self._source: tuple[Source, DecodedSource] | None = None
        decoded = self.of(source)
        self.programs: dict[str, Program] = {}
        for name, (head, tail) in split.items():
            if name not in self._heads:
                self.programs[name] = compile_chain([*head, *tail], specs[name], collate.get(name))
                continue
            first = compile_chain(head, specs[name], list)
            rest = compile_chain(tail, output_spec(head, specs[name]), collate.get(name), len(head))
            self.programs[name] = DecodedProgram(first, rest, decoded.derived(name), described([*head, *tail]))

    def of(self, source: Source) -> DecodedSource:
        """What batches are read from, of the dataset or another version of it. Raises ValueError when it is neither, or has no cache."""
        if self._source is None or self._source[0] is not source:
            if not isinstance(source, ColumnSource):
                raise ValueError(
                    f"decoded_cache is for a dataset or a view of one, and {source.name} is made of others"
                )
            self._source = source, DecodedSource(source, self._heads)
        return self._source[1]


def _looked(derived: DerivedColumn, rows: npt.NDArray[np.int64]) -> list[Any]:
    keys, leases = derived.look(rows)
    found: list[Any] = [None if lease is None else unpacked(lease.data) for lease in leases]
    missing = [at for at, value in enumerate(found) if value is None]
    if missing:
        for at, value in zip(missing, derived.read(rows[missing]), strict=True):
            found[at] = Undecoded(value, keys[at])
    return found


def _fits(made: Any) -> bool:
    return isinstance(made, np.ndarray) and made.dtype.kind in KINDS and made.ndim <= DIMENSIONS_MAX and made.size > 0


def packed(array: npt.NDArray[Any]) -> bytes:
    """An array as a record of the cache."""
    head = MAGIC + array.dtype.str.encode().ljust(8, b"\0")
    head += struct.pack(f"<{1 + array.ndim}Q", array.ndim, *array.shape)
    return b"".join([head, bytes(-len(head) % _ALIGN), np.ascontiguousarray(array).data.cast("B")])


def unpacked(record: memoryview) -> npt.NDArray[Any] | None:
    """The array over a record's memory, read-only; None for what is no such record (of another layout, or not ours)."""
    try:
        magic, kind, ndim = struct.unpack_from("<8s8sQ", record)
        if magic != MAGIC or ndim > DIMENSIONS_MAX:
            return None
        shape = struct.unpack_from(f"<{ndim}Q", record, 24)
        dtype = np.dtype(kind.rstrip(b"\0").decode("ascii"))
    except (struct.error, TypeError, ValueError):
        return None
    start = -(-(24 + 8 * ndim) // _ALIGN) * _ALIGN
    if dtype.kind not in KINDS or start + prod(shape) * dtype.itemsize != len(record):
        return None
    return np.ndarray(shape, dtype, record, start)
