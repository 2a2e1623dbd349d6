"""Objects with `state_dict` and `load_state_dict`: the protocol of torchdata's StatefulDataLoader, and of torch's modules.

A dataset, an iterator over one, a sampler or an iterator over one may have both; a loader then keeps what they say in its
own state and hands it back. What they return should be JSON-able, if the loader's state is to be.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from loaders.state import LoaderStateError


def is_stateful(thing: Any) -> bool:
    """Whether `thing` has both methods."""
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def state_of(thing: Any) -> Any:
    """A copy of what `thing` says of itself: it may go on while the copy waits for its batch to be handed out."""
    return deepcopy(thing.state_dict())


def load(thing: Any, state: Any) -> None:
    """Give `thing` back what it said. Raises LoaderStateError when it takes nothing."""
    if not is_stateful(thing):
        raise LoaderStateError(
            f"the loader state has a state for the {type(thing).__name__} here, which has no load_state_dict: make the "
            "loader over the dataset, and with the sampler, that it was made with then"
        )
    thing.load_state_dict(state)
