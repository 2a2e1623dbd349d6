"""obstore with typed errors, bounded time and counters: the requests of an object tier.

    ObjectTier -> Client.get/put/create/walk/... -> obstore -> HTTP

Retries: obstore's own (exponential, with jitter), of what the server or the network failed at; a request that was answered with "no"
is not repeated. All of it ends within about OBJECT_RETRY_S + OBJECT_STALL_S. On top of that only reads are retried, where obstore gives up
although it has tries and time left (`Client._again`).

Fork: obstore's runtime has threads, which a forked child lacks; a request there would wait for ever. A client knows the process that it
was made in; in a child, requests go through a copy of obstore that is loaded again (object_fork.py).
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from leptonstore import limits
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, LeptonError, NotPermitted, StoreFull, TierMissing, TierUnavailable

# What servers say: a status, and in the body of an error a code, both of which obstore passes on in its message
# (where ports and milliseconds stand, too).
_STATUS = re.compile(r"status(?: code)?:? (\d{3})\b", re.IGNORECASE)
_CODE = re.compile(r"<Code>([^<]*)</Code>(?:.*?<Message>([^<]*)</Message>)?", re.DOTALL)
_NO_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "507"}
_FORBIDDEN = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "ExpiredToken", "401", "403"}
_PAST_END = {"InvalidRange", "416"}
_TRIES = re.compile(r"after (\d+) retries, max_retries: (\d+)")
_T = TypeVar("_T")
_METADATA_HOSTS = (
    "169.254.169.254",
    "169.254.170.2",
    "metadata.google.internal",
)  # asked when nothing else names a key
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
_NO_CREDENTIALS = re.compile(r"Missing ?Credential|MissingAccessKeyId|no credentials", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """An object as a listing tells it: path below the tier's root, size in bytes, when the server stored it, its ETag if it has one."""

    path: str
    size: int
    modified: datetime
    etag: str = ""


class Counters:
    """Requests by kind, and bytes each way. Any thread. What obstore repeats by itself counts once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, int] = {}

    def add(self, kind: str = "", bytes_read: int = 0, bytes_written: int = 0) -> None:
        """One request of that kind; none, when its bytes are told later."""
        with self._lock:
            for name, count in ((kind, 1), ("bytes_read", bytes_read), ("bytes_written", bytes_written)):
                if name and count:
                    self._values[name] = self._values.get(name, 0) + count

    def to_json(self) -> dict[str, int]:
        """get, put, part, head, list, delete, failed: requests; bytes_read, bytes_written."""
        with self._lock:
            return dict(self._values)

    def after_fork(self) -> None:
        """In a child process: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()


class Client:
    """Requests below one prefix of one bucket. Any thread, also of a child process made by fork."""

    def __init__(self, url: str, make: Callable[[Any], Any], lives_here: bool = False) -> None:
        """`make(obstore)` makes the obstore store; it is called again in a child, with that child's obstore.

        lives_here: what it makes is memory of this process, which a child cannot reach.
        """
        self.url, self.counters = url, Counters()
        self._make, self._lives_here = make, lives_here
        self._home = os.getpid()
        self._lock = threading.Lock()
        self._store: Any = None
        self._obstore: Any = None
        self._process = 0
        self._bucket_seen = False

    def _ready(self) -> tuple[Any, Any]:
        """(obstore, the store) of this process."""
        if self._process != os.getpid():
            with self._lock:
                if self._process != os.getpid():
                    self._connect()
        return self._obstore, self._store

    def _connect(self) -> None:
        from leptonstore.tiers.object_fork import obstore_of_this_process

        if self._lives_here and self._home != os.getpid():
            raise TierUnavailable(
                f"{self.url} lives in the process that made it: a child made by fork cannot reach it", self.url
            )
        self._obstore = obstore_of_this_process()
        try:
            self._store = self._make(self._obstore)
        except LeptonError:
            raise
        except Exception as error:
            raise BadInput(f"{self.url} cannot be opened: {_short(str(error))}; check {self._variables()}") from None
        self._process = os.getpid()

    def after_fork(self) -> None:
        """In a child process: another thread of the parent may have held a lock."""
        self._lock = threading.Lock()
        self.counters.after_fork()

    # -- errors --------------------------------------------------------------------------------------------------

    @contextmanager
    def _typed(self, path: str) -> Iterator[None]:
        """FileNotFoundError when the object is not there; typed errors for all else that obstore raises."""
        try:
            yield
        except Exception as error:
            raise self._failed(error, path) from None

    def _failed(self, error: BaseException, path: str) -> Exception:
        typed = self.error(error, path)
        if not isinstance(typed, FileNotFoundError):  # that is an answer
            self.counters.add("failed")
        return typed

    def error(self, error: BaseException, path: str) -> Exception:
        """What to raise instead of an error of obstore."""
        if isinstance(error, LeptonError):
            return error
        text, name = str(error), type(error).__name__
        said = _said(text)
        where = f"{self.url}/{path}" if path else self.url
        if any(host in text for host in _METADATA_HOSTS):
            return NotPermitted(
                f"{where}: no credentials were found: set {self._variables()}, or use a profile or a role"
            )
        if said & _NO_BUCKET or "specified bucket does not exist" in text:
            return TierMissing(f"{self.url}: no such bucket: create it, or correct the name", self.url)
        if isinstance(error, FileNotFoundError) or name == "NotFoundError":
            return FileNotFoundError(2, "no such object", where)
        if name in ("PermissionDeniedError", "UnauthenticatedError") or isinstance(error, PermissionError):
            return self._forbidden(where, text)
        if said & _FULL:
            return StoreFull(f"{where}: the server has no space left (or its quota is used up): {_short(text)}")
        if said & _FORBIDDEN or _NO_CREDENTIALS.search(text):
            return self._forbidden(where, text)
        if name in ("UnknownConfigurationKeyError", "InvalidPathError", "ValueError", "TypeError"):
            return BadInput(f"{where} cannot be used: {_short(text)}")
        return TierUnavailable(
            f"{where}: the server does not answer as it should ({_short(text)}); check the endpoint and the network, then run "
            "it again: nothing half-written is visible",
            self.url,
        )

    def _forbidden(self, where: str, text: str) -> NotPermitted:
        return NotPermitted(
            f"{where}: the server refused these credentials ({_short(text)}); check {self._variables()}, and what they are "
            "allowed to do"
        )

    def _variables(self) -> str:
        return _VARIABLES.get(self.url.partition("://")[0], "the credentials")

    def _again(self, kind: str, request: Callable[[Any, Any], _T]) -> _T:
        """A request that changes nothing, made again where obstore gives up although it has tries left: a connection that the server
        closed at that moment (`error sending request`), as load balancers do."""
        obstore, store = self._ready()
        end = time.monotonic() + limits.OBJECT_RETRY_S
        for tries in range(1, limits.OBJECT_RETRIES_MAX + 1):
            self.counters.add(kind)
            try:
                return request(obstore, store)
            except Exception as error:
                if not _gave_up_early(str(error)) or time.monotonic() >= end:
                    raise
            time.sleep(random.uniform(0, min(limits.OBJECT_BACKOFF_S_MAX, 0.05 * tries)))
        self.counters.add(kind)
        return request(obstore, store)

    # -- requests ------------------------------------------------------------------------------------------------

    def get(self, path: str) -> bytes:
        """A whole object. Raises FileNotFoundError."""
        with self._typed(path):
            data = self._again("get", lambda obstore, store: bytes(obstore.get(store, path).bytes()))
        self.counters.add(bytes_read=len(data))
        return data

    def get_range(self, path: str, offset: int, length: int) -> Buffer:
        """At most `length` (> 0) bytes from `offset` on; fewer where the object ends. Raises FileNotFoundError."""
        try:
            data = self._again(
                "get", lambda obstore, store: obstore.get_range(store, path, start=offset, end=offset + length)
            )
        except Exception as error:
            if _is_past_end(error) and self.size(path) <= offset:
                return b""
            raise self._failed(error, path) from None
        self.counters.add(bytes_read=len(data))
        return memoryview(data)

    def size(self, path: str) -> int:
        """Bytes of an object. Raises FileNotFoundError."""
        return self.entry(path).size

    def entry(self, path: str) -> Entry:
        """What the server says of an object. Raises FileNotFoundError."""
        try:
            with self._typed(path):
                found = _entry(self._again("head", lambda obstore, store: obstore.head(store, path)))
        except FileNotFoundError:
            self._require_bucket()
            raise
        self._bucket_seen = True
        return found

    def _require_bucket(self) -> None:
        """An answer to HEAD does not tell a missing bucket, in which nothing is lost, from a missing object. Raises TierMissing."""
        if not self._bucket_seen:
            with suppress(NotPermitted):  # who may read objects need not be allowed to list them
                self.list_folder("HEAD")
            self._bucket_seen = True

    def put(self, path: str, data: Buffer) -> None:
        """Create or replace an object with one request."""
        obstore, store = self._ready()
        self.counters.add("put", bytes_written=len(data))
        with self._typed(path):
            obstore.put(store, path, data, use_multipart=False)

    def create(self, path: str, data: Buffer) -> bool:
        """Create an object if it is absent: whether the server says that we did. After a lost answer it may say no."""
        obstore, store = self._ready()
        self.counters.add("put", bytes_written=len(data))
        try:
            obstore.put(store, path, data, mode="create")
        except Exception as error:
            if type(error).__name__ in ("AlreadyExistsError", "PreconditionError") or isinstance(
                error, FileExistsError
            ):
                return False
            raise self._failed(error, path) from None
        return True

    def delete(self, path: str) -> None:
        """Remove an object; no error when it is not there."""
        obstore, store = self._ready()
        self.counters.add("delete")
        try:
            with self._typed(path):
                obstore.delete(store, path)
        except FileNotFoundError:
            return

    def copy(self, path: str, to: str) -> None:
        """Copy an object on the server. Raises FileNotFoundError."""
        obstore, store = self._ready()
        self.counters.add("put")
        with self._typed(path):
            obstore.copy(store, path, to)

    def walk(self, folder: str) -> Iterator[Entry]:
        """All objects below `folder`, page by page."""
        obstore, store = self._ready()
        pages = None
        while True:
            with self._typed(folder):
                if pages is None:
                    pages = iter(obstore.list(store, folder or None, chunk_size=1000))
                page = next(pages, None)
            if page is None:
                return
            self.counters.add("list")
            yield from _entries(page, folder)

    def list_folder(self, folder: str) -> tuple[list[Entry], list[str]]:
        """The objects right in `folder`, and the names of folders in it."""
        obstore, store = self._ready()
        self.counters.add("list")
        with self._typed(folder):
            found = obstore.list_with_delimiter(store, folder or None)
        return _entries(found["objects"], folder), [prefix.rstrip("/") for prefix in found["common_prefixes"]]

    def open_writer(self, path: str, part_bytes: int, concurrency: int) -> Any:
        """obstore's writer of a multipart upload. Whoever uses it translates its errors by `error`."""
        obstore, store = self._ready()
        return obstore.open_writer(store, path, buffer_size=part_bytes, max_concurrency=concurrency)


def _entry(meta: Any) -> Entry:
    return Entry(str(meta["path"]), int(meta["size"]), meta["last_modified"], str(meta.get("e_tag") or ""))


def _entries(metas: Any, folder: str) -> list[Entry]:
    """What is listed, without the empty object "folder/" by which consoles and some servers mark a folder."""
    return [entry for entry in map(_entry, metas) if entry.path != folder]


def _gave_up_early(text: str) -> bool:
    # At its first try it names no number of tries.
    tries = _TRIES.search(text)
    return "error sending request" in text and (tries is None or int(tries[1]) < int(tries[2]))


def _said(text: str) -> set[str]:
    """The status and the code of an answer."""
    found = (_STATUS.search(text), _CODE.search(text))
    return {match[1] for match in found if match is not None}


def _is_past_end(error: BaseException) -> bool:
    """Whether a range began where the object had ended. A store in memory says it in words of its own."""
    text = str(error)
    return bool(_said(text) & _PAST_END) or "StartTooLarge" in text or "range start" in text.lower()


def _short(text: str) -> str:
    """One line of an error's text, which is long and comes from a server in part."""
    text = text.partition("\n\nDebug source")[0]
    told = _CODE.search(text)
    line = ": ".join(filter(None, told.groups())) if told else " ".join(text.split())
    line = "".join(char if char.isprintable() else "?" for char in line)
    return line if len(line) <= 300 else f"{line[:200]} … {line[-90:]}"
