"""Export: a dataset version, or a table of files, as files that other tools read.

    parquet      one file, zstd, a row group per batch; semantic types stay in the field metadata, so that importing it
                 again gives the same schema
    csv          one file with a header line; a class label is written as its name; binary, tensor and nested columns are
                 refused
    jsonl        one file, an object a line; a class label is written as its name, bytes as base64
    arrow        one Arrow IPC file; schema as in Parquet
    npz          one file of numpy; columns of numbers and tensors, without nulls
    safetensors  as npz
    webdataset   tar shards of 64 MiB in a folder
    mds          shards of mosaicml-streaming in a folder
    huggingface  what datasets.load_from_disk reads; with a class label "split" a DatasetDict
    folder       images as <split>/<class>/<file>. Encoded images are written byte for byte, at their `path` when they
                 have one; decoded ones become PNG. Other columns are not exported
    files        every file of a checkpoint, a model or a directory of files at its path

npz, safetensors, webdataset, mds and huggingface carry the schema in a place that other readers pass over, so that an
import gives back the same table.

Everything streams: memory holds a batch, or a shard. DEST may be a URL (files: a path only). A file has its final name only
when it is whole. An export to shards that was interrupted goes on when it is run again (see `shards`); a folder of images
leaves whole files. Existing files are replaced only with overwrite=True, and then by name: other files in the folder stay.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.export_tree import export_tree
from leptonstore.dataset.exporters.common import (
    ExportReport,
    Files,
    Progress,
    Rows,
    require_free_file,
    require_free_folder,
)
from leptonstore.dataset.exporters.folder import FolderLayout, export_files, export_folder
from leptonstore.dataset.filetree import is_file_tree
from leptonstore.dataset.places import Place, UrlPlace, place_of
from leptonstore.dataset.schema import semantic_of
from leptonstore.errors import BadInput

__all__ = ["FORMATS", "ExportReport", "Files", "Progress", "Rows", "export_dataset"]

FORMATS: dict[str, str] = {
    "parquet": "one Parquet file with all columns",
    "csv": "one CSV file; no binary, tensor or nested columns",
    "jsonl": "one file of JSON lines (.jsonl, .jsonl.gz)",
    "arrow": "one Arrow IPC file (.arrow), or stream (.arrows)",
    "npz": "one file of numpy arrays; columns of numbers and tensors",
    "safetensors": "one safetensors file; columns of numbers and tensors",
    "webdataset": "tar shards in a folder",
    "mds": "shards of mosaicml-streaming in a folder",
    "huggingface": "a folder for datasets.load_from_disk",
    "folder": "images as <split>/<class>/<file>",
    "files": "the files of a directory, a checkpoint or a model",
}


@dataclass(frozen=True)
class _Exporter:
    """module:function of (ds, dest, progress, ...), and the options that it takes. shards: it looks at DEST by itself."""

    module: str
    function: str
    options: tuple[str, ...] = ()
    shards: bool = False


_EXPORTERS = {
    "parquet": _Exporter("tables", "export_parquet"),
    "csv": _Exporter("tables", "export_csv"),
    "jsonl": _Exporter("tables", "export_jsonl"),
    "arrow": _Exporter("tables", "export_arrow"),
    "npz": _Exporter("arrays", "export_npz"),
    "safetensors": _Exporter("arrays", "export_safetensors"),
    "webdataset": _Exporter("webdataset", "export_webdataset", shards=True),
    "mds": _Exporter("mds", "export_mds", ("compression",), shards=True),
    "huggingface": _Exporter("huggingface", "export_huggingface", shards=True),
}
_SUFFIX_FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson.gz": "jsonl",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".feather": "arrow",
    ".npz": "npz",
    ".safetensors": "safetensors",
}


def export_dataset(
    ds: Rows | Files,
    dest: str | os.PathLike[str] | Place,
    format: str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    **options: Any,
) -> ExportReport:
    """Write `ds` to `dest`, a path or a URL, in one of FORMATS (default: by the ending of `dest`, else by what `ds` holds).

    progress: called with the number of rows (or files) written since its last call. options: `compression` ("zstd") of mds.
    Raises BadInput (unknown format or option, `dest` exists and is not empty, a path that leads out of it, an image that is
    missing, a null where the format has none), SchemaError (columns that the format does not hold), MissingExtra (PNG
    without Pillow), StoreFull, and for URLs NotPermitted and TierUnavailable.
    """
    if isinstance(ds, Dataset):
        ds = ds.uncached()  # all of it is read once: that would drive out of the hot cache what is read often
    target = place_of(dest)
    name = format if format is not None else _format_for(ds, target)
    if name not in FORMATS:
        raise BadInput(f"no export format {name!r}; there are {', '.join(FORMATS)}")
    exporter = _EXPORTERS.get(name)
    for option in options:
        if exporter is None or option not in exporter.options:
            listed = ", ".join(exporter.options if exporter else ()) or "none"
            raise BadInput(f"the format {name} has no option {option!r}; its options: {listed}")
    report = progress or (lambda rows: None)
    if isinstance(ds, Files):
        if name != "files":
            raise BadInput(f"a table of files is exported as files, not as {name}")
        require_free_folder(target, overwrite)
        return export_files(ds, target, report)
    if name == "files":
        return _export_tree(ds, target, report, overwrite)
    if exporter is None:
        layout = FolderLayout.of(ds.schema, len(ds))
        require_free_folder(target, overwrite)
        return export_folder(ds, layout, target, report)
    function: Callable[..., ExportReport] = getattr(
        importlib.import_module(f"{__name__}.{exporter.module}"), exporter.function
    )
    if exporter.shards:
        return function(ds, target, report, overwrite, **options)
    require_free_file(target, overwrite)
    return function(ds, target, report, **options)


def _export_tree(ds: Rows, target: Place, report: Progress, overwrite: bool) -> ExportReport:
    if not isinstance(ds, Dataset) or not is_file_tree(ds.schema):
        raise BadInput(
            "only a directory of files, a checkpoint or a model is exported as files; choose parquet, csv or folder"
        )
    if isinstance(target, UrlPlace):
        raise BadInput(
            f"{target}: a directory of files (with modes, times and links) is exported to a path; copy it from there"
        )
    require_free_folder(target, overwrite)
    done = export_tree(ds, target, report)
    return ExportReport(target, done.rows, done.files, done.bytes)


def _format_for(ds: Rows | Files, dest: Place) -> str:
    if isinstance(ds, Files):
        return "files"
    name = dest.name.lower()
    by_name = next((format for suffix, format in _SUFFIX_FORMATS.items() if name.endswith(suffix)), None)
    if by_name is not None:
        return by_name
    if is_file_tree(ds.schema):
        return "files"
    if any(semantic_of(field) == "image" for field in ds.schema):
        return "folder"
    raise BadInput(f"cannot tell a format from {dest}; end it in .parquet or .csv, or name one of {', '.join(FORMATS)}")
