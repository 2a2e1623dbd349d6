"""torch's DataLoader over a folder of JPEGs: what torchvision's ImageFolder with RandomResizedCrop(224), flip and ToTensor does.

python imagefolder.py FOLDER BATCH WORKERS EPOCHS       samples/s of each epoch after the first, as JSON

Written out, as torchvision's classes are (0.28: datasets/folder.py, transforms/transforms.py, transforms/_functional_pil.py), because
torchvision does not import beside this torch. Workers persist, so that their start is not counted.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

SIZE, SCALE, RATIO = 224, (0.08, 1.0), (3 / 4, 4 / 3)


class ImageFolder(Dataset):
    """`root/class/name.jpg` -> (float tensor of shape (3, 224, 224), class number)."""

    def __init__(self, root: str) -> None:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        self.samples = [
            (os.path.join(root, name, file), number)
            for number, name in enumerate(classes)
            for file in sorted(os.listdir(os.path.join(root, name)))
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path, target = self.samples[index]
        with open(path, "rb") as file:
            image = Image.open(file).convert("RGB")
        top, left, height, width = crop_of(image)
        image = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        if torch.rand(1) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image, np.uint8, copy=True))
        return pixels.permute(2, 0, 1).contiguous().to(dtype=torch.get_default_dtype()).div(255), target


def crop_of(image: Image.Image) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params."""
    width, height = image.size
    area = height * width
    log_ratio = torch.log(torch.tensor(RATIO))
    for _ in range(10):
        target = area * torch.empty(1).uniform_(SCALE[0], SCALE[1]).item()
        aspect = torch.exp(torch.empty(1).uniform_(float(log_ratio[0]), float(log_ratio[1]))).item()
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, size=(1,)).item()
            return int(top), int(torch.randint(0, width - w + 1, size=(1,)).item()), h, w
    w, h = width, height
    if width / height < min(RATIO):
        h = round(w / min(RATIO))
    elif width / height > max(RATIO):
        w = round(h * max(RATIO))
    return (height - h) // 2, (width - w) // 2, h, w


def main() -> None:
    """See the module."""
    root, batch, workers, epochs = sys.argv[1], *map(int, sys.argv[2:5])
    loader = DataLoader(ImageFolder(root), batch, shuffle=True, num_workers=workers, persistent_workers=True)
    rates = []
    for _ in range(epochs + 1):
        start, rows = time.perf_counter(), 0
        for images, labels in loader:
            rows += len(labels)
            assert images.dtype == torch.float32
        rates.append(rows / (time.perf_counter() - start))
    print(json.dumps({"samples_per_s": rates[1:]}))


if __name__ == "__main__":
    main()
