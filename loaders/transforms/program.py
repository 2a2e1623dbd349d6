"""A chain of transforms made ready to run: by sample in any threads, then once for each batch.

    values -- sample, by groups of samples, in any thread or process --> out -- batch, once --> tensor or list

`compile_chain` looks at the whole chain: what it knows to do together (decode, crop and resize of images: image_program.py) becomes
one program, anything else is called step by step. Both give the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from loaders.source import ColumnSpec
from loaders.transforms.base import SampleFailed, Transform, Values, as_transform, described
from loaders.transforms.image_program import fuse, output_spec
from loaders.transforms.keys import SampleKeys
from loaders.transforms.stacking import stacked

__all__ = ["Buffer", "ChainProgram", "Collate", "Program", "SampleFailed", "Values", "compile_chain", "output_spec"]

Buffer: TypeAlias = npt.NDArray[Any] | list[Any]
Collate: TypeAlias = Callable[[list[Any]], Any]


class Program(Protocol):
    """What becomes of the values of a column. Immutable; any thread; pickles when its transforms do."""

    @property
    def threads(self) -> bool:
        """Whether it spends most of its time without the GIL, so that threads help."""

    @property
    def fingerprint(self) -> str:
        """Name, version and parameters of every step, and the versions of the libraries that decide their results."""

    def buffer(self, rows: int) -> Buffer:
        """For the results of that many samples: an uninitialised array, or a list."""

    def sample(self, values: Values, keys: SampleKeys, out: Buffer, first: int) -> None:
        """The values of some consecutive samples; `keys` are theirs, one for each. Fills out[first : first + len(values)].

        Raises SampleFailed from what a transform raised; results of the values before it stand in `out`.
        """

    def batch(self, out: Buffer, keys: SampleKeys) -> Any:
        """What is done once for a batch whose samples all stand in `out`: its column, an array, or what a collate makes, or a list.

        It may keep `out` in the result: a buffer is for one batch. Raises BadInput for values that do not fit together.
        """


def compile_chain(
    chain: Sequence[Any], spec: ColumnSpec, collate: Collate | None = None, first_index: int = 0
) -> Program:
    """The program of a column's chain. `collate` makes the batch's column of the list of values, instead of stacking them.

    first_index: place of the first step in the whole chain, where others have been done before; it decides the randomness.
    Raises TypeError for a step that is no transform.
    """
    steps = [as_transform(step) for step in chain]
    fused = fuse(steps, spec, first_index) if collate is None else None
    return fused or ChainProgram(steps, spec.name, collate, first_index)


class ChainProgram:
    """Every step is called for every value. See Program."""

    def __init__(self, steps: list[Transform], column: str, collate: Collate | None, first_index: int) -> None:
        self.steps, self.column, self.collate = steps, column, collate
        self._first_index = first_index

    @property
    def threads(self) -> bool:
        """Whether all of them release the GIL."""
        return all(step.threads for step in self.steps)

    @property
    def fingerprint(self) -> str:
        """Of the steps, in order."""
        return described(self.steps)

    def buffer(self, rows: int) -> list[Any]:
        """A list: nothing is known of the values."""
        return [None] * rows

    def sample(self, values: Values, keys: SampleKeys, out: Buffer, first: int) -> None:
        """See Program."""
        for i, value in enumerate(values):
            out[first + i] = self.run(value, i, keys)

    def run(self, value: Any, i: int, keys: SampleKeys) -> Any:
        """The i-th value through all steps. Raises SampleFailed."""
        for number, step in enumerate(self.steps):
            try:
                value = step(value) if step.deterministic else step(value, keys.rng(i, self._first_index + number))
            except Exception as error:
                raise SampleFailed(i, step.name) from error
        return value

    def batch(self, out: Buffer, keys: SampleKeys) -> Any:
        """See Program."""
        return self.collate(list(out)) if self.collate is not None else stacked(list(out), self.column)
