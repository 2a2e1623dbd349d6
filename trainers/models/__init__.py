"""Models that come with the project. `model.reference = "trainers.models:NAME"` names one.

    cnn, linear      images           factory(sample_shape, classes, **params)     float32 [b, C, H, W] -> [b, classes]
    resnet           images           factory(sample_shape, classes, **params)     the same
    transformer      tokens           factory(vocabulary, context, **params)       int64 [b, t] -> [b, t, vocabulary]
    mlp              numbers          factory(features, targets, **params)         float32 [b, features] -> [b, targets]

A factory of one's own has the signature of its kind and returns a torch.nn.Module. `sample_shape` is that of one image as
it is stored, (H, W) or (H, W, C), pixels come in [0, 1] (or normalised); b may be 0. A model whose repeated layers
stand in a ModuleList `blocks` is sharded and recomputed block by block.
"""

from trainers.models.build import build_network
from trainers.models.classifier import (
    CLASSES_MAX,
    PIXEL_MAX,
    ImageClassifier,
    Planes,
    Preprocess,
    build_model,
)
from trainers.models.cnn import cnn, linear
from trainers.models.mlp import mlp
from trainers.models.resnet import resnet
from trainers.models.transformer import generate, transformer

# What a stored "trainers.models:NAME" may name.
FACTORIES = ("cnn", "linear", "mlp", "resnet", "transformer")

__all__ = [
    "CLASSES_MAX",
    "FACTORIES",
    "PIXEL_MAX",
    "ImageClassifier",
    "Planes",
    "Preprocess",
    "build_model",
    "build_network",
    "cnn",
    "generate",
    "linear",
    "mlp",
    "resnet",
    "transformer",
]
