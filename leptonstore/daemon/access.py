"""Who asks, and what they may: principals and their grants.

A principal is who a credential stands for. It has grants: a scope for one dataset (by name, all kinds and branches of it) or for the whole
store. A request is allowed when a grant covers the scope that its operation needs (operations.py) of what it names.
"""

from __future__ import annotations

from dataclasses import dataclass

from leptonstore.daemon.operations import Of, Operation, Scope
from leptonstore.errors import NotPermitted

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
