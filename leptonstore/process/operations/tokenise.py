"""text.tokenise: a column of text becomes lists of token numbers, by a tokenizer.json of the `tokenizers` library.

What decides the result is the file's digest and the library's version; where the file lies does not matter. Truncation and padding that the
file asks for are left out: packs and windows of tokens cut and fill (loaders.packs, loaders.windows). The column is list<int32> with the
semantic type "tokens", as they and language modelling read it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from leptonstore.dataset import Dataset
from leptonstore.dataset.mounted import mount
from leptonstore.dataset.refs import resolve_ref
from leptonstore.dataset.schema import tokens_field
from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, MissingExtra, RefMissing, SchemaError
from leptonstore.limits import TEXT_BYTES_MAX, TOKENISE_BATCH_BYTES, TOKENIZER_BYTES_MAX, TOKENS_KNOWN_MAX
from leptonstore.process.columns import field_of
from leptonstore.process.operation import Made, Operation, RowOperation
from leptonstore.process.operations.parameters import made_of, texts
from leptonstore.store import Store

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAME = "text.tokenise"
_STORED = "lepton://"
_BYTES_ALPHABET = 256


@dataclass(frozen=True)
class Tokenise(RowOperation):
    """Adds a column of tokens. A null stays null; a text beyond TEXT_BYTES_MAX fails.

    tokenizer: path of a tokenizer.json, or lepton://NAME@REF/path of one among the files of a dataset of this store.
    special:   whether the tokens that the tokenizer puts around a text ([CLS], <s>) are added.
    end:       a token ("<|endoftext|>") that ends each text; "": none.
    digest:    of the file (BLAKE3, hex), where a pipeline wants that very one; else it is looked up.
    """

    name: ClassVar[str] = NAME
    column: str
    tokenizer: str
    into: str = "tokens"
    special: bool = False
    end: str = ""
    digest: str = ""
    data: bytes = field(default=b"", init=False, repr=False, compare=False)

    def bound(self, source: Dataset, schema: pa.Schema) -> Operation:
        """With the file, and its digest. Raises BadInput (no tokenizer, or another), RefMissing, MissingExtra."""
        data = _read(self.tokenizer, source.store)
        digest = digest_of(data).hex()
        if self.digest not in ("", digest):
            raise BadInput(
                f"{NAME}: {self.tokenizer} has the digest {digest[:16]}…, and {self.digest[:16]}… was asked for"
            )
        try:
            loaded = _loaded(data)
        except ValueError as error:
            raise BadInput(f"{NAME}: {self.tokenizer} is no tokenizer.json: {error}") from None
        if self.end and loaded.token_to_id(self.end) is None:
            raise BadInput(f"{NAME}: {self.tokenizer} has no token {self.end!r} to end texts with")
        made = replace(self, digest=digest)
        object.__setattr__(made, "data", data)
        return made

    def reads(self, schema: pa.Schema) -> tuple[str, ...]:
        """The column of text."""
        data_type = field_of(NAME, schema, self.column).type
        if not (pa.types.is_string(data_type) or pa.types.is_large_string(data_type)):
            raise SchemaError(f"{NAME}: column {self.column!r} holds {data_type}; text is a string column")
        return (self.column,)

    def output(self, schema: pa.Schema) -> pa.Schema:
        """With the tokens."""
        self.reads(schema)
        return made_of(NAME, schema, self.column, self._made(schema.field(self.column)))

    def writes(self, schema: pa.Schema) -> tuple[str, ...]:
        """The tokens."""
        return (self.into,)

    def libraries(self) -> dict[str, str]:
        """The tokenizer's library."""
        return {"tokenizers": str(_library().__version__)}

    def recipe(self) -> dict[str, Any]:
        """By the file's digest, wherever it lies."""
        found = super().recipe()
        digest = found.pop("digest")
        return found | ({"tokenizer": digest} if digest else {})

    def apply(self, batch: pa.RecordBatch) -> Made:
        """Tokens of each text."""
        if not self.data:
            raise BadInput(f"{NAME}: the tokenizer has not been read; call `bound` first")
        column, made = batch.column(0), self._made(batch.schema.field(0))
        sizes = pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
        failed = {
            row: f"a text of {sizes[row]:,} bytes; {TEXT_BYTES_MAX:,} are the most"
            for row in np.flatnonzero(sizes > TEXT_BYTES_MAX).tolist()
        }
        found: list[Sequence[int]] = []
        for start, stop in _stretches(sizes):
            values = column.slice(start, stop - start).to_pylist()
            found.extend(self._tokens(["" if start + at in failed else value or "" for at, value in enumerate(values)]))
        missing = column.is_null() if column.null_count else None
        return Made({made.name: _lists(found, missing, made.type)}, failed=failed)

    def _tokens(self, values: list[str]) -> Iterator[Sequence[int]]:
        tokenizer = _loaded(self.data)
        ends = tokenizer.token_to_id(self.end) if self.end else None
        end = [] if ends is None else [ends]
        for one in tokenizer.encode_batch_fast(values, add_special_tokens=self.special):
            yield one.ids + end

    def _made(self, text: pa.Field) -> pa.Field:
        return tokens_field(self.into, pa.int32()).with_nullable(text.nullable)


def train_tokenizer(ds: Dataset, column: str, vocabulary: int, special: Sequence[str] = ("<|endoftext|>",)) -> str:
    """A tokenizer.json (byte-level BPE) that is trained on the texts of a column, in the order of the rows.

    vocabulary: tokens at most, the 256 bytes and `special` among them. The same rows give the same file, with the same version of the
    library. Texts are read batch by batch; what the library counts (different words) stays in memory.
    Raises SchemaError (no such column of text), BadInput, MissingExtra.
    """
    from_library = _library()
    Tokenise(column, "-").reads(ds.schema)
    names = texts("train_tokenizer", "special", list(special)) if special else ()
    least = _BYTES_ALPHABET + len(names)
    if not least <= vocabulary <= TOKENS_KNOWN_MAX:
        raise BadInput(
            f"a vocabulary of {vocabulary:,} tokens; it must have {least} (bytes, special tokens) to {TOKENS_KNOWN_MAX:,}"
        )
    tokenizer = from_library.Tokenizer(from_library.models.BPE())
    byte_level = from_library.pre_tokenizers.ByteLevel
    tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
    tokenizer.decoder = from_library.decoders.ByteLevel()
    trainer = from_library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(names),
        initial_alphabet=sorted(byte_level.alphabet()),
        show_progress=False,
    )
    batches = (batch.column(0).drop_null().to_pylist() for _, batch in ds.iter_batches([column]))
    tokenizer.train_from_iterator(batches, trainer)
    return str(tokenizer.to_str())


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise MissingExtra(NAME, "text", "tokenizers") from None
    return tokenizers


@functools.lru_cache(maxsize=4)
def _loaded(data: bytes) -> Tokenizer:
    """Once a process. Raises ValueError."""
    library = _library()
    try:
        tokenizer: Tokenizer = library.Tokenizer.from_str(data.decode())
    except Exception as error:  # of Rust, without a class of its own
        raise ValueError(str(error)) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read(place: str, store: Store) -> bytes:
    """The file's bytes. Raises BadInput, RefMissing."""
    if place.startswith(_STORED):
        spec, _, path = place.removeprefix(_STORED).partition("/")
        files = mount(Dataset(store, *resolve_ref(store, "dataset", spec)))
        entry = files.entry(path) if path else None
        if entry is None or not entry.is_file:
            raise RefMissing(f"{NAME}: {spec} has no file {path!r}; write {_STORED}NAME@REF/tokenizer.json")
        _check_size(place, entry.size)
        return files.reader(path)(0, entry.size)
    try:
        _check_size(place, Path(place).stat().st_size)
        return Path(place).read_bytes()
    except OSError as error:
        raise BadInput(f"{NAME}: cannot read the tokenizer {place}: {error.strerror}") from None


def _check_size(place: str, size: int) -> None:
    if size > TOKENIZER_BYTES_MAX:
        raise BadInput(f"{NAME}: {place} has {size:,} bytes; a tokenizer.json has {TOKENIZER_BYTES_MAX:,} at most")


def _stretches(sizes: np.ndarray[Any, np.dtype[Any]]) -> Iterator[tuple[int, int]]:
    """Rows that are tokenised at a time: what the library makes of a text takes many times its bytes."""
    ends = np.cumsum(np.minimum(sizes, TEXT_BYTES_MAX), dtype=np.int64)
    start = 0
    while start < len(sizes):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + TOKENISE_BATCH_BYTES, side="right")))
        yield start, stop
        start = stop


def _lists(rows: Sequence[Sequence[int]], missing: pa.Array | None, data_type: pa.DataType) -> pa.Array:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    if missing is not None:  # an end was added to these, too
        lengths[missing.to_numpy(zero_copy_only=False)] = 0
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    values = np.empty(int(offsets[-1]), np.int32)
    for start, length, row in zip(offsets.tolist(), lengths.tolist(), rows, strict=False):
        values[start : start + length] = row[:length]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), mask=missing).cast(data_type)
