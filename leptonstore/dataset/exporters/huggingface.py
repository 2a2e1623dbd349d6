"""Export as a Hugging Face dataset on disk, for `datasets.load_from_disk`. See leptonstore.dataset.hf_format.

A dataset with a class label "split" becomes a DatasetDict: a folder for each split, in the order of the rows of that split.
JSON files come last, so that a folder without them is no dataset yet.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.confined import checked_parts
from leptonstore.dataset.dataset import Dataset
from leptonstore.dataset.exporters.common import (
    ExportReport,
    Progress,
    Rows,
    batches_from,
    new_file,
    require_free_folder,
)
from leptonstore.dataset.exporters.shards import JOURNAL, Shards, export_key, read_journal, write_journal
from leptonstore.dataset.hf_format import DICT, INFO, STATE, feature_of, stored_schema, to_stored
from leptonstore.dataset.places import Place
from leptonstore.dataset.schema import class_names
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput

SPLIT = "split"
_NAMES = r"data-\d{5,}-of-\d{5,}\.arrow|state\.json|dataset_info\.json"


class _Without:
    """Rows without the column "split"."""

    def __init__(self, ds: Dataset) -> None:
        self._ds = ds
        self.schema = pa.schema([field for field in ds.schema if field.name != SPLIT])
        self.fingerprint = ds.fingerprint

    def __len__(self) -> int:
        return len(self._ds)

    def iter_batches(self, columns: Any = None) -> Iterator[tuple[int, pa.RecordBatch]]:
        """As the dataset's."""
        return self._ds.iter_batches(columns or self.schema.names)


def export_huggingface(ds: Rows, dest: Place, progress: Progress, overwrite: bool) -> ExportReport:
    """Shards of about limits.EXPORT_ARROW_SHARD_BYTES. Raises SchemaError for columns that are no feature."""
    names = class_names(ds.schema.field(SPLIT)) if SPLIT in ds.schema.names else None
    if names is None or not isinstance(ds, Dataset) or len(ds.schema) < 2:
        return _export_table(ds, dest, progress, overwrite, _bytes_of(ds, len(ds)))
    for name in names:
        if len(checked_parts(name)) != 1:
            raise BadInput(f"split {name!r} cannot be the name of a folder; rename it")
    key = export_key(ds, "huggingface", {})
    unfinished = read_journal(dest, key) is not None
    require_free_folder(dest, overwrite or unfinished)
    (dest / DICT).unlink(missing_ok=True)
    write_journal(dest, key, [])
    parts = {name: ds.split(name) for name in names}
    total = sum(len(part) for part in parts.values())
    if total != len(ds):
        raise BadInput(f"{len(ds) - total} rows have no split; clean the dataset")
    rows = files = size = 0
    for name, part in parts.items():
        done = dest / name
        if unfinished and _is_of(done, part):
            progress(len(part))
            rows += len(part)
            continue
        report = _export_table(_Without(part), done, progress, overwrite or unfinished, _bytes_of(ds, len(part)))
        rows, files, size = rows + report.rows, files + report.files, size + report.bytes
    text = json.dumps({"splits": list(parts)}).encode()
    with new_file(dest / DICT) as file:
        file.write(text)
    (dest / JOURNAL).unlink(missing_ok=True)
    return ExportReport(dest, rows, files + 1, size + len(text))


def _is_of(folder: Place, part: Dataset) -> bool:
    """Whether a split that is whole is of these rows."""
    try:
        with (folder / STATE).open("rb") as file:
            state = json.loads(file.read(limits.EXPORT_JOURNAL_BYTES_MAX))
        return bool(state["_fingerprint"] == _fingerprint(part))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fingerprint(ds: Any) -> str:
    return digest_of(str(getattr(ds, "fingerprint", "")).encode()).hex()[:16]


def _bytes_of(ds: Rows, rows: int) -> int:
    """About how many bytes `rows` rows have."""
    if not isinstance(ds, Dataset) or not ds.commit_object.rows:
        return 0
    return ds.commit_object.plain_bytes * rows // ds.commit_object.rows


def _export_table(ds: Rows, dest: Place, progress: Progress, overwrite: bool, size: int) -> ExportReport:
    stored = stored_schema(ds.schema)
    count = min(max(1, -(-size // limits.EXPORT_ARROW_SHARD_BYTES)), max(1, len(ds)))
    shards = Shards(ds, dest, "huggingface", {"shards": count}, _NAMES, overwrite)
    progress(shards.end)
    batches = batches_from(ds, shards.end)
    rest: list[tuple[int, pa.RecordBatch]] = []
    for number in range(len(shards.done), count):
        end = len(ds) * (number + 1) // count

        def write(file: IO[bytes], end: int = end) -> None:
            with pa.ipc.new_stream(file, stored) as writer:
                while (found := rest.pop() if rest else next(batches, None)) is not None:
                    position, batch = found
                    keep = max(0, min(batch.num_rows, end - position))
                    if keep:
                        writer.write_batch(_stored(batch.slice(0, keep), ds.schema, stored))
                        progress(keep)
                    if keep < batch.num_rows:
                        rest.append((position + keep, batch.slice(keep)))
                        return
                    if position + keep == end:
                        return

        shards.add(f"data-{number:05}-of-{count:05}.arrow", end, write)
    return shards.finish(len(ds), _documents(ds, shards))


def _stored(batch: pa.RecordBatch, schema: pa.Schema, stored: pa.Schema) -> pa.RecordBatch:
    columns = [
        to_stored(batch.column(at), field, target.type)
        for at, (field, target) in enumerate(zip(schema, stored, strict=True))
    ]
    return pa.RecordBatch.from_arrays(columns, schema=stored)


def _documents(ds: Rows, shards: Shards) -> dict[str, bytes]:
    info = {
        "citation": "",
        "description": "",
        "features": {field.name: feature_of(field) for field in ds.schema},
        "homepage": "",
        "license": "",
    }
    state: dict[str, Any] = {
        "_data_files": [{"filename": shard.name} for shard in shards.done],
        "_fingerprint": _fingerprint(ds),
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    return {INFO: json.dumps(info, indent=2).encode(), STATE: json.dumps(state, indent=2).encode()}
