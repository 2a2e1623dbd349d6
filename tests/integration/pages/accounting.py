"""docs/accounting.md: a dataset that can be learnt, and a configuration."""

from __future__ import annotations

from collections.abc import Iterator

from tests.integration.docs_blocks import Place
from tests.integration.training_data import quick_config, write_patterns


def setting(place: Place) -> Iterator[None]:
    place.names |= {"store": place.store, "patterns": write_patterns(place.store), "config": quick_config()}
    yield
