"""A residual network for images (He et al. 2015, "Deep residual learning"; identity mappings as in He et al. 2016).

    stem      conv 3x3 (small images) or conv 7x7 by 2 and max-pool by 2 (from STEM_EDGE pixels on)
    blocks    stages of `depth` blocks each, of widths w, 2w, 4w, ...; the first of each later stage halves the image
    head      mean over the pixels, dense

    block     x + conv(relu(norm(conv(relu(norm(x))))))

norm="group" (Wu & He 2018) by default: a row's result depends on that row alone, so gradients of a global batch are the
same for any number of ranks and any micro-batches, and empty shares are nothing special. norm="batch" is the original;
there every rank takes the statistics of its own rows, and results depend on how rows are shared out.

Names for freezing: "network.stem", "network.blocks.<n>", "network.norm", "network.head".
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from leptonstore.errors import BadInput

STEM_EDGE = 128  # pixels of the shorter edge from which the stem shrinks the image four times, as for ImageNet
GROUP_CHANNELS = 8  # of a group norm: at least two groups from 16 channels on
DEPTH_MAX, WIDTH_MAX, STAGES_MAX = 64, 4_096, 8  # far above any network that trains here

Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """Two convolutions around which the input is added; `stride` 2 halves height and width."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        active = functional.relu(self.norm1(images))
        added: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(active))))
        shortcut: Tensor = self.shortcut(images)
        return shortcut + added


class ResNet(nn.Module):
    """float32 [b, C, H, W] -> logits float32 [b, classes]."""

    def __init__(self, channels: int, edge: int, classes: int, depth: int, width: int, stages: int, norm: Norm) -> None:
        super().__init__()
        if edge < STEM_EDGE:
            self.stem: nn.Module = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        else:
            first = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False)
            self.stem = nn.Sequential(first, nn.MaxPool2d(3, 2, padding=1))
        blocks, inputs = [], width
        for stage in range(stages):
            for number in range(depth):
                outputs = width << stage
                blocks.append(Block(inputs, outputs, 2 if stage and not number else 1, norm))
                inputs = outputs
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm(inputs)
        self.head = nn.Linear(inputs, classes)

    def features(self, images: Tensor) -> Tensor:
        """What the head sees: float32 [b, width of the last stage]."""
        found = self.stem(images)
        for block in self.blocks:
            found = block(found)
        return functional.relu(self.norm(found)).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(images))
        return logits


def resnet(
    sample_shape: tuple[int, ...], classes: int, depth: int = 2, width: int = 16, stages: int = 3, norm: str = "group"
) -> nn.Module:
    """A ResNet of stages x depth blocks (2 convolutions each): 14 layers by default; depth 3 is the paper's ResNet-20.

    Raises BadInput when a parameter is out of its range or the image too small for the stages.
    """
    for name, value, most in (("depth", depth, DEPTH_MAX), ("width", width, WIDTH_MAX), ("stages", stages, STAGES_MAX)):
        if type(value) is not int or not 1 <= value <= most:
            raise BadInput(f"model.params.{name} of a resnet is {value!r}; it must be 1 to {most}")
    if norm not in ("group", "batch"):
        raise BadInput(f'model.params.norm of a resnet is {norm!r}; it must be "group" or "batch"')
    edge = min(sample_shape[:2])
    if edge < 1 << stages:
        raise BadInput(f"a resnet of {stages} stages needs images of at least {1 << stages} pixels, not {edge}")
    channels = sample_shape[2] if len(sample_shape) == 3 else 1
    made = nn.BatchNorm2d if norm == "batch" else _group_norm
    return ResNet(channels, edge, classes, depth, width, stages, made)


def _group_norm(channels: int) -> nn.Module:
    groups = max(1, channels // GROUP_CHANNELS)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)
