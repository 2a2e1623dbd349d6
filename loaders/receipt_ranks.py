"""One receipt of all ranks, at a checkpoint: over torch.distributed, as JSON. Nothing that another rank sends is unpickled."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist

from loaders.receipt import Receipt, merged, notes_of, with_notes
from loaders.source import BadInput

SENT_BYTES_MAX = 64 << 20  # by one rank: 100,000 notes


def merged_receipt(receipt: Receipt, group: Any = None) -> Receipt:
    """The receipt of this rank with the notes of all, the same on every rank. To be called by all ranks of the group, at the same step.

    receipt: `loader.receipt()`. group: of torch.distributed; None for all ranks. Without torch.distributed the receipt as it is.
    Ranks that read the same shares (tensor-parallel ones) may be among them. Each sends its head and its notes, not its segments,
    which the head binds.
    Raises BadInput, on every rank, naming the first rank whose chain is another.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return receipt
    told = {
        "head": receipt.head.hex(),
        "steps": receipt.steps,
        "notes": [asdict(note) for note in receipt.notes],
        "left_out": receipt.notes_left_out,
    }
    everyone = [_parsed(data, rank, receipt) for rank, data in enumerate(_gathered(json.dumps(told).encode(), group))]
    return merged(everyone)


def _parsed(data: bytes, rank: int, own: Receipt) -> Receipt:
    told = json.loads(data)
    if (told["head"], told["steps"]) != (own.head.hex(), own.steps):
        raise BadInput(
            f"the receipt of rank {rank} has {told['steps']} steps with head {told['head'][:16]}, and this rank's {own.steps} with "
            f"head {own.head.hex()[:16]}: the ranks are not at the same step, or did not read shares of the same batches"
        )
    return with_notes(own, notes_of(told["notes"]), int(told["left_out"]))


def _gathered(data: bytes, group: Any) -> list[bytes]:
    """What each rank of the group gave, in the order of ranks."""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else "cpu"
    ranks = dist.get_world_size(group)
    own = torch.tensor([len(data)], dtype=torch.int64, device=device)
    sizes = [torch.zeros_like(own) for _ in range(ranks)]
    dist.all_gather(sizes, own, group=group)
    lengths = [int(size) for size in sizes]
    if max(lengths) > SENT_BYTES_MAX:
        raise BadInput(
            f"rank {lengths.index(max(lengths))} has {max(lengths)} bytes of notes: more than {SENT_BYTES_MAX}"
        )
    padded = torch.zeros(max(lengths), dtype=torch.uint8, device=device)
    padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded, group=group)
    return [part[:length].cpu().numpy().tobytes() for part, length in zip(parts, lengths, strict=True)]
