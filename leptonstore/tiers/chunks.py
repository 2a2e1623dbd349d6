"""The role of whoever gives chunks by their digest: a store, and what wraps one (leptonstore/cache/chunks.py).

Common to all: any thread. What is returned was checked against its digest, by whoever returns it or by whom it had it from. The suite that
says so is leptonstore.testing.chunks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from leptonstore.digest import Buffer, Digest


@runtime_checkable
class ChunkReader(Protocol):
    """Reads chunks, which include values that are stored in pieces."""

    def get(self, digest: Digest) -> Buffer:
        """The plain bytes. They are not to be written to, and stay right for as long as they are referenced.

        Raises ChunkMissing, ChunkCorrupt, TierUnavailable.
        """

    def get_many(self, digests: Sequence[Digest]) -> Iterator[Buffer]:
        """`get` of each, in order, one that is named twice twice. Where requests are dear, near ones are read together.

        Raises what `get` raises, when it is reached or before.
        """


class FoundChunks(Protocol):
    """Chunks that were looked for, and are not read yet. One thread, and not for long: it may hold on to memory that others need."""

    @property
    def lengths(self) -> Sequence[int | None]:
        """Plain bytes of each, as whoever keeps it knows them; None for one that only `get` can read."""

    @property
    def light(self) -> bool:
        """Whether reading them is hardly more than checking and copying: several threads would only wait for each other."""

    def begin(self) -> None:
        """Have what `read_into` needs on its way while other work is done, where a tier can; may be left out. Called once."""

    def read_into(self, parts: Sequence[memoryview]) -> None:
        """Each into memory that is exactly as long. All `lengths` are known; called once. Raises as `get` does."""


@runtime_checkable
class ChunkFinder(ChunkReader, Protocol):
    """Also reads many chunks straight into their places, as a column's buffer has them: each byte is written once."""

    def find_many(self, digests: Sequence[Digest]) -> FoundChunks:
        """Look for each. Raises as `get` does; what is not known is no error yet."""
