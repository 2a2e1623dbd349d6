"""Whether a version reaches nothing but what its author may name: what was put in the session, or is visible to the principal.

    commits -> their trees, level by level (store/reach.py) -> each digest: own? visible? -> else NotPermitted

Below a commit that is visible everything is; so the walk costs what is new. A long value counts by its own digest: its pieces were looked
at when it was put (sessions.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from leptonstore.daemon.sessions import Session
from leptonstore.daemon.sight import Visible
from leptonstore.digest import Digest, parse_hex
from leptonstore.errors import NotPermitted
from leptonstore.format.commit import parse_commit
from leptonstore.store.reach import Reach

_AT_ONCE = 4_096  # digests that are asked for together


def require_reach(session: Session, visible: Visible, commits: Sequence[str], ends: Set[str]) -> None:
    """Raises NotPermitted unless everything that `commits` (hex) reach may be published from `session`; ends: where their history ends.

    Raises also ChunkMissing, ChunkCorrupt, FormatDamaged for what cannot be walked.
    """
    store = session.store
    own = _Own(session, visible)
    own.require([parse_hex(commit) for commit in ends])
    known = _Visible(visible)
    new = [commit for commit in commits if commit not in known]
    own.require([parse_hex(commit) for commit in new])  # before anything of it is read
    waiting: list[Digest] = []

    def visit(digest: Digest) -> None:
        waiting.append(digest)
        if len(waiting) >= _AT_ONCE:
            own.require(waiting)
            waiting.clear()

    parents = {parent.hex() for commit in new for parent in parse_commit(store.get(parse_hex(commit))).parents}
    walk = Reach(store, visit, store.cache_path("reach"))
    walk.walk(new, store.state.forgotten | ends, known, known=[one for one in sorted(parents) if one in known])
    own.require(waiting)


class _Own:
    def __init__(self, session: Session, visible: Visible) -> None:
        self._session, self._visible = session, visible

    def require(self, digests: Sequence[Digest]) -> None:
        rest = [digest for digest, own in zip(digests, self._session.owns(digests), strict=True) if not own]
        if rest and not all(self._visible(rest)):
            raise NotPermitted(
                "this version reaches something that was not put in this session, and that this credential may not read: nothing was "
                "published"
            )


class _Visible(Set[str]):
    """The commits that are visible, as a set that is asked and never listed."""

    def __init__(self, visible: Visible) -> None:
        self._visible = visible

    def __contains__(self, commit: object) -> bool:
        return isinstance(commit, str) and bool(self._visible([parse_hex(commit)])[0])

    def __iter__(self) -> Iterator[str]:
        raise TypeError("what is visible is not listed")

    def __len__(self) -> int:
        raise TypeError("what is visible is not counted")
