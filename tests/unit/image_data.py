"""Pictures for the tests of image transforms: smooth, with texture and noise, as photographs are."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from loaders.source import ColumnSpec

ENCODED = ColumnSpec("image", "image/jpeg", None, None)


def picture(seed: int, height: int = 120, width: int = 160) -> np.ndarray:
    """uint8, (height, width, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width] / 9.0
    waves = [
        70 * np.sin(rows * rng.uniform(0.2, 1) + columns * rng.uniform(0.2, 1) + rng.uniform(0, 6)) for _ in range(3)
    ]
    noise = rng.normal(0, 6, (height, width, 1))
    return np.clip(np.stack(waves, -1) + 128 + noise, 0, 255).astype(np.uint8)


def encoded(pixels: np.ndarray, format: str = "JPEG", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def jpegs(count: int, height: int = 120, width: int = 160) -> list[bytes]:
    return [encoded(picture(seed, height, width), quality=88) for seed in range(count)]
