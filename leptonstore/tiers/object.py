"""A prefix of a bucket (S3, GCS, Azure, or memory for tests) as a tier and as a store's home.

    config, log/<sequence>, snapshots/, keys/, HEAD, packs/<2 hex>/<32 hex>.pack, damaged/    as in a directory (tiers/local.py)
    writers/<32 hex>, leases/<32 hex>    documents of live processes, renewed by them (tiers/object_locks.py)
    clock/<32 hex>                       probes of the server's clock; gone a moment later

Invariants:
- An object appears whole or not at all, and is durable when the server says so: so `confirm_documents` has nothing to do, and there is
  no reserve (a bucket does not fill up) and no tmp/.
- `create_document` is one conditional PUT (If-None-Match: *): of any number of racers one is told that it won. When the answer of the
  winner is lost, it is told "exists": only who made the content unique can know better, as the log does by its write ids.
- Nothing is cached here, and nothing that is read is trusted: whoever reads checks digests.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import FormatDamaged, TierUnavailable
from leptonstore.tiers.object_client import Client, Counters
from leptonstore.tiers.object_locks import CLOCK, Keeper, ObjectLock, is_dead
from leptonstore.tiers.object_sink import ObjectPackSink
from leptonstore.tiers.ranges import Run, pieces_of, runs_of
from leptonstore.tiers.read_ahead import ReadAhead
from leptonstore.tiers.windows import Windows

_PACK = re.compile(r"packs/[0-9a-f]{2}/([0-9a-f]{32})\.pack")


class ObjectTier:
    """StoreHome over a bucket that exists. Any thread; any number of processes; a forked child may go on using it."""

    def __init__(self, client: Client, abort_stale_uploads: Callable[[], int] = lambda: 0) -> None:
        """abort_stale_uploads: ends what crashed writers left half-uploaded, and tells how many."""
        self._client, self._abort_stale_uploads = client, abort_stale_uploads
        self._keeper = Keeper(client)
        self._lock = threading.Lock()
        self._uploads: ThreadPoolExecutor | None = None
        self._windows = Windows(self._fetch, self._threads)
        self._ahead = ReadAhead(self._fetch, self._windows)

    @property
    def url(self) -> str:
        """The URL, without a slash at its end."""
        return self._client.url

    @property
    def counters(self) -> Counters:
        """Requests and bytes since this object was made."""
        return self._client.counters

    # -- documents -----------------------------------------------------------------------------------------------

    def read_document(self, name: str, bytes_max: int) -> bytes | None:
        """The document, None when there is none. Raises FormatDamaged when it is longer than `bytes_max`."""
        try:
            data = bytes(self._client.get_range(name, 0, bytes_max + 1))
        except FileNotFoundError:
            return None
        if len(data) > bytes_max:
            raise FormatDamaged(f"{self.url}/{name} has more than {bytes_max} bytes")
        return data

    def documents(self, folder: str) -> list[str]:
        """Names of the documents in `folder`, sorted."""
        entries, _ = self._client.list_folder(folder)
        return sorted(entry.path.rpartition("/")[2] for entry in entries)

    def create_document(self, name: str, data: bytes) -> bool:
        """Create if absent, atomically and durably.

        S3 may answer "conflict" to a create that met a delete, although nothing is there: such a one is tried again.
        """
        for _ in range(limits.OBJECT_CREATE_TRIES):
            if self._client.create(name, data):
                return True
            try:
                self._client.size(name)
                return False
            except FileNotFoundError:
                continue
        raise TierUnavailable(
            f"{self.url}/{name}: the server says that it exists and that it does not: run it again", self.url
        )

    def replace_document(self, name: str, data: bytes) -> None:
        """Create or replace a hint."""
        self._client.put(name, data)

    def confirm_documents(self, folder: str) -> None:
        """Nothing to do: what is visible is durable."""

    def delete_document(self, name: str) -> None:
        """Remove a document, durably; no error when it is not there."""
        self._client.delete(name)

    def contents(self) -> list[str] | None:
        """Names right below the prefix (of its first 1,000 objects), None when there are none. Raises TierMissing."""
        names = set()
        for number, entry in enumerate(self._client.walk("")):
            names.add(entry.path.partition("/")[0])
            if number >= 999:
                break
        return sorted(names) or None

    # -- packs ---------------------------------------------------------------------------------------------------

    def _path(self, pack: str) -> str:
        return f"packs/{pack[:2]}/{pack}.pack"

    def pack_bytes(self, pack: str) -> int | None:
        """Size of a pack in bytes, None when it is not here."""
        try:
            return self._client.size(self._path(pack))
        except FileNotFoundError:
            return None

    def read(self, pack: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on; fewer only where the pack ends. One request, or part of one (read_ahead.py)."""
        return bytes(self.read_once(pack, offset, length))

    def read_once(self, pack: str, offset: int, length: int) -> Buffer:
        """`read` without a copy."""
        return self._ahead.read(pack, offset, length) if length else b""

    def _fetch(self, pack: str, offset: int, length: int) -> Buffer:
        return self._client.get_range(self._path(pack), offset, length)

    def read_plain(self, pack: str, offset: int, length: int) -> Buffer:
        """`read` by one request for exactly so much: for those who decide themselves what is read together, and ahead."""
        return self._fetch(pack, offset, length) if length else b""

    def read_many(self, wanted: Sequence[tuple[str, int, int]]) -> Iterator[Buffer]:
        """`read` of several (pack, offset, length), in their order. Near ones are one request; requests run at a time.

        All requests are begun now; what is asked for first can be used while the rest is on its way. Memory: all of what is
        asked for, gaps of at most RANGE_GAP_BYTES, and the rest of windows (ranges.py).
        """
        runs = runs_of(wanted)
        # Who asks for so much at once knows what it needs, and asks early: what lies around it is nobody's yet.
        alone = sum(length for _, _, length in wanted) >= limits.READ_AHEAD_BELOW_BYTES
        return self._as_they_come(wanted, runs, [self._requests(run, alone) for run in runs])

    def _requests(self, run: Run, alone: bool) -> list[_Request]:
        begun = []
        follows = not alone and self._ahead.follows(run.pack, run.offset, run.end)
        for piece in pieces_of(run, self._windows.known, follows, alone):
            if piece.window is not None:
                answer, base = self._windows.window(run.pack, piece.window), piece.window * limits.WINDOW_BYTES
            else:
                answer = self._threads().submit(self._fetch, run.pack, piece.offset, piece.end - piece.offset)
                base = piece.offset
            begun.append(_Request(piece.offset, piece.end, base, answer))
        return begun

    def _as_they_come(
        self, wanted: Sequence[tuple[str, int, int]], runs: Sequence[Run], requests: list[list[_Request]]
    ) -> Iterator[Buffer]:
        run_of = {number: at for at, run in enumerate(runs) for number in run.members}
        left = [len(run.members) for run in runs]
        for number, (pack, offset, length) in enumerate(wanted):
            if not length:
                yield b""
                continue
            at = run_of[number]
            try:
                part = _cut(requests[at], offset, offset + length)
            except BaseException:
                self._windows.forget(pack)
                raise
            left[at] -= 1
            if not left[at]:
                self._forget_used(runs[at], requests[at])
                requests[at] = []  # its memory goes now
            yield part

    def _forget_used(self, run: Run, requests: list[_Request]) -> None:
        for request in requests:
            end = request.base + limits.WINDOW_BYTES
            if request.base % limits.WINDOW_BYTES == 0 and end <= run.end:
                self._windows.used_up(run.pack, request.base // limits.WINDOW_BYTES)

    def packs(self) -> Iterator[str]:
        """Ids of all sealed packs, in no order."""
        for entry in self._client.walk("packs"):
            match = _PACK.fullmatch(entry.path)
            if match:
                yield match[1]

    def create_pack(self, pack: str) -> ObjectPackSink:
        """Begin a pack under a new random id. Nothing is sent before the first part is full."""
        return ObjectPackSink(self._client, self._path(pack), self._threads, self._before_seal)

    def _before_seal(self) -> None:
        """What live writers ask for is with the server before the packs that it is about."""
        self._keeper.renew_all(only_dirty=True)

    def _threads(self) -> Executor:
        with self._lock:
            if self._uploads is None:
                self._uploads = ThreadPoolExecutor(limits.OBJECT_THREADS, "lepton-object")
            return self._uploads

    def delete_pack(self, pack: str) -> None:
        """Remove a pack; no error when it is not there. Raises NotPermitted."""
        self._ahead.forget(pack)
        self._client.delete(self._path(pack))

    def set_aside(self, pack: str) -> str | None:
        """Copy a pack to damaged/ and remove it; where it is now, None when it is not there."""
        self._ahead.forget(pack)
        to = f"damaged/{pack}.pack"
        try:
            self._client.copy(self._path(pack), to)
        except FileNotFoundError:
            return None
        self._client.delete(self._path(pack))
        return f"{self.url}/{to}"

    # -- locks ---------------------------------------------------------------------------------------------------

    def hold_lock(self, folder: str, data: bytes) -> ObjectLock:
        """A new document in `folder`, renewed by a thread for as long as this process lives."""
        return self._keeper.hold(folder, data)

    def live_locks(self, folder: str, bytes_max: int) -> dict[str, bytes]:
        """Name -> content of the documents in `folder` that were renewed lately; the others are removed."""
        return self._keeper.live(folder, bytes_max)

    # -- housekeeping --------------------------------------------------------------------------------------------

    def has_reserve(self) -> bool:
        """A bucket does not fill up: none is needed."""
        return True

    def release_reserve(self) -> None:
        """Nothing to release."""

    def restore_reserve(self) -> bool:
        """None is needed."""
        return True

    def remove_dead_temporaries(self, young_too: bool = False) -> int:
        """Remove what crashed processes left behind. Returns how many objects and uploads. Younger uploads stay in any case."""
        uploads = self._abort_stale_uploads()
        probes, _ = self._client.list_folder(CLOCK)
        if not probes:
            return uploads
        now = self._keeper.server_time()
        dead = [probe for probe in probes if is_dead(probe, now)]
        for probe in dead:
            self._client.delete(probe.path)
        return len(dead) + uploads

    def after_fork(self) -> None:
        """In a child process: no threads, no locks of the parent's; requests go through an obstore of its own."""
        self._lock, self._uploads = threading.Lock(), None
        self._client.after_fork()
        self._keeper.after_fork()
        self._ahead.clear()
        self._windows.clear()

    def close(self) -> None:
        """End the threads that read and write; the next request starts them again. Locks that are held stay held."""
        with self._lock:
            uploads, self._uploads = self._uploads, None
        if uploads is not None:
            uploads.shutdown()
        self._ahead.clear()
        self._windows.clear()


class _Request:
    """Bytes [start, end) of a pack, under way: part of an answer that begins at `base`."""

    __slots__ = ("answer", "base", "end", "start", "view")

    def __init__(self, start: int, end: int, base: int, answer: Future[Buffer]) -> None:
        self.start, self.end, self.base, self.answer = start, end, base, answer
        self.view: memoryview | None = None

    def bytes(self) -> memoryview:
        """All that was answered; waits for it, and raises what it raised."""
        view = self.view
        if view is None:
            view = self.view = memoryview(self.answer.result())
        return view


def _cut(requests: list[_Request], offset: int, end: int) -> Buffer:
    """[offset, end) out of pieces that have it; fewer bytes where the pack ends. A copy only where it lies in two of them."""
    parts = []
    for request in requests:
        if request.end <= offset:
            continue
        base = request.base
        if request.start <= offset and end <= request.end:
            return request.bytes()[offset - base : end - base]
        if request.start >= end:
            break
        parts.append(request.bytes()[max(offset, request.start) - base : min(end, request.end) - base])
    return b"".join(parts)
