"""Encoded images -> uint8 arrays of shape (height, width, channels): JPEG by simplejpeg, whatever else the store decodes by Pillow.

simplejpeg (libjpeg-turbo, without the GIL) takes 0.6 of Pillow's time for the same pixels, bit for bit. What it refuses goes to
`leptonstore.process.images`, which decides for all parts of LeptonStore what an image is: other formats (PNG, WebP, GIF, TIFF, BMP
and more), CMYK, 16 bits (the high byte is kept), transparency (laid over white), bytes that are slightly wrong (decoded) or damaged
(refused). Without simplejpeg everything goes there.

EXIF orientation is applied, as every viewer does; `upright=False` leaves pixels as they are stored, as torchvision's ImageFolder does.

Bytes are not trusted: size and pixels are held to the store's bounds before anything is decoded.
"""

from __future__ import annotations

import struct
from functools import cache
from importlib import metadata
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from loaders.source import IMAGE_FILE_BYTES_MAX, IMAGE_PIXELS_MAX, MissingExtra, SourceError, image_decoder

Pixels = npt.NDArray[np.uint8]
Mode = Literal["RGB", "L"]
CHANNELS: dict[str, int] = {"RGB": 3, "L": 1}
SCALES = (8, 4, 2)  # by which libjpeg-turbo shrinks while decoding, with SIMD code (others are slower than no scale)

_SOI, _SOS, _APP1, _EXIF = b"\xff\xd8", 0xDA, 0xE1, b"Exif\0\0"
_SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_FRAME = struct.Struct(
    ">BHHB"
)  # precision, height, width, components: 1 is grey, 3 are YCbCr or RGB, 4 are not for simplejpeg
_ORIENTATION, _SHORT = 274, 3


def decode(data: Any, mode: Mode = "RGB", upright: bool = True) -> Pixels:
    """An encoded image -> uint8 (height, width, 3) for RGB or (height, width, 1) for L.

    Raises SourceError, which names the cause only, when `data` is no whole image within the bounds; MissingExtra
    when neither simplejpeg nor Pillow is there.
    """
    plain = _plain_jpeg(data, upright)
    if plain is not None:
        found = _by_simplejpeg(data, 1)
        if found is not None:
            return _in_mode(found, mode)
    return _by_store(data, mode, upright)


def plain_size(data: Any, upright: bool = True) -> tuple[int, int] | None:
    """(height, width) of a JPEG that `decode_smaller` can decode, else None."""
    return _plain_jpeg(data, upright)


def decode_smaller(data: Any, scale: int, mode: Mode = "RGB") -> Pixels | None:
    """A JPEG of which `plain_size` was told, shrunk by `scale` (of SCALES) while it is decoded; None when it is damaged."""
    found = _by_simplejpeg(data, scale)
    return None if found is None else _in_mode(found, mode)


def decoders() -> dict[str, str]:
    """The libraries that decode here, and their versions."""
    found = {name: _version(name) for name in ("simplejpeg", "pillow")}
    return {name: version for name, version in found.items() if version}


def _plain_jpeg(data: Any, upright: bool) -> tuple[int, int] | None:
    """(height, width) of what simplejpeg decodes to what is wanted.

    Walks the segments before the scan (ITU-T T.81, annex B). In Python: libjpeg's own look at the header gives up the GIL, and waiting
    for it again costs more than the walk.
    """
    if _simplejpeg() is None or not isinstance(data, bytes | bytearray | memoryview):
        return None
    if bytes(data[:2]) != _SOI or len(data) > IMAGE_FILE_BYTES_MAX:
        return None
    size: tuple[int, int] | None = None
    at, end = 2, len(data) - 10
    while at < end and data[at] == 0xFF:
        marker, length = data[at + 1], data[at + 2] << 8 | data[at + 3]
        if marker == _SOS:
            return size
        if marker in _SOF and size is None:
            precision, height, width, components = _FRAME.unpack_from(data, at + 4)
            if precision != 8 or components not in (1, 3) or not 0 < height * width <= IMAGE_PIXELS_MAX:
                return None
            size = height, width
        elif marker == _APP1 and upright and _turns(bytes(data[at + 4 : at + 2 + length])):
            return None
        at += 2 + length
    return None


def _by_simplejpeg(data: Any, scale: int) -> Pixels | None:
    simplejpeg = _simplejpeg()
    assert simplejpeg is not None
    try:
        if scale == 1:
            pixels: Pixels = simplejpeg.decode_jpeg(data)
        else:
            height, width, _, _ = simplejpeg.decode_jpeg_header(data)
            least = {"min_height": -(-height // scale), "min_width": -(-width // scale)}
            pixels = simplejpeg.decode_jpeg(data, **least, min_factor=scale)
    except ValueError:  # damaged, or only slightly wrong: Pillow, which knows the difference, is asked
        return None
    return pixels


def _by_store(data: Any, mode: Mode, upright: bool) -> Pixels:
    if data is None:
        raise SourceError("the value is null and no image: fill it in a new version, or leave out its row")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise SourceError(f"an encoded image is bytes, not {type(data).__name__}: is it decoded already?")
    try:
        images = image_decoder()
        pixels: Pixels = images.decode(data, "the image", upright=upright)
    except MissingExtra:
        raise MissingExtra("decoding images", "images", "PIL") from None
    return _in_mode(pixels if pixels.ndim == 3 else pixels[..., None], mode)


def _in_mode(pixels: Pixels, mode: Mode) -> Pixels:
    if pixels.shape[2] == CHANNELS[mode]:
        return pixels
    images = image_decoder()
    return np.ascontiguousarray(images.to_rgb(pixels) if mode == "RGB" else images.to_grey(pixels)[..., None])


def _turns(segment: bytes) -> bool:
    """Whether a segment of EXIF or XMP says, or may say, that the image is shown otherwise than stored."""
    if segment.startswith(_EXIF):
        return _orientation(segment[len(_EXIF) :]) != 1
    return b"tiff:Orientation" in segment


def _orientation(tiff: bytes) -> int:
    """Tag 274 of the first directory of a TIFF header (TIFF 6.0, section 2); 1 when it is not there, 0 when that cannot be told."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 0
    try:
        (at,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12):
            tag, kind, values, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
            if tag == _ORIENTATION:
                return int(value) if (kind, values) == (_SHORT, 1) else 0
    except struct.error:
        return 0
    return 1


@cache
def _simplejpeg() -> ModuleType | None:
    try:
        import simplejpeg
    except ModuleNotFoundError:
        return None
    module: ModuleType = simplejpeg
    return module


@cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""
