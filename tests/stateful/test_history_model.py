"""Random histories of a dataset against dictionaries: edits, refs, merges, restores, reverts, forgetting, gc, reopening, in any order."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from leptonstore.dataset import Dataset, Source, write_dataset
from leptonstore.dataset.branches import create_ref, remove_ref
from leptonstore.dataset.diff import Diff
from leptonstore.dataset.forget import forget_all_but
from leptonstore.dataset.integrate import merge, restore, revert
from leptonstore.errors import BadInput, MergeConflict, RefMissing
from leptonstore.store import Store, check_store
from leptonstore.store.gc import collect
from tests.property.history_data import SCHEMA, Row, rows_of, small_trees, table_of
from tests.property.test_merge_model import Table, model

NAMES = ("main", "a", "b")
STEPS = 64


class Known(NamedTuple):
    """What the model knows of a version."""

    rows: Table
    parents: tuple[str, ...]


class Histories:
    """`heads` and `tags` are what the refs lead to, `versions` every version that there ever was. `seen` counts what happened."""

    def __init__(self, place: Path, seed: int) -> None:
        self.random, self.seen = Random(seed), Counter[str]()
        self.store = Store.create(place)
        table = {at: self.some_row(at) for at in range(self.random.randrange(25))}
        source = Source(SCHEMA, ("id",), lambda: iter(table_of(list(table.values())).to_batches()), keyed=True)
        first = write_dataset(self.store, "d", source).commit
        self.heads, self.tags = {"main": first}, dict[str, str]()
        self.versions = {first: Known(table, ())}
        for name in NAMES[1:]:
            self.name(name, "main")

    def some_row(self, key: int) -> Row:
        pick = self.random.choice
        text = pick([None, "", "a", "b" * 30, "c" * 70, "d" * 70])
        return Row(key, pick([None, 0, 1, 2]), text, pick([None, (), (1, 2)]))

    def some_keys(self, most: int) -> set[int]:
        return {self.random.randrange(25) for _ in range(self.random.randrange(most + 1))}

    def run(self) -> None:
        """Random steps, the store held against the model after each."""
        steps = [(self.edit, 6), (self.merge, 6), (self.go_back, 3), (self.tag, 1), (self.remove, 1), (self.diff, 1)]
        steps += [(self.forget, 1), (self.collect, 1), (self.reopen, 1)]
        for number in range(STEPS):
            (step,) = self.random.choices([step for step, _ in steps], [weight for _, weight in steps])
            step()
            self.check(whole=number % 8 == 7)
        assert check_store(self.store, read_data=True).clean
        self.store.close()

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

    # -- steps -----------------------------------------------------------------------------------------------------

    def some_branch(self) -> str:
        return self.random.choice(sorted(self.heads))

    def edit(self) -> None:
        branch = self.some_branch()
        for change in ("upsert", "delete"):
            rows, before = dict(self.rows(self.heads[branch])), self.heads[branch]
            opened = Dataset.open(self.store, f"d@{branch}")
            if change == "upsert" and (puts := self.some_keys(4)):
                for key in puts:
                    some = self.some_row(key)
                    rows[key] = rows[key]._replace(x=some.x) if key in rows and self.random.random() < 0.5 else some
                opened.upsert(table_of([rows[key] for key in puts]))
            elif change == "delete" and (gone := self.some_keys(2)):
                rows = {key: row for key, row in rows.items() if key not in gone}
                opened.delete(keys=table_of([Row(key) for key in gone]).select(["id"]))
            if rows != self.rows(before):
                self.moved(branch, rows, (before,))

    def name(self, branch: str, start: str, tag: bool = False) -> None:
        known, commit = (self.tags if tag else self.heads), self.heads[start]
        if known.get(branch, commit) != commit:
            self.seen["name taken"] += 1
            with pytest.raises(BadInput, match="already"):
                create_ref(self.store, "dataset", "d", branch, commit, tag)
            return
        create_ref(self.store, "dataset", "d", branch, commit, tag)
        known[branch] = commit

    def tag(self) -> None:
        self.name(f"t{self.random.randrange(3)}", self.some_branch(), tag=True)

    def remove(self) -> None:
        """Remove a branch, and begin it anew somewhere else."""
        branch = self.random.choice(NAMES[1:])
        others = [commit for name, commit in self.heads.items() if name != branch] + list(self.tags.values())
        lost = self.line(self.heads[branch]) - set().union(*map(self.line, others))
        if lost:
            self.seen["would lose versions"] += 1
            with pytest.raises(BadInput, match=f"{len(lost)} versions that no other"):
                remove_ref(self.store, "dataset", "d", branch, tag=False)
        assert set(remove_ref(self.store, "dataset", "d", branch, tag=False, force=True)) == lost
        del self.heads[branch]
        self.name(branch, "main")

    def merge(self) -> None:
        ours, theirs = self.random.sample(NAMES, 2)
        resolve: Any = self.random.choice([None, None, "ours", "theirs"])
        one, other = self.heads[ours], self.heads[theirs]

        def run() -> str:
            return merge(self.store, f"d@{theirs}", f"d@{ours}", resolve=resolve).how

        if other in self.line(one):
            assert run() == "nothing to do"
            return
        bases = self.bases(one, other)
        if len(bases) != 1:
            self.seen["several bases" if bases else "unrelated"] += 1
            with pytest.raises(BadInput, match="parted from several" if bases else "unrelated"):
                run()
            return
        (base,) = bases
        if base == one:
            self.seen["fast-forward"] += 1
            assert run() == "fast-forward"
            self.heads[ours] = other
            return
        expected, conflicts = model(self.rows(base), self.rows(one), self.rows(other), resolve)
        self.seen[f"{'conflicts' if conflicts else 'clean'} {resolve or ''}".strip()] += 1
        if conflicts and resolve is None:
            with pytest.raises(MergeConflict) as caught:
                run()
            assert {found.key["id"] for found in caught.value.conflicts} == conflicts
            return
        assert run() == "merged"
        self.moved(ours, expected, (one, other))

    def go_back(self) -> None:
        """Restore or revert a version some steps back."""
        branch, steps, restores = self.some_branch(), self.random.randrange(1, 4), self.random.random() < 0.5
        spec = f"d@{branch}~{steps}"
        head = commit = self.heads[branch]
        for _ in range(steps):
            parents = () if commit in self.store.state.forgotten else self.versions[commit].parents
            if not parents:
                self.seen["too far back"] += 1
                with pytest.raises(RefMissing, match=r"is the first|was forgotten"):
                    (restore if restores else revert)(self.store, spec)
                return
            commit = parents[0]
        if restores:
            expected, conflicts = self.rows(commit), set[int]()
        else:
            parents = self.versions[commit].parents
            if not parents or commit in self.store.state.forgotten:
                with pytest.raises((BadInput, RefMissing), match=r"is the first|was forgotten"):
                    revert(self.store, spec)
                return
            expected, conflicts = model(self.rows(commit), self.rows(head), self.rows(parents[0]), None)
        if conflicts:
            self.seen["revert conflicts"] += 1
            with pytest.raises(MergeConflict):
                revert(self.store, spec)
            return
        how = (restore if restores else revert)(self.store, spec).how
        self.seen[how] += 1
        same = expected == self.rows(head)
        assert how == ("nothing to do" if same else "restored" if restores else "reverted")
        if not same:
            self.moved(branch, expected, (head,))

    def forget(self) -> None:
        forget_all_but(self.store, "dataset", f"d@{self.some_branch()}", self.random.randrange(1, 5))

    def collect(self) -> None:
        self.seen["packs removed"] += collect(self.store).packs_removed > 0

    def reopen(self) -> None:
        url = self.store.url
        self.store.close()
        self.store = Store.open(url)

    def diff(self) -> None:
        one, other = (self.random.choice(sorted(self.heads.values())) for _ in range(2))
        before, after = self.rows(one), self.rows(other)
        told = {change.key["id"] for change in Diff(self.store, one, other).rows()}
        assert told == {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}

    def check(self, whole: bool) -> None:
        """Every ref is where it should be, and leads to its rows; `whole`: so has every version that is kept."""
        found = {name.split("/")[-1]: record.commit for name, record in self.store.state.refs.items()}
        assert found == {**self.heads, **self.tags}
        kept = set().union(*map(self.line, found.values())) if whole else set(found.values())
        for commit in sorted(kept):
            version = Dataset(self.store, "d", commit[:12], commit)
            assert {row.id: row for row in rows_of(version)} == self.rows(commit)


def test_histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_trees(monkeypatch)
    seen = Counter[str]()
    for seed in range(8):
        history = Histories(tmp_path / str(seed), seed)
        history.run()
        seen += history.seen
    wanted = {
        "clean", "conflicts", "conflicts ours", "conflicts theirs", "several bases", "unrelated", "fast-forward", "restored",
        "reverted", "revert conflicts", "too far back", "would lose versions", "name taken", "packs removed",
    }  # fmt: skip
    assert wanted <= set(seen), f"never happened: {wanted - set(seen)}"
