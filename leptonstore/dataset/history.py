"""The history of a dataset as methods of `Dataset`: each asks a file of its own, imported on use.

ds.history()            versions.py            ds.branch("cleanup"), ds.tag("v1")      branches.py
ds.diff("birds@v1")     diff.py                ds.merge("birds@cleanup")               integrate.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset
    from leptonstore.dataset.diff import Diff
    from leptonstore.dataset.versions import Version


class History:
    """Methods that look at other versions, or make names and versions from those that there are."""

    def history(self) -> list[Version]:
        """This version and all before it, newest first, with who published each and when."""
        from leptonstore.dataset.versions import versions

        here = cast("Dataset", self)
        return list(versions(here.store, [here.commit]))

    def diff(self, other: Dataset | str) -> Diff:
        """What changed from this version to `other`: a version, or a name such as "birds@v1"."""
        from leptonstore.dataset.diff import Diff
        from leptonstore.dataset.refs import resolve_ref

        here = cast("Dataset", self)
        return Diff(
            here.store,
            here.commit,
            resolve_ref(here.store, "dataset", other)[2] if isinstance(other, str) else other.commit,
        )

    def merge(self, theirs: Dataset | str, **options: Any) -> Dataset:
        """Merge another version into the branch that this one was opened by; returns its new head. Options as `integrate.merge`."""
        from leptonstore.dataset.integrate import merge

        here = cast("Dataset", self)
        name = theirs if isinstance(theirs, str) else f"{theirs.name}@{theirs.commit}"
        return here.at(here.ref, merge(here.store, name, f"{here.name}@{here.ref}", **options).commit)

    def branch(self, name: str) -> Dataset:
        """A new branch that begins here, opened. Raises as `branches.create_ref`."""
        return self._named(name, tag=False)

    def tag(self, name: str) -> Dataset:
        """A name for this version that never moves, opened. Raises as `branches.create_ref`."""
        return self._named(name, tag=True)

    def _named(self, name: str, tag: bool) -> Dataset:
        from leptonstore.dataset.branches import create_ref

        here = cast("Dataset", self)
        return here.at(name, create_ref(here.store, "dataset", here.name, name, here.commit, tag).commit)
