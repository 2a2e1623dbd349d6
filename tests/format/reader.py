"""An independent reader of stores, written from docs/FORMAT.md alone: it proves that the document is enough.

Only the standard library, zstandard and blake3 (and `cryptography`, for AES-GCM, when a store is encrypted); nothing of
leptonstore may be imported here (a test checks it). Simple, not fast: every pack that the log lists is read whole, and
everything that the document promises is verified. What is wrong raises `Bad`.

    store = StoreReader(path)                   an encrypted one: StoreReader(path, passphrase or content of a key file)
    for pack, record in store.records(): …      every record, decoded and checked
    store.value(digest)                         the plain bytes of a value, of one record or of pieces
    store.commit(digest), store.rows(digest)    a version: its JSON, and its columns as Python lists
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from reader_common import Bad, digest_of, need
from reader_packs import (
    CHUNK,
    CHUNK_LIST,
    DICTIONARY,
    REFERENCE,
    PackReader,
    Record,
    parse_chunk_list,
    parse_reference,
    read_pack,
)
from reader_pages import PageReader, check_bounds
from reader_sealed import SealedKeys, canonical

__all__ = ["Bad", "StoreReader", "digest_of", "parse_document", "read_pack"]

SEALED, ENCRYPTED = 1, 2


def parse_document(data: bytes, kind: str, keys: SealedKeys | None = None, features: int = 0) -> dict[str, Any]:
    """The body of a framed document of `kind`, which requires exactly `features`."""
    line, _, body = data.partition(b"\n")
    pattern = rb"(lepton-([a-z]{1,16}) (\d+)\.(\d+) ([0-9a-f]{8})) (\d+) ([0-9a-f]{64})"
    match = re.fullmatch(pattern, line)
    need(match, f"no header line of a {kind}")
    assert match is not None
    need(match[2] == kind.encode(), f"a {match[2]!r} where a {kind} belongs")
    need(int(match[3]) == 1, "another major version")
    need(int(match[5], 16) == features, "a required feature that this reader lacks, or none where one belongs")
    need(int(match[6]) == len(body) and match[7].decode() == digest_of(body).hex(), f"{kind}: body does not fit")
    if features & SEALED:
        assert keys is not None
        body = keys.open_document(match[1], body)
    value = json.loads(body)
    need(isinstance(value, dict), f"{kind}: not an object")
    need(canonical(value) == body, f"{kind}: not canonical JSON")
    return dict(value)


def encode_key(kind: str, value: Any) -> bytes:
    """A value as part of a key: integers and strings, which are all that the tests have."""
    need(value is not None, "key: null")
    if kind == "string":
        return str(value).encode()
    need(kind.startswith(("int", "uint")), f"key: type {kind}")
    width = int(kind.lstrip("uint")) // 8
    return (value + (0 if kind[0] == "u" else 1 << (8 * width - 1))).to_bytes(width, "big")


class StoreReader:
    """A store directory, its log replayed and all its packs read and verified."""

    def __init__(self, root: Path, secret: bytes | None = None) -> None:
        self.root = root
        self.keys: SealedKeys | None = None
        self.config = parse_document((root / "config").read_bytes(), "config", features=ENCRYPTED if secret else 0)
        if secret is not None:
            documents = [parse_document(path.read_bytes(), "key") for path in sorted((root / "keys").iterdir())]
            self.keys = SealedKeys(self.config, documents, secret)
        self.store_id = bytes.fromhex(self.config["store_id"])
        self.refs: dict[str, str] = {}
        self.tags: set[str] = set()
        self.listed: dict[str, dict[str, Any]] = {}
        self.roots: dict[str, str] = {}
        self.entries = self._replay()
        self.packs = [self._pack(pack) for pack in sorted(self.listed)]
        listed = [record for pack in self.packs for record in pack.records if record.kind != DICTIONARY]
        # A chunk comes before a reference to it.
        self._by_name = {record.name: record for record in sorted(listed, key=lambda one: one.kind != REFERENCE)}

    def _replay(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = []
        previous = bytes(32)
        names = sorted(path.name for path in (self.root / "log").iterdir())
        for sequence, name in enumerate(names, 1):
            need(name == f"{sequence:020d}", "log: an entry is missing")
            data = (self.root / "log" / name).read_bytes()
            body = parse_document(data, "log", self.keys, SEALED if self.keys else 0)
            need(body["sequence"] == sequence and body["previous"] == previous.hex(), "log: it is no chain")
            previous = digest_of(data)
            self.listed |= {pack["id"]: pack for pack in body["packs_added"]}
            for pack in body["packs_removed"]:
                self.listed.pop(pack, None)
            self.roots = body.get("settings", {}).get("references", self.roots)
            for ref in body["refs"]:
                need(ref["new"] is None or ref["name"] not in self.tags, "log: a tag moves")
                self.tags.discard(ref["name"])
                if ref["new"] is None:
                    self.refs.pop(ref["name"], None)
                else:
                    self.refs[ref["name"]] = ref["new"]
                    self.tags |= {ref["name"]} if ref.get("tag") else set()
            entries.append(body)
        return entries

    def _pack(self, pack_id: str) -> PackReader:
        data = (self.root / "packs" / pack_id[:2] / f"{pack_id}.pack").read_bytes()
        listed = self.listed[pack_id]
        need(len(data) == listed["bytes"], "pack: not as long as the log says")
        pack = read_pack(data, pack_id, self.store_id, self.keys)
        need(pack.content == listed["content"], "pack: not of the content that the log says")
        return pack

    def records(self) -> Iterator[tuple[PackReader, Record]]:
        """Every record of every pack that the log lists."""
        for pack in self.packs:
            for record in pack.records:
                yield pack, record

    def find(self, digest: bytes) -> Record:
        """The record of a chunk or of a chunk list, by the digest of the value."""
        found = self._by_name.get(digest if self.keys is None else self.keys.name(digest))
        need(found is not None, f"no record of {digest.hex()}")
        assert found is not None
        return found

    def value(self, digest: bytes) -> bytes:
        """The plain bytes of a page, node, commit or value."""
        record = self.find(digest)
        if record.kind != CHUNK_LIST:
            return self._chunk(record)
        out = bytearray()
        for piece, length in parse_chunk_list(record.plain):
            found = self._chunk(self.find(piece))
            need(len(found) == length, "chunk list: a piece")
            out += found
        need(digest_of(out) == digest, "chunk list: the pieces are not the value")
        return bytes(out)

    def _chunk(self, record: Record) -> bytes:
        """A chunk, from its pack or from where a reference says: here only from folders of this machine."""
        need(record.kind in (CHUNK, REFERENCE), "a chunk list where a chunk belongs")
        if record.kind == CHUNK:
            return record.plain
        at = parse_reference(record.plain)
        root = self.roots[str(at.root)]
        need(root.startswith("file:///"), "reference: a root that this reader cannot read")
        with open(f"{unquote(root[7:])}/{at.path}", "rb") as file:
            file.seek(at.offset)
            data = file.read(at.length)
        need(digest_of(data) == record.name, "reference: its object has changed")
        return data

    def commit(self, name: str) -> dict[str, Any]:
        """A version by its digest (hex)."""
        data = self.value(bytes.fromhex(name))
        body = json.loads(data)
        need(body["format"] == "lepton.commit" and body["version"] == 1, "commit: its version")
        return dict(body)

    def rows(self, name: str) -> dict[str, list[Any]]:
        """All values of a version by column. Dates, times and decimals are the integers that stand in the pages."""
        commit = self.commit(name)
        columns: dict[str, list[Any]] = {item["name"]: [] for item in commit["schema"]}
        if commit["root"]:
            found = self._node(bytes.fromhex(commit["root"]), None, commit["schema"], columns)
            need(found == (commit["rows"], commit["plain_bytes"]), "commit: rows or bytes are not those of the tree")
        need(all(len(values) == commit["rows"] for values in columns.values()), "commit: rows")
        if commit.get("keyed"):
            types = {item["name"]: item["type"] for item in commit["schema"]}
            cells = [[encode_key(types[name], one) for one in columns[name]] for name in commit["identity"]]
            # Of strings in front of other columns: here they have no zeros, so that only their end counts.
            keys = [b"\0\1".join(row) if len(row) > 1 else row[0] for row in zip(*cells, strict=True)]
            need(all(one < other for one, other in pairwise(keys)), "commit: rows are not in the order of their keys")
        return columns

    def _node(
        self, digest: bytes, level: int | None, schema: list[dict[str, Any]], columns: dict[str, list[Any]]
    ) -> tuple[int, int]:
        """Rows and plain bytes below a node, whose values are appended to `columns`."""
        data = self.value(digest)
        magic, found, keyed, count, rows, plain_bytes = struct.unpack_from("<4sBBHQQ", data)
        need(magic == b"LND1" and keyed <= (found > 0) and found <= 16 and level in (None, found), "node: head")
        if found == 0:
            need(count == len(schema), "row group: columns")
            at, total = 24, 0
            for item in schema:
                at, size = self._parts(data, at, rows, item, columns[item["name"]])
                total += size
        else:
            (children,) = struct.unpack_from("<I", data, 24)
            at, below, last = 28, [0, 0], b""
            for _ in range(children):
                child, *expected = struct.unpack_from("<32sQQ", data, at)
                at += 48
                if keyed:
                    (length,) = struct.unpack_from("<H", data, at)
                    key = data[at + 2 : at + 2 + length]
                    need(last <= key and len(key) == length <= 64, "node: keys")
                    at, last = at + 2 + length, key
                need(self._node(child, found - 1, schema, columns) == tuple(expected), "node: a child's sums")
                below = [a + b for a, b in zip(below, expected, strict=True)]
            need(count == 0 and below[0] == rows, "node: rows")
            total = below[1]
        need(at == len(data) and total == plain_bytes, "node: length or bytes")
        return rows, plain_bytes

    def _parts(self, data: bytes, at: int, rows: int, item: dict[str, Any], out: list[Any]) -> tuple[int, int]:
        """One column of a row group: (where the next begins, plain bytes)."""
        (parts,) = struct.unpack_from("<I", data, at)
        at, total, found = at + 4, 0, 0
        for _ in range(parts):
            digest, part_rows, nulls, page_bytes, referenced, flags = struct.unpack_from("<32sIIQQB", data, at)
            at += 57 + (16 if flags & 2 else 0)
            page = self.value(digest)
            need(len(page) == page_bytes, "part: page bytes")
            reader = PageReader(page)
            need(reader.rows == part_rows and reader.flags == flags & 1, "part: rows or references")
            values, references = reader.values(item["type"])
            need(sum(value is None for value in values) == nulls, "part: nulls")
            if flags & 2:
                check_bounds(data[at - 16 : at], item["type"], values)
            bytes_found = 0
            for row, is_reference in enumerate(references):
                if is_reference:
                    target, length = struct.unpack("<32sQ", values[row])
                    value = self.value(target)
                    need(len(value) == length, "reference: length")
                    bytes_found += length
                    values[row] = value
                if flags & 1 and isinstance(values[row], bytes) and item["type"] in ("string", "large_string"):
                    values[row] = values[row].decode("utf-8")
            need(bytes_found == referenced, "part: referenced bytes")
            out.extend(values)
            total, found = total + page_bytes + referenced, found + part_rows
        need(found == rows, "row group: a column has other rows")
        return at, total
