"""Images of another size or mode than the others have, or than they should have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from leptonstore.errors import BadInput, SourceError
from leptonstore.limits import IMAGE_SIZE_COMMON_SHARE
from leptonstore.process import columns, images
from leptonstore.process.checks import image_columns
from leptonstore.process.checks.check import Found, TableCheck
from leptonstore.process.columns import ImageColumn
from leptonstore.process.findings import findings_table, joined

MODES = {"grey": 1, "colour": 3}
_NONE = 0  # a feature of a row whose header cannot be read, or that is null

Size = tuple[int, int]


@dataclass(frozen=True)
class ImageSize(TableCheck):
    """Images of another size, shape or mode than is wanted. Reads headers only (files that have none are check.undecodable's).

    sizes: those that are right, "HEIGHTxWIDTH" each, upright as EXIF says; default: the most common one, if at least half of the images
        have it (else nothing is said of sizes: photographs come in all of them).
    modes: "grey", "colour"; default: the more common one.
    columns: of images; default: all.

    Score: the share of images that have another size and mode than this one.
    """

    name: ClassVar[str] = "check.image_size"
    sizes: Sequence[str] = ()
    modes: Sequence[str] = ()
    columns: Sequence[str] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        for size in self.sizes:
            _parsed(size)
        for mode in self.modes:
            if mode not in MODES:
                raise BadInput(f"{self.name}: {mode!r} is no mode; there are: {', '.join(MODES)}")

    def looks_at(self, schema: pa.Schema) -> tuple[str, ...]:
        """Columns of images."""
        return tuple(one.name for one in image_columns.chosen(self.name, schema, self.columns))

    def libraries(self) -> dict[str, str]:
        """What reads headers."""
        return {"pillow": images.pillow_version()}

    def features_recipe(self) -> dict[str, Any]:
        """What is expected is of no meaning to features."""
        return {name: value for name, value in super().features_recipe().items() if name not in ("sizes", "modes")}

    def measures(self, schema: pa.Schema) -> pa.Schema:
        """Height, width and channels of each column; 0 where there is no image."""
        return pa.schema([pa.field(name, pa.list_(pa.int32(), 3)) for name in self.looks_at(schema)])

    def measured(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Of headers."""
        chosen = image_columns.chosen(self.name, batch.schema, self.columns)
        arrays = [pa.FixedSizeListArray.from_arrays(_sizes(batch.column(one.name), one), 3) for one in chosen]
        return pa.RecordBatch.from_arrays(arrays, schema=self.measures(batch.schema))

    def find_in(self, features: pa.Table) -> Found:
        """Counts sizes and modes, and names what is not expected."""
        return Found(joined(self._in_column(features, field) for field in features.schema if _is_size(field)))

    def _in_column(self, features: pa.Table, field: pa.Field) -> pa.Table:
        flat = features[field.name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        kinds, kind, counts = np.unique(flat.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
        seen = {tuple(key): int(count) for key, count in zip(kinds.tolist(), counts, strict=True) if key[0] != _NONE}
        total = sum(seen.values())
        sizes = [_parsed(size) for size in self.sizes] or _common_size(seen)
        modes = [MODES[mode] for mode in self.modes] or _common_mode(seen)
        why = [
            "" if tuple(key) not in seen else _unlike(key, sizes, modes, bool(self.sizes), bool(self.modes))
            for key in kinds.tolist()
        ]
        rows = np.flatnonzero(np.array([bool(text) for text in why], np.bool_)[kind.reshape(-1)])
        of = kind.reshape(-1)[rows]
        scores = 1 - counts[of] / max(1, total)
        return findings_table(self.tag, field.name, rows, [why[at] for at in of.tolist()], scores)


def _is_size(field: pa.Field) -> bool:
    return bool(pa.types.is_fixed_size_list(field.type))


def _sizes(array: pa.Array, column: ImageColumn) -> pa.Array:
    """Three numbers a row, flat."""
    out = np.zeros((len(array), 3), np.int32)
    if column.shape is not None:
        out[~columns.null_mask(array)] = (*column.shape[:2], 1 if column.shape[2:] in ((), (1,)) else 3)
    else:
        for row, value in zip(*image_columns.present_files(array), strict=True):
            try:
                info = images.probe(value)
            except SourceError:
                continue
            out[row] = info.height, info.width, info.channels
    return pa.array(out.reshape(-1))


def _common_size(seen: dict[tuple[int, ...], int]) -> list[Size]:
    """The most common size, the larger one of two; none where too few have it."""
    sizes: Counter[Size] = Counter()
    for (height, width, _), count in seen.items():
        sizes[height, width] += count
    if not sizes:
        return []
    most = max(sizes, key=lambda size: (sizes[size], size[0] * size[1], size))
    return [most] if sizes[most] >= IMAGE_SIZE_COMMON_SHARE * sum(sizes.values()) else []


def _common_mode(seen: dict[tuple[int, ...], int]) -> list[int]:
    modes: Counter[int] = Counter()
    for (_, _, channels), count in seen.items():
        modes[channels] += count
    return [max(modes, key=lambda mode: (modes[mode], mode))] if modes else []


def _unlike(key: Sequence[int], sizes: Sequence[Size], modes: Sequence[int], given: bool, modes_given: bool) -> str:
    """What is unexpected of a size and mode; empty: nothing."""
    height, width, channels = key
    named = {number: mode for mode, number in MODES.items()}
    said = []
    if sizes and (height, width) not in sizes:
        wanted = " or ".join(f"{h} x {w}" for h, w in sizes)
        said.append(f"{height} x {width} pixels, not {wanted}" + ("" if given else ", as most are"))
    if modes and channels not in modes:
        wanted = " or ".join(named[mode] for mode in modes)
        said.append(f"{named[channels]}, not {wanted}" + ("" if modes_given else ", as most are"))
    return "; ".join(said)


def _parsed(size: str) -> Size:
    try:
        height, width = (int(part) for part in str(size).split("x"))
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise BadInput(f"{ImageSize.name}: {size!r} is no size; write HEIGHTxWIDTH in pixels, as in '28x28'")
    return height, width
