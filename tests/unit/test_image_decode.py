"""Decoding for training gives the store's own pixels, whatever decodes, and refuses what is no image."""

from __future__ import annotations

import io

import numpy as np
import pytest
from image_data import encoded, picture
from PIL import Image

from leptonstore.errors import MissingExtra, SourceError
from leptonstore.process import images
from loaders.transforms import DecodeImage, decode

pytest.importorskip("simplejpeg")

JPEGS = {
    "4:2:0": encoded(picture(0)),
    "4:4:4": encoded(picture(1), subsampling=0),
    "4:2:2": encoded(picture(2), subsampling=1),
    "progressive": encoded(picture(3), progressive=True),
    "odd": encoded(picture(4, 67, 33)),
    "grey": encoded(picture(5)[..., 0]),
    "one": encoded(picture(6, 1, 1)),
}
OTHERS = {
    "png": encoded(picture(0), "PNG"),
    "png, 16 bits": encoded((np.arange(600, dtype=np.uint16) * 109).reshape(20, 30), "PNG"),
    "png, transparent": encoded(np.dstack([picture(1), np.full((120, 160), 90, np.uint8)]), "PNG"),
    "webp": encoded(picture(2), "WEBP"),
    "bmp": encoded(picture(3), "BMP"),
}


def cmyk() -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(7)).convert("CMYK").save(out, "JPEG")
    return out.getvalue()


OTHERS["cmyk"] = cmyk()


def turned(orientation: int, order: str = "II") -> bytes:
    exif = Image.Exif()
    exif.endian = "<" if order == "II" else ">"
    exif[0x0110] = "a camera"
    exif[0x0112] = orientation
    return encoded(picture(8, 40, 60), exif=exif)


@pytest.mark.parametrize("name", [*JPEGS, *OTHERS])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_those_of_the_store(name: str, mode: str) -> None:
    data = (JPEGS | OTHERS)[name]
    expected = images.decode(data)
    expected = images.to_rgb(expected) if mode == "RGB" else images.to_grey(expected)[..., None]
    found = DecodeImage(mode)(data)  # type: ignore[arg-type]
    assert found.dtype == np.uint8 and found.flags["C_CONTIGUOUS"] and np.array_equal(found, expected)


@pytest.mark.parametrize("name", JPEGS)
def test_jpegs_take_the_fast_decoder(name: str) -> None:
    assert decode.plain_size(JPEGS[name]) is not None


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_any_bytes_are_decoded(kind: type) -> None:
    assert np.array_equal(decode.decode(kind(JPEGS["odd"])), decode.decode(JPEGS["odd"]))


@pytest.mark.parametrize("order", ["II", "MM"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_as_viewers_do(orientation: int, order: str) -> None:
    data = turned(orientation, order)
    found = DecodeImage()(data)
    assert np.array_equal(found, images.decode(data))
    assert found.shape == ((40, 60, 3) if orientation < 5 else (60, 40, 3))
    assert np.array_equal(DecodeImage(upright=False)(data), images.decode(turned(1)))
    assert (decode.plain_size(data) is not None) == (orientation == 1), "upright ones need no detour"


def test_orientation_of_xmp_counts_too() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encoded(picture(9, 40, 60), xmp=xmp)
    assert DecodeImage()(data).shape == images.decode(data).shape == (60, 40, 3)


BAD = {
    "nothing": b"",
    "text": b"this is no image",
    "truncated": JPEGS["4:2:0"][:900],
    "header only": JPEGS["4:2:0"][:200],
    "png, truncated": OTHERS["png"][:300],
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match=r"^the image ") as caught:
        DecodeImage()(BAD[name])
    assert "replace or remove it" in str(caught.value) and "\n" not in str(caught.value)


def test_null_and_decoded_values_are_named() -> None:
    with pytest.raises(SourceError, match="is null"):
        DecodeImage()(None)
    with pytest.raises(SourceError, match="not ndarray: is it decoded already"):
        DecodeImage()(picture(0))


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "IMAGE_PIXELS_MAX", 100)
    monkeypatch.setattr(images, "IMAGE_PIXELS_MAX", 100)
    assert decode.plain_size(JPEGS["4:2:0"]) is None
    with pytest.raises(SourceError, match="over the limit of 100"):
        DecodeImage()(JPEGS["4:2:0"])


def test_every_damaged_byte_is_an_error_or_an_image() -> None:
    """Nothing else comes out, and what comes out is what the store's decoder makes of it."""
    data = encoded(picture(10, 24, 24))
    rng = np.random.default_rng(0)
    for _ in range(300):
        bad = bytearray(data)
        bad[rng.integers(2, len(bad))] = rng.integers(256)
        try:
            found = DecodeImage()(bytes(bad))
        except SourceError:
            continue
        assert found.dtype == np.uint8 and found.shape[2] == 3


def test_pillow_alone_gives_the_same_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_simplejpeg", lambda: None)
    for name, data in JPEGS.items():
        assert np.array_equal(DecodeImage()(data), images.to_rgb(images.decode(data))), name


def test_without_any_decoder_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingExtra("reading images", "process", "PIL")

    monkeypatch.setattr(decode, "_simplejpeg", lambda: None)
    monkeypatch.setattr(images, "_pillow", missing)
    with pytest.raises(MissingExtra, match=r"leptonstore\[images\]"):
        DecodeImage()(JPEGS["odd"])
