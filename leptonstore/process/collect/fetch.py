"""An item's bytes: read where it is, as often as it takes, not faster than asked for, and checked.

HTTP(S) goes through urllib3: connections are kept, redirects followed (to http and https only), 429 and 5xx tried again after what the
server says (Retry-After) or with growing waits. Other places are read as importers read them. Any thread.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from blake3 import blake3

from leptonstore import limits
from leptonstore.dataset.importers.reading import read_up_to, reading
from leptonstore.dataset.optional import require_module
from leptonstore.dataset.places import Place, UrlPlace
from leptonstore.errors import BadInput, SourceError, Stopped
from leptonstore.process.collect.items import Item
from leptonstore.version import __version__

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|m|h)")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def rate_of(text: str) -> float:
    """ "5/s", "100/m", "1000/h" -> requests a second. Raises BadInput."""
    found = _RATE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise BadInput(f"{text!r} is no rate; say 5/s, 100/m or 1000/h")
    return float(found[1]) / _SECONDS[found[2]]


class Rate:
    """Lets callers through one after another, `per_second` at most. Any thread. sleep: until then; a Fetcher gives one that it can end."""

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._gap, self._clock, self.sleep = 1 / per_second, clock, sleep
        self._lock, self._next = threading.Lock(), 0.0

    def wait(self) -> None:
        """Returns when it is the caller's turn."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._gap
        if turn > now:
            (self.sleep or time.sleep)(turn - now)


class Fetcher:
    """Fetches items. rate: of requests, None: as fast as it goes. workers: how many threads will call."""

    def __init__(self, rate: Rate | None = None, workers: int = limits.COLLECT_WORKERS) -> None:
        self._rate, self._workers = rate, workers
        self._stopped = threading.Event()
        if rate is not None and rate.sleep is None:
            rate.sleep = self._wait
        self._http: Any = None
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Fetch again after `stop`."""
        self._stopped.clear()

    def stop(self) -> None:
        """What waits for its turn, or to try again, gives up: a rate of 1/h is nothing to wait for after Ctrl-C. Any thread."""
        self._stopped.set()

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds):
            raise Stopped("fetching was stopped; run it again")

    def fetch(self, item: Item) -> bytes:
        """All of it. Raises SourceError: it is not there, too large, or not what its checksums say; Stopped."""
        self._wait(0)
        if item.size > limits.COLLECT_FILE_BYTES_MAX:
            raise self._too_large(item)
        if self._rate is not None:
            self._rate.wait()
        place = item.place
        if isinstance(place, UrlPlace) and place.url.split(":", 1)[0] in ("http", "https") and "::" not in place.url:
            data = self._over_http(item, place)
        else:
            data = self._from(item, place)
        if item.size >= 0 and len(data) != item.size:
            raise SourceError(
                f"{item.source} has {len(data):,} bytes where {item.size:,} were announced; fetch it again"
            )
        for name, wanted in item.checksums.items():
            found = (
                blake3(data).hexdigest()
                if name == "blake3"
                else hashlib.new(name, data, usedforsecurity=False).hexdigest()
            )
            if found != wanted:
                raise SourceError(
                    f"{item.source} has {name} {found}, not {wanted} as the list says; fetch it again or mend the list"
                )
        return data

    def _from(self, item: Item, place: Place) -> bytes:
        with reading(place), _opened(place) as file:
            return self._read(item, file)

    def _read(self, item: Item, file: IO[bytes] | Any) -> bytes:
        data = read_up_to(file, limits.COLLECT_FILE_BYTES_MAX + 1)
        if len(data) > limits.COLLECT_FILE_BYTES_MAX:
            raise self._too_large(item)
        return bytes(data)

    def _too_large(self, item: Item) -> SourceError:
        most = limits.COLLECT_FILE_BYTES_MAX
        return SourceError(f"{item.source} has over {most:,} bytes; import it with `lepton import --format files`")

    def _over_http(self, item: Item, place: UrlPlace) -> bytes:
        urllib3 = require_module("collecting over HTTP", "collect", "urllib3")
        try:
            answer = self._pool(urllib3).request("GET", place.url, preload_content=False, decode_content=True)
            try:
                if answer.status != 200:
                    raise SourceError(
                        f"{item.source} answers {answer.status} {answer.reason or ''}".rstrip() + "; check the URL"
                    )
                return self._read(item, answer)
            finally:
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, ValueError) as error:  # ValueError: a redirect to what is no URL
            # urllib3 shows URLs with what may be secret in them, and Python objects.
            why = type(getattr(error, "reason", None) or error).__name__
            raise SourceError(f"{item.source} could not be fetched ({why}); check the network and the URL") from None

    def _pool(self, urllib3: Any) -> Any:
        with self._lock:
            if self._http is None:
                wait = self._wait

                class Retry(urllib3.Retry):  # type: ignore[misc, name-defined, unused-ignore]
                    def sleep(self, response: Any = None) -> None:
                        asked = self.get_retry_after(response) if response is not None else None
                        wait(self.get_backoff_time() if asked is None else asked)

                retries = Retry(
                    total=limits.COLLECT_HTTP_TRIES,
                    backoff_factor=limits.COLLECT_HTTP_BACKOFF_S,
                    status_forcelist=(429, 500, 502, 503, 504),
                    retry_after_max=limits.COLLECT_HTTP_WAIT_S_MAX,
                    raise_on_status=False,
                )
                timeout = urllib3.Timeout(connect=limits.COLLECT_HTTP_TIMEOUT_S, read=limits.COLLECT_HTTP_TIMEOUT_S)
                headers = {"User-Agent": f"leptonstore/{__version__}", "Accept-Encoding": "identity"}
                self._http = urllib3.PoolManager(
                    maxsize=self._workers, retries=retries, timeout=timeout, headers=headers
                )
            return self._http


def _opened(place: Place) -> IO[bytes]:
    """To be read. What became a pipe or a device since it was listed is refused: opening one may wait for ever."""
    if not isinstance(place, Path):
        return place.open("rb")
    fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(0, "not a regular file")
        return cast(IO[bytes], open(fd, "rb"))
    except BaseException:
        os.close(fd)
        raise
