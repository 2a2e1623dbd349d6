"""docs/security.md: ./store."""

from __future__ import annotations

from collections.abc import Iterator

from leptonstore.store import Store
from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    Store.create(place.folder / "store").close()
    yield
    assert (place.folder / "client.crt").exists() and (place.folder / "server.key").stat().st_mode & 0o77 == 0
