"""Datasets: versioned tables of samples over the chunk store.

schema      semantic types           source      what an importer hands over      importers, exporters   formats in and out
cut         where row groups end     values      large values <-> references      groups, tree           rows <-> nodes
splice      rows out, rows in: the primitive of every edit
refs        names of versions        dataset     Dataset: read a version          write                  make a version
graph       what came before         reflog      what the log remembers           versions, branches     log, branches, tags
diff        two versions             merge       three versions                   integrate              merge, restore, revert
erase       rows out of every version and every byte (`leptonstore.dataset.erase.erase`)
files       tables of files (checkpoints, models)                                 stats                  rows, bytes, chunks
"""

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.diff import Diff, DiffStat, RowChange
from leptonstore.dataset.files import FileTable, write_files
from leptonstore.dataset.refs import RefInfo, delete_ref, list_refs
from leptonstore.dataset.source import Source
from leptonstore.dataset.stats import DatasetStats
from leptonstore.dataset.write import write_dataset

__all__ = [
    "Dataset",
    "DatasetStats",
    "Diff",
    "DiffStat",
    "FileTable",
    "RefInfo",
    "RowChange",
    "Source",
    "delete_ref",
    "list_refs",
    "write_dataset",
    "write_files",
]
