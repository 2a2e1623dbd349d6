"""Publish a version that was made from another one: the one way in which clean and preprocess write.

The first parent of a derived version is the version that was read. When the branch holds something else by then (an
older result of the same pipeline, say), that becomes the second parent, so that nothing falls out of history. Running
the same operation on the same version again finds its own result and adds nothing.
"""

from __future__ import annotations

from leptonstore.dataset import Dataset, Source, list_refs, write_dataset
from leptonstore.store import Store


def publish_derived(store: Store, ds: Dataset, source: Source, message: str, branch: str) -> Dataset:
    """Write `source`, made from `ds`, as the new head of `branch`. Raises as write_dataset does."""
    store.refresh()
    refs = list_refs(store, "dataset", ds.name)
    head = next((info.commit for info in refs if info.branch == branch), None)
    parents: tuple[str, ...] = (ds.commit,)
    if head is not None and head != ds.commit:
        old = Dataset.open(store, f"{ds.name}@{head}").commit_object
        before = tuple(parent.hex() for parent in old.parents)
        again = before[:1] == parents and old.lineage == source.lineage
        parents = before if again else (*parents, head)
    return write_dataset(store, ds.name, source, message=message, branch=branch, parents=parents)
