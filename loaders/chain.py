"""The chain: 32 bytes that say which rows were handed out, batch after batch, in which order.

    head of nothing    32 zero bytes
    key of an epoch    BLAKE3's key derivation: context "lepton.receipt.v1", material = epoch (8 bytes, little-endian), fingerprint (UTF-8)
    next head          BLAKE3, keyed: head (32 bytes), start (8 bytes), rows of the whole global batch (8 bytes each, little-endian)

The fingerprint is the commit's digest (and that of the view's rows, or what a mixture is made of), which binds the bytes of the data; start
is the position in the epoch of the batch's first row. So two runs have the same head exactly when they handed out the same rows of the same
data, at the same positions of the same epochs, in global batches of the same sizes, one after another: nothing of ranks, workers, machines
or of how the order came about enters. A head depends on the whole past and carries it on: a run that is restored from 32 bytes
ends with the head of one that was never stopped.

It is a check, and no signature: who rewrites a receipt can compute the chain of other rows. Keep a head apart from what it is to prove (a
checkpoint's lineage, a log).

Nothing of this may change without a new context string: the golden vectors in tests/unit/test_chain.py pin it.
This module imports neither torch nor leptonstore.
"""

from __future__ import annotations

import struct
import sys

from blake3 import blake3

from loaders.order import Rows

CONTEXT = "lepton.receipt.v1"
HEAD_BYTES = 32
EMPTY = bytes(HEAD_BYTES)

_PREFIX = struct.Struct("<32sq").pack
_LITTLE = sys.byteorder == "little"


def key_of(epoch: int, fingerprint: str) -> bytes:
    """What the batches of one epoch are hashed with. 0 <= epoch < 2^64."""
    return blake3(struct.pack("<Q", epoch) + fingerprint.encode(), derive_key_context=CONTEXT).digest()


def next_head(head: bytes, key: bytes, start: int, rows: Rows) -> bytes:
    """The head after a global batch with `rows` (int64) at positions from `start` on. About 2 us for 256 rows, then 1.4 ns a row."""
    told = rows.tobytes() if _LITTLE else rows.astype("<i8").tobytes()
    return blake3(_PREFIX(head, start) + told, key=key).digest()
