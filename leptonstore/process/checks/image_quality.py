"""Images that are much darker, brighter, more blurred, wider or taller than the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from leptonstore.errors import BadInput
from leptonstore.process import columns, images
from leptonstore.process.checks import image_columns, image_measures
from leptonstore.process.checks.check import Found, TableCheck
from leptonstore.process.checks.image_facts import facts_of
from leptonstore.process.checks.robust import MAD_TO_STD
from leptonstore.process.columns import ImageColumn
from leptonstore.process.findings import findings_table, joined
from leptonstore.process.operation import Bits

Figures = NDArray[np.float64]


@dataclass(frozen=True)
class Measure:
    """How figures are compared. below, above: what an image is called whose figure is far from the median on that side; None: no fault.

    logarithmic: ratios count, not differences. spread_min: what the robust spread is taken for at least, so that where nearly all images
    are alike a small difference is no outlier.
    """

    below: str | None
    above: str | None
    logarithmic: bool
    spread_min: float
    unit: str


MEASURES = {
    "brightness": Measure("dark", "bright", False, 8.0, "mean grey level {:.1f}, usually {:.1f}"),
    "sharpness": Measure("blurred", None, True, 0.15, "variance of the Laplacian {:.1f}, usually {:.1f}"),
    "aspect": Measure("tall", "wide", True, 0.05, "width / height {:.2f}, usually {:.2f}"),
}
_SHARPNESS_UNIT = 1.0  # added before the logarithm is taken: below it there is no difference that could be seen


@dataclass(frozen=True)
class ImageQuality(TableCheck):
    """Compares each image with the median of all: robust z = |x - median| / (1.4826 MAD) (Iglewicz and Hoaglin, "How to Detect and Handle
    Outliers", 1993), of brightness as it is, of sharpness (variance of the Laplacian) and width / height as logarithms.

    z: from which on an image is found. of: the figures, of "brightness", "sharpness", "aspect". columns: of images; default: all.
    Files that do not decode are check.undecodable's. Score: the largest z of the image.
    """

    name: ClassVar[str] = "check.image_quality"
    z: float = 5.0
    of: Sequence[str] = ("brightness", "sharpness", "aspect")
    columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.z > 0:
            raise BadInput(f"{self.name}: z is {self.z}; it must be positive")
        for one in self.of:
            if one not in MEASURES:
                raise BadInput(f"{self.name}: {one!r} is not measured; there are: {', '.join(MEASURES)}")

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """Columns of images."""
        return tuple(one.name for one in image_columns.chosen(self.name, schema, self.columns))

    def libraries(self) -> dict[str, str]:
        """The decoders."""
        return images.decoders()

    def features_recipe(self) -> dict[str, Any]:
        """All figures are measured, whichever are looked at."""
        return {name: value for name, value in super().features_recipe().items() if name not in ("z", "of")}

    def measures(self, schema: pa.Schema) -> pa.Schema:
        """For each column, brightness, sharpness and aspect; null where there is no image."""
        return pa.schema([pa.field(name, pa.list_(pa.float64(), len(MEASURES))) for name in self.looks_at(schema)])

    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Encoded images are decoded, in a few threads."""
        chosen = image_columns.chosen(self.name, batch.schema, self.columns)
        arrays = []
        for one in chosen:
            figures, known = (_of_files if one.shape is None else _of_tensors)(batch.column(one.name), one)
            mask = pa.array(~known)
            arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(figures.reshape(-1)), len(MEASURES), mask=mask))
        return pa.RecordBatch.from_arrays(arrays, schema=self.measures(batch.schema))

    def find_in(self, features: pa.Table) -> Found:
        """Medians and MADs of all, then each image."""
        wanted = [field.name for field in features.schema if pa.types.is_fixed_size_list(field.type)]
        return Found(joined(self._in_column(features, name) for name in wanted))

    def _in_column(self, features: pa.Table, name: str) -> pa.Table:
        array = features[name].combine_chunks()
        known = np.flatnonzero(~columns.null_mask(array))
        figures = (
            array.flatten().to_numpy(zero_copy_only=False).reshape(-1, len(MEASURES))
        )  # of the rows that are not null
        worst = np.zeros(len(known))
        said: dict[int, list[str]] = {}
        for at, (title, measure) in enumerate(MEASURES.items()):
            if title not in self.of or not len(known):
                continue
            z, usual = _robust_z(figures[:, at], measure)
            for row in np.flatnonzero(np.abs(z) >= self.z).tolist():
                called = measure.below if z[row] < 0 else measure.above
                if called is not None:
                    said.setdefault(row, []).append(f"{called}: {measure.unit.format(figures[row, at], usual)}")
                    worst[row] = max(worst[row], abs(z[row]))
        found = sorted(said)
        details = ["; ".join(said[row]) for row in found]
        return findings_table(self.tag, name, known[found], details, worst[found])


def _robust_z(figures: Figures, measure: Measure) -> tuple[Figures, float]:
    """Robust z of each figure, with its sign, and the median figure."""
    values = np.log(figures + _SHARPNESS_UNIT * (measure.above is None)) if measure.logarithmic else figures
    middle = np.median(values)
    spread = max(MAD_TO_STD * float(np.median(np.abs(values - middle))), measure.spread_min)
    return (values - middle) / spread, float(np.median(figures))


def _of_files(array: pa.Array, column: ImageColumn) -> tuple[Figures, Bits]:
    figures, known = np.zeros((len(array), len(MEASURES))), np.zeros(len(array), np.bool_)
    rows, files = image_columns.present_files(array)
    for row, fact in zip(rows, facts_of(files), strict=True):
        if not fact.trouble:
            figures[row], known[row] = (fact.brightness, fact.sharpness, fact.width / fact.height), True
    return figures, known


def _of_tensors(array: pa.Array, column: ImageColumn) -> tuple[Figures, Bits]:
    assert column.shape is not None
    figures, known = np.zeros((len(array), len(MEASURES))), np.zeros(len(array), np.bool_)
    height, width = column.shape[:2]
    if height * width == 0:
        return figures, known
    for rows, pixels in image_columns.pixel_pieces(array):
        grey = image_measures.grey(pixels)
        figures[rows, 0] = image_measures.brightness(grey)
        figures[rows, 1] = image_measures.sharpness(grey)
        figures[rows, 2] = width / height
        known[rows] = True
    return figures, known
