"""Checks of images say exactly what was planted: damage, one colour, another size, another look. No false alarm."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from image_data import encoded, picture
from PIL import Image
from process_data import encode, encoded_table, noise, tensor_table

from leptonstore.errors import BadInput, SchemaError, SourceError
from leptonstore.process import images
from leptonstore.process.checks import image_facts
from leptonstore.process.checks.constant import Constant
from leptonstore.process.checks.image_quality import ImageQuality
from leptonstore.process.checks.image_size import ImageSize
from leptonstore.process.checks.near_duplicate_images import NearDuplicateImages
from leptonstore.process.checks.undecodable import Undecodable
from leptonstore.process.operation import Made, RowOperation, TableOperation
from leptonstore.process.registry import operation_named

NAMES = ["a", "b"]
KINDS = [(Undecodable, True), (Constant, True), (Constant, False), (ImageSize, True), (ImageQuality, False)]


def files_batch(files: Sequence[bytes | None]) -> pa.RecordBatch:
    return encoded_table(files, [0] * len(files), NAMES).combine_chunks().to_batches()[0]


def pixels_batch(pixels: np.ndarray) -> pa.RecordBatch:
    return tensor_table(pixels, [0] * len(pixels), NAMES).combine_chunks().to_batches()[0]


def made(check: Any, batch: pa.RecordBatch, pieces: int = 1) -> Made:
    """As a pipeline drives it; a table check measures `pieces` pieces."""
    read = batch.select(check.reads(batch.schema))
    if isinstance(check, RowOperation):
        return check.apply(read)
    assert isinstance(check, TableOperation)
    borders = np.linspace(0, len(read), pieces + 1).astype(int)
    parts = [check.measure(read.slice(low, high - low)) for low, high in pairwise(borders)]
    assert all(part.schema == check.features(batch.schema) for part in parts)
    return check.decide(pa.Table.from_batches(parts))


def found(check: Any, batch: pa.RecordBatch, pieces: int = 1) -> list[tuple[int, str]]:
    findings = made(check, batch, pieces).findings
    return list(zip(findings["row"].to_pylist(), findings["detail"].to_pylist(), strict=True))


# -- damage ------------------------------------------------------------------------------------------------------------


def cut_and_mended(data: bytes) -> bytes:
    """Half of a JPEG, with the mark of its end: every lenient decoder shows it, grey below."""
    return data[: len(data) // 2] + b"\xff\xd9"


def zeroed(data: bytes) -> bytes:
    """A download whose second half never came."""
    return data[: len(data) // 2] + bytes(len(data) - len(data) // 2)


def test_damage_of_every_kind_is_found_and_named() -> None:
    good = picture(1)
    jpeg, progressive = encoded(good, quality=88), encoded(good, quality=88, progressive=True)
    png, gif, webp = encoded(good, "PNG"), encoded(good, "GIF"), encoded(good, "WEBP")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 1
    cases: list[tuple[bytes, str]] = [
        (b"", "empty"),
        (b"<html>not found</html>", "no image"),
        (jpeg[:2000], "truncated"),
        (jpeg[:-2], "truncated"),
        (cut_and_mended(jpeg), "truncated"),
        (cut_and_mended(progressive), "truncated"),
        (zeroed(jpeg), "truncated"),
        (jpeg[:2000] + jpeg[2600:], "truncated"),
        (png[:-4], "truncated"),
        (png[: len(png) // 2], "truncated"),
        (bytes(flipped), "damaged: the checksum of its chunk IDAT is wrong"),
        (zeroed(png), "damaged"),
        (gif[:-1], "truncated"),
        (gif[: len(gif) // 2], "truncated"),
        (webp[:-40], ""),
        (zeroed(webp), "truncated"),
        (encoded(good, "BMP")[:-5], "truncated"),
        (encoded(good, "TIFF")[:-50], "truncated"),
    ]
    batch = files_batch([data for data, _ in cases])
    seen = found(Undecodable(), batch)
    assert [row for row, _ in seen] == list(range(len(cases)))
    for (_, detail), (_, wanted) in zip(seen, cases, strict=True):
        assert detail.startswith(wanted), (detail, wanted)
        assert "\n" not in detail


def test_whole_files_of_every_kind_are_no_finding() -> None:
    pixels = picture(2)
    files = [encoded(pixels, kind) for kind in ("PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG")]
    exif = Image.Exif()
    exif[0x0112] = 6
    files += [encoded(pixels, "JPEG", progressive=True), encoded(pixels[..., 0]), encoded(pixels, "JPEG", exif=exif)]
    files += [encoded(pixels, "WEBP", lossless=True), encoded(pixels) + b"trailing", encoded(pixels, "PNG") + b"\0" * 9]
    cmyk = io.BytesIO()
    Image.fromarray(pixels).convert("CMYK").save(cmyk, "JPEG")
    animated = io.BytesIO()
    frames = [Image.fromarray(picture(at)) for at in range(3)]
    frames[0].save(animated, "GIF", save_all=True, append_images=frames[1:])
    files += [cmyk.getvalue(), animated.getvalue()]
    assert found(Undecodable(), files_batch([*files, None])) == []


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}, {"restart_marker_rows": 1}])
def test_a_jpeg_cut_anywhere_is_found_whatever_end_it_is_given(options: dict[str, Any]) -> None:
    data = encoded(picture(3, 64, 80), **options)
    start = data.rindex(b"\xff\xda") + 14
    for length in range(start, len(data) - 3, max(1, (len(data) - start) // 40)):
        for end in (b"", b"\xff\xd9", bytes(500), b"\xff\xd9" + bytes(100)):
            with pytest.raises(SourceError):
                images.decode_whole(data[:length] + end)


def test_decode_whole_gives_the_pixels_of_decode() -> None:
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        for pixels in (picture(4), picture(4)[..., 1]):
            data = encoded(pixels, "JPEG", exif=exif)
            assert np.array_equal(images.decode_whole(data), images.decode(data))


def test_without_simplejpeg_pillow_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    data = encoded(picture(5))
    assert np.array_equal(images.decode_whole(data), images.decode(data))
    with pytest.raises(SourceError, match="truncated"):
        images.decode_whole(data[:-30])
    assert list(images.decoders()) == ["pillow"]


# -- constant ----------------------------------------------------------------------------------------------------------


def test_constant_images_are_found_exactly() -> None:
    pixels = noise(3_000, 5, 4, 3)
    pixels[[0, 77, 2_999]] = (9, 8, 7)
    pixels[100] = pixels[100, 0, 0]
    pixels[100, 2, 2, 1] ^= 1  # all but one value
    wanted = [(row, "every pixel is 9, 8, 7") for row in (0, 77, 2_999)]
    assert found(Constant(), pixels_batch(pixels)) == wanted
    some = [*range(50), 77, 100, 2_999]
    files = files_batch([encode(pixels[row]) for row in some] + [None, b"broken"])
    assert [some[row] for row, _ in found(Constant(), files)] == [0, 77, 2_999]


def test_an_image_of_one_pixel_is_not_called_constant() -> None:
    assert found(Constant(), pixels_batch(noise(5, 1, 1))) == []
    assert found(Constant(), files_batch([encode(one) for one in noise(5, 1, 1)])) == []


# -- sizes and modes ---------------------------------------------------------------------------------------------------


def test_the_most_common_size_and_mode_are_the_right_ones() -> None:
    files = [encode(one) for one in noise(20, 6, 8, 3)]
    files[3] = encode(noise(1, 8, 6, 3)[0])
    files[4] = encode(noise(1, 6, 8)[0])
    files[5] = encode(noise(1, 7, 7)[0])
    files[6] = b"broken"
    batch = files_batch([*files, None])
    assert found(ImageSize(), batch, 3) == [
        (3, "8 x 6 pixels, not 6 x 8, as most are"),
        (4, "grey, not colour, as most are"),
        (5, "7 x 7 pixels, not 6 x 8, as most are; grey, not colour, as most are"),
    ]
    assert found(ImageSize(sizes=["6x8", "8x6"], modes=["grey", "colour"]), batch) == [
        (5, "7 x 7 pixels, not 6 x 8 or 8 x 6")
    ]


def test_where_sizes_are_of_all_kinds_none_is_wrong() -> None:
    files = [encode(noise(1, 5 + row, 9)[0]) for row in range(9)]
    assert found(ImageSize(), files_batch(files)) == []


# -- quality -----------------------------------------------------------------------------------------------------------


def looks() -> list[np.ndarray]:
    usual = [picture(seed, 60, 80) for seed in range(60)]
    usual[7] = (usual[7] // 12).astype(np.uint8)
    usual[8] = (215 + usual[8] // 8).astype(np.uint8)
    usual[9] = np.asarray(Image.fromarray(usual[9]).resize((8, 6), Image.Resampling.BOX).resize((80, 60)))
    usual[10] = picture(10, 20, 160)
    return usual


def test_what_looks_unlike_the_others_is_found_and_told_why() -> None:
    batch = files_batch([encode(one) for one in looks()] + [None, b"broken"])
    seen = dict(found(ImageQuality(), batch, 4))
    assert sorted(seen) == [7, 8, 9, 10]
    assert "dark" in seen[7] and "bright" in seen[8] and "blurred" in seen[9] and "wide" in seen[10]
    scores = made(ImageQuality(), batch).findings["score"].to_pylist()
    assert min(scores) >= 5
    assert sorted(dict(found(ImageQuality(of=["aspect"]), batch))) == [10]


def test_decoded_and_encoded_images_are_judged_alike() -> None:
    pixels = np.stack([one for one in looks() if one.shape == (60, 80, 3)])
    assert found(ImageQuality(), pixels_batch(pixels), 3) == found(
        ImageQuality(), files_batch([encode(one) for one in pixels])
    )


# -- all ---------------------------------------------------------------------------------------------------------------


def test_actions_drop_and_tag() -> None:
    pixels = noise(6, 4, 4)
    pixels[2] = 5
    batch = pixels_batch(pixels)
    dropped = made(Constant(action="drop"), batch)
    assert dropped.keep is not None and dropped.keep.tolist() == [True, True, False, True, True, True]
    assert dropped.findings["action"].to_pylist() == ["drop"]
    tagged = made(Constant(action="tag"), batch)
    assert tagged.columns["findings"].to_pylist() == [[], [], ["constant"], [], [], []]
    with pytest.raises(BadInput, match="no action 'fix'"):
        Constant(action="fix")


def test_an_image_is_decoded_once_for_all_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_facts, "_kept", type(image_facts._kept)())
    decoded: list[int] = []
    whole = images.decode_whole

    def counting(data: Any, name: str = "image") -> np.ndarray:
        decoded.append(1)
        return whole(data, name)

    monkeypatch.setattr(images, "decode_whole", counting)
    batch = files_batch([encode(one) for one in noise(12, 20, 20)])
    for check in (Undecodable(), Constant(), ImageQuality()):
        found(check, batch)
        batch = batch.slice(1)  # and rows are left out in between
    assert len(decoded) == 12


def test_facts_that_are_kept_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_facts, "_kept", type(image_facts._kept)())
    monkeypatch.setattr(image_facts, "IMAGE_FACTS_MAX", 5)
    assert found(Constant(), files_batch([encode(one) for one in noise(12, 9, 9)])) == []
    assert len(image_facts._kept) == 5


def test_a_table_without_images_is_refused_with_the_fix() -> None:
    schema = pa.schema([pa.field("x", pa.int64())])
    for kind, _ in KINDS:
        with pytest.raises(SchemaError, match="leave it out"):
            kind().reads(schema)
        with pytest.raises(SchemaError, match="no column 'y'"):
            kind(columns=["y"]).reads(schema)
        with pytest.raises(SchemaError, match="'x' is int64"):
            kind(columns=["x"]).reads(schema)
    with pytest.raises(SchemaError, match="encoded"):
        Undecodable().reads(pixels_batch(noise(2, 4, 4)).schema)


def test_pipelines_call_them_by_name() -> None:
    assert operation_named("check.constant", {"action": "drop"}) == Constant(action="drop")
    assert operation_named("check.image_size", {"sizes": ["28x28"]}) == ImageSize(sizes=["28x28"])
    with pytest.raises(BadInput, match="HEIGHTxWIDTH"):
        operation_named("check.image_size", {"sizes": ["28"]})
    with pytest.raises(BadInput, match="no mode"):
        operation_named("check.image_size", {"modes": ["rgb"]})
    with pytest.raises(BadInput, match="positive"):
        operation_named("check.image_quality", {"z": 0})
    with pytest.raises(BadInput, match="not measured"):
        operation_named("check.image_quality", {"of": ["beauty"]})


def test_an_empty_dataset_has_no_findings() -> None:
    batch = files_batch([b""]).slice(0, 0)
    for kind, encoded_too in KINDS:
        if encoded_too or kind is ImageQuality:
            assert found(kind(), batch) == []
    assert found(NearDuplicateImages(), batch) == []
