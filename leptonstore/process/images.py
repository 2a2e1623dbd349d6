"""Encoded images -> uint8 arrays, and the few operations that every consumer of images must do the same way.

`clean`, `preprocess`, `report` and prediction all decode here, so that an image means the same pixels wherever it is
looked at. An image is a C-contiguous uint8 array, H x W (grey) or H x W x 3 (RGB):

    bit depth     16-bit grey keeps its high byte; 32-bit integers beyond 16 bits and floats are refused
    transparency  is laid over white, as a page shows it
    orientation   of EXIF is applied, as every viewer does
    frames        of an animation after the first are ignored

Files are not trusted: only raster formats are tried (EPS, for one, would start another program), their size and pixel
count are bounded before anything is decoded, and a truncated file is an error and never a half-grey image.
Pillow is imported when the first image is decoded. Every function is pure and safe from any thread.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from leptonstore.digest import Buffer
from leptonstore.errors import MissingExtra, SourceError
from leptonstore.limits import IMAGE_FILE_BYTES_MAX, IMAGE_PIXELS_MAX
from leptonstore.process.image_damage import incomplete, jpeg_whole, scans_complete

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = NDArray[np.uint8]
T = TypeVar("T")

FORMATS = ("BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N")
EXIF_ORIENTATION = 0x0112

# EXIF orientation -> what to do with rows and columns (TIFF 6.0, tag 274).
_ORIENT: dict[int, Callable[[Pixels], Pixels]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}


@dataclass(frozen=True)
class ImageInfo:
    """What the header of an encoded image says: pixels as they will be decoded, and the file format ("PNG")."""

    height: int
    width: int
    channels: int
    format: str


def decode(data: Buffer, name: str = "image", upright: bool = True) -> Pixels:
    """One encoded image -> uint8 H x W or H x W x 3. `name` is how an error calls it; not upright: EXIF orientation is ignored.

    Raises SourceError when the bytes are not a complete image of a known format within the limits, MissingExtra
    without Pillow.
    """
    image = _open(data, name)
    try:
        image.load()
        pixels = _pixels(image)
        orient = _ORIENT.get(_orientation(image)) if upright else None
    except Exception as error:  # a decoder of untrusted bytes may raise anything
        raise SourceError(f"{name} is damaged: {error or type(error).__name__}; replace or remove it", name) from error
    return np.ascontiguousarray(orient(pixels) if orient else pixels)


def decode_small(data: Buffer, edge_max: int, name: str = "image") -> Pixels:
    """As `decode`, shrunk (never enlarged) so that the longer edge is at most `edge_max` pixels; a JPEG is decoded smaller at once.

    For people to look at: not the pixels that `resize` makes of `decode`. Raises as `decode` does.
    """
    image = _open(data, name)
    try:
        image.draft(None, (2 * edge_max, 2 * edge_max))  # twice the edge, so that the filter below still averages
        image.load()
        pixels = _pixels(image)
        orient = _ORIENT.get(_orientation(image))
    except Exception as error:  # as in decode
        raise SourceError(f"{name} is damaged: {error or type(error).__name__}; replace or remove it", name) from error
    return np.ascontiguousarray(shrink(orient(pixels) if orient else pixels, edge_max))


def decode_whole(data: Buffer, name: str = "image") -> Pixels:
    """As `decode`, which shows as much of an image as it can, but refuses what is not whole: the same pixels, or SourceError.

    A JPEG may be cut in its middle and yet end as it should (a download that was mended, a hole of zeros): Pillow fills what is missing
    with grey and says nothing. libjpeg-turbo warns, and simplejpeg hands the warning on. PNG has a checksum for each chunk, which Pillow
    does not compare for pixels. Of the other formats only the end is looked at: they have nothing that could be checked. Without
    simplejpeg a JPEG is what Pillow takes it for. The message says "truncated" where the end is missing.
    """
    data = memoryview(data).cast("B")  # Arrow's buffers are of signed bytes
    image = _open(data, name)
    if image.format == "JPEG" and image.mode in ("L", "RGB"):
        pixels = jpeg_whole(data, name, image.mode)
        if "progressive" in image.info and not scans_complete(data):
            raise SourceError(f"{name} is truncated: its last scans are missing; replace or remove it", name)
        if pixels is not None:
            orient = _ORIENT.get(_orientation(image))
            return np.ascontiguousarray(orient(pixels)) if orient else pixels
    why = incomplete(data, image.format or "")
    if why:
        raise SourceError(f"{name} is {why}; replace or remove it", name)
    try:
        return decode(data, name)
    except SourceError as error:
        if "truncated" not in str(error):
            raise
        raise SourceError(f"{name} is truncated: its end is missing; replace or remove it", name) from error


def decoders() -> dict[str, str]:
    """The libraries that decide what `decode_whole` gives and refuses, and their versions."""
    found = {"pillow": pillow_version()}
    try:
        import simplejpeg
    except ImportError:
        return found
    return {**found, "simplejpeg": simplejpeg.__version__}


def probe(data: Buffer, name: str = "image") -> ImageInfo:
    """Size, channels and format from the header; pixels stay undecoded (except TIFF, whose header is not enough).

    Raises as `decode` does, but damage behind the header goes unnoticed.
    """
    image = _open(data, name)
    try:
        if image.format == "TIFF":
            image.load()
        turned = _orientation(image) >= 5
    except Exception as error:  # as in decode
        raise SourceError(f"{name} is damaged: {error or type(error).__name__}; replace or remove it", name) from error
    width, height = (image.height, image.width) if turned else image.size
    return ImageInfo(height, width, 1 if image.mode in GREY_MODES else 3, image.format or "")


def map_decoded(
    function: Callable[[Pixels], T],
    values: Sequence[Buffer],
    name: str = "image",
    decoder: Callable[[Buffer, str], Pixels] = decode,
) -> list[T | SourceError]:
    """`function` of each decoded image, in order; a SourceError stands where an image does not decode.

    Decoding runs in a few threads (Pillow releases the GIL). Only results are kept, so memory is bounded by them and
    by one image per thread. `function` must be safe to call from several threads.
    """
    return map_decoded_files(lambda pixels, _: function(pixels), values, name, decoder)


def map_decoded_files(
    function: Callable[[Pixels, Buffer], T],
    values: Sequence[Buffer],
    name: str = "image",
    decoder: Callable[[Buffer, str], Pixels] = decode,
) -> list[T | SourceError]:
    """As `map_decoded`, for functions that look at the file, too."""

    def one(value: Buffer) -> T | SourceError:
        try:
            pixels = decoder(value, name)
        except SourceError as error:
            return error
        return function(pixels, value)

    threads = min(os.cpu_count() or 1, 8, len(values))
    if threads <= 1:
        return [one(value) for value in values]
    with ThreadPoolExecutor(threads, thread_name_prefix="lepton-decode") as pool:
        return list(pool.map(one, values))


def to_grey(image: Pixels) -> Pixels:
    """RGB -> grey by ITU-R 601-2 luma, rounded as Pillow's "L"; grey is returned as it is. Shapes (..., H, W[, C])."""
    if image.ndim == 2:
        return image
    if image.shape[-1] == 1:
        return image[..., 0]
    wide = image.astype(np.uint32)
    luma = (wide[..., 0] * 19_595 + wide[..., 1] * 38_470 + wide[..., 2] * 7_471 + 0x8000) >> 16
    return luma.astype(np.uint8)


def grey_of(image: Pixels) -> Pixels:
    """As `to_grey`, of one image, by Pillow: three times as fast, and without the GIL."""
    return np.asarray(_pillow().fromarray(image).convert("L")) if image.ndim == 3 else image


def to_rgb(image: Pixels) -> Pixels:
    """Grey -> three equal channels; RGB is returned as it is."""
    grey = image if image.ndim == 2 else image[..., 0] if image.shape[-1] == 1 else None
    return image if grey is None else np.repeat(grey[..., None], 3, axis=-1)


def resize(image: Pixels, size: tuple[int, int], gap: float | None = None) -> Pixels:
    """Stretch to `size` = (height, width) with Pillow's bilinear filter, which averages when it shrinks.

    gap: shrink by whole factors before, to no less than so many times the size; four times as fast and nearly the same at 1.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    pillow = _pillow()
    flat = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    out = np.asarray(pillow.fromarray(flat).resize((width, height), pillow.Resampling.BILINEAR, reducing_gap=gap))
    return out.reshape(height, width, *image.shape[2:])


def fit(image: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Bring an image to `shape`: (H, W) or (H, W, 1) makes it grey, (H, W, 3) makes it RGB; the size is stretched."""
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,)):
        raise SourceError(f"images have shape (H, W), (H, W, 1) or (H, W, 3), not {shape}; ask for one of these")
    coloured = to_rgb(image) if shape[2:] == (3,) else to_grey(image)
    return resize(coloured, (shape[0], shape[1])).reshape(shape)


def shrink(image: Pixels, edge_max: int) -> Pixels:
    """The image with its longer edge at most `edge_max` pixels; never enlarged."""
    height, width = image.shape[:2]
    scale = min(1.0, edge_max / max(height, width, 1))
    return resize(image, (max(1, round(height * scale)), max(1, round(width * scale))))


def thumbnail_png(image: Pixels, edge_max: int) -> bytes:
    """The image as a PNG file, shrunk (never enlarged) so that its longer edge is at most `edge_max` pixels."""
    return encode(shrink(image, edge_max), "PNG", optimize=True)


def encode(image: Pixels, format: str, **options: Any) -> bytes:
    """The image as a file of that format of Pillow's ("PNG", "JPEG"), with its options."""
    flat = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
    out = io.BytesIO()
    _pillow().fromarray(flat).save(out, format, **options)
    return out.getvalue()


def codec_versions() -> dict[str, str]:
    """Versions of what decides the bytes of an image that is written."""
    _pillow()
    from PIL import features

    found = {
        "libjpeg": features.version("jpg"),
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "zlib": features.version("zlib"),
    }
    return {"pillow": pillow_version()} | {name: version for name, version in found.items() if version}


def pillow_version() -> str:
    """Version of the decoder; part of the lineage of whatever was decoded."""
    _pillow()
    import PIL

    return PIL.__version__


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("reading images", "process", "PIL") from error
    return Image


def _open(data: Buffer, name: str) -> Image:
    """Read the header and hold it to the limits. The pixels are not read yet."""
    pillow = _pillow()
    size = memoryview(data).nbytes
    if size == 0:
        raise SourceError(f"{name} is empty (0 bytes); replace or remove it", name)
    if size > IMAGE_FILE_BYTES_MAX:
        raise SourceError(f"{name} has {size:,} bytes, over the limit of {IMAGE_FILE_BYTES_MAX:,}; shrink it", name)
    try:
        image: Image = pillow.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # as in decode; Pillow's message for unknown bytes shows a Python object, so not that
        if isinstance(error, pillow.DecompressionBombError):
            why = f"has too many pixels (the limit is {IMAGE_PIXELS_MAX:,}); shrink it"
        else:
            why = f"is no image in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}; replace or remove it"
        raise SourceError(f"{name} {why}", name) from error
    if image.width * image.height > IMAGE_PIXELS_MAX:
        raise SourceError(
            f"{name} has {image.width * image.height:,} pixels, over the limit of {IMAGE_PIXELS_MAX:,}; shrink it", name
        )
    return image


def _orientation(image: Image) -> int:
    """EXIF orientation, 1 (upright) when there is none or the EXIF block is damaged: the pixels are still good."""
    try:
        return int(image.getexif().get(EXIF_ORIENTATION, 1))
    except Exception:
        return 1


def _pixels(image: Image) -> Pixels:
    """The pixels of a loaded image in one of the two layouts of this module."""
    grey = image.mode in GREY_MODES
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image)
        if wide.size and (int(wide.min()) < 0 or int(wide.max()) > 0xFFFF):
            raise ValueError("32-bit pixel values have no defined grey scale")
        return (wide >> 8).astype(np.uint8)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined grey scale")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        pillow = _pillow()
        white = pillow.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = pillow.alpha_composite(white, rgba)
    return np.asarray(image.convert("L" if grey else "RGB"))
