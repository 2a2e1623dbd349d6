"""docs/cleaning-images.md: twenty photographs, one of each fault among them."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from PIL import Image

from leptonstore.dataset.schema import image_field
from tests.integration.docs_blocks import Place

EXTRAS = ("daft",)


def scene(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, quality: int = 90) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def setting(place: Place) -> Iterator[None]:
    files = [jpeg(scene(seed)) for seed in range(20)]
    files[3] = files[3][:1000] + b"\xff\xd9"
    files[4] = jpeg(Image.new("RGB", (160, 120), (9, 9, 9)))
    files[5] = jpeg(scene(5).convert("L"))
    files[7] = jpeg(scene(2).resize((120, 90)), 60)
    schema = pa.schema([pa.field("id", pa.int64(), False), image_field("image", "jpeg")])
    place.write("birds", pa.table([pa.array(range(20)), pa.array(files, pa.large_binary())], schema=schema))
    place.names["store"] = place.store
    yield
    result = place.names["result"]
    found = {(one["check"], one["row"], one["other"]) for one in result.findings.to_pylist()}
    expected = {("undecodable", 3, None), ("constant", 4, None), ("image_size", 5, None), ("image_size", 7, None)}
    assert found == expected | {("near_duplicate_images", 7, 2)}
    kept = [row["id"] for _, batch in result.dataset.iter_batches(["id"]) for row in batch.to_pylist()]
    assert kept == [at for at in range(20) if at not in (3, 4, 7)]
