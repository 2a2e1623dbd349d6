"""Near duplicates of images: copies that were shifted, resized, compressed, cropped or lit differently are found, others are not; and what
is found of two images hangs on nothing but these two."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_data import encoded, picture
from PIL import Image, ImageEnhance
from process_data import encoded_table, noise, tensor_table

from bench.planted_mnist import planted_mnist
from leptonstore.errors import BadInput
from leptonstore.process.checks import image_hashes, image_thumbnails
from leptonstore.process.checks.image_alignment import distances
from leptonstore.process.checks.near_duplicate_images import NearDuplicateImages
from leptonstore.process.registry import operation_named

NAMES = ["a", "b"]
MNIST = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "mnist"


def search(table: pa.Table, pieces: Sequence[int] = (), **parameters: object) -> list[dict[str, object]]:
    """Findings, as a pipeline gets them; pieces: the rows where one batch ends and the next begins."""
    check = NearDuplicateImages(**parameters)  # type: ignore[arg-type]
    borders = [0, *pieces, len(table)]
    parts = []
    for low, high in pairwise(borders):
        batch = table.slice(low, high - low).combine_chunks().to_batches()[0]
        parts.append(check.measure(batch.select(check.reads(batch.schema))))
    assert all(part.schema == check.features(table.schema) for part in parts)
    return check.decide(pa.Table.from_batches(parts)).findings.to_pylist()


def pairs_of(findings: list[dict[str, object]]) -> list[tuple[object, object]]:
    return [(one["row"], one["other"]) for one in findings]


def tensors(images: np.ndarray, splits: Sequence[str] | None = None) -> pa.Table:
    return tensor_table(images, [0] * len(images), NAMES, splits)


@cache
def digits(count: int = 60) -> np.ndarray:
    """Strokes on a plain ground, 28 x 28: no two alike."""
    rng = np.random.default_rng(5)
    out = np.zeros((count, 28, 28), np.uint8)
    rows, columns = np.mgrid[0:28, 0:28]
    for image in out:
        points = rng.uniform(6, 21, (6, 2))
        for a, b in pairwise(points):
            for t in np.linspace(0, 1, 30):
                y, x = a + (b - a) * t
                np.maximum(
                    image, (255 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 2.2)).astype(np.uint8), out=image
                )
    return out


def shifted(image: np.ndarray, down: int, across: int) -> np.ndarray:
    wide = np.pad(image, 2)
    return wide[2 - down : 30 - down, 2 - across : 30 - across]


def loud(image: np.ndarray, seed: int, std: float = 8) -> np.ndarray:
    return np.clip(np.rint(image + np.random.default_rng(seed).normal(0, std, image.shape)), 0, 255).astype(np.uint8)


# -- what is found -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("down", "across"), [(y, x) for y in (-2, -1, 0, 1, 2) for x in (-1, 0, 2) if (y, x) != (0, 0)]
)
def test_shapes_on_a_plain_ground_that_were_shifted_are_found(down: int, across: int) -> None:
    images = digits()
    copies = np.stack([shifted(one, down, across) for one in images[:20]])
    found = search(tensors(np.concatenate([images, copies])))
    assert pairs_of(found) == [(60 + at, at) for at in range(20)]
    assert all(one["score"] > 0.999 and one["group"] == one["other"] for one in found)


def test_noise_is_found_and_other_shapes_are_not() -> None:
    images = digits()
    copies = np.stack([loud(one, at) for at, one in enumerate(images)])
    found = search(tensors(np.concatenate([images, copies])))
    assert pairs_of(found) == [(60 + at, at) for at in range(60)]
    assert search(tensors(images)) == []


@pytest.mark.requires_mnist
@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST's files are not beside the project")
def test_near_copies_among_digits_of_mnist_are_found() -> None:
    table, truth = planted_mnist(MNIST, digits=6_000, exact=100, near=200, constant=20, wrong=0)
    found = {tuple(sorted(pair)) for pair in pairs_of(search(table, pieces=(1_000, 2_500)))}
    planted = {tuple(sorted(pair)) for pair in truth.near.tolist()}
    assert len(found & planted) >= 0.97 * len(planted)
    assert len(found & planted) >= 0.97 * len(found)


def scene(seed: int, width: int = 200, height: int = 150) -> Image.Image:
    """Shapes of several sizes and noise, as pictures have them; no two seeds have anything in common."""
    rng = np.random.default_rng(seed)
    out = np.full((height, width, 3), 120.0) + rng.normal(0, 15, 3)
    for cells, contrast in ((4, 40), (9, 25), (30, 12)):
        coarse = rng.normal(0, contrast, (3, cells, cells * 4 // 3)).astype(np.float32)
        planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in coarse]
        out += np.stack([np.asarray(plane) for plane in planes], axis=-1)
    return Image.fromarray(np.clip(out + rng.normal(0, 4, (height, width, 1)), 0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image, quality: int = 90) -> bytes:
    return encoded(np.asarray(image.convert("RGB")), quality=quality)


def cropped(image: Image.Image, left: float, top: float, right: float, bottom: float) -> Image.Image:
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "compressed again": lambda image: as_jpeg(image, 40),
    "half the size": lambda image: as_jpeg(image.resize((image.width // 2, image.height // 2))),
    "stretched": lambda image: as_jpeg(image.resize((image.width, image.height * 8 // 10))),
    "brighter": lambda image: as_jpeg(ImageEnhance.Brightness(image).enhance(1.15)),
    "darker": lambda image: as_jpeg(ImageEnhance.Brightness(image).enhance(0.7)),
    "more contrast": lambda image: as_jpeg(ImageEnhance.Contrast(image).enhance(1.2)),
    "grey": lambda image: as_jpeg(image.convert("L")),
    "another format": lambda image: encoded(np.asarray(image), "PNG"),
    "cropped all around": lambda image: as_jpeg(cropped(image, 0.03, 0.03, 0.03, 0.03)),
    "cropped more": lambda image: as_jpeg(cropped(image, 0.05, 0.05, 0.05, 0.05)),
    "cropped at one side": lambda image: as_jpeg(cropped(image, 0.05, 0, 0, 0)),
    "all of it": lambda image: as_jpeg(
        ImageEnhance.Brightness(cropped(image, 0.02, 0.01, 0.02, 0.02)).enhance(1.1), 50
    ),
}


@cache
def photographs() -> tuple[list[Image.Image], list[bytes]]:
    made = [scene(seed) for seed in range(40)]
    return made, [as_jpeg(one) for one in made]


@pytest.mark.parametrize("change", CHANGES)
def test_copies_of_pictures_are_found_whatever_was_done_to_them(change: str) -> None:
    pictures, files = photographs()
    copies = [CHANGES[change](one) for one in pictures]
    found = search(encoded_table([*files, *copies], [0] * 80, NAMES), pieces=(17, 55))
    assert set(pairs_of(found)) <= {(40 + at, at) for at in range(40)}
    assert len(found) >= 38


def test_pictures_that_are_not_copies_are_not_found() -> None:
    images = np.stack([np.asarray(scene(seed, 64, 48)) for seed in range(1_000)])
    assert search(tensors(images)) == []


# -- what is reported --------------------------------------------------------------------------------------------------


def test_equal_values_are_no_near_duplicates_but_both_are_of_a_third() -> None:
    images = digits()[:10].copy()
    images[3] = images[1]  # equal
    assert search(tensors(images)) == []
    images[7] = loud(images[1], 0)
    assert pairs_of(search(tensors(images))) == [(7, 1)]
    images[8] = images[7]  # an equal copy of the near duplicate
    assert pairs_of(search(tensors(images))) == [(7, 1), (8, 1)]
    images[0] = loud(images[1], 1)
    assert pairs_of(search(tensors(images))) == [(1, 0), (3, 0), (7, 0), (8, 0)]


def test_a_chain_is_one_group_and_names_the_nearest() -> None:
    images, files = photographs()
    steps = [cropped(images[0], cut, cut, cut, cut) for cut in (0.0, 0.04, 0.08, 0.12)]
    table = encoded_table([files[1], *map(as_jpeg, steps)], [0] * 5, NAMES)
    found = search(table)
    assert [(one["row"], one["other"], one["group"]) for one in found] == [(2, 1, 1), (3, 2, 1), (4, 3, 1)]
    apart = search(table.take([1, 3, 4]))
    assert pairs_of(apart) == [(2, 1)]


def test_the_more_held_out_row_is_kept_and_leakage_is_told() -> None:
    images = digits()[:6].copy()
    images[4], images[5] = loud(images[0], 0), loud(images[1], 1)
    found = search(tensors(images, ["train", "val", "train", "train", "test", "val"]))
    assert pairs_of(found) == [(0, 4), (5, 1)]
    assert "leakage: the other one stands in test" in str(found[0]["detail"]) and "leakage" not in str(
        found[1]["detail"]
    )
    assert [one["group"] for one in found] == [0, 1]


def test_nulls_damage_and_images_without_contrast_are_left_alone() -> None:
    flat = np.full((30, 40), 100, np.uint8)
    blank = [encoded(loud(flat, seed, 0.5), "PNG") for seed in range(4)]
    files = [None, b"broken", *blank, None, b"broken 2", encoded(picture(1))]
    assert search(encoded_table(files, [0] * len(files), NAMES)) == []
    assert search(encoded_table([None, b"x"], [0] * 2, NAMES)) == []


def test_sizes_that_are_hardly_images() -> None:
    for shape in [(1, 1), (1, 40), (2, 3), (70, 1), (3, 3, 1), (5, 5, 4), (200, 8, 3)]:
        images = noise(6, *shape)
        found = search(tensors(images))
        assert all(one["row"] != one["other"] for one in found)


# -- properties --------------------------------------------------------------------------------------------------------


def mixture() -> np.ndarray:
    """Digits, copies of copies, equal ones: 40 rows in a few groups."""
    images = digits()[:16]
    copies = [shifted(loud(images[at % 7], at), at % 3 - 1, at % 2) for at in range(20)]
    return np.concatenate([images, np.stack(copies), images[2:6]])


def grouped(images: np.ndarray) -> set[frozenset[bytes]]:
    """The groups of more than one value, by the values."""
    rows: dict[object, set[object]] = {}
    for one in search(tensors(images)):
        rows.setdefault(one["group"], set()).update((one["row"], one["other"]))
    return {frozenset(images[row].tobytes() for row in members) for members in rows.values()}


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(40)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    images = mixture()
    assert grouped(images[order]) == grouped(images)


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(1, 39), max_size=6))
def test_batches_do_not_matter(borders: set[int]) -> None:
    table = tensors(mixture())
    assert search(table, pieces=sorted(borders)) == search(table)


@settings(max_examples=15, deadline=None)
@given(st.sets(st.integers(0, 39), min_size=2))
def test_other_rows_change_no_pair(chosen: set[int]) -> None:
    images = mixture()
    rows = sorted(chosen)
    found, known, plain = image_thumbnails.thumbnails(images)
    assert known.all()
    every = {tuple(pair) for pair in image_hashes.proposed(found, plain).tolist()}
    some = image_hashes.proposed(found[rows], plain[rows])
    wanted = {pair for pair in every if pair[0] in chosen and pair[1] in chosen}
    assert {(rows[a], rows[b]) for a, b in some.tolist()} == wanted


def test_what_is_proposed_is_what_a_plain_search_proposes() -> None:
    found, _, plain = image_thumbnails.thumbnails(np.concatenate([mixture()[8:28], noise(5, 28, 28)]))
    plain[::2] = False
    wanted = set()
    for kind, windows, rows in (
        (image_hashes.FINE, image_hashes.WINDOWS[:1], np.arange(25)),
        (image_hashes.COARSE, image_hashes.WINDOWS, np.flatnonzero(~plain)),
    ):
        signs = image_hashes._signs(kind, found, rows, windows)
        bits = [np.unpackbits(one.view(np.uint8), axis=1, bitorder="little") for one in signs]
        for a in range(len(rows)):
            for b in range(len(rows)):
                for part in bits:
                    differ = bits[0][a] != part[b]
                    banded = any(not differ[band].any() for band in image_hashes._bands(kind))
                    if a != b and banded and differ.sum() <= kind.apart_max:
                        wanted.add((min(rows[a], rows[b]), max(rows[a], rows[b])))
    assert {tuple(pair) for pair in image_hashes.proposed(found, plain).tolist()} == wanted


def test_pairs_grow_with_the_rows_where_all_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_hashes, "NEAR_BAND_ROWS_MAX", 3)
    images = np.stack([loud(digits()[0], seed) for seed in range(100)])
    found, _, plain = image_thumbnails.thumbnails(images)
    assert len(image_hashes.proposed(found, plain)) <= 3 * 100 * image_hashes.FINE.bands
    groups = {one["group"] for one in search(tensors(images))}
    assert groups == {0}


def test_aligned_thumbnails_differ_less_and_equal_ones_not_at_all() -> None:
    images, _ = photographs()
    grey = np.stack([np.asarray(one.convert("L").resize((64, 64))) for one in images[:10]])
    moved = np.stack([np.asarray(cropped(one.convert("L"), 0.04, 0, 0, 0.02).resize((64, 64))) for one in images[:10]])
    found, _, _ = image_thumbnails.thumbnails(np.concatenate([grey, moved]))
    one, other = np.arange(10), np.arange(10, 20)
    plain = distances(found, one, other, np.zeros(10))
    aligned = distances(found, one, other, np.ones(10))
    assert (aligned < 0.5 * plain).all() and (aligned < 0.02).all()
    assert (distances(found, one, one, np.ones(10)) < 1e-12).all()
    assert np.array_equal(aligned, distances(found, other, one, np.ones(10)))


def test_thumbnails_do_not_depend_on_the_batch() -> None:
    images = np.concatenate([mixture(), noise(20, 28, 28)])
    whole = image_thumbnails.thumbnails(images)
    for at in range(len(images)):
        for one, every in zip(image_thumbnails.thumbnails(images[at : at + 1]), whole, strict=True):
            assert np.array_equal(one[0], every[at])


def test_parameters_that_make_no_sense_are_refused() -> None:
    assert operation_named("check.near_duplicate_images", {"difference": 0.01}) == NearDuplicateImages(difference=0.01)
    for name in ("difference", "difference_plain"):
        for value in (-1, 2, "much"):
            with pytest.raises(BadInput, match=name):
                operation_named("check.near_duplicate_images", {name: value})


def test_a_stricter_search_finds_less() -> None:
    pictures, files = photographs()
    copies = [as_jpeg(cropped(one, 0.03, 0.03, 0.03, 0.03)) for one in pictures]
    table = encoded_table([*files, *copies], [0] * 80, NAMES)
    assert len(search(table, difference=0.0005)) < 10 < len(search(table))
    assert search(table, difference=0.0) == []


def test_an_encoded_and_a_decoded_picture_have_the_same_thumbnail() -> None:
    pixels = np.stack([picture(seed) for seed in range(3)])
    files = encoded_table([encoded(one, "PNG") for one in pixels], [0] * 3, NAMES).combine_chunks().to_batches()[0]
    arrays = tensors(pixels).combine_chunks().to_batches()[0]
    check = NearDuplicateImages()
    one, other = (
        check.measure(batch.select(check.reads(batch.schema)))["image"].to_pylist() for batch in (files, arrays)
    )
    assert [value[:257] for value in one] == [value[:257] for value in other]
    assert io.BytesIO(one[0]).read(256) != bytes(256)
