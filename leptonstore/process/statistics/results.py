"""What an analysis says: plain numbers and texts, for people, JSON and the report. Made by analyse.py.

Every figure is exact, or stands beside its error: `Histogram.error`, `NumberStats.rank_error`, `Cardinality.error`, `TopValues.error`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # shares of the values that are told of every column of numbers


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` values lie in [edges[i], edges[i + 1]), the last bin including its upper edge.

    error: no count is wrong by more than so many values; 0: all are exact.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    error: int = 0


@dataclass(frozen=True)
class Quantile:
    """`value` is one that occurs: a share of `share` of the values is not greater, give or take `NumberStats.rank_error`."""

    share: float
    value: int | float


@dataclass(frozen=True)
class NumberStats:
    """Statistics of `count` finite values; None where there are none, or where float64 cannot hold the result:
    `histogram` when min and max are too close or too far apart for bins, `mean` and `std` when their sums overflow.

    std is that of a population (numpy.std). not_finite: NaN and infinities, which take no part in the rest; nan: how many of them are NaN.
    rank_error: how far the share of a quantile may be from its name, at most (a share of `count`); 0.0: they are exact.
    """

    count: int
    not_finite: int
    min: int | float | None
    max: int | float | None
    mean: float | None
    std: float | None
    histogram: Histogram | None
    nan: int = 0
    quantiles: tuple[Quantile, ...] = ()
    rank_error: float = 0.0

    def quantile(self, share: float) -> int | float | None:
        """The value at one of QUANTILES, None when there is none."""
        return next((one.value for one in self.quantiles if one.share == share), None)


@dataclass(frozen=True)
class Cardinality:
    """How many different values there are (nulls are none; NaN is one). error: standard error as a share of `count`; 0.0: exact."""

    count: int
    error: float = 0.0


@dataclass(frozen=True)
class TopValue:
    """A frequent value as text, cut to TOP_TEXT_BYTES_MAX (a class: its name; a time: ISO 8601), and the rows that have it."""

    value: str
    rows: int


@dataclass(frozen=True)
class TopValues:
    """The most frequent values, most frequent first.

    error: counts may be too low by so many rows, and only values with more rows than that are listed. A value that is not has at most the
    rows of the last one listed and `error` together, or twice `error`, whichever is more. 0: counts and order are exact.
    """

    values: tuple[TopValue, ...]
    error: int = 0


@dataclass(frozen=True)
class ValueCount:
    """One distinct value, the name of its class ("" without one), and the rows that have it."""

    value: int
    name: str
    rows: int


@dataclass(frozen=True)
class SizeCount:
    """Images of one size; channels is 1 or 3."""

    height: int
    width: int
    channels: int
    rows: int


@dataclass(frozen=True)
class ImageStats:
    """Sizes (most frequent first) and the mean and deviation of each channel over all pixels, on the scale 0 to 255.

    Grey images count in all three channels when there are coloured ones too. `undecodable` rows count nowhere else.
    """

    sizes: tuple[SizeCount, ...]
    channel_means: tuple[float, ...]
    channel_stds: tuple[float, ...]
    undecodable: int


@dataclass(frozen=True)
class ColumnAnalysis:
    """One column.

    numeric:     of values (pixels of an image, elements of a tensor).      lengths: of values of varying length (bytes; elements of lists).
    times:       of dates, times and durations, in `unit` ("s", "ms", "us", "ns", "day") since 1970 or midnight (times.py writes one).
    least, greatest: of texts (in the order of their bytes), times and decimals, as text.
    distinct:    every value with its rows, of class labels, booleans and 8-bit integers.
    cardinality: how many different values.                                 top: which are frequent.
    """

    name: str
    type: str
    semantic: str
    rows: int
    nulls: int
    numeric: NumberStats | None = None
    distinct: tuple[ValueCount, ...] | None = None
    lengths: NumberStats | None = None
    image: ImageStats | None = None
    times: NumberStats | None = None
    unit: str = ""
    least: str | None = None
    greatest: str | None = None
    cardinality: Cardinality | None = None
    top: TopValues | None = None


@dataclass(frozen=True)
class ClassBalance:
    """Rows per class of one label column; lists follow `names`. `unnamed` rows have a null or an index without name."""

    column: str
    names: tuple[str, ...]
    rows: tuple[int, ...]
    splits: dict[str, tuple[int, ...]]
    unnamed: int


@dataclass(frozen=True)
class Sizes:
    """Bytes of the whole version: as plain values, after deduplication, and as they lie in the store."""

    logical_bytes: int
    unique_bytes: int
    stored_bytes: int

    @property
    def dedup_ratio(self) -> float:
        """Logical bytes per unique byte; 1.0 when nothing occurs twice."""
        return self.logical_bytes / self.unique_bytes if self.unique_bytes else 1.0

    @property
    def compression_ratio(self) -> float:
        """Unique bytes per stored byte."""
        return self.unique_bytes / self.stored_bytes if self.stored_bytes else 1.0

    @property
    def total_ratio(self) -> float:
        """Logical bytes per stored byte."""
        return self.logical_bytes / self.stored_bytes if self.stored_bytes else 1.0


@dataclass(frozen=True)
class Correlation:
    """Pearson's coefficient of each pair of number columns, over the rows in which both have a finite value.

    values[i][j]: -1 to 1, None where one of the two is constant (or there are not two rows). rows[i][j]: rows that it is of.
    left_out: number columns after the first CORRELATION_COLUMNS_MAX.
    """

    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    rows: tuple[tuple[int, ...], ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitLeak:
    """Rows of two splits with equal values in `SplitLeakage.columns`: `rows` of them in `first`, `others` in `second`."""

    first: str
    second: str
    rows: int
    others: int


@dataclass(frozen=True)
class SplitLeakage:
    """Which splits share values. columns: those that are compared (images where there are some; else what is no split and no label)."""

    columns: tuple[str, ...]
    leaks: tuple[SplitLeak, ...] = ()


@dataclass(frozen=True)
class ColumnDrift:
    """How a column of two versions differs.

    level:           "none", "some" or "much"; see drift.py for the thresholds and their sources.
    psi:             population stability index, over ten bins of equal share of the older version, or over categories
    ks:              greatest distance of the two distribution functions (Kolmogorov, Smirnov); None for categories
    total_variation: half the sum of the differences of the shares, of categories; None for numbers
    nulls_before, nulls_after: shares of the rows
    what:            "values", "lengths" or "categories": what was compared; "" when there was nothing
    detail:          one line for people
    """

    name: str
    level: str
    what: str = ""
    psi: float | None = None
    ks: float | None = None
    total_variation: float | None = None
    nulls_before: float = 0.0
    nulls_after: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class TypeChange:
    """A column whose type is another one."""

    name: str
    before: str
    after: str


@dataclass(frozen=True)
class Drift:
    """This version against an older one. columns: those that both have, with equal types, in this version's order."""

    dataset: str
    ref: str
    commit: str
    rows: int
    columns: tuple[ColumnDrift, ...]
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    retyped: tuple[TypeChange, ...] = ()

    def marked(self) -> tuple[ColumnDrift, ...]:
        """Columns that drifted, most first."""
        rank = {"much": 0, "some": 1}
        return tuple(sorted((one for one in self.columns if one.level in rank), key=lambda one: rank[one.level]))


@dataclass(frozen=True)
class Analysis:
    """Everything about one version, or about the view that `fingerprint` names.

    reused: blocks of pages whose sketches were known already, of `blocks`.
    """

    dataset: str
    commit: str
    fingerprint: str
    rows: int
    splits: dict[str, int]
    columns: tuple[ColumnAnalysis, ...]
    balance: tuple[ClassBalance, ...]
    sizes: Sizes
    correlation: Correlation | None = None
    leakage: SplitLeakage | None = None
    drift: Drift | None = None
    blocks: int = field(default=0, compare=False)
    reused: int = field(default=0, compare=False)

    def _repr_html_(self) -> str:
        """For notebooks."""
        from leptonstore.process.notebook import analysis_html

        return analysis_html(self)

    def to_json(self) -> dict[str, Any]:
        """JSON-able; numbers are plain Python numbers, and None stands for what an empty column does not have."""
        document = asdict(self)
        document["sizes"] |= {
            "dedup_ratio": self.sizes.dedup_ratio,
            "compression_ratio": self.sizes.compression_ratio,
            "total_ratio": self.sizes.total_ratio,
        }
        return document
