"""docs/SCALING.md says what bench/scaling.json holds, and that holds fits of its own points."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench import scaling, scaling_page
from bench.scaling import fitted
from bench.scaling_measures import MEASURES, order_batch, tree_levels
from leptonstore import limits


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(scaling.KEPT.read_text())
    return found


def test_the_page_says_what_was_measured(kept: dict[str, Any]) -> None:
    page = scaling_page.PAGE.read_text()
    assert scaling_page.written(page, kept) == page, "run python -m bench.scaling_page"
    for picture in scaling_page.PICTURES.values():
        assert picture.name in page
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_was_measured_was_so_at_three_sizes_and_fits_its_points(kept: dict[str, Any]) -> None:
    assert {bound.measure for bound in scaling_page.BOUNDS} == set(MEASURES)
    assert kept["slopes"].keys() <= MEASURES.keys()
    for found in kept["slopes"].values():
        assert len({size for size, _ in found["points"]}) >= 3
        assert vars(fitted(found["form"], found["points"])) == pytest.approx(found["fit"])
        assert found["commit"]


def test_each_size_was_simulated_in_each_way(kept: dict[str, Any]) -> None:
    rows = [row for row in kept["simulated"]["rows"] if row["partitions"] == 1]
    for together in (True, False):
        for way in ("cluster", "alone", "direct"):
            sizes = [row["nodes"] for row in rows if row["way"] == way and row["together"] == together]
            assert len(set(sizes)) >= 2 and min(sizes) <= 10


def test_a_line_and_a_power_are_found_again() -> None:
    line = fitted("line", [(size, 500 + 3 * size) for size in (10, 1_000, 100_000)])
    assert (line.slope, line.intercept, line.r2) == pytest.approx((3, 500, 1))
    assert line.at(10**9) == pytest.approx(3e9 + 500)
    power = fitted("power", [(size, 2 * size**0.5) for size in (10, 1_000, 100_000)])
    assert (power.slope, power.at(10**6)) == pytest.approx((0.5, 2_000))
    bent = fitted("line", [(10, 1.0), (100, 5.0), (1_000, 700.0)])
    assert bent.off > 0.2
    for few in ([(1, 1), (2, 2)], [(1, 1), (2, 2), (3, 0)]):
        with pytest.raises(ValueError):
            fitted("power", few)


def test_measures_run_the_real_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A billion rows are as many levels as limits.py says, and a position of 10^12 rows costs what one of 10^6 does."""
    monkeypatch.setattr("bench.scaling_measures.TREE_GROUPS", (300, 3_000, 30_000))
    levels = dict(tree_levels()["points"])
    fanout, rows = limits.NODE_FANOUT_AVG, limits.ROW_GROUP_ROWS_AVG
    for size, found in levels.items():
        assert size / rows <= fanout ** (found + 0.5)
    assert sorted(levels.values()) == list(levels.values())
    assert abs(fitted(**{key: order_batch()[key] for key in ("form", "points")}).slope) < 0.1
