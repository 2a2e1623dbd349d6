"""Principals and their grants: whom a credential stands for, and what that one may.

A principal is who a credential stands for. It has grants: a scope for one dataset (by name, all kinds and branches of it) or for the whole
store. A request is allowed when a grant covers the scope that its operation needs (operations.py) of what it names.
"""

from __future__ import annotations

from dataclasses import dataclass

from leptonstore.daemon.operations import Of, Operation, Scope
from leptonstore.dataset.refs import check_name
from leptonstore.errors import BadInput, NotPermitted, listed

_COVERS = {
    Scope.READ: frozenset((Scope.READ,)),
    Scope.WRITE: frozenset((Scope.READ, Scope.WRITE)),
    Scope.ADMIN: frozenset((Scope.READ, Scope.WRITE, Scope.ADMIN)),
    Scope.PEER: frozenset((Scope.PEER,)),
}


@dataclass(frozen=True)
class Grant:
    """A scope for one dataset, or (None) for the whole store."""

    scope: Scope
    dataset: str | None = None

    @classmethod
    def parse(cls, text: str) -> Grant:
        """From "read", or "write:NAME" for one dataset. Raises BadInput."""
        scope, colon, dataset = text.partition(":")
        if scope not in set(Scope):
            raise BadInput(f"{text!r:.120} grants nothing: use {listed(Scope)}, or SCOPE:NAME for one dataset")
        if colon and scope == Scope.PEER:
            raise BadInput("a peer is a daemon of the same store: `peer` takes no dataset")
        return cls(Scope(scope), check_name(dataset, "dataset") if colon else None)

    def __str__(self) -> str:
        return self.scope.value if self.dataset is None else f"{self.scope.value}:{self.dataset}"


@dataclass(frozen=True)
class Principal:
    """Whom a credential stands for. `id` is what logs say; `name` is for people; neither is a secret. Immutable: any thread."""

    id: str
    name: str
    grants: tuple[Grant, ...]

    def may(self, scope: Scope, dataset: str | None = None) -> bool:
        """Whether a grant covers `scope` of `dataset` (None: of the whole store)."""
        return any(scope in _COVERS[grant.scope] and grant.dataset in (None, dataset) for grant in self.grants)

    def datasets(self, scope: Scope) -> frozenset[str] | None:
        """The datasets that it may use so, by name; None: all."""
        if self.may(scope):
            return None
        return frozenset(
            grant.dataset for grant in self.grants if grant.dataset is not None and scope in _COVERS[grant.scope]
        )

    def require(self, operation: Operation, dataset: str | None = None) -> None:
        """Raise NotPermitted unless it may do `operation` (of `dataset`, where the request names one)."""
        if operation.of is Of.NOTHING:
            return
        if operation.of is Of.ANY:
            allowed = self.datasets(operation.scope) != frozenset()
        else:
            allowed = self.may(operation.scope, dataset if operation.of is Of.DATASET else None)
        if not allowed:
            what = f"dataset {dataset!r}" if operation.of is Of.DATASET else "this store"
            raise NotPermitted(
                f"{operation.name!r} of {what} needs the scope {operation.scope.value!r}; this credential does not have it"
            )
