"""docs/analysis.md: what it says of errors and thresholds is what the code has."""

from __future__ import annotations

from pathlib import Path

from leptonstore import limits
from leptonstore.process.statistics import distinct, drift
from leptonstore.process.statistics.results import QUANTILES

PAGE = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text()


def test_the_figures_of_the_page_are_those_of_the_code() -> None:
    shares = ", ".join(f"{100 * share:.0f}" for share in QUANTILES)
    assert f"({shares} %)" in PAGE and f"histogram of {limits.HISTOGRAM_BINS} bins" in PAGE
    assert f"{limits.STATISTICS_EXACT_VALUES:,}" in PAGE and f"{limits.STATISTICS_POINTS_MAX:,}" in PAGE
    assert f"(strings: {limits.STATISTICS_FREQUENT:,})" in PAGE and f"{100 * distinct.ERROR:.1f} %" in PAGE
    assert round(100 / (2 * limits.STATISTICS_BLOCK_POINTS), 1) == 0.1 and "0.1 %" in PAGE
    for value in (drift.PSI_SOME, drift.PSI_MUCH, drift.VARIATION_SOME, drift.VARIATION_MUCH):
        assert f" {value}" in PAGE
    assert f"{100 * drift.NULLS_SOME:.0f} % of the rows" in PAGE and f"{100 * drift.NULLS_MUCH:.0f} %" in PAGE
