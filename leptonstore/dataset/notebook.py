"""What a notebook shows of a dataset: its first rows, with thumbnails where they cost nothing to speak of."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from leptonstore import limits
from leptonstore.dataset.schema import semantic_of
from leptonstore.dataset.shown import one_line, shown
from leptonstore.errors import LeptonError
from leptonstore.store.notebook import Markup, html_table

if TYPE_CHECKING:
    from leptonstore.dataset.dataset import Dataset
    from leptonstore.dataset.files import FileTable

_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")


def dataset_html(ds: Dataset) -> str:
    """The first rows of a view. Damage is told in place of the rows."""
    names = ds.column_names[: limits.HTML_COLUMNS_MAX]
    fields = ds.fields(names)
    caption = f"{ds.label}: {len(ds):,} rows, {len(ds.column_names)} columns, commit {ds.commit[:12]}"
    head = [f"{one_line(field.name)} ({one_line(semantic_of(field) or str(field.type))})" for field in fields]
    try:
        first = ds.head(limits.HTML_ROWS_MAX, names)
        rows = [[_cell(row[field.name], field, at) for field in fields] for at, row in enumerate(first)]
    except LeptonError as error:
        return html_table(caption, head, [], str(error))
    more = len(ds) - len(rows)
    hidden = len(ds.column_names) - len(names)
    notes = [f"and {more:,} more rows"] * bool(more) + [f"and {hidden:,} more columns"] * bool(hidden)
    return html_table(caption, head, rows, ", ".join(notes))


def files_html(files: FileTable) -> str:
    """The first files of a table of files."""
    paths = files.paths()
    rows = [[one_line(path)] for path in paths[: limits.HTML_LINES_MAX]]
    more = len(paths) - len(rows)
    caption = f"{files.table.label}: {len(paths):,} files, commit {files.commit[:12]}"
    return html_table(caption, ["path"], rows, f"and {more:,} more" if more else "")


def _cell(value: Any, field: pa.Field, row: int) -> str:
    picture = (
        _thumbnail(value, f"{one_line(field.name)} of row {row}")
        if semantic_of(field) == "image" and value is not None
        else None
    )
    return shown(value, field) if picture is None else picture


def _thumbnail(value: Any, said: str) -> Markup | None:
    """A small picture, None where it is large, no picture, or Pillow is not there."""
    try:
        from PIL import Image
    except ImportError:
        return None
    if memoryview(value).nbytes > limits.HTML_IMAGE_BYTES_MAX:
        return None
    edge = limits.HTML_THUMBNAIL_EDGE
    try:
        if isinstance(value, np.ndarray):
            image = Image.fromarray(value.squeeze(-1) if value.ndim == 3 and value.shape[2] == 1 else value)
        else:
            image = Image.open(io.BytesIO(value), formats=_FORMATS)
            if image.width * image.height > limits.HTML_IMAGE_PIXELS_MAX:
                return None
            image.draft("RGB", (edge, edge))
        image = image.convert("RGB")
        image.thumbnail((edge, edge))
        out = io.BytesIO()
        image.save(out, "PNG")
    except Exception:  # Pillow raises many kinds for a damaged picture, and a repr must not fail
        return None
    data = base64.b64encode(out.getvalue()).decode()
    return Markup(f"<img alt='{escape(said)}' src='data:image/png;base64,{data}'>")
