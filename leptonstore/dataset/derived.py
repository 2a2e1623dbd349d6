"""What is computed from the values of a column, kept in the hot cache of the host: a loader's decoded images, for one.

    row -> its page: reference, or the value -> digest of the value -> key -> hot cache
                                                                         └ miss -> the value, from the store

    key    the name (cache/chunks.py) of the digest that BLAKE3's key derivation makes: context "lepton.derived.v1", material
           recipe 32 | digest of the value 32

The recipe says what was computed, by which versions of what: who gives it answers for it. As the digest is the value's own, another
version of the dataset, a view of it and another dataset find what was made of the same value, and a filtered version keeps all.

Values are read around the cache: what is made of them is kept in their place. A large value costs no read when what was made of it is
there; one that stands in its page is read with the page, and its digest is computed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3

from leptonstore.cache.chunks import CachedChunks
from leptonstore.cache.hot import Lease
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.values import Column
from leptonstore.digest import DIGEST_BYTES, Buffer, digest_of
from leptonstore.errors import BadInput
from leptonstore.format.page import is_variable

CONTEXT = "lepton.derived.v1"
Rows = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint8]  # shape (n, 32)


class DerivedColumn:
    """Of one column of a dataset or view that is read through a hot cache. Any thread; pickles.

    column: one of strings or bytes. recipe: 32 bytes. Raises BadInput for another column, or a dataset without a cache.
    """

    def __init__(self, ds: Dataset, column: str, recipe: bytes) -> None:
        if ds.cache is None:
            raise BadInput(f"{ds.label} is not read through a hot cache: use dataset.cached(place)")
        data_type = ds.fields([column])[0].type
        if not is_variable(data_type):
            raise BadInput(f"column {column!r} of {ds.label} has values of type {data_type}, not strings or bytes")
        assert len(recipe) == DIGEST_BYTES
        self._ds, self._column, self._recipe = ds, column, recipe
        self._plain = ds.uncached()

    def look(self, rows: Rows) -> tuple[list[bytes | None], list[Lease | None]]:
        """For each row: the key of what is made of its value (None: the value is null), and what is there of it."""
        if not len(rows):
            return [], []
        stored = self._ds.take_stored(rows, self._column)
        keys = self._keys_of(stored)
        cache = self._chunks.cache
        return keys, [None if key is None else cache.get(key) for key in keys]

    def read(self, rows: Rows) -> list[Any]:
        """The values themselves. Raises what `Dataset.take` raises."""
        found: list[Any] = self._plain.take(rows, [self._column]).column(0).to_pylist()
        return found

    def put(self, key: bytes, made: Buffer) -> None:
        """Keep what was made of the value with that key; nothing happens when there is no room."""
        self._chunks.cache.put(key, made)

    def key_rows(self, digests: Keys) -> Keys:
        """The keys of values with these digests."""
        joined = b"".join(self._key(row.tobytes()) for row in digests)
        return np.frombuffer(joined, np.uint8).reshape(-1, DIGEST_BYTES)

    @property
    def _chunks(self) -> CachedChunks:
        chunks = self._ds.chunks
        assert isinstance(chunks, CachedChunks)
        return chunks

    def _key(self, digest: bytes) -> bytes:
        return self._chunks.key(blake3(self._recipe + digest, derive_key_context=CONTEXT).digest())

    def _keys_of(self, stored: Column) -> list[bytes | None]:
        values = stored.values.cast(pa.large_binary()) if stored.references is None else stored.values
        referenced = np.zeros(len(values), np.bool_) if stored.references is None else stored.references
        keys: list[bytes | None] = []
        for value, is_reference in zip(values, referenced.tolist(), strict=True):
            data = value.as_buffer()
            if data is None:
                keys.append(None)
            else:
                view = memoryview(data)
                keys.append(self._key(bytes(view[:DIGEST_BYTES]) if is_reference else digest_of(view)))
        return keys
