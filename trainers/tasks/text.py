"""Language modelling: tell the next token, for every place of a stream of tokens.

The documents of a version are one text, in row order (loaders.windows). A row of training is a window of it:

    window     t0 t1 t2 ... tL        L + 1 tokens, `stride` (L by default) from one to the next
    inputs     t0 t1 ... t(L-1)
    targets       t1 t2 ...  tL

Every token but the first of the text is a target once in an epoch (where stride is L), except for what is left at the end and fills no
window. Evaluation measures that too: its last window is filled up with targets that count nothing.

With data.packs a row is a pack instead: whole documents, as many as fit into L tokens, longer ones cut (loaders.packs). Documents do not
see each other, and the first token of each is no target. The model takes int64 [b, L, 3]: token, document (0: none), place in it; that of
trainers.models does. Evaluation is of packs, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from leptonstore.dataset import Dataset
from leptonstore.dataset.schema import semantic_of
from leptonstore.errors import BadInput, FormatDamaged
from leptonstore.process import columns
from loaders import DataLoader, TokenPacks, TokenWindows
from loaders.boundaries import next_tokens
from loaders.packs import POSITIONS, SEGMENTS
from trainers.config import DataConfig, ModelConfig
from trainers.evaluation import TokenMeter
from trainers.losses import IGNORED
from trainers.models import build_network
from trainers.models.transformer import CONTEXT_MAX, VOCABULARY_MAX
from trainers.parallel import World
from trainers.tasks.blocks import block_loader, block_rows
from trainers.tasks.columns import column_of
from trainers.tasks.shuffled import shuffled_loader

SEQUENCE_LENGTH = 128  # tokens of a window, where data.sequence_length is not given
BYTES = 256  # the vocabulary of tokens that are bytes


@dataclass(frozen=True)
class LanguageModelling:
    """A `trainers.tasks.Task`. inputs: the column of tokens, which is also what is told.

    vocabulary: tokens are 0 to vocabulary - 1. length: tokens that the model sees at once. stride: of training windows.
    bytes_per_token: 1 where tokens are bytes, else None. packs: rows are packs of whole documents, not windows.
    """

    inputs: str
    vocabulary: int
    length: int
    stride: int
    bytes_per_token: int | None
    packs: bool = False

    kind: ClassVar[str] = "language-modelling"
    defaults: ClassVar[Mapping[str, Any]] = {
        "model.reference": "trainers.models:transformer",
        "optimizer.name": "adamw",
        "optimizer.weight_decay": 0.1,
        "clip_norm": 1.0,
        "data.global_batch_size": 32,
    }

    @classmethod
    def of(cls, ds: Dataset, config: DataConfig) -> LanguageModelling:
        """Raises BadInput, naming column and fix, when `config.inputs` is no column of tokens.

        A column of 8-bit tokens has a vocabulary of 256; of any other the largest token is looked up in the whole version (one scan).
        """
        field = column_of(ds, config.inputs, "inputs")
        if not is_tokens(field):
            raise BadInput(
                f"column {config.inputs!r} of {ds.name} holds {field.type}; a language model learns lists of integers: "
                "make them of text in a pipeline (text.tokenise), or store its bytes as a column list<uint8>"
            )
        if config.packs and config.stride:
            raise BadInput("data.stride is of windows: leave it out, or data.packs")
        length = config.sequence_length or SEQUENCE_LENGTH
        whole = ds if ds.selection is None else Dataset.open(ds.store, f"{ds.name}@{ds.commit}")
        is_bytes = field.type.value_type == pa.uint8()
        vocabulary = BYTES if is_bytes else _vocabulary(whole, config.inputs)
        return cls(config.inputs, vocabulary, length, config.stride or length, 1 if is_bytes else None, config.packs)

    @property
    def labels(self) -> str:
        """The same column."""
        return self.inputs

    def describe(self) -> str:
        """One line for people."""
        what = "bytes" if self.bytes_per_token else f"tokens of {self.vocabulary:,}"
        return f"language modelling: column {self.inputs!r}, {what}, {self.length} at a time{', packed' if self.packs else ''}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "kind": self.kind,
            "inputs": self.inputs,
            "vocabulary": self.vocabulary,
            "length": self.length,
            "stride": self.stride,
            "bytes_per_token": self.bytes_per_token,
            **({"packs": True} if self.packs else {}),  # as it was written before there were packs
        }

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> LanguageModelling:
        """The inverse of `to_dict`. Raises FormatDamaged."""
        try:
            vocabulary, length, stride = (int(tree[name]) for name in ("vocabulary", "length", "stride"))
            per_token = tree["bytes_per_token"]
            per_token = None if per_token is None else int(per_token)
            task = cls(str(tree["inputs"]), vocabulary, length, stride, per_token, bool(tree.get("packs", False)))
        except (KeyError, TypeError, ValueError) as error:
            raise FormatDamaged(f"the task description is damaged: {error!r}") from None
        fits = 1 <= task.vocabulary <= VOCABULARY_MAX and 1 <= task.length <= CONTEXT_MAX and task.stride >= 1
        if not fits or task.bytes_per_token not in (None, 1):
            raise FormatDamaged(f"the task description is damaged: {task}")
        return task

    def require_fits(self, ds: Dataset) -> None:
        """See Task."""
        field = column_of(ds, self.inputs, "inputs")
        if not is_tokens(field):
            raise BadInput(
                f"column {self.inputs!r} of {ds.name} holds {field.type}, and the model takes lists of integers"
            )
        if not (field.type.value_type == pa.uint8() and self.vocabulary >= BYTES):
            self.require_known(_vocabulary(ds, self.inputs) - 1, f"column {self.inputs!r} of {ds.name}")

    def require_known(self, largest: int, where: str) -> None:
        """Raises BadInput when the model does not know a token."""
        if largest >= self.vocabulary:
            raise BadInput(f"{where} has a token {largest}; the model knows 0 to {self.vocabulary - 1}")

    def build(self, config: ModelConfig, seed: int) -> nn.Module:
        """See Task: int64 [b, t] with t <= length -> float [b, t, vocabulary]. The factory is called (vocabulary, length, **params)."""
        return build_network(config, (self.vocabulary, self.length), seed)

    def loader(self, rows: Dataset, config: DataConfig, seed: int, world: World, train: bool) -> DataLoader:
        """See Task. Batches are dicts of one column, [b, length + 1]; of packs, of three, [b, length]."""
        if self.packs:
            packs = TokenPacks(rows, self.inputs, length=self.length)
            if not len(packs):
                raise BadInput(f"{rows.name} has no tokens in {len(rows)} rows")
            if train:
                return shuffled_loader(packs, config, seed, world)
            return block_loader(packs, block_rows(4 * self.length * self.vocabulary), world)
        if not train:
            # int64, because the sign marks what is filled up.
            whole = TokenWindows(
                rows, self.inputs, length=self.length + 1, stride=self.length, fill=IGNORED, dtype=np.int64
            )
            row_bytes = 4 * self.length * self.vocabulary
            return block_loader(whole, block_rows(row_bytes), world)
        windows = TokenWindows(rows, self.inputs, length=self.length + 1, stride=self.stride)
        if not len(windows):
            raise BadInput(
                f"{rows.name} has fewer than {self.length + 1} tokens in {len(rows)} rows: lower data.sequence_length"
            )
        return shuffled_loader(windows, config, seed, world)

    def split_batch(self, batch: Mapping[str, Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """(int64 [b, length], of packs [b, length, 3]; int64 [b, length])."""
        tokens = batch[self.inputs].to(device, non_blocking=True).to(torch.int64)
        if self.packs:
            documents, places = (batch[name].to(device, non_blocking=True) for name in (SEGMENTS, POSITIONS))
            return torch.stack([tokens, documents, places], -1), next_tokens(tokens, documents, IGNORED)
        return tokens[:, :-1].clamp_min(0), tokens[:, 1:]

    def count(self, targets: Tensor) -> int:
        """Tokens that count."""
        return int((targets != IGNORED).sum())

    def count_of(self, rows: int) -> int | None:
        """Tokens: training windows are whole. Of packs only the targets say it."""
        return None if self.packs else rows * self.length

    def example(self, rows: int, device: torch.device) -> Tensor:
        """A made-up text, int64 [rows, length]."""
        places = torch.arange(rows * self.length, device=device)
        # Knuth's multiplicative hash.
        return ((places * 2_654_435_761 >> 16) % self.vocabulary).view(rows, self.length)

    def meter(self) -> TokenMeter:
        """Loss, perplexity, bits per byte."""
        return TokenMeter(self.vocabulary, self.bytes_per_token)


def is_tokens(field: pa.Field) -> bool:
    """Whether a column holds lists of integers that can be tokens."""
    kinds, data_type = pa.types, field.type
    lists = kinds.is_list(data_type) or kinds.is_large_list(data_type)
    if not lists or not kinds.is_integer(data_type.value_type):
        return False
    return semantic_of(field) in ("", "tokens")


def _vocabulary(ds: Dataset, name: str) -> int:
    largest = -1
    for _, batch in ds.iter_batches([name]):
        tokens = columns.numbers(batch.column(0).flatten())
        if len(tokens):
            if int(tokens.min()) < 0:
                raise BadInput(f"column {name!r} of {ds.name} holds {int(tokens.min())}; tokens are 0 and more")
            largest = max(largest, int(tokens.max()))
    if not 0 <= largest < VOCABULARY_MAX:
        raise BadInput(f"the largest token of column {name!r} of {ds.name} is {largest}, not 0 to {VOCABULARY_MAX - 1}")
    return largest + 1
