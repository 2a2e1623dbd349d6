"""Drift is told when a distribution has moved, and not when chance explains it, or when nothing changed."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from process_data import write

from leptonstore.dataset.schema import class_label_field
from leptonstore.process.analyse import analyse
from leptonstore.process.statistics.drift import BINS, binned, chi_squared_99, distance, is_chance, psi_of
from leptonstore.process.statistics.numbers import NumberSketch
from leptonstore.process.statistics.ranks import Ranks
from leptonstore.process.statistics.results import Drift
from leptonstore.store import Store

ROWS = 4_000


def table(seed: int, **columns: object) -> pa.Table:
    rng = np.random.default_rng(seed)
    values: dict[str, object] = {
        "id": np.arange(ROWS),
        "same": rng.normal(size=ROWS),
        "text": pa.array([f"word {one}" for one in rng.integers(0, 20, ROWS).tolist()]),
        "flag": rng.random(ROWS) < 0.3,
    }
    return pa.table(values | columns)


def drift(store: Store, before: pa.Table, now: pa.Table, columns: list[str] | None = None) -> Drift:
    older, newer = write(store, "old", before, ["id"]), write(store, "new", now, ["id"])
    found = analyse(newer, columns, against=older).drift
    assert found is not None and (found.dataset, found.commit, found.rows) == ("old", older.commit, len(older))
    return found


def test_other_samples_of_one_distribution_are_no_drift(store: Store) -> None:
    found = drift(store, table(1), table(2))
    assert found.marked() == () and [one.level for one in found.columns] == ["none"] * 4
    small = [table(seed).slice(0, 60) for seed in (3, 4)]
    assert drift(store, *small).marked() == ()


def test_the_same_version_has_not_moved_at_all(store: Store) -> None:
    ds = write(store, "d", table(1), ["id"])
    found = analyse(ds, against=ds).drift
    assert found is not None
    for one in found.columns:
        assert (one.psi, one.ks or 0.0, one.total_variation or 0.0) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "moved", "what"),
    [
        ("same", lambda rng: rng.normal(1.0, size=ROWS), "values"),
        ("same", lambda rng: rng.normal(scale=3.0, size=ROWS), "values"),
        ("flag", lambda rng: rng.random(ROWS) < 0.8, "categories"),
        ("text", lambda rng: pa.array([f"word {one}" for one in rng.integers(10, 30, ROWS).tolist()]), "categories"),
    ],
)
def test_what_has_moved_is_much(store: Store, name: str, moved: object, what: str) -> None:
    found = drift(store, table(1), table(2, **{name: moved(np.random.default_rng(5))}))  # type: ignore[operator]
    (marked,) = found.marked()
    assert (marked.name, marked.level, marked.what) == (name, "much", what)
    assert marked.psi is not None and marked.psi > 0.25 and marked.detail


def test_nulls_and_lengths_are_looked_at(store: Store) -> None:
    rng = np.random.default_rng(0)
    words = [
        pa.array(["x" * int(one) + str(at) for at, one in enumerate(rng.integers(low, 40 + low, ROWS))])
        for low in (1, 30)
    ]
    nulls = pa.array(rng.normal(size=ROWS), mask=rng.random(ROWS) < 0.3)
    found = drift(store, table(1, words=words[0]), table(2, words=words[1], same=nulls))
    assert {one.name: (one.level, one.what) for one in found.marked()} == {
        "words": ("much", "lengths"), "same": ("much", "values"),
    }  # fmt: skip
    (same,) = [one for one in found.columns if one.name == "same"]
    assert same.nulls_before == 0.0 and same.nulls_after == pytest.approx(0.3, abs=0.03) and "nulls" in same.detail


def test_changes_of_the_schema_are_told(store: Store) -> None:
    before = table(1, gone=np.arange(ROWS), other=np.arange(ROWS))
    now = table(1, new=np.arange(ROWS), other=np.arange(ROWS).astype(np.float32))
    found = drift(store, before, now)
    assert (found.added, found.removed) == (("new",), ("gone",))
    assert [(one.name, one.before, one.after) for one in found.retyped] == [("other", "int64", "float")]
    assert drift(store, before, now, ["same"]).removed == ()


def test_classes_are_compared_by_their_names(store: Store) -> None:
    """A class may have another number in the other version."""
    labels = np.random.default_rng(0).integers(0, 2, ROWS)

    def labelled(names: list[str], values: np.ndarray) -> pa.Table:
        schema = pa.schema([pa.field("id", pa.int64(), nullable=False), class_label_field("label", names)])
        return pa.Table.from_arrays([pa.array(np.arange(ROWS)), pa.array(values.astype(np.uint8))], schema=schema)

    before = labelled(["cat", "dog"], labels)
    assert drift(store, before, labelled(["dog", "cat"], 1 - labels)).marked() == ()
    (marked,) = drift(store, before, labelled(["cat", "eel"], labels)).marked()
    assert marked.total_variation == pytest.approx(0.5, abs=0.05) and "before" in marked.detail


def test_psi_and_distance_are_those_of_the_values() -> None:
    rng = np.random.default_rng(0)
    before, now = rng.normal(size=50_000), rng.normal(0.3, 1.2, size=30_000)
    ranks = [NumberSketch.of(values).ranks for values in (before, now)]
    psi = psi_of(*binned(*ranks))
    edges = [-np.inf, *np.quantile(before, np.arange(1, BINS) / BINS, method="inverted_cdf"), np.inf]
    first, second = (np.histogram(values, edges)[0] / len(values) for values in (before, now))
    assert psi == pytest.approx(float(((second - first) * np.log(second / first)).sum()), rel=0.02)
    stats = pytest.importorskip("scipy.stats")
    wanted = stats.ks_2samp(before, now).statistic
    assert abs(distance(*ranks) - wanted) <= sum(one.share_error for one in ranks)


def test_what_chance_explains_is_the_99_percent_point_of_chi_squared() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 9, 49):
        assert chi_squared_99(freedom) == pytest.approx(stats.chi2.ppf(0.99, freedom), rel=0.03)
    rng = np.random.default_rng(0)
    for shift in (0, 1, 2, 4, 8):
        bins = [np.histogram(rng.normal(at, 1, 300), np.arange(-4, 6))[0] for at in (0, shift / 10)]
        used = bins[0] + bins[1] > 0
        wanted = stats.chi2_contingency(np.array(bins)[:, used], correction=False).pvalue
        assert is_chance(*bins) == (wanted > 0.01), wanted


def test_empty_columns_have_no_drift(store: Store) -> None:
    none = pa.nulls(ROWS, pa.float64())
    found = drift(store, table(1, x=none), table(2, x=none))
    assert found.marked() == ()
    assert math.isclose(next(one for one in found.columns if one.name == "x").nulls_after, 1.0)
    assert Ranks.empty("f").count == 0
