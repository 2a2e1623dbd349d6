"""A directory that torch.distributed.checkpoint wrote (FileSystemWriter), read without unpickling anything.

    .metadata          a pickle: which tensors there are, which file and bytes each piece of them has. Read as data (trainers.pickle_data)
    __<r>_<n>.distcp   the pieces, one after another, each as torch.save writes it: torch.load(weights_only=True)

Names of files stay inside of the directory, ranges inside of the files, sizes are held to what is there. Any number of ranks may have
written it, in any sharding; pieces are put together on the CPU.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from leptonstore.errors import BadInput, FormatDamaged, SourceError
from trainers.pickle_data import PICKLE_BYTES_MAX, Made, Name, parse

METADATA = ".metadata"
DIMENSIONS_MAX = 64  # torch's own limit
TENSOR_BYTES_MAX = 1 << 44  # 16 TiB, as trainers.checkpoint.layout
_CLASSES = "torch.distributed.checkpoint.metadata"


class Piece(NamedTuple):
    """Bytes [offset, offset + length) of a file: a box of a tensor, or a value."""

    file: str
    offset: int
    length: int


def is_dcp(path: Path) -> bool:
    """Whether it looks like one."""
    return path.is_dir() and (path / METADATA).is_file()


class DcpDirectory:
    """Its tensors and values by path: the keys of the state that was saved, joined by "/". One thread.

    Raises SourceError (unreadable), FormatDamaged (not what torch writes).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        file = path / METADATA
        try:
            if file.stat().st_size > PICKLE_BYTES_MAX:
                raise FormatDamaged(f"{file} has over {PICKLE_BYTES_MAX} bytes")
            told = _made(parse(file.read_bytes(), str(file)), "Metadata", str(file))
        except OSError as error:
            raise SourceError(f"cannot read {file}: {error.strerror}", str(file)) from None
        self._metadata = told
        self._pieces = dict(self._storage())
        described = self._metadata.get("state_dict_metadata")
        if not isinstance(described, dict):
            raise self._damaged("it names no tensors")
        self._described: dict[str, Made] = {self._text(name): self._object(entry) for name, entry in described.items()}
        self._paths = self._planned()

    def items(self) -> Iterator[tuple[tuple[str, ...], Any]]:
        """(keys, tensor or value) of everything in it, one tensor in memory at a time."""
        for name, entry in self._described.items():
            keys = self._paths.get(name, (name,))
            if str(entry.name).endswith(".TensorStorageMetadata"):
                yield keys, self._tensor(name, entry.attributes(name))
            elif str(entry.name).endswith(".BytesStorageMetadata"):
                yield keys, self._load(self._piece(name, None), name)
            else:
                raise self._damaged(f"{name!r} is a {entry.name}")

    def _tensor(self, name: str, told: dict[str, Any]) -> Tensor:
        shape, dtype = _size(told.get("size"), name), _dtype(told.get("properties"), name)
        if math.prod(max(1, length) for length in shape) * dtype.itemsize > TENSOR_BYTES_MAX:
            raise self._damaged(f"{name!r} claims {list(shape)} elements")
        boxes = []
        for chunk in told.get("chunks") or ():
            box = self._object(chunk).attributes(name)
            offsets, sizes = _size(box.get("offsets"), name), _size(box.get("sizes"), name)
            if len(offsets) != len(shape) or len(sizes) != len(shape):
                raise self._damaged(f"a piece of {name!r} has another number of dimensions")
            if any(at + size > length for at, size, length in zip(offsets, sizes, shape, strict=True)):
                raise self._damaged(f"a piece of {name!r} lies outside of it")
            boxes.append((offsets, sizes))
        if sum(math.prod(sizes) for _, sizes in boxes) != math.prod(shape):
            raise self._damaged(f"the pieces of {name!r} are not all of it")
        available = sum(self._piece(name, offsets).length for offsets, _ in boxes)
        if (
            math.prod(shape) * dtype.itemsize > available
        ):  # before memory is taken: torch.save adds to a tensor's bytes, and never packs them
            raise self._damaged(f"{name!r} claims more bytes than its pieces have")
        out = torch.empty(shape, dtype=dtype)
        for offsets, sizes in boxes:
            found = self._load(self._piece(name, offsets), name)
            if not isinstance(found, Tensor) or tuple(found.shape) != sizes or found.dtype != dtype:
                raise self._damaged(f"a piece of {name!r} is not what its metadata says")
            out[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] = found
        return out

    def _load(self, piece: Piece, name: str) -> Any:
        path = self.path / piece.file
        try:
            with path.open("rb") as file:
                file.seek(piece.offset)
                data = file.read(piece.length)
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}", str(path)) from None
        if len(data) != piece.length:
            raise self._damaged(f"{piece.file} ends before the bytes of {name!r}")
        return load_restricted(io.BytesIO(data), f"{name!r} in {path}")

    def _piece(self, name: str, offsets: tuple[int, ...] | None) -> Piece:
        found = self._pieces.get((name, offsets))
        if found is None:
            raise self._damaged(f"it does not say where {name!r} is")
        return found

    def _storage(self) -> Iterator[tuple[tuple[str, tuple[int, ...] | None], Piece]]:
        """Where each piece is: (name, offsets; None of a value) -> piece."""
        stored = self._metadata.get("storage_data")
        if not isinstance(stored, dict):
            raise self._damaged("it names no files")
        for key, value in stored.items():
            index, info = self._object(key).attributes("an index"), self._object(value).attributes("a piece")
            name, file = self._text(index.get("fqn")), self._text(info.get("relative_path"))
            offset, length = info.get("offset"), info.get("length")
            if "/" in file or "\\" in file or "\0" in file or file in ("", ".", ".."):
                raise self._damaged(f"it names the file {file!r}, which is not one inside of it")
            if info.get("transform_descriptors"):
                raise BadInput(f"{self.path}: {name!r} was transformed when it was saved: load it with torch")
            if type(offset) is not int or type(length) is not int or offset < 0 or length < 0:
                raise self._damaged(f"the bytes of {name!r} are at {offset!r}, {length!r}")
            at = index.get("offset")
            yield (name, None if at is None else _size(at, name)), Piece(file, offset, length)

    def _planned(self) -> dict[str, tuple[str, ...]]:
        """The keys of the nested state by flat name, where the planner wrote them down."""
        planned = self._metadata.get("planner_data")
        if planned is None:
            return {}
        if not isinstance(planned, dict):
            raise self._damaged(f"its planner wrote {planned!r:.60}")
        return {
            str(name): tuple(str(key) for key in keys)
            for name, keys in planned.items()
            if isinstance(keys, tuple) and all(isinstance(key, (str, int)) for key in keys)
        }

    def _object(self, value: Any) -> Made:
        if not isinstance(value, Made):
            raise self._damaged(f"it has {value!r:.60} where an object belongs")
        return value

    def _text(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._damaged(f"it has {value!r:.60} where a name belongs")
        return value

    def _damaged(self, why: str) -> FormatDamaged:
        return FormatDamaged(f"{self.path / METADATA} is damaged: {why}")


def load_restricted(file: Any, what: str, **options: Any) -> Any:
    """torch.load of tensors and plain values alone. Raises BadInput for anything else, of which nothing is executed."""
    import pickle

    try:
        return torch.load(file, map_location="cpu", weights_only=True, **options)
    except pickle.UnpicklingError as error:
        first = next(
            (line.strip() for line in str(error).splitlines() if "GLOBAL" in line or "Unsupported" in line), ""
        )
        raise BadInput(
            f"{what} holds more than tensors and plain values ({first[:160] or 'it cannot be read'}); nothing of it was executed. "
            "Save its state_dict() alone, and import that"
        ) from None
    except (
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AssertionError,
        AttributeError,
        OSError,
    ) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise FormatDamaged(f"{what} is no file that torch.save wrote, or a damaged one: {why[:160]}") from None


def _made(value: Any, name: str, what: str) -> dict[str, Any]:
    if not isinstance(value, Made) or value.name != Name(_CLASSES, name):
        raise FormatDamaged(f"{what} is no metadata of torch.distributed.checkpoint")
    return value.attributes(what)


def _size(value: Any, name: str) -> tuple[int, ...]:
    """torch.Size(...) as the pickle has it."""
    found = (
        value.arguments[0]
        if isinstance(value, Made) and value.name == Name("torch", "Size") and value.arguments
        else value
    )
    if not isinstance(found, (tuple, list)) or len(found) > DIMENSIONS_MAX:
        raise FormatDamaged(f"the shape of {name!r} is damaged: {value!r:.100}")
    if any(type(length) is not int or not 0 <= length <= TENSOR_BYTES_MAX for length in found):
        raise FormatDamaged(f"the shape of {name!r} is damaged: {found!r:.100}")
    return tuple(found)


def _dtype(properties: Any, name: str) -> torch.dtype:
    state = properties.state if isinstance(properties, Made) else None
    told = state.get("dtype") if isinstance(state, dict) else state[0] if isinstance(state, tuple) and state else None
    found = getattr(torch, told.name, None) if isinstance(told, Name) and told.module == "torch" else None
    if not isinstance(found, torch.dtype):
        raise FormatDamaged(f"the dtype of {name!r} is damaged: {told!r:.60}")
    return found
