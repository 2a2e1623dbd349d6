"""Leases over the wire: one credential cannot take all that there are."""

from __future__ import annotations

import pyarrow as pa
import pytest

from leptonstore.daemon import bounds
from leptonstore.daemon.holding import Leases
from leptonstore.daemon.operations import Scope
from leptonstore.daemon.principals import Grant, Principal
from leptonstore.dataset import Source, write_dataset
from leptonstore.errors import TooBusy
from leptonstore.store import Store


def test_one_credential_cannot_take_every_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LEASES_MAX", 6)
    monkeypatch.setattr(bounds, "LEASES_OF_ONE_MAX", 3)
    table = pa.table({"id": [1]})
    commit = write_dataset(store, "birds", Source(table.schema, ("id",), lambda: iter(table.to_batches()))).commit
    one, two = (Principal(name, name, (Grant(Scope.READ),)) for name in ("one", "two"))
    leases = Leases(store)
    try:
        held = [leases.take(one, commit) for _ in range(3)]
        with pytest.raises(TooBusy):
            leases.take(one, commit)
        assert leases.take(one, commit, held[0]) == held[0]  # renewing takes no more
        assert leases.take(two, commit)
        leases.release(one, held[0])
        assert leases.take(one, commit)
    finally:
        leases.close()
