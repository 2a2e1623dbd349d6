"""What stands beside the cells of a checkpoint: the layout (which tensors there are) and the manifest (what the run was doing).

    layout.json   {"format": "lepton.checkpoint", "version": 2, "cell_bytes": n, "tensors": {path: {"dtype", "shape"}}}
    lineage of the commit: {"operation": "train", "code": {…}, "run", "step", "scalars": {path: value}, **manifest of the caller}

The manifest is the commit's lineage, so that a state that did not change is the same table: two checkpoints of it share every byte of
data. Both are canonical JSON: the same state is the same commit, wherever and whenever it is saved.

Version 1 (until LeptonStore 0.7) had a file of raw bytes for each tensor, and one manifest.json with both; it is still read.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from leptonstore.dataset import FileTable
from leptonstore.errors import FormatDamaged, FormatTooNew
from leptonstore.format.framed import canonical_json, parse_json
from leptonstore.version import __version__
from trainers.checkpoint.cells import CELL_BYTES
from trainers.checkpoint.layout import Described, parse_layout

FORMAT = "lepton.checkpoint"
VERSION = 2
LAYOUT = "layout.json"
MANIFEST_1 = "manifest.json"  # of version 1
# The layout grows with the number of tensors (about 100 bytes each), the manifest of version 1 also with finished epochs.
LAYOUT_BYTES_MAX = 64 << 20
CELL_BYTES_RANGE = (1 << 10, 16 << 20)  # what a reader accepts; a chunk has 16 MiB at most
_OUR_KEYS = ("operation", "code")


class Opened(NamedTuple):
    """A parsed checkpoint without its tensors."""

    version: int
    cell_bytes: int
    tensors: dict[str, Described]
    manifest: dict[str, Any]


def cell_path(path: str, number: int) -> str:
    """The file of a cell. Tensors have no name that ends like this: their parts and the cells' cannot be confused."""
    return f"{path}/{number:06d}.cell"


def encode_layout(tensors: dict[str, Described], cell_bytes: int = CELL_BYTES) -> bytes:
    """The layout file."""
    described = {path: tensor.to_json() for path, tensor in tensors.items()}
    return canonical_json({"format": FORMAT, "version": VERSION, "cell_bytes": cell_bytes, "tensors": described})


def lineage_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The commit's lineage. "code" is that of the last stretch of the provenance (trainers.provenance), if the manifest has one."""
    stretches = (manifest.get("provenance") or {}).get("stretches") or [{}]
    return {"operation": "train", "code": stretches[-1].get("code", {"leptonstore": __version__}), **manifest}


def open_manifest(files: FileTable, whose: str) -> Opened:
    """Parse what `whose` (for errors) has. Raises FormatDamaged or FormatTooNew."""
    paths = set(files.paths())
    name = LAYOUT if LAYOUT in paths else MANIFEST_1
    if name not in paths:
        raise FormatDamaged(f"{whose} has no {LAYOUT}")
    data = files.read(name)
    if len(data) > LAYOUT_BYTES_MAX:
        raise FormatDamaged(f"{name} of {whose} has {len(data)} bytes, over the limit of {LAYOUT_BYTES_MAX}")
    body = parse_json(data, f"{name} of {whose}")
    if not isinstance(body, dict) or body.get("format") != FORMAT or type(body.get("version")) is not int:
        raise FormatDamaged(f"{name} of {whose} does not say that it is of a checkpoint")
    version = body["version"]
    if version > VERSION:
        raise FormatTooNew(f"{whose} has format version {version}; this LeptonStore reads {VERSION}: upgrade")
    if version != (VERSION if name == LAYOUT else 1):
        raise FormatDamaged(f"{name} of {whose} says version {version}")
    if version == 1:
        return _version_1(body, whose)
    cell_bytes, (least, most) = body.get("cell_bytes"), CELL_BYTES_RANGE
    if type(cell_bytes) is not int or not least <= cell_bytes <= most:
        raise FormatDamaged(f"{name} of {whose} has cells of {cell_bytes!r:.40} bytes; they have {least} to {most}")
    manifest = {key: value for key, value in files.lineage.items() if key not in _OUR_KEYS}
    require_kinds(manifest, {"run": str, "step": int, "scalars": dict}, whose)
    return Opened(version, cell_bytes, parse_layout(body.get("tensors"), whose), manifest)


def _version_1(body: dict[str, Any], whose: str) -> Opened:
    tensors = parse_layout(body.pop("tensors", None), whose)
    named = body.pop("optimizer_scalars", None)
    if not isinstance(named, dict) or not all(isinstance(states, dict) for states in named.values()):
        raise FormatDamaged(f"the manifest of {whose} is damaged: optimizer_scalars is {named!r:.100}")
    scalars = {f"optimizer/{key}/{name}": value for name, states in named.items() for key, value in states.items()}
    manifest = {**{key: value for key, value in body.items() if key not in ("format", "version")}, "scalars": scalars}
    require_kinds(manifest, {"run": str, "step": int}, whose)
    return Opened(1, CELL_BYTES, tensors, manifest)


def require_kinds(manifest: dict[str, Any], kinds: dict[str, type], whose: str) -> None:
    """Raises FormatDamaged, naming the key, when a value is missing or of another kind, or an int is negative."""
    for key, kind in kinds.items():
        value = manifest.get(key)
        if not isinstance(value, kind) or (kind is int and (type(value) is not int or value < 0)):
            raise FormatDamaged(f"the manifest of {whose} is damaged: {key} is {value!r:.100}")
