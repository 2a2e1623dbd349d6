"""Drift: how the columns of a version differ from those of an older one, told from the sketches of both. No row is read for it.

    numbers, times, lengths, pixels    population stability index (PSI) over ten bins, each with a tenth of the older values; and the
                                       distance of Kolmogorov and Smirnov, the greatest difference of the two distribution functions
    class labels, booleans, texts      PSI over the categories, and total variation: half the sum of the differences of the shares
    nulls                              the difference of their shares

A PSI of 0.1 and more is some drift, of 0.25 and more is much: the rule of credit scoring, where it comes from (Siddiqi, Credit Risk
Scorecards, 2006). Two small samples of one distribution have a PSI, too (Yurdakul, Naranjo, Statistical properties of the population
stability index, 2020): what chance explains, by Pearson's chi-squared of the two samples' bins at 99 %, is told as none. Total variation
counts from 0.1 and 0.25 likewise, nulls from differences of 0.05 and 0.2 of the rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.dataset import Dataset
from leptonstore.process.statistics.column import ColumnSketch, Kind, Watched
from leptonstore.process.statistics.gather import Gathered
from leptonstore.process.statistics.ranks import Ranks
from leptonstore.process.statistics.results import ColumnDrift, Drift, TypeChange

PSI_SOME, PSI_MUCH = 0.1, 0.25
VARIATION_SOME, VARIATION_MUCH = 0.1, 0.25
NULLS_SOME, NULLS_MUCH = 0.05, 0.2  # differences of the share of nulls
BINS = 10
EMPTY_ROWS = 0.5  # are added to each bin: the logarithm of an empty one would be infinite
CATEGORIES_MAX = 200  # the others are one: their shares say little, and there is a bin for each
_NORMAL_99 = 2.3263
Rows = NDArray[np.int64]  # of each bin


def drift_of(now: Gathered, before: Gathered, older: Dataset, schema: pa.Schema | None) -> Drift:
    """What has changed since `older`, of which `before` is. schema: of the newer version, when all columns were asked for."""
    known = {one.field.name: one for one in before.watched}
    retyped, found = [], []
    for watched, sketch in zip(now.watched, now.columns, strict=True):
        name = watched.field.name
        old = known.get(name)
        if old is None:
            continue
        if old.field.type != watched.field.type or old.kind is not watched.kind:
            retyped.append(TypeChange(name, old.shown_type, watched.shown_type))
            continue
        found.append(column_drift(watched, sketch, old, before.sketch(name)))
    names = [one.field.name for one in now.watched]
    removed = () if schema is None else tuple(name for name in older.schema.names if name not in schema.names)
    return Drift(
        dataset=older.name,
        ref=older.ref,
        commit=older.commit,
        rows=len(older),
        columns=tuple(found),
        added=tuple(name for name in names if name not in older.schema.names),
        removed=removed,
        retyped=tuple(retyped),
    )


def column_drift(watched: Watched, now: ColumnSketch, old: Watched, before: ColumnSketch) -> ColumnDrift:
    """Of one column, which both versions have with one type."""
    nulls = tuple(one.nulls / one.rows if one.rows else 0.0 for one in (before, now))
    levels = [_level(abs(nulls[1] - nulls[0]), NULLS_SOME, NULLS_MUCH)]
    said: dict[str, Any] = {}
    details = []
    if levels[0]:
        details.append(f"nulls: {nulls[0]:.1%} before, {nulls[1]:.1%} now")
    categories = _categories(watched, now, old, before)
    if categories is not None:
        level, said, detail = _of_categories(*categories)
        levels.append(level)
        details += detail
    else:
        what, ranks = _ranks(now)
        _, old_ranks = _ranks(before)
        if ranks is not None and old_ranks is not None and ranks.count and old_ranks.count:
            bins = binned(old_ranks, ranks)
            psi = psi_of(*bins)
            said = {"what": what, "psi": psi, "ks": distance(old_ranks, ranks)}
            level = 0 if is_chance(*bins) else _level(psi, PSI_SOME, PSI_MUCH)
            levels.append(level)
            if level:
                (middle,), (old_middle,) = ranks.quantiles((0.5,)), old_ranks.quantiles((0.5,))
                of = "length " if what == "lengths" else ""
                details.append(f"median {of}{old_middle.value:.6g} before, {middle.value:.6g} now")
    mark = ("none", "some", "much")[max(levels)]
    return ColumnDrift(
        watched.field.name, mark, nulls_before=nulls[0], nulls_after=nulls[1], detail="; ".join(details), **said
    )


def _level(value: float, some: float, much: float) -> int:
    return int(value >= some) + int(value >= much)


def _ranks(sketch: ColumnSketch) -> tuple[str, Ranks | None]:
    """What is compared of a column, and its distribution."""
    if sketch.numbers is not None and sketch.lengths is None:
        return "values", sketch.numbers.ranks
    if sketch.images is not None:
        return "values", sketch.images.pixels().ranks
    if sketch.texts is not None:
        return "lengths", sketch.texts.lengths.ranks
    return "lengths", None if sketch.lengths is None else sketch.lengths.ranks


def _categories(
    watched: Watched, now: ColumnSketch, old: Watched, before: ColumnSketch
) -> tuple[dict[str, int], dict[str, int]] | None:
    """(rows of each category before, now), where all of them are counted in both; else None."""
    if watched.kind is Kind.TEXTS and now.texts is not None and before.texts is not None:
        both = before.texts.frequent, now.texts.frequent
        if any(one.error or one.texts is None for one in both):
            return None
        if sum(int(one.rows.sum()) for one in both) < 2 * sum(len(one.keys) for one in both):
            return None  # hardly a value occurs twice: these are no categories
        first, second = (
            {f"{key:016x} {text.decode('utf-8', 'replace')}": rows for key, rows, text in zip(
                one.keys.tolist(), one.rows.tolist(), one.texts or (), strict=True
            )}
            for one in both
        )  # fmt: skip
        return first, second
    if watched.kind is not Kind.NUMBERS or now.numbers is None or before.numbers is None:
        return None
    if watched.names is None and not pa.types.is_boolean(watched.field.type):
        return None
    counts = before.numbers.counts(), now.numbers.counts()
    if counts[0] is None or counts[1] is None:
        return None
    # Of labels the names are compared: the same class may have another number in the other version.
    return _named(counts[0], old.names), _named(counts[1], watched.names)


def _named(counts: dict[int | float, int], names: list[str] | None) -> dict[str, int]:
    known = dict(enumerate(names or ()))
    found: dict[str, int] = {}
    for value, rows in counts.items():
        name = known.get(int(value), str(int(value)))
        found[name] = found.get(name, 0) + rows
    return found


def _of_categories(before: dict[str, int], now: dict[str, int]) -> tuple[int, dict[str, Any], list[str]]:
    total_before, total = sum(before.values()), sum(now.values())
    if not total_before or not total:
        return 0, {"what": "categories"}, []
    every = sorted(before.keys() | now.keys(), key=lambda name: (-before.get(name, 0) - now.get(name, 0), name))
    kept, rest = every[:CATEGORIES_MAX], every[CATEGORIES_MAX:]
    bins = []
    for counts in (before, now):
        some = [counts.get(name, 0) for name in kept]
        bins.append(np.array([*some, sum(counts.get(name, 0) for name in rest)] if rest else some, np.int64))
    shares = bins[0] / total_before, bins[1] / total
    psi = psi_of(*bins)
    variation = float(np.abs(shares[0] - shares[1]).sum()) / 2
    chance = is_chance(*bins)
    level = 0 if chance else max(_level(psi, PSI_SOME, PSI_MUCH), _level(variation, VARIATION_SOME, VARIATION_MUCH))
    details = []
    if level:
        most = int(np.argmax(np.abs(shares[0] - shares[1])))
        name = kept[most].partition(" ")[2] or kept[most] if most < len(kept) else "the others"
        details.append(f"{name}: {shares[0][most]:.1%} before, {shares[1][most]:.1%} now")
    return level, {"what": "categories", "psi": psi, "total_variation": variation}, details


def binned(before: Ranks, now: Ranks) -> tuple[Rows, Rows]:
    """Values in BINS bins of equal share of the older ones (fewer where a value is very frequent): before, now."""
    cuts = [one.value for one in before.quantiles([step / BINS for step in range(1, BINS)])]
    edges = np.unique(np.array(cuts, before.values.dtype))
    first, second = (np.diff(np.concatenate(([0], one.below(edges), [one.count]))) for one in (before, now))
    return first, second


def psi_of(before: Rows, now: Rows) -> float:
    """Population stability index of two samples."""
    first, second = ((rows + EMPTY_ROWS) / (rows + EMPTY_ROWS).sum() for rows in (before, now))
    return float(((second - first) * np.log(second / first)).sum())


def is_chance(before: Rows, now: Rows) -> bool:
    """Whether both may be samples of one distribution: chi-squared of two samples, at 99 %."""
    used = (before + now) > 0
    first, second = before[used].astype(np.float64), now[used].astype(np.float64)
    total, other = first.sum(), second.sum()
    statistic = np.square(first * math.sqrt(other / total) - second * math.sqrt(total / other)) / (first + second)
    return bool(statistic.sum() <= chi_squared_99(len(first) - 1))


def chi_squared_99(freedom: int) -> float:
    """Its 99 % point (Wilson, Hilferty, 1931)."""
    if freedom < 1:
        return 0.0
    return freedom * (1 - 2 / (9 * freedom) + _NORMAL_99 * math.sqrt(2 / (9 * freedom))) ** 3


def distance(before: Ranks, now: Ranks) -> float:
    """Greatest distance of the two distribution functions; off by the rank errors of both at most."""
    points = np.concatenate((before.values, now.values))
    one, other = (ranks.below(points) / ranks.count for ranks in (before, now))
    return float(np.abs(one - other).max())
