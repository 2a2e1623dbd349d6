"""Each: transforms of one value for every value of a list or window."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from loaders.transforms.base import Transform, as_transform


class Each(Transform):
    """Calls the steps for every value of a window (loaders.row_windows), or of a list; arrays of one shape become one array.

    Random steps draw the same for all values of a window: a crop is the same crop of every frame.
    """

    cacheable = False

    def __init__(self, *steps: Any) -> None:
        self.steps = [as_transform(step) for step in steps]
        self.deterministic = all(step.deterministic for step in self.steps)
        self.threads = all(step.threads for step in self.steps)

    def parameters(self) -> dict[str, Any]:
        """Of the steps."""
        return {"steps": [[step.name, step.version, step.parameters()] for step in self.steps]}

    def libraries(self) -> dict[str, str]:
        """Of the steps."""
        return {name: version for step in self.steps for name, version in step.libraries().items()}

    def __call__(self, value: Any, rng: Any = None) -> Any:
        values = list(value)
        for step in self.steps:
            if step.deterministic:
                values = [step(one) for one in values]
                continue
            start, done = copy.deepcopy(rng), []
            for one in values:
                rng.bit_generator.state = start.bit_generator.state
                done.append(step(one, rng))
            values = done
        alike = len({(one.shape, one.dtype) for one in values if isinstance(one, np.ndarray)}) == 1
        return np.stack(values) if alike and all(isinstance(one, np.ndarray) for one in values) else values
