"""Transforms of samples: what DataLoader(transforms={"image": [DecodeImage(), RandomResizedCrop(224), ...]}) is given.

from loaders.transforms import DecodeImage, RandomResizedCrop, RandomHorizontalFlip, Normalize
"""

from __future__ import annotations

from loaders.transforms.audio import DecodeAudio
from loaders.transforms.base import FunctionTransform, SampleFailed, Transform, as_transform
from loaders.transforms.each import Each
from loaders.transforms.images import (
    CenterCrop,
    DecodeImage,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToFloat,
)
from loaders.transforms.keys import SampleKeys
from loaders.transforms.program import Program, compile_chain
from loaders.transforms.video import DecodeVideo
from loaders.transforms.volumes import DecodeArrays, RandomPatch, Window

__all__ = [
    "CenterCrop",
    "DecodeArrays",
    "DecodeAudio",
    "DecodeImage",
    "DecodeVideo",
    "Each",
    "FunctionTransform",
    "Normalize",
    "Program",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomPatch",
    "RandomResizedCrop",
    "Resize",
    "SampleFailed",
    "SampleKeys",
    "ToFloat",
    "Transform",
    "Window",
    "as_transform",
    "compile_chain",
]
