"""A source over another one: what a subclass does not say is as the other says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from loaders.order import Rows
from loaders.source import ColumnSpec, Keys, Source

S = TypeVar("S", bound=Source)


class WrappedSource(Generic[S]):
    """All of loaders.source.Source but `gather`. `columns` are those of `inner` until a subclass sets others."""

    def __init__(self, inner: S) -> None:
        self._inner = inner
        self.rows = inner.rows
        self.columns: tuple[ColumnSpec, ...] = inner.columns

    @property
    def name(self) -> str:
        """See Source."""
        return self._inner.name

    @property
    def commit(self) -> str:
        """See Source."""
        return self._inner.commit

    @property
    def fingerprint(self) -> str:
        """See Source: the same number means the same row."""
        return self._inner.fingerprint

    @property
    def cold(self) -> tuple[ColumnSpec, ...]:
        """See Source."""
        return self._inner.cold

    def fill_ahead(self) -> None:
        """See Source."""
        self._inner.fill_ahead()

    def fill(self) -> None:
        """See Source."""
        self._inner.fill()

    @property
    def plans(self) -> bool:
        """See Source."""
        return self._inner.plans

    def future_keys(self, rows: Rows, sizes: Sequence[int]) -> Keys:
        """See Source."""
        return self._inner.future_keys(rows, sizes)

    def plan(self, keys: Sequence[Keys], restart: bool) -> None:
        """See Source."""
        self._inner.plan(keys, restart)
