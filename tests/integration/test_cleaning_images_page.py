"""docs/cleaning-images.md: its code runs, its file is a pipeline, and the checks and parameters that it names are those that there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from leptonstore.dataset import Source, write_dataset
from leptonstore.dataset.schema import image_field
from leptonstore.process.pipeline import Pipeline
from leptonstore.process.registry import OPERATIONS, kind_named
from leptonstore.store import Store

pytest.importorskip("daft")

PAGE = (Path(__file__).parents[2] / "docs" / "cleaning-images.md").read_text()
CHECKS = ("undecodable", "constant", "image_size", "image_quality", "near_duplicate_images")


def scene(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, place: Path, quality: int = 90) -> bytes:
    image.save(place, "JPEG", quality=quality)
    return place.read_bytes()


def test_the_code_of_the_page_runs(
    store: Store, source_of: Callable[..., Source], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "one.jpg"
    files = [jpeg(scene(seed), place) for seed in range(20)]
    files[3] = files[3][:1000] + b"\xff\xd9"
    files[4] = jpeg(Image.new("RGB", (160, 120), (9, 9, 9)), place)
    files[5] = jpeg(scene(5).convert("L"), place)
    files[7] = jpeg(scene(2).resize((120, 90)), place, 60)
    schema = pa.schema([pa.field("id", pa.int64(), False), image_field("image", "jpeg")])
    table = pa.table([pa.array(range(20)), pa.array(files, pa.large_binary())], schema=schema)
    write_dataset(store, "birds", source_of(table, ("id",)))
    names: dict[str, object] = {"store": store}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, names)
    found = {(one["check"], one["row"], one["other"]) for one in names["result"].findings.to_pylist()}  # type: ignore[attr-defined]
    expected = {("undecodable", 3, None), ("constant", 4, None), ("image_size", 5, None), ("image_size", 7, None)}
    assert found == expected | {("near_duplicate_images", 7, 2)}
    kept = [row["id"] for _, batch in names["result"].dataset.iter_batches(["id"]) for row in batch.to_pylist()]  # type: ignore[attr-defined]
    assert kept == [at for at in range(20) if at not in (3, 4, 7)]
    assert "near_duplicate_images" in capsys.readouterr().out


def test_the_file_of_the_page_is_a_pipeline(tmp_path: Path) -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "birds.toml").write_text(block)
    pipeline = Pipeline.from_toml(tmp_path / "birds.toml")
    assert [one.name for one in pipeline.operations] == ["check.undecodable", "check.near_duplicate_images"]


def test_every_check_of_images_and_every_parameter_is_on_the_page() -> None:
    for name in (f"check.{check}" for check in CHECKS):
        assert name in OPERATIONS
        (row,) = re.findall(rf"^\| `{name}` .*$", PAGE, re.MULTILINE)
        for one in fields(kind_named(name)):
            assert one.name == "action" or f"`{one.name}`" in row, (name, one.name)
