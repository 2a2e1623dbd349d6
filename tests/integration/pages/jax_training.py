"""docs/jax-training.md: a store, and eight JAX devices in a process without torch."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.integration.docs_blocks import Place

EXTRAS = ("jax",)
OWN_PROCESS = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}


def setting(place: Place) -> Iterator[None]:
    place.names["store"] = place.store
    yield
    assert "torch" not in sys.modules
