"""Images as a folder of files, and tables of files as files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.dataset.confined import ConfinedFolder, checked_parts
from leptonstore.dataset.exporters.common import ExportReport, Files, Progress, Rows, named, new_file
from leptonstore.dataset.places import Place, UrlPlace
from leptonstore.dataset.schema import CODEC, class_names, semantic_of, tensor_shape
from leptonstore.digest import Buffer
from leptonstore.errors import BadInput, MissingExtra, SchemaError

_IMAGE_SUFFIXES = {"jpeg": ".jpg", "png": ".png", "bmp": ".bmp", "gif": ".gif", "webp": ".webp", "tiff": ".tif"}
_IMAGE_MAGICS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG", "png"),
    (b"BM", "bmp"),
    (b"GIF8", "gif"),
    (b"RIFF", "webp"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
)


def export_files(table: Files, dest: Place, progress: Progress) -> ExportReport:
    """Every file at its path."""

    def items() -> Iterator[tuple[str, Buffer]]:
        for path in table.paths():
            yield path, table.read(path)
            progress(1)

    return _write_tree(dest, items())


def export_folder(ds: Rows, layout: FolderLayout, dest: Place, progress: Progress) -> ExportReport:
    """Images as <split>/<class>/<file>, or at their own paths."""

    def items() -> Iterator[tuple[str, Buffer]]:
        for position, batch in ds.iter_batches(layout.columns):
            images = layout.images(batch, position)
            yield from zip(layout.paths(batch, position, images), images, strict=True)
            progress(batch.num_rows)

    return _write_tree(dest, items())


class _UrlFolder:
    """Objects below a URL, by relative path."""

    def __init__(self, root: UrlPlace) -> None:
        self._root = root
        self._written: set[str] = set()

    def write(self, path: str, data: Buffer) -> None:
        """Write one object. Raises BadInput for a path that leads out, or was written before."""
        checked_parts(path)
        if path in self._written:
            raise BadInput(f"two rows have the path {path!r}; give them different ones")
        with new_file(self._root / path) as file:
            file.write(data)
        self._written.add(path)


def _folder(dest: Place) -> AbstractContextManager[ConfinedFolder | _UrlFolder]:
    return nullcontext(_UrlFolder(dest)) if isinstance(dest, UrlPlace) else ConfinedFolder(dest)


def _write_tree(dest: Place, items: Iterable[tuple[str, Buffer]]) -> ExportReport:
    files = size = 0
    with _folder(dest) as folder:
        for path, data in items:
            folder.write(path, data)
            files += 1
            size += memoryview(data).nbytes
    return ExportReport(dest, files, files, size)


def image_suffix(image: Buffer) -> str:
    """The ending that the first bytes of an image ask for, "bin" where they are no image's."""
    head = bytes(memoryview(image)[:4])
    sniffed = next((name for magic, name in _IMAGE_MAGICS if head.startswith(magic)), "")
    return _IMAGE_SUFFIXES.get(sniffed, ".bin").removeprefix(".")


@dataclass(frozen=True)
class FolderLayout:
    """Which columns make up a folder of images, and how a row becomes a path and a file.

    path, label, split: None where the table has no such column. digits: width of the row numbers in made-up names.
    """

    image: pa.Field
    path: pa.Field | None
    label: pa.Field | None
    split: pa.Field | None
    digits: int

    @classmethod
    def of(cls, schema: pa.Schema, rows: int) -> FolderLayout:
        """Raises SchemaError when there is no column of images, or one that cannot become files."""
        images = [field for field in schema if semantic_of(field) == "image"]
        if not images:
            raise SchemaError(f"no column of images to export as a folder ({', '.join(schema.names)}); use parquet")
        image = images[0]
        shape = tensor_shape(image)
        if shape is not None:
            if image.type.value_type != pa.uint8() or not (len(shape) == 2 or (len(shape) == 3 and shape[2] <= 4)):
                raise SchemaError(f"column {image.name!r} ({image.type}) cannot become PNG files; use parquet")
            _require_pillow()
        elif not (pa.types.is_binary(image.type) or pa.types.is_large_binary(image.type)):
            raise SchemaError(f"column {image.name!r} ({image.type}) holds no image files; use parquet")

        def class_label(name: str) -> pa.Field | None:
            field = schema.field(name) if name in schema.names else None
            return field if field is not None and class_names(field) is not None else None

        paths = [field for field in schema if semantic_of(field) == "path"]
        path = paths[0] if paths else None
        return cls(image, path, class_label("label"), class_label("split"), max(6, len(str(rows))))

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        needed = [self.image, self.path] if self.path is not None else [self.image, self.split, self.label]
        return [field.name for field in needed if field is not None]

    def images(self, batch: pa.RecordBatch, position: int) -> list[Buffer]:
        """The files of a batch. Raises BadInput for a row without an image."""
        column = batch.column(self.image.name)
        if column.null_count:
            row = position + column.is_null().index(True).as_py()
            raise BadInput(f"row {row} has no image to export; clean the dataset")
        if tensor_shape(self.image) is not None:
            return [_png(image) for image in column.to_numpy_ndarray()]
        return [memoryview(value.as_buffer()) for value in column]

    def paths(self, batch: pa.RecordBatch, position: int, images: Sequence[Buffer]) -> Iterator[str]:
        """The path of each row: its own, or <split>/<class>/<row number>. Raises BadInput for a row without one."""
        decoded = tensor_shape(self.image) is not None
        if self.path is not None:
            for row, path in enumerate(batch.column(self.path.name).to_pylist()):
                if path is None:
                    raise BadInput(f"row {position + row} has no path to export it at; clean the dataset")
                yield os.path.splitext(path)[0] + ".png" if decoded else path
            return
        folders = [
            named(batch.column(field.name), field, position).to_pylist()
            for field in (self.split, self.label)
            if field is not None
        ]
        for row, image in enumerate(images):
            suffix = ".png" if decoded else self._suffix(image)
            name = f"{position + row:0{self.digits}}{suffix}"
            yield "/".join([*(_folder_name(names[row]) for names in folders), name])

    def _suffix(self, image: Buffer) -> str:
        codec = (self.image.metadata or {}).get(CODEC, b"mixed").decode()
        return _IMAGE_SUFFIXES.get(codec) or f".{image_suffix(image)}"


def _folder_name(name: str | None) -> str:
    """A class's name as one folder. Raises BadInput for names that are none, such as "a/b" or ".."."""
    if name is None:
        raise BadInput("a row has no class or split, so that there is no folder for it; clean the dataset")
    if len(checked_parts(name)) != 1:
        raise BadInput(f"class {name!r} cannot be the name of a folder; rename it, or export as parquet")
    return name


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise MissingExtra("writing PNG images", "process", "PIL") from None


def _png(image: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image).save(out, "PNG")
    return out.getvalue()
