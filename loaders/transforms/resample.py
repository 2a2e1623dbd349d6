"""A part of an image, brought to a size. Pixels are uint8; what comes out is planar (channels first) or (height, width, channels).

    antialias=True    the triangle filter of Pillow's BILINEAR, as wide as the image shrinks: torch's interpolate, in 0.4 of Pillow's
                      time; without torch, Pillow. They differ by 0.02 grey levels in the mean and 1 at most.
    antialias=False   the nearest 2 x 2 pixels: OpenCV's INTER_LINEAR. Faster; an image that shrinks keeps its noise, so that pixels
                      differ from the other by about a grey level (docs/decisions/0028-images.md has figures).

The part is cut out first, so that the filter sees no pixel outside it: as torchvision's crop, then resize.
All of it runs without the GIL. Any thread.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import metadata
from types import ModuleType

import numpy as np
import numpy.typing as npt

from loaders.source import MissingExtra
from loaders.transforms.decode import Pixels
from loaders.transforms.openmp import one_thread


def resize(part: Pixels, size: tuple[int, int], antialias: bool = True) -> Pixels:
    """`part` (height, width, channels), strided as a view may be, at `size` = (height, width); C-contiguous."""
    if part.shape[:2] == size:
        return np.ascontiguousarray(part)
    if not antialias:
        return _linear(part, size)
    torch = _torch()
    if torch is None:
        return _by_pillow(part, size)
    planes = _by_torch(torch, part, size)
    out = np.empty((*size, part.shape[2]), np.uint8)
    _merge(planes, out)
    return out


def resize_into(out: Pixels, part: Pixels, antialias: bool = True, mirrored: bool = False) -> None:
    """`resize` to out's size, into out: (height, width, channels), C-contiguous. mirrored: left and right are exchanged."""
    size = out.shape[:2]
    if not antialias and part.shape[:2] != size:
        _linear(part, size, out)
    else:
        np.copyto(out, resize(part, (size[0], size[1]), antialias))
    if mirrored:
        _mirror_in_place(out)


def resize_into_planes(out: Pixels, part: Pixels, antialias: bool = True, mirrored: bool = False) -> None:
    """`resize_into`, but `out` has shape (channels, height, width)."""
    size = (out.shape[1], out.shape[2])
    torch = _torch() if antialias else None
    if torch is None or part.shape[:2] == size:
        image = resize(part, size, antialias)
        _split(mirror(image) if mirrored else image, out)
        return
    planes = _by_torch(torch, part, size)
    opencv = _opencv()
    if not mirrored:
        np.copyto(out, planes)
    elif opencv is None:
        np.copyto(out, planes[:, :, ::-1])
    else:  # all planes as one
        flat = out.reshape(-1, size[1])
        _put(opencv.flip(planes.reshape(flat.shape), 1, flat), flat)


def libraries(antialias: bool) -> dict[str, str]:
    """What `resize` computes with, and its version."""
    if not antialias:
        return {"opencv": _opencv_or_raise().__version__}
    torch = _torch()
    return {"pillow": metadata.version("pillow")} if torch is None else {"torch": str(torch.__version__)}


def mirror(image: Pixels) -> Pixels:
    """(height, width, channels) with left and right exchanged; C-contiguous."""
    opencv = _opencv()
    if opencv is None or image.shape[2] not in (1, 3):
        return np.ascontiguousarray(image[:, ::-1])
    return np.asarray(opencv.flip(image, 1), np.uint8).reshape(image.shape)


def look_up(pixels: Pixels, table: npt.NDArray[np.float32], out: npt.NDArray[np.float32]) -> None:
    """out[i, c] = table[c, pixels[i, c]]; both of shape (rows, channels, height, width), C-contiguous."""
    opencv, width = _opencv(), pixels.shape[3]
    if (table == table[0]).all():  # ToFloat alone: all planes as one
        table = table[:1]
    for image, made in zip(pixels, out, strict=True):
        planes = zip(image.reshape(len(table), -1, width), made.reshape(len(table), -1, width), table, strict=True)
        for plane, place, row in planes:
            if opencv is None:
                row.take(plane, out=place, mode="clip")  # cannot clip; any other mode would buffer
            else:
                opencv.LUT(plane, row[None], place)


def _by_torch(torch: ModuleType, part: Pixels, size: tuple[int, int]) -> Pixels:
    values = torch.from_numpy(part).permute(2, 0, 1)[None]
    with torch.no_grad(), one_thread(torch):
        made: Pixels = torch.nn.functional.interpolate(values, size, mode="bilinear", antialias=True)[0].numpy()
    return made


def _by_pillow(part: Pixels, size: tuple[int, int]) -> Pixels:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise MissingExtra("resizing images", "images", "PIL") from None
    flat = np.ascontiguousarray(part[..., 0] if part.shape[2] == 1 else part)
    made = Image.fromarray(flat).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(made).reshape(*size, part.shape[2])


def _linear(part: Pixels, size: tuple[int, int], out: Pixels | None = None) -> Pixels:
    opencv = _opencv_or_raise()
    made = opencv.resize(part, (size[1], size[0]), out, interpolation=opencv.INTER_LINEAR)
    if out is not None:
        _put(made, out)
    return np.asarray(made, np.uint8).reshape(*size, part.shape[2])


def _put(made: Pixels, out: Pixels) -> None:
    """OpenCV writes into the array that it is given, and returns it, unless it does not suit it."""
    if made is not out:
        np.copyto(out, made.reshape(out.shape))


def _split(image: Pixels, out: Pixels) -> None:
    """(height, width, channels) into planes. OpenCV takes pixels apart four times as fast as numpy."""
    opencv = _opencv()
    if opencv is not None and image.shape[2] == 3:
        opencv.split(image, list(out))
    else:
        np.copyto(out, image.transpose(2, 0, 1))


def _merge(planes: Pixels, out: Pixels) -> None:
    opencv = _opencv()
    if opencv is not None and planes.shape[0] == 3:
        opencv.merge(list(planes), out)
    else:
        np.copyto(out, planes.transpose(1, 2, 0))


def _mirror_in_place(image: Pixels) -> None:
    opencv = _opencv()
    if opencv is None or image.shape[2] not in (1, 3):
        np.copyto(image, mirror(image))
    else:
        _put(opencv.flip(image, 1, image), image)


@cache
def _torch() -> ModuleType | None:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    with warnings.catch_warnings():
        # torch warns once in a process of memory that it must not write to, as that of the cache is: nobody writes there.
        warnings.simplefilter("ignore")
        torch.from_numpy(np.frombuffer(b"x", np.uint8))
    return torch


@cache
def _opencv() -> ModuleType | None:
    try:
        import cv2
    except ModuleNotFoundError:
        return None
    module: ModuleType = cv2
    return module


def _opencv_or_raise() -> ModuleType:
    opencv = _opencv()
    if opencv is None:
        raise MissingExtra("resizing with antialias=False", "images", "cv2")
    return opencv
