"""Datasets: versioned tables of samples over the chunk store.

schema      semantic types           source      what an importer hands over      importers, exporters   formats in and out
cut         where row groups end     values      large values <-> references      groups, tree           rows <-> nodes
splice      rows out, rows in: the primitive of every edit                       edit, columns          edits of rows, of columns
keyed       sorting by key, finding keys  where       conditions                  rules                  what values must be
refs        names of versions        dataset     Dataset: read a version          write                  make a version
graph       what came before         reflog      what the log remembers           versions, branches     log, branches, tags
diff        two versions             merge       three versions                   integrate              merge, restore, revert
erase       rows out of every version and every byte (`leptonstore.dataset.erase.erase`)
files       tables of files (checkpoints, models)                                 stats                  rows, bytes, chunks
pages       rows <-> pages               cached      through the hot cache               future                 what it will be asked for
rows        ds[i]                        scan        from end to end                     predicate, filtering   filters and columns
filesystem  lepton:// for fsspec: a version is a directory (mounted), of Parquet that is nowhere stored (parquet_view)
arrow_dataset  for DuckDB, polars, pandas            sql         queries                 notebook               what notebooks show
exchange    push, pull and clone
places      paths and URLs               plain       values as JSON says them     *_format               foreign formats, both ways
"""

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.diff import Diff, DiffStat, RowChange
from leptonstore.dataset.exchange import Exchange, clone, pull, push
from leptonstore.dataset.files import FileTable, StoredValue, write_files
from leptonstore.dataset.refs import RefInfo, delete_ref, list_refs
from leptonstore.dataset.rules import Rule
from leptonstore.dataset.source import Source
from leptonstore.dataset.stats import DatasetStats
from leptonstore.dataset.write import write_dataset

__all__ = [
    "Dataset",
    "DatasetStats",
    "Diff",
    "DiffStat",
    "Exchange",
    "FileTable",
    "RefInfo",
    "RowChange",
    "Rule",
    "Source",
    "StoredValue",
    "clone",
    "delete_ref",
    "list_refs",
    "pull",
    "push",
    "write_dataset",
    "write_files",
]
