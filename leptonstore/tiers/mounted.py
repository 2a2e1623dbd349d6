"""A directory beside the home whose disk may go: without it the place is an empty directory, or one of another disk.

What looks missing is missing only while the document is there that was put into the place when it became a tier; and nothing is written
where that is not, or it would lie below the disk that comes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from leptonstore.digest import Buffer
from leptonstore.errors import TierUnavailable
from leptonstore.tiers.local import LocalPackSink, LocalTier


class MountedTier(LocalTier):
    """LocalTier that raises TierUnavailable where the document `mark` is not in it. Costs a look at that for what is missing."""

    def __init__(self, root: Path, mark: str) -> None:
        super().__init__(root)
        self._mark = root / mark

    def _require_mark(self) -> None:
        if not self._mark.exists():
            raise TierUnavailable(
                f"tier {self.url} is not there any more ({self._mark.name} is missing in it); is its disk mounted? Mount it and run it "
                "again; nothing is lost",
                self.url,
            )

    def pack_bytes(self, pack: str) -> int | None:
        """As LocalTier. Raises TierUnavailable."""
        size = super().pack_bytes(pack)
        if size is None:
            self._require_mark()
        return size

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """As LocalTier. Raises TierUnavailable."""
        try:
            return super().read(pack, offset, length)
        except FileNotFoundError:
            self._require_mark()
            raise

    def read_once(self, pack: str, offset: int, length: int) -> Buffer:
        """As LocalTier. Raises TierUnavailable."""
        try:
            return super().read_once(pack, offset, length)
        except FileNotFoundError:
            self._require_mark()
            raise

    def packs(self) -> Iterator[str]:
        """As LocalTier. Raises TierUnavailable, also at the end: the disk may have gone on the way."""
        self._require_mark()
        yield from super().packs()
        self._require_mark()

    def create_pack(self, pack: str) -> LocalPackSink:
        """As LocalTier. Raises TierUnavailable."""
        self._require_mark()
        return super().create_pack(pack)

    def delete_pack(self, pack: str) -> None:
        """As LocalTier. Raises TierUnavailable: it would still be there."""
        self._require_mark()
        super().delete_pack(pack)
