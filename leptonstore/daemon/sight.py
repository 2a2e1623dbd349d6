"""What a principal may see, as the parts of the data plane ask for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from leptonstore.daemon.operations import Scope
from leptonstore.digest import Digest
from leptonstore.errors import NotPermitted

if TYPE_CHECKING:
    from leptonstore.daemon.access import Principal

Visible: TypeAlias = Callable[[Sequence[Digest]], Sequence[bool]]
Sight: TypeAlias = "Callable[[Principal], Visible | None]"  # None: everything


def store_wide_only(principal: Principal) -> Visible | None:
    """The sight of a daemon that cannot tell what belongs to which dataset: who may read the whole store sees all, nobody else anything."""
    if principal.may(Scope.READ):
        return None
    raise NotPermitted(
        "this credential is limited to some datasets, and this daemon cannot tell what belongs to them: use one for the whole store"
    )


def sees_ref(principal: Principal, ref: str) -> bool:
    """Whether a ref (KIND/NAME/BRANCH) is of a dataset that the principal may read."""
    parts = ref.split("/")
    return len(parts) == 3 and principal.may(Scope.READ, parts[1])
