"""Split leakage: samples that stand in several splits, by the digests that check.leakage compares. Large values are not read."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pyarrow as pa

from leptonstore.dataset import Dataset
from leptonstore.errors import SchemaError
from leptonstore.process import digests
from leptonstore.process.checks import chosen
from leptonstore.process.checks.copies import copies
from leptonstore.process.checks.leakage import Leakage
from leptonstore.process.columns import SPLIT
from leptonstore.process.statistics.results import SplitLeak, SplitLeakage


def split_leakage(ds: Dataset) -> SplitLeakage | None:
    """Which splits share samples; None where there are no splits, or nothing that makes a sample (images, texts, tokens).

    Memory: 20 bytes a row, and what sorting them takes. Raises ChunkMissing, ChunkCorrupt, FormatDamaged.
    """
    check, schema = Leakage(), ds.schema
    if SPLIT not in schema.names:
        return None
    try:
        names = check.content(schema)
        side_name = chosen.split_column(check.name, schema, SPLIT)
    except SchemaError:
        return None
    if side_name is None:
        return None
    content, sides = [], []
    numbers: dict[str, int] = {}
    for _, columns in ds.iter_stored([*names, side_name]):
        content.append(digests.combined([digests.stored_digests(column) for column in columns[:-1]]))
        batch = pa.RecordBatch.from_arrays([columns[-1].values], schema=pa.schema([schema.field(side_name)]))
        here = chosen.named_classes(batch, side_name).fill_null("").dictionary_encode()
        known = np.array([numbers.setdefault(name, len(numbers)) for name in here.dictionary.to_pylist()], np.int32)
        sides.append(known[here.indices.to_numpy()])
    if not content:
        return SplitLeakage(names)
    splits = list(numbers)
    found = copies(pa.concat_arrays(content))
    # Rows of each content on each side, of the contents that stand on several.
    group, side = found.group, np.concatenate(sides)[found.rows]
    pairs, rows = np.unique(group * len(splits) + side, return_counts=True)
    group, side = pairs // len(splits), pairs % len(splits)
    several = np.bincount(group)[group] > 1
    contents, at = np.unique(group[several], return_inverse=True)
    table = np.zeros((len(contents), len(splits)), np.int64)
    table[at, side[several]] = rows[several]
    leaks = []
    exposed_first = sorted(range(len(splits)), key=lambda at: (-chosen.exposure(splits[at]), splits[at]))
    for one, other in combinations(exposed_first, 2):
        both = (table[:, one] > 0) & (table[:, other] > 0)
        if both.any():
            first, second = (int(table[both, side].sum()) for side in (one, other))
            leaks.append(SplitLeak(splits[one], splits[other], first, second))
    return SplitLeakage(names, tuple(leaks))
