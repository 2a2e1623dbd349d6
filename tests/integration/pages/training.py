"""docs/training.md: a dataset that is quickly learnt."""

from __future__ import annotations

from collections.abc import Iterator

from tests.integration.docs_blocks import Place
from tests.integration.training_data import write_patterns


def setting(place: Place) -> Iterator[None]:
    place.names |= {"store": place.store, "ds": write_patterns(place.store)}
    yield
