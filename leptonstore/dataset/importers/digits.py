"""scikit-learn's 1,797 handwritten digits of 8 x 8 pixels: a real data set that needs no download.

Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository (1998). Its
grey values are 0 to 16; they are stored as round(value * 255 / 16), so that they look like every other grey image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from leptonstore.dataset.importers.arrays import label_column, tensor_column
from leptonstore.dataset.schema import class_label_field, tensor_field
from leptonstore.dataset.source import Source
from leptonstore.errors import MissingExtra, SourceError

WORD = "digits"  # what stands for the path, which this source does not have
_GREY_MAX = 16


def open_source(path: Path) -> Source:
    """image (8, 8) uint8, label 0 to 9. Raises MissingExtra without scikit-learn."""
    if str(path) != WORD:
        raise SourceError(f"the digits come with scikit-learn, not from {path}; write {WORD} in its place", str(path))
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MissingExtra("importing the digits", "process", "sklearn") from None
    data = load_digits()
    images = np.rint(data.images * (255 / _GREY_MAX)).astype(np.uint8)
    labels = data.target
    names = [str(name) for name in data.target_names]
    schema = pa.schema(
        [tensor_field("image", pa.uint8(), images.shape[1:], "image"), class_label_field("label", names)]
    )

    def batches() -> Iterator[pa.RecordBatch]:
        columns = [tensor_column(schema.field("image"), images), label_column(schema.field("label"), labels)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return Source(schema, ("image",), batches, len(images), {"format": WORD, "source": "scikit-learn load_digits"})
