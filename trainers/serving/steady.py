"""Outputs that do not depend on company: the rows of a request give the same bits alone, and in a batch with others.

Kernels of a CPU differ with the number of rows: a matrix of one row goes through another routine than one of sixty-four,
adds in another order, and differs in the last bits (measured: decisions/0043). From some number of rows on they agree, and
then a row's result depends neither on the number, nor on its place, nor on its neighbours. Which number that is depends on
the model, the machine and the number of threads, so it is measured when a server starts: rows are computed in batches of
`rows_max`, turned round in them, and then in batches of half the size, and so on until bits differ. Batches are then filled
up to the smallest size that agrees. The order of additions is decided by shapes and not by values, so that random rows
show what holds for all rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from trainers.serving.limits import PROBE_S_MAX
from trainers.signature import TensorSpec, probe_rows

Model = Callable[[Tensor], Tensor]


class Steady:
    """A model that is run in batches of certain sizes only. Not for several threads at a time.

    sizes    ascending powers of two; the last is rows_max
    exact    whether outputs are the same bits in every size, place and company
    spread   the largest difference that was seen between two of `sizes`, relative to the largest output; 0 when exact
    """

    def __init__(self, model: Model, spec: TensorSpec, rows_max: int) -> None:
        """Measures, for at most PROBE_S_MAX or as long as two batches of `rows_max` (a power of two) take."""
        self._model, self._rows_max = model, rows_max
        self.sizes: tuple[int, ...] = (rows_max,)
        self.exact, self.spread = True, 0.0
        self._measure(probe_rows(spec, rows_max))

    def __call__(self, rows: Tensor) -> Tensor:
        """[n, ...] -> [n, ...] for any n >= 1."""
        parts = [self._part(rows[at : at + self._rows_max]) for at in range(0, len(rows), self._rows_max)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def padded_to(self, rows: int) -> int:
        """The size in which a batch of so many rows is computed; 1 <= rows <= rows_max."""
        return next(size for size in self.sizes if size >= rows)

    def _part(self, rows: Tensor) -> Tensor:
        count, size = len(rows), self.padded_to(len(rows))
        if count < size:  # with a row that the model takes for certain
            rows = torch.cat([rows, rows[:1].expand(size - count, *rows.shape[1:])])
        return self._model(rows)[:count]

    def _measure(self, rows: Tensor) -> None:
        started = time.monotonic()
        expected = self._model(rows)
        if not self._agree(rows, expected, self._rows_max):
            self.exact, self.sizes = False, tuple(1 << at for at in range(self._rows_max.bit_length()))
            self.spread = max(self._apart(rows, expected, size) for size in (1, self._rows_max))
            return
        size = self._rows_max // 2
        while size and time.monotonic() - started < PROBE_S_MAX and self._agree(rows, expected, size):
            self.sizes = (size, *self.sizes)
            size //= 2

    def _agree(self, rows: Tensor, expected: Tensor, size: int) -> bool:
        """Whether batches of `size` give the expected bits, each row in two places and companies."""
        shift = max(1, size // 2 - 1)
        straight, turned = self._in_parts(rows, size), self._in_parts(rows.roll(shift, 0), size)
        return _same_bits(straight, expected) and _same_bits(turned.roll(-shift, 0), expected)

    def _apart(self, rows: Tensor, expected: Tensor, size: int) -> float:
        shifted = self._in_parts(rows.roll(1, 0), size).roll(-1, 0)
        scale = max(float(expected.abs().max()), torch.finfo(torch.float32).tiny)
        return float((shifted - expected).abs().max()) / scale

    def _in_parts(self, rows: Tensor, size: int) -> Tensor:
        return torch.cat([self._model(rows[at : at + size]) for at in range(0, len(rows), size)])


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
