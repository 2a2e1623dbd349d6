"""Decoding: every supported format gives the two documented layouts, and bad files give one clear error."""

from __future__ import annotations

import io
import struct
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from process_data import encode, noise

from leptonstore import limits
from leptonstore.errors import BadInput, MissingExtra, SourceError
from leptonstore.process import images


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_grey_files_become_height_by_width(format: str) -> None:
    pixels = noise(1, 7, 5)[0]
    decoded = images.decode(encode(pixels, format))
    assert decoded.dtype == np.uint8 and decoded.flags["C_CONTIGUOUS"]
    assert np.array_equal(images.to_grey(decoded), pixels)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_colour_files_become_height_by_width_by_three(format: str) -> None:
    pixels = noise(1, 7, 5, 3)[0]
    assert np.array_equal(images.decode(encode(pixels, format)), pixels)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_files_keep_their_size(format: str) -> None:
    assert images.decode(encode(noise(1, 24, 16, 3)[0], format)).shape == (24, 16, 3)


def test_transparency_is_laid_over_white() -> None:
    rgba = np.zeros((2, 2, 4), dtype=np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    decoded = images.decode(encode(rgba))
    assert decoded[0, 0].tolist() == [10, 20, 30]
    assert (decoded[1] == 255).all()


def test_sixteen_bits_keep_the_high_byte() -> None:
    wide = np.array([[0, 255, 256], [0x1234, 0x8000, 0xFFFF]], dtype=np.uint16)
    assert images.decode(encode(wide)).tolist() == [[0, 0, 1], [0x12, 0x80, 0xFF]]


def test_floats_are_refused() -> None:
    out = io.BytesIO()
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(out, "TIFF")
    with pytest.raises(SourceError, match="floating-point"):
        images.decode(out.getvalue())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(noise(1, 4, 6, 3)[0], "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(images.decode(data), expected)
    info = images.probe(data)
    assert (info.height, info.width, info.channels, info.format) == (*expected.shape, "PNG")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_truncated_file_is_an_error_at_every_length(format: str) -> None:
    data = encode(noise(1, 20, 20, 3)[0], format)
    for length in range(0, len(data) - 64, max(1, len(data) // 25)):
        with pytest.raises(SourceError, match=r"cat\.png"):
            images.decode(data[:length], "cat.png")


@pytest.mark.parametrize("data", [b"", b"not an image", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_named_in_one_line(data: bytes) -> None:
    with pytest.raises(SourceError) as caught:
        images.decode(data, "cat.png")
    assert "cat.png" in str(caught.value) and "\n" not in str(caught.value) and " object at " not in str(caught.value)
    assert isinstance(caught.value, BadInput)


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(SourceError, match="pixels"):
        images.decode(bomb)


def test_the_limits_are_those_of_limits_py(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(1, 10, 10)[0])
    monkeypatch.setattr(images, "IMAGE_PIXELS_MAX", 99)
    with pytest.raises(SourceError, match="100 pixels, over the limit of 99"):
        images.decode(data)
    monkeypatch.setattr(images, "IMAGE_FILE_BYTES_MAX", len(data) - 1)
    with pytest.raises(SourceError, match="bytes, over the limit"):
        images.decode(data)
    assert limits.IMAGE_PIXELS_MAX > 99


def test_map_decoded_keeps_order_and_puts_errors_in_their_place() -> None:
    pixels = noise(20, 6, 6)
    values = [encode(one) for one in pixels]
    values[7] = values[7][:30]
    results = images.map_decoded(lambda image: int(image.sum()), values)
    assert isinstance(results[7], SourceError)
    assert [r for at, r in enumerate(results) if at != 7] == [int(p.sum()) for at, p in enumerate(pixels) if at != 7]


def test_grey_is_pillows_grey() -> None:
    colour = noise(1, 50, 50, 3)[0]
    assert np.array_equal(images.to_grey(colour), np.asarray(Image.fromarray(colour).convert("L")))


@pytest.mark.parametrize("source", [(9, 7), (9, 7, 1), (9, 7, 3)])
@pytest.mark.parametrize("target", [(4, 5), (4, 5, 1), (4, 5, 3), (9, 7), (20, 20, 3)])
def test_fit_gives_the_shape_that_was_asked_for(source: tuple[int, ...], target: tuple[int, ...]) -> None:
    assert images.fit(noise(1, *source)[0], target).shape == target


def test_fit_refuses_shapes_that_are_no_images() -> None:
    with pytest.raises(BadInput, match="not \\(4, 5, 7\\)"):
        images.fit(noise(1, 4, 5)[0], (4, 5, 7))


def test_resize_to_the_same_size_changes_nothing() -> None:
    pixels = noise(1, 8, 8, 3)[0]
    assert images.resize(pixels, (8, 8)) is pixels


def test_without_pillow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtra, match=r"leptonstore\[process\]"):
        images.decode(b"\x89PNG")
