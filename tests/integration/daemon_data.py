"""A store with some of everything for tests of the daemon over HTTP, and a control plane on a free port of loopback, in this process."""

from __future__ import annotations

import contextlib
import http.client
import io
import secrets
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from serving_client import TIMEOUT_S, Reply

from leptonstore.daemon.access import Access, AccessSettings
from leptonstore.daemon.http.server import HttpServer, make_app
from leptonstore.daemon.metrics import Metrics
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant
from leptonstore.daemon.reachable import Reachable
from leptonstore.daemon.service import Service
from leptonstore.daemon.tokens import TokenRing
from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.files import SCHEMA as FILES_SCHEMA
from leptonstore.dataset.schema import class_label_field, image_field, tensor_field, text_field
from leptonstore.store import Store
from leptonstore.store.wire.messages import encode
from leptonstore.web.limits import WebLimits

ROWS = 40
LARGE = np.random.default_rng(1).bytes(11 << 20)  # a file in pieces
FILES = {
    "a.txt": b"hello",
    "empty": b"",
    "deep/er/b.bin": bytes(range(256)) * 300,
    "page.html": b"<script>1</script>",
    "large.bin": LARGE,
}


def jpeg(number: int) -> bytes:
    """A small picture."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), number % 256, np.uint8)).save(out, "JPEG")
    return out.getvalue()


def samples() -> pa.Table:
    """Rows with a column of every kind."""
    rng = np.random.default_rng(0)
    tensors = rng.integers(0, 256, (ROWS, 28, 28), np.uint8)
    tensor = tensor_field("image", pa.uint8(), (28, 28), "image")
    storage = pa.FixedSizeListArray.from_arrays(pa.array(tensors.reshape(-1)), 28 * 28)
    columns: dict[pa.Field, Any] = {
        pa.field("id", pa.int64(), nullable=False): pa.array(range(ROWS)),
        class_label_field("label", ["zero", "one", "two"]): pa.array([at % 3 for at in range(ROWS)], pa.uint8()),
        tensor: pa.ExtensionArray.from_storage(tensor.type, storage),
        image_field("photo", "jpeg"): pa.array([jpeg(at) for at in range(ROWS)], pa.large_binary()),
        text_field("words"): pa.array([None if at == 3 else f"row {at} äöü" for at in range(ROWS)]),
        pa.field("score", pa.float64()): pa.array([float("nan") if at == 1 else at / 7 for at in range(ROWS)]),
        pa.field("a/b, c%d", pa.list_(pa.int32())): pa.array(
            [list(range(at)) for at in range(ROWS)], pa.list_(pa.int32())
        ),
    }
    return pa.table(list(columns.values()), schema=pa.schema(list(columns)))


def source(table: pa.Table, identity: tuple[str, ...]) -> Source:
    """A source over a table in memory."""
    return Source(table.schema, identity, lambda: iter(table.to_batches()), table.num_rows)


def filled(path: Path) -> Store:
    """A store with a dataset of samples (two versions, a tag), one of files, and one that others may not see."""
    store = Store.create(path)
    table = samples()
    write_dataset(store, "samples", source(table.slice(0, ROWS // 2), ("id",)))
    write_dataset(store, "samples", source(table, ("id",)), message="all of them")
    files = pa.table({"path": list(FILES), "data": list(FILES.values())}, schema=FILES_SCHEMA)
    write_dataset(store, "files", source(files, ("path",)))
    write_dataset(store, "hidden", source(pa.table({"secret": ["of another team"]}), ("secret",)))
    return store


@dataclass
class Plane:
    """A running control plane. tokens: by what they allow."""

    url: str
    store: Store
    server: HttpServer
    service: Service
    metrics: Metrics
    tokens: dict[str, str]
    log: list[str]

    @property
    def port(self) -> int:
        return self.server.port

    def ask(
        self,
        path: str,
        token: str | None = "admin",
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request on a connection of its own, its path as it stands here. token: a kind of GRANTS, or a token, or none."""
        told = dict(headers or {})
        if token is not None:
            told["authorization"] = f"Bearer {self.tokens.get(token, token)}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        try:
            connection.request(method, path, body, told)
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, names, answer.read())
        finally:
            connection.close()

    def act(self, op: str, token: str = "admin", payload: bytes = b"", **arguments: Any) -> Reply:
        """POST /v1/op with a request as LWR1."""
        body = encode(op, arguments, payload)
        return self.ask(f"/v1/{op}", token, "POST", body, {"content-type": "application/octet-stream"})

    def dataset(self, name: str) -> Dataset:
        return Dataset.open(self.store, name)


GRANTS = {
    "read": (Grant(Scope.READ),),
    "write": (Grant(Scope.WRITE),),
    "admin": (Grant(Scope.ADMIN),),
    "other": (Grant(Scope.ADMIN, "hidden"),),
    "samples": (Grant(Scope.READ, "samples"),),
    "files": (Grant(Scope.READ, "files"),),
}


@contextlib.contextmanager
def control_plane(
    store: Store,
    limits: WebLimits | None = None,
    settings: AccessSettings | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Plane]:
    """One over `store`, with a token of each kind of GRANTS."""
    reachable, metrics, log = Reachable(store), Metrics(), list[str]()
    service = Service(
        store,
        "data",
        open_store=lambda: Store.open(store.url),
        sight=reachable.visible,
        may_reach=reachable.may_reach,
    )
    ring = TokenRing.of(store)
    made = {name: ring.add(f"{name} {secrets.token_hex(4)}", grants) for name, grants in GRANTS.items()}
    tokens = {name: secret for name, (_, secret) in made.items()}
    access = Access(ring, settings)
    app = make_app(service, access, metrics, access_log=log.append)
    try:
        with HttpServer(app, limits=limits, tls=tls) as server:
            yield Plane(server.url, store, server, service, metrics, tokens, log)
    finally:
        service.close()
        reachable.close()
        for token, _ in made.values():
            ring.revoke(token.id)
