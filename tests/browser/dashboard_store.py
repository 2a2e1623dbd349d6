"""A store as people have one, for tests of the dashboard: pictures as tensors and as files, texts, a wide table, branches, a model.

Names of columns, messages, texts and classes have markup in them: a page that does not escape one shows itself.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from leptonstore.dataset import Dataset, Source, write_dataset, write_files
from leptonstore.dataset.schema import class_label_field, image_field, path_field, tensor_field, text_field
from leptonstore.store import Store

MARKUP = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
DIGITS = 1_200


def make_store(path: Path) -> None:
    """Fill a new store at `path`."""
    with Store.create(path) as store:
        _digits(store)
        _photographs(store)
        _reviews(store)
        _wide(store)
        _models(store)


def _written(store: Store, name: str, table: pa.Table, key: str, message: str, **lineage: Any) -> Dataset:
    batches = table.combine_chunks().to_batches()
    return write_dataset(store, name, Source(table.schema, (key,), lambda: iter(batches), len(table), lineage), message)


def _digits(store: Store) -> None:
    """28 x 28 tensors with classes; a branch, a tag, a merge."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, DIGITS)
    pictures = np.zeros((DIGITS, 28, 28), np.uint8)
    for row, label in enumerate(labels.tolist()):
        pictures[row, 4 : 6 + 2 * label, 6:20] = rng.integers(60, 255)
    schema = pa.schema(
        [
            pa.field("id", pa.int64(), False),
            tensor_field("image", pa.uint8(), (28, 28), "image"),
            class_label_field("label", [f"digit {one}" for one in range(10)]),
            pa.field("score", pa.float32()),
        ]
    )
    columns = [
        np.arange(DIGITS),
        pa.FixedShapeTensorArray.from_numpy_ndarray(pictures),
        pa.array(labels, pa.uint8()),
        rng.random(DIGITS, np.float32),
    ]
    table = pa.Table.from_arrays(columns, schema=schema)
    files = [{"name": "train-images.idx", "bytes": 940_816}]
    _written(store, "digits", table.slice(0, 1_000), "id", "the first thousand", format="idx", files=files)
    ds = _written(store, "digits", table, "id", "two hundred more", format="idx")
    ds.tag("v1")
    ds.branch("cleanup")
    Dataset.open(store, "digits@cleanup").delete(where="score < 0.02")
    Dataset.open(store, "digits").delete(where="id = 1199")
    Dataset.open(store, "digits").merge("digits@cleanup")


def _photographs(store: Store) -> None:
    """JPEGs, one of them damaged and one empty, with captions; the second version has other pictures in some rows."""
    from PIL import Image

    rng = np.random.default_rng(1)

    def jpeg() -> bytes:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        out = io.BytesIO()
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(out, "JPEG", quality=85)
        return out.getvalue()

    files = [jpeg() for _ in range(60)]
    schema = pa.schema(
        [path_field("path"), image_field("image", "jpeg"), class_label_field("label", ["sea", "a <b>rock</b>"])]
    )
    for number in range(2):
        columns = [
            pa.array([f"pictures/{at:03}.jpg" for at in range(62)]),
            pa.array([*files, files[5][:2_000], b""], pa.large_binary()),
            pa.array(np.arange(62) % 2, pa.uint8()),
        ]
        message = f"pictures {MARKUP}" if number else "pictures"
        _written(store, "photographs", pa.Table.from_arrays(columns, schema=schema), "path", message)
        files[3], files[7] = jpeg(), jpeg()


def _reviews(store: Store) -> None:
    rng = np.random.default_rng(2)
    words = np.array(
        ["the", "a", "film", "plot", "rather", "quite", "good", "bad", "long", "short", "and", "we", "liked", "it"]
    )
    texts = [" ".join(rng.choice(words, int(size))) for size in rng.integers(20, 200, 150)]
    texts[0] = f"{MARKUP} \u202e & more"
    schema = pa.schema([pa.field("id", pa.int64(), False), text_field("review"), pa.field("stars", pa.int64())])
    table = pa.table({"id": range(150), "review": texts, "stars": rng.integers(1, 6, 150)}, schema=schema)
    _written(store, "reviews", table, "id", "a hundred and fifty reviews")


def _wide(store: Store) -> None:
    rng = np.random.default_rng(3)
    columns: dict[str, Any] = {"id": np.arange(300), MARKUP: [f"{MARKUP}{at % 3}" for at in range(300)]}
    columns |= {f"measurement number {at}": rng.normal(size=300) for at in range(14)}
    columns |= {"empty": pa.nulls(300, pa.float64())}
    columns |= {"tokens": pa.array([list(range(at)) for at in range(300)], pa.list_(pa.int32()))}
    _written(store, "wide", pa.table(columns), "id", "a wide table")


def _models(store: Store) -> None:
    head = Dataset.open(store, "digits").commit
    for step in (100, 200):
        files = [("weights.safetensors", np.random.default_rng(step).bytes(40_000)), ("state.json", b'{"step": 1}')]
        lineage = {"operation": "train", "step": step, "data": {"training": {"name": "digits@main", "commit": head}}}
        write_files(
            store, "checkpoint", "digits-run", files, lineage, f"step {step}", f"step-{step:09d}", {"loss": 30.5 / step}
        )
    write_files(
        store, "model", "digits-model", [("program.pt2", b"x" * 9_000)], {"operation": "deploy"}, "a model",
        metrics={"accuracy": 0.98},
    )  # fmt: skip
