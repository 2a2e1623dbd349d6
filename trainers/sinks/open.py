"""A sink from what a user writes: "tensorboard:DIR"."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from leptonstore.errors import BadInput, MissingExtra
from trainers.sinks.sink import Sink

# kind -> (module that it needs, what the text after the colon is)
KINDS = {
    "tensorboard": ("tensorboard", "DIR"),
    "mlflow": ("mlflow", "URI"),
    "wandb": ("wandb", "PROJECT"),
}


def open_sink(spec: str) -> Sink:
    """The sink that `spec` (KIND:PLACE) names. Raises BadInput for another kind or no place, MissingExtra when its package is
    not installed."""
    kind, _, place = spec.partition(":")
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KINDS)}"
        raise BadInput(f"{spec!r} is no place for curves: there is no kind {kind!r}; {hint}")
    module, wanted = KINDS[kind]
    if not place and kind != "mlflow":
        raise BadInput(f"{spec!r} does not say where: give {kind}:{wanted}")
    # Only looked for: mlflow takes seconds to import, which the sink's own thread can spend.
    if find_spec(module) is None:
        raise MissingExtra(f"logging to {kind}", kind, module)
    make: Callable[[str], Sink] = import_module(f"trainers.sinks.{kind}").open_place
    return make(place)
