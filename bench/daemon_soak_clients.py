"""The clients of bench/daemon_soak.py: what each kind asks of a daemon, again and again, and what it must not be told.

    python -m bench.daemon_soak_clients URL HTTP_URL TOKEN_FILE SECONDS SEED KIND...

One process, a thread for each KIND, with a store object, and so connections, of its own. Prints one JSON line: how often each kind got
what it wanted, the typed refusals that it was told (Conflict, TooBusy: it went on), and everything else that went wrong.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from pyarrow import flight

from bench.soak import rows_of
from leptonstore.dataset import Dataset, Source, delete_ref, write_dataset
from leptonstore.dataset.edit import append
from leptonstore.digest import digest_of
from leptonstore.errors import Conflict, TooBusy
from leptonstore.store import Store
from leptonstore.store.wire.messages import encode

KEPT = 4  # datasets of a pusher
TAKEN = 500  # rows of one take
CHUNKS = 16  # of one request for chunks
HTTP_S = 60.0
PAGES = ("/ui/", "/ui/jobs", "/ui/tokens", "/ui/audit", "/ui/dataset/tokens", "/ui/dataset/shared")
GONE = (404, 410)  # of a page or value whose version was removed meanwhile
BUSY = (429, 503)


class Client:
    """One client of one kind. `unit` does one thing; it returns what it counts as."""

    def __init__(self, url: str, http_url: str, token: str, seed: int) -> None:
        self.url, self.http_url, self.token = url, http_url, token
        self.rng = random.Random(seed)
        self.seed, self.number = seed, 0

    def open(self) -> None:
        """Connect."""
        self.store = Store.open(self.url)

    def unit(self) -> str:
        """One piece of work."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go."""
        self.store.close()


class Bulk(Client):
    """Reads a whole dataset as record batches."""

    def unit(self) -> str:
        dataset = Dataset.open(self.store, "tokens")
        assert sum(batch.num_rows for batch in dataset.scan()) == len(dataset)
        return "datasets"


class Take(Client):
    """Takes rows in any order, and looks that they are those."""

    def unit(self) -> str:
        dataset = Dataset.open(self.store, "tokens")
        rows = [self.rng.randrange(len(dataset)) for _ in range(TAKEN)]
        assert dataset.take(rows, ["id"]).column("id").to_pylist() == rows
        return "takes"


class Chunks(Client):
    """Random chunks by digest."""

    def open(self) -> None:
        super().open()
        dataset = Dataset.open(self.store, "pictures")
        self.digests = [bytes.fromhex(one) for one in dataset.to_arrow(["digest"]).column("digest").to_pylist()]

    def unit(self) -> str:
        some = self.rng.sample(self.digests, CHUNKS)
        for digest, data in zip(some, self.store.get_many(some), strict=True):
            assert digest_of(data) == digest
        return "requests"


class Epochs(Client):
    """A loader's shuffled epochs."""

    def unit(self) -> str:
        from loaders import DataLoader

        dataset = Dataset.open(self.store, "tokens")
        loader = DataLoader(dataset, 256, shuffle=True, columns=["id"], seed=self.number)
        self.number += 1
        assert sum(len(batch["id"]) for batch in loader) == len(dataset)
        return "epochs"


class Push(Client):
    """New datasets, and old ones removed: garbage for the collection."""

    def unit(self) -> str:
        names = [f"push{self.seed}-{number}" for number in range(self.number - KEPT, self.number + 1)]
        rows = rows_of(self.seed * 100_000 + self.number)
        write_dataset(
            self.store, names[-1], Source(rows.schema, ("id",), lambda: iter(rows.to_batches()), rows.num_rows, {})
        )
        self.number += 1
        self.store.refresh()
        if f"dataset/{names[0]}/main" in self.store.state.refs:
            delete_ref(self.store, "dataset", names[0], "main")
        assert Dataset.open(self.store, names[-1]).to_arrow().equals(rows)
        return "pushes"


class Append(Client):
    """Rows for one dataset that all of this kind append to."""

    def unit(self) -> str:
        ids = np.arange(20) + self.rng.randrange(1 << 60)
        append(Dataset.open(self.store, "shared"), pa.table({"id": ids, "x": self.rng.choices(range(1000), k=20)}))
        return "appends"


class Content(Client):
    """Values and rows over HTTP, whole and in part."""

    def unit(self) -> str:
        row = self.rng.randrange(500)
        path = self.rng.choice(
            (
                f"/content/dataset/pictures@main/rows/{row}/data",
                f"/content/dataset/tokens@main/rows?start={row}&stop={row + 20}",
                "/content/dataset/shared@main",
                "/content/dataset",
            )
        )
        headers = {"range": "bytes=100-4099"} if path.endswith("/data") and self.rng.random() < 0.5 else {}
        return self.get(path, headers)

    def get(self, path: str, headers: dict[str, str] | None = None, token: str | None = None) -> str:
        """The body is read; what it counts as. Raises what is no answer that may be."""
        request = urllib.request.Request(self.http_url + path, headers=headers or {})
        request.add_header("authorization", f"Bearer {self.token if token is None else token}")
        try:
            with urllib.request.urlopen(request, timeout=HTTP_S) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            error.read()
            if error.code in BUSY:
                raise TooBusy("over HTTP") from None
            if error.code in GONE:
                return "gone"
            raise
        return "answers"


class Dashboard(Content):
    """Its pages, one after another; and what Prometheus and a load balancer ask for."""

    def unit(self) -> str:
        return self.get(self.rng.choice((*PAGES, "/metrics", "/healthz", "/readyz")))


class Bad(Content):
    """Tokens that are none, and bytes that are no requests."""

    def unit(self) -> str:
        match self.rng.randrange(4):
            case 0:
                return self._foreign_token()
            case 1:
                return self._garbage(self.url)
            case 2 if self.http_url:
                return self._garbage(self.http_url)
            case _ if self.http_url:
                return self._foreign_token_http()
        return self._foreign_token()

    def _foreign_token(self) -> str:
        address = urlsplit(self.url)
        with flight.FlightClient(f"grpc://{address.hostname}:{address.port}") as client:
            options = flight.FlightCallOptions(
                timeout=HTTP_S, headers=[(b"authorization", b"Bearer " + self.rng.randbytes(20).hex().encode())]
            )
            try:
                list(client.do_action(flight.Action("hello", encode("hello")), options))
            except (flight.FlightUnauthenticatedError, flight.FlightUnavailableError):  # refused, or refused for now
                return "refused"
        raise AssertionError("a token that is none was let in")

    def _foreign_token_http(self) -> str:
        try:
            self.get("/content/dataset", token="none")
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            return "refused"
        raise AssertionError("a token that is none was let in")

    def _garbage(self, url: str) -> str:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port), HTTP_S) as made:
            made.settimeout(HTTP_S)
            try:
                made.sendall(self.rng.randbytes(self.rng.choice((1, 30, 3_000))) + b"\r\n\r\n")
                made.shutdown(socket.SHUT_WR)
                while made.recv(65_536):
                    pass
            except OSError:
                pass
        return "garbage"


class Maintain(Client):
    """Has the daemon do its maintenance, one job after another."""

    JOBS: tuple[tuple[str, dict[str, Any]], ...] = (
        ("gc", {}),
        ("tiers", {}),
        ("scrub", {"bytes_per_s": 50_000_000}),
        ("gc", {}),
        ("tiers", {}),
        ("index", {}),
    )

    def unit(self) -> str:
        kind, options = self.JOBS[self.number % len(self.JOBS)]
        self.number += 1
        ask = self.store.link.act  # type: ignore[attr-defined]
        job = ask("job", {"kind": kind, "options": options})["job"]
        while job["state"] == "running":
            time.sleep(0.1)
            job = next(one for one in ask("jobs")["jobs"] if one["id"] == job["id"])
        if job["state"] != "done":
            raise AssertionError(f"{kind}: {job['state']} {job['error']}")
        moved = job["result"].get("moved") or job["result"].get("packs_removed")
        return f"{kind} that did something" if moved else kind


KINDS: dict[str, type[Client]] = {
    "bulk": Bulk,
    "take": Take,
    "chunks": Chunks,
    "epochs": Epochs,
    "push": Push,
    "append": Append,
    "content": Content,
    "dashboard": Dashboard,
    "bad": Bad,
    "maintain": Maintain,
}


def work(client: Client, kind: str, until: float, counts: Counter[str], wrong: list[str]) -> None:
    """Units of one client, until the time is over; after what must not be it goes on, so that all of that is seen."""
    try:
        client.open()
    except BaseException:
        wrong.append(f"{kind} could not begin: {traceback.format_exc()}")
        return
    while time.monotonic() < until and len(wrong) < 20:
        try:
            counts[f"{kind}: {client.unit()}"] += 1
        except (Conflict, TooBusy) as error:
            counts[f"{kind}: {type(error).__name__}"] += 1
            time.sleep(0.05)
        except BaseException:
            wrong.append(f"{kind}: {traceback.format_exc()}")
    try:
        client.close()
    except BaseException:
        wrong.append(f"{kind} could not end: {traceback.format_exc()}")


def run(url: str, http_url: str, token: str, seconds: float, seed: int, kinds: list[str]) -> dict[str, Any]:
    """All clients of this process."""
    counts, wrong, until = Counter[str](), [], time.monotonic() + seconds  # type: Counter[str], list[str], float
    made: list[tuple[Client, str]] = [
        (KINDS[kind](url, http_url, token, seed * 100 + number), kind) for number, kind in enumerate(kinds)
    ]
    do: Callable[..., None] = work
    threads = [threading.Thread(target=do, args=(client, kind, until, counts, wrong)) for client, kind in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"counts": counts, "wrong": wrong}


if __name__ == "__main__":
    url_, http_url_, token_file, seconds_, seed_, *kinds_ = sys.argv[1:]
    print(json.dumps(run(url_, http_url_, Path(token_file).read_text().strip(), float(seconds_), int(seed_), kinds_)))
