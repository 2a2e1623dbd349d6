"""Where one document ends and the next begins in a batch of packs, in the forms that attention and losses take.

All take `segment_ids` of loaders.packs: integers (packs, length); equal numbers next to each other are one document, 0 is no document.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100  # the target that torch's cross_entropy leaves out by default


def attention_mask(segment_ids: Tensor, causal: bool = True) -> Tensor:
    """bool (packs, 1, length, length), for torch's scaled_dot_product_attention: true where a token may look at another.

    That is one of its own document, and with `causal` none after it. A place without a token sees itself alone, so that no row of the
    mask is empty (softmax would give NaN there).
    """
    there = segment_ids > 0
    same = (segment_ids[:, :, None] == segment_ids[:, None, :]) & there[:, :, None]
    if causal:
        same &= torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril()
    same |= torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)
    return same[:, None]


def cu_seqlens(segment_ids: Tensor) -> tuple[Tensor, int]:
    """(int32 (pieces + 1,), longest), for attention over sequences of several lengths one after another (flash_attn_varlen_func).

    Piece i has the places [cu[i], cu[i + 1]) of the batch laid out as one row of packs x length. What fills up a pack is a piece too.
    """
    begins = torch.ones_like(segment_ids, dtype=torch.bool)
    begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = begins.reshape(-1).nonzero().reshape(-1)
    bounds = torch.cat([starts, starts.new_tensor([segment_ids.numel()])]).to(torch.int32)
    return bounds, int(bounds.diff().max()) if len(bounds) > 1 else 0


def next_tokens(tokens: Tensor, segment_ids: Tensor, ignored: int = IGNORED) -> Tensor:
    """int64 (packs, length): the token after each, and `ignored` for the last of a document and where there is none."""
    targets = torch.full(tokens.shape, ignored, dtype=torch.int64, device=tokens.device)
    goes_on = (segment_ids[:, 1:] == segment_ids[:, :-1]) & (segment_ids[:, 1:] > 0)
    targets[:, :-1] = torch.where(goes_on, tokens[:, 1:].to(torch.int64), ignored)
    return targets
