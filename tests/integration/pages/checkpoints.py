"""docs/checkpoints.md: a store."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    place.names["store"] = place.store
    yield
    names = place.names
    assert names["step"] == 5 and names["saved"].commit == names["commit"]
    assert torch.equal(names["target"]["model"]["weight"], names["weight"])
