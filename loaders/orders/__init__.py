"""Ways to order a dataset: what DataLoader(order=...) takes beside shuffle=True and shuffle=False. docs/orders.md says which one when.

    BlockShuffle     blocks of rows in random order, rows shuffled within windows of blocks: data larger than the cache
    Weighted         in proportion to weights
    ClassBalanced    every class equally often
    Subset           some rows, ordered by another of these
    Curriculum       from easy to hard
    Bucketed         rows of like length in a batch

Each is a pure function of (seed, epoch, position): the same rows on any number of ranks and workers, and a restore is a number. They
need numpy only. `shuffle_quality` measures how well any order mixes, `padding_share` what padding it leaves.
"""

from __future__ import annotations

from loaders.order import FullOrder
from loaders.orders.balanced import ClassBalanced
from loaders.orders.block import BlockOrder, BlockShuffle
from loaders.orders.bucketed import Bucketed
from loaders.orders.curriculum import Curriculum
from loaders.orders.quality import ShuffleQuality, padding_share, shuffle_quality
from loaders.orders.subset import Subset
from loaders.orders.weighted import Weighted

__all__ = [
    "BlockOrder",
    "BlockShuffle",
    "Bucketed",
    "ClassBalanced",
    "Curriculum",
    "FullOrder",
    "ShuffleQuality",
    "Subset",
    "Weighted",
    "padding_share",
    "shuffle_quality",
]
