"""Steps for the tests of the engine, and tables for them. Workers of a cluster import this file, too."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset.schema import inline_bytes
from leptonstore.dataset.values import intern, resolve, take
from leptonstore.errors import SourceError
from leptonstore.process.engine.pieces import Piece
from leptonstore.process.findings import findings_table
from leptonstore.store import Store


@dataclass(frozen=True)
class Same:
    """All rows as they are."""

    schema: pa.Schema

    @property
    def reads(self) -> tuple[str, ...]:
        return tuple(self.schema.names)

    def __call__(self, piece: Piece, store: Store) -> Piece:
        return piece


@dataclass(frozen=True)
class Sieve(Same):
    """Leaves out the rows whose number is divisible by `by`, or lies in a stretch of `by` rows of which `by` follow; says so of each."""

    by: int = 3
    stretches: bool = False

    def __call__(self, piece: Piece, store: Store) -> Piece:
        gone = (piece.rows // self.by) % 2 == 0 if self.stretches else piece.rows % self.by == 0
        kept = np.flatnonzero(~gone)
        columns = {name: take(piece.columns[name], kept) for name in self.schema.names}
        out = piece.rows[gone]
        return Piece(piece.rows[kept], columns, findings_table("sieve", "id", out, [f"row {row}" for row in out]))


@dataclass(frozen=True)
class Chosen(Same):
    """Rows of which an array says so."""

    wanted: np.ndarray | None = None

    def __call__(self, piece: Piece, store: Store) -> Piece:
        assert self.wanted is not None
        kept = np.flatnonzero(self.wanted[piece.rows])
        return Piece(piece.rows[kept], {name: take(piece.columns[name], kept) for name in self.schema.names})


@dataclass(frozen=True)
class Twice(Same):
    """Looks every value of column `text` up and gives it twice over, as a column of its own after the others."""

    read: tuple[str, ...] = ("id", "text")

    @property
    def reads(self) -> tuple[str, ...]:
        return self.read

    def __call__(self, piece: Piece, store: Store) -> Piece:
        field = self.schema.field("double")
        values = resolve(store, piece.columns["text"], field.type)
        made = pc.binary_join_element_wise(values, values, "")
        double = intern(store, made.cast(field.type), inline_bytes(field))
        return Piece(piece.rows, {**piece.columns, "double": double})


@dataclass(frozen=True)
class Deadly(Sieve):
    """A Sieve whose worker dies (kill -9) some time after it met row `row`: once for each file in the directory `tokens`."""

    tokens: str = ""
    row: int = 0
    delay_s: float = 0.0

    def __call__(self, piece: Piece, store: Store) -> Piece:
        if self.row in piece.rows:
            for token in Path(self.tokens).iterdir():
                with suppress(FileNotFoundError):
                    token.unlink()
                    threading.Timer(self.delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()
                    break
        return super().__call__(piece, store)


@dataclass(frozen=True)
class Raising(Same):
    """Cannot read row `row`; ours: says so with an error of LeptonStore's."""

    row: int = 0
    ours: bool = True

    def __call__(self, piece: Piece, store: Store) -> Piece:
        if self.row in piece.rows:
            raise (SourceError if self.ours else ZeroDivisionError)(f"row {self.row} is unreadable")
        return piece


def texts(rows: int, long_every: int = 0, seed: int = 0) -> pa.Table:
    """`id` and `text`; every so many rows a text that is a chunk of its own."""
    random = np.random.default_rng(seed)
    ids = random.permutation(rows * 3)[:rows]
    long = [long_every and row % long_every == 0 for row in range(rows)]
    text = [
        f"{number:x}" * (5_000 if one else 1 + row % 5) for row, (number, one) in enumerate(zip(ids, long, strict=True))
    ]
    schema = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("text", pa.string())])
    return pa.table({"id": pa.array(ids), "text": pa.array(text, pa.string())}, schema=schema)


def plain(table: pa.Table, rows: np.ndarray) -> pa.Table:
    """Those rows of a table."""
    return table.take(pa.array(rows)).combine_chunks()
