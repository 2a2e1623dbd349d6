"""Transforms of samples: what DataLoader(transforms={"image": [DecodeImage(), RandomResizedCrop(224), ...]}) is given.

from loaders.transforms import DecodeImage, RandomResizedCrop, RandomHorizontalFlip, Normalize
"""

from __future__ import annotations

from loaders.transforms.base import FunctionTransform, Transform, as_transform
from loaders.transforms.keys import SampleKeys
from loaders.transforms.program import Program, SampleFailed, compile_chain

__all__ = ["FunctionTransform", "Program", "SampleFailed", "SampleKeys", "Transform", "as_transform", "compile_chain"]
