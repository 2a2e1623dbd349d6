"""A GPT-like transformer: what comes next, for every position of a text of tokens.

    embed      token + place (both learnt)
    blocks     x + attention(norm(x)), then x + mlp(norm(x)); causal, `heads` heads, mlp four times as wide, GELU
    logits     norm, then the transpose of the token embedding: tied (Press & Wolf 2017), one matrix in the checkpoint

Packs of documents (loaders.packs) come as three numbers a place: token, document, place in the document. Then a position sees those
of its own document only, and places are counted from where it begins: a document's outputs are those that it has alone.

As GPT-2 (Radford et al. 2019): norms before, weights from a normal distribution of 0.02, those that write into the
residual stream smaller by sqrt(2 x layers). There is no state between calls, and a position sees only those before it,
so that a row's outputs depend on that row alone.

Names for freezing: "embed", "places", "blocks.<n>", "norm".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel
from torch.nn import functional

from leptonstore.errors import BadInput
from loaders.boundaries import attention_mask
from loaders.order import sub_seed

INITIAL_DEVIATION = 0.02  # as GPT-2
MLP_FACTOR = 4
# Sanity bounds: far above what trains on one machine, low enough that a typo does not allocate it.
LAYERS_MAX, HEADS_MAX, WIDTH_MAX, CONTEXT_MAX, VOCABULARY_MAX = 512, 512, 65_536, 1 << 20, 1 << 24


class Attention(nn.Module):
    """Causal self-attention: float [b, t, width] -> the same. mask: bool [b, 1, t, t], where a position may look (causal, too)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        split = self.inputs(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=mask is None
        )
        found: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return found


class Block(nn.Module):
    """Attention and mlp, each around which the input is added."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, MLP_FACTOR * width)
        self.output = nn.Linear(MLP_FACTOR * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), mask))
        found: Tensor = x + self.drop(self.output(functional.gelu(self.widen(self.norm2(x)))))
        return found

    def tensor_plan(self) -> dict[str, ParallelStyle]:
        """How tensor ranks share out the mlp (trainers.wrap; Shoeybi et al. 2019): each has a slice of its hidden units. Attention, which
        has a third of the weights, is whole on each of them."""
        return {"widen": ColwiseParallel(), "output": RowwiseParallel()}


class Transformer(nn.Module):
    """int64 [b, t] tokens, or [b, t, 3] of packs, 1 <= t <= context -> logits float32 [b, t, vocabulary] of the token after each."""

    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.context = context
        self.embed = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, weight in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(weight)
            elif weight.dim() == 2:
                residual = name.endswith("output.weight")
                deviation = INITIAL_DEVIATION / (math.sqrt(2 * layers) if residual else 1.0)
                nn.init.normal_(weight, std=deviation)

    def forward(self, tokens: Tensor) -> Tensor:
        places, mask = self.places.weight[: tokens.shape[1]], None
        if tokens.dim() == 3:
            tokens, documents, positions = tokens.unbind(-1)
            places, mask = self.places(positions), attention_mask(documents)
        x = self.drop(self.embed(tokens) + places)
        for block in self.blocks:
            x = block(x) if mask is None else block(x, mask)
        return functional.linear(self.norm(x), self.embed.weight)


def transformer(
    vocabulary: int, context: int, layers: int = 4, width: int = 128, heads: int = 4, dropout: float = 0.0
) -> nn.Module:
    """A GPT-like transformer. `context` is the longest text that it takes (data.sequence_length).

    Raises BadInput when a parameter is out of its range, or `width` is no multiple of `heads`.
    """
    bounds = (
        ("vocabulary", vocabulary, VOCABULARY_MAX),
        ("context", context, CONTEXT_MAX),
        ("layers", layers, LAYERS_MAX),
        ("width", width, WIDTH_MAX),
        ("heads", heads, HEADS_MAX),
    )
    for name, value, most in bounds:
        if type(value) is not int or not 1 <= value <= most:
            raise BadInput(f"{name} of a transformer is {value!r}; it must be 1 to {most}")
    if width % heads:
        raise BadInput(f"model.params.width of a transformer is {width}, no multiple of its {heads} heads")
    if not 0 <= dropout < 1:
        raise BadInput(f"model.params.dropout of a transformer is {dropout!r}; it must be a share in [0, 1)")
    return Transformer(vocabulary, context, layers, width, heads, dropout)


@torch.no_grad()
def generate(
    model: nn.Module, prompt: Tensor, tokens: int, context: int, temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """`prompt` (int64 [t], t >= 1) continued by `tokens` tokens drawn from the model: int64 [t + tokens], on the CPU.

    temperature: 0 takes the likeliest token, 1 draws as the model says. Only the last `context` tokens are looked at.
    The same seed draws the same text. The model is put in eval mode and back.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(sub_seed("lepton.generate.v1", seed) >> 1)
    text, training = prompt.cpu().clone(), model.training
    model.eval()
    try:
        for _ in range(tokens):
            logits = model(text[None, -context:].to(device))[0, -1].to("cpu", torch.float32)
            if temperature > 0:
                shares = torch.softmax(logits / temperature, 0)
                drawn = torch.multinomial(shares, 1, generator=generator)
            else:
                drawn = logits.argmax().reshape(1)
            text = torch.cat([text, drawn])
    finally:
        model.train(training)
    return text
