"""docs/parallel-training.md: a dataset `mnist` that is quickly learnt."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tests.integration.docs_blocks import Place
from tests.integration.training_data import write_patterns


def setting(place: Place) -> Iterator[None]:
    place.names |= {"store": place.store, "dataset": write_patterns(place.store, "mnist")}
    yield
    made, world = place.names["Block"](4), place.names["world"]
    assert (world.rank, world.size) == (0, 1) and place.names["result"].steps == 10
    assert made(torch.zeros(2, 4)).shape == (2, 4) and set(made.tensor_plan()) == {"up", "down"}
