"""Datasets: versioned tables of samples over the chunk store.

schema      semantic types           source      what an importer hands over      importers, exporters   formats in and out
cut         where row groups end     values      large values <-> references      tree                   rows <-> nodes
refs        NAME@REF                 dataset     Dataset: read a version          write                  make a version
files       tables of files (checkpoints, models)                                 stats                  rows, bytes, chunks
exchange    push, pull and clone
"""

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.exchange import Exchange, clone, pull, push
from leptonstore.dataset.files import FileTable, write_files
from leptonstore.dataset.refs import RefInfo, delete_ref, list_refs
from leptonstore.dataset.source import Source
from leptonstore.dataset.stats import DatasetStats
from leptonstore.dataset.write import write_dataset

__all__ = [
    "Dataset",
    "DatasetStats",
    "Exchange",
    "FileTable",
    "RefInfo",
    "Source",
    "clone",
    "delete_ref",
    "list_refs",
    "pull",
    "push",
    "write_dataset",
    "write_files",
]
