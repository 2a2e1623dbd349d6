"""Random histories of a dataset against dictionaries: edits, refs, merges, restores, reverts, forgetting, gc, reopening, in any order."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.branches import create_ref, remove_ref
from leptonstore.dataset.diff import Diff
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.integrate import merge, restore, revert
from leptonstore.errors import BadInput, MergeConflict, RefMissing
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect
from tests.property.history_data import SCHEMA, Row, rows_of, small_trees, table_of, values
from tests.property.test_merge_model import Table, model

NAMES = ("main", "a", "b")
names = st.sampled_from(NAMES)
keys = st.integers(0, 30)


class Known(NamedTuple):
    """What the model knows of a version."""

    rows: Table
    parents: tuple[str, ...]


class Histories(RuleBasedStateMachine):
    """`heads` and `tags` are what the refs lead to, `versions` every version that there ever was."""

    @initialize(rows=st.lists(values, max_size=30))
    def begin(self, rows: list[Row]) -> None:
        self.patch = pytest.MonkeyPatch()
        self.folder = tempfile.TemporaryDirectory()
        self.patch.setenv("XDG_CACHE_HOME", self.folder.name)
        small_trees(self.patch)
        self.store = Store.create(Path(self.folder.name) / "store")
        table = {at: row._replace(id=at) for at, row in enumerate(rows)}
        source = Source(SCHEMA, ("id",), lambda: iter(table_of(list(table.values())).to_batches()), keyed=True)
        first = write_dataset(self.store, "d", source)
        self.heads = {"main": first.commit}
        self.tags: dict[str, str] = {}
        self.versions = {first.commit: Known(table, ())}

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert check_store(self.store, read_data=True).clean
            self.store.close()
            self.patch.undo()
            self.folder.cleanup()

    # -- the model -------------------------------------------------------------------------------------------------

    def line(self, commit: str) -> set[str]:
        """A version and all before it that are kept."""
        out, queue = set(), [commit]
        while queue:
            current = queue.pop()
            if current not in out:
                out.add(current)
                queue += () if current in self.store.state.forgotten else self.versions[current].parents
        return out

    def bases(self, one: str, other: str) -> list[str]:
        common = self.line(one) & self.line(other)
        return [commit for commit in common if not any(commit in self.line(later) - {later} for later in common)]

    def moved(self, branch: str, rows: Table, parents: tuple[str, ...]) -> None:
        """The branch has a new head, with these rows."""
        head = Dataset.open(self.store, f"d@{branch}")
        assert tuple(parent.hex() for parent in head.commit_object.parents) == parents
        self.heads[branch] = head.commit
        self.versions[head.commit] = Known(rows, parents)

    def rows(self, commit: str) -> Table:
        return self.versions[commit].rows

    # -- rules -----------------------------------------------------------------------------------------------------

    @rule(branch=names, puts=st.dictionaries(keys, values, max_size=5), gone=st.sets(keys, max_size=3))
    def edit(self, branch: str, puts: Table, gone: set[int]) -> None:
        if branch not in self.heads:
            return
        for change in ("upsert", "delete"):
            rows, before = dict(self.rows(self.heads[branch])), self.heads[branch]
            opened = Dataset.open(self.store, f"d@{branch}")
            if change == "upsert" and puts:
                rows |= {key: row._replace(id=key) for key, row in puts.items()}
                opened.upsert(table_of([rows[key] for key in puts]))
            elif change == "delete" and gone:
                rows = {key: row for key, row in rows.items() if key not in gone}
                opened.delete(keys=table_of([Row(key) for key in gone]).select(["id"]))
            if rows != self.rows(before):
                self.moved(branch, rows, (before,))

    @rule(start=names, branch=names, tag=st.booleans())
    def name(self, start: str, branch: str, tag: bool) -> None:
        if start not in self.heads:
            return
        known = self.tags if tag else self.heads
        name = f"t-{branch}" if tag else branch
        commit = self.heads[start]
        if known.get(name, commit) != commit:
            with pytest.raises(BadInput, match="already"):
                create_ref(self.store, "dataset", "d", name, commit, tag)
            return
        create_ref(self.store, "dataset", "d", name, commit, tag)
        known[name] = commit

    @rule(branch=names)
    def remove(self, branch: str) -> None:
        if branch not in self.heads or len(self.heads) == 1:
            return
        others = [commit for name, commit in self.heads.items() if name != branch] + list(self.tags.values())
        kept = set().union(*map(self.line, others))
        lost = self.line(self.heads[branch]) - kept
        if lost:
            with pytest.raises(BadInput, match=f"{len(lost)} versions that no other"):
                remove_ref(self.store, "dataset", "d", branch, tag=False)
        assert set(remove_ref(self.store, "dataset", "d", branch, tag=False, force=True)) == lost
        del self.heads[branch]

    @rule(ours=names, theirs=names, resolve=st.sampled_from([None, None, "ours", "theirs"]))
    def merge(self, ours: str, theirs: str, resolve: Any) -> None:
        if ours not in self.heads or theirs not in self.heads:
            return
        one, other = self.heads[ours], self.heads[theirs]

        def run() -> str:
            return merge(self.store, f"d@{theirs}", f"d@{ours}", resolve=resolve).how

        if other in self.line(one):
            assert run() == "nothing to do"
            return
        bases = self.bases(one, other)
        if len(bases) != 1:
            with pytest.raises(BadInput, match="parted from several" if bases else "unrelated"):
                run()
            return
        (base,) = bases
        if base == one:
            assert run() == "fast-forward"
            self.heads[ours] = other
            return
        expected, conflicts = model(self.rows(base), self.rows(one), self.rows(other), resolve)
        if conflicts and resolve is None:
            with pytest.raises(MergeConflict) as caught:
                run()
            assert {found.key["id"] for found in caught.value.conflicts} == conflicts
            return
        assert run() == "merged"
        self.moved(ours, expected, (one, other))

    @rule(branch=names, steps=st.integers(1, 4), what=st.sampled_from(["restore", "revert"]))
    def go_back(self, branch: str, steps: int, what: str) -> None:
        if branch not in self.heads:
            return
        head = commit = self.heads[branch]
        for _ in range(steps if what == "restore" else steps - 1):
            parents = () if commit in self.store.state.forgotten else self.versions[commit].parents
            if not parents:
                with pytest.raises(RefMissing, match=r"is the first|was forgotten"):
                    restore(self.store, f"d@{branch}~{steps}")
                return
            commit = parents[0]
        if what == "restore":
            same = self.rows(commit) == self.rows(head)
            assert restore(self.store, f"d@{branch}~{steps}").how == ("nothing to do" if same else "restored")
            expected = self.rows(commit)
        else:
            parents = self.versions[commit].parents
            if not parents or commit in self.store.state.forgotten:
                with pytest.raises((BadInput, RefMissing), match=r"is the first|was forgotten"):
                    revert(self.store, f"d@{branch}~{steps - 1}")
                return
            expected, conflicts = model(self.rows(commit), self.rows(head), self.rows(parents[0]), None)
            if conflicts:
                with pytest.raises(MergeConflict):
                    revert(self.store, f"d@{branch}~{steps - 1}")
                return
            same = expected == self.rows(head)
            assert revert(self.store, f"d@{branch}~{steps - 1}").how == ("nothing to do" if same else "reverted")
        if not same:
            self.moved(branch, expected, (head,))

    @rule(branch=names, keep=st.integers(1, 3))
    def forget(self, branch: str, keep: int) -> None:
        if branch in self.heads:
            forget_all_but(self.store, "dataset", f"d@{branch}", keep)

    @rule()
    def collect(self) -> None:
        collect(self.store)

    @rule()
    def reopen(self) -> None:
        url = self.store.url
        self.store.close()
        self.store = Store.open(url)

    @rule(one=names, other=names)
    def diff(self, one: str, other: str) -> None:
        if one in self.heads and other in self.heads:
            before, after = self.rows(self.heads[one]), self.rows(self.heads[other])
            told = {change.key["id"] for change in Diff(self.store, self.heads[one], self.heads[other]).rows()}
            assert told == {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}

    @precondition(lambda self: hasattr(self, "heads"))
    @invariant()
    def every_version_that_is_kept_has_its_rows(self) -> None:
        found = {name.split("/")[-1]: record.commit for name, record in self.store.state.refs.items()}
        assert found == {**self.heads, **self.tags}
        for commit in set().union(*map(self.line, found.values())):
            version = Dataset(self.store, "d", commit[:12], commit)
            assert {row.id: row for row in rows_of(version)} == self.rows(commit)


TestHistories = Histories.TestCase
TestHistories.settings = settings(
    max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
