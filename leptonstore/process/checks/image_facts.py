"""What the checks of images have to know of an encoded image, measured in one go where it is decoded.

Decoding is nearly all of the cost (1 to 5 ms for a photograph), and a pipeline may have several checks that need the pixels: damage,
constant, quality, near duplicates. So whoever comes first measures everything, and the facts (about 600 bytes, pixels are not kept) stay
in this process by the digest of the file: whatever rows were left out between two checks, whichever thread or pass asks. BLAKE3 of a
file costs a hundredth of decoding it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from leptonstore.digest import Buffer, Digest, digest_of
from leptonstore.errors import SourceError
from leptonstore.limits import IMAGE_FACTS_CHUNK, IMAGE_FACTS_MAX
from leptonstore.process import images
from leptonstore.process.checks import image_measures, image_thumbnails


@dataclass(frozen=True)
class Facts:
    """trouble: why the file is no whole image ("" when it is); nothing else is known then.

    colour: of an image whose pixels are all equal, 1 or 3 values; None of others. height, width: upright, in pixels.
    brightness: mean grey level, 0 to 255. sharpness: variance of the Laplacian. thumbnail: see image_thumbnails.py; None where there is
    too little contrast. plain: whether the ground is.
    """

    trouble: str
    height: int = 0
    width: int = 0
    colour: tuple[int, ...] | None = None
    brightness: float = 0.0
    sharpness: float = 0.0
    thumbnail: bytes | None = None
    plain: bool = False


_NAME = "the file"  # in errors
_kept: OrderedDict[Digest, Facts] = OrderedDict()
_lock = threading.Lock()


def facts_of(values: Sequence[Buffer]) -> list[Facts]:
    """Facts of each file, in order. Decodes in a few threads (images.map_decoded) what is not known yet. Raises MissingExtra without
    Pillow."""
    digests = [digest_of(value) for value in values]
    with _lock:
        known = {digest: _kept[digest] for digest in digests if digest in _kept}
    new = {digest: value for digest, value in zip(digests, values, strict=True) if digest not in known}
    for some in _pieces(list(new), IMAGE_FACTS_CHUNK):
        results = images.map_decoded(_measured, [new[digest] for digest in some], _NAME, images.decode_whole)
        facts = {
            digest: Facts(_fact(one)) for digest, one in zip(some, results, strict=True) if isinstance(one, SourceError)
        }
        by_shape: dict[tuple[int, ...], list[tuple[Digest, Measured]]] = {}
        for digest, one in zip(some, results, strict=True):
            if not isinstance(one, SourceError):
                by_shape.setdefault(one.small.shape, []).append((digest, one))
        for group in by_shape.values():
            facts |= _with_thumbnails(group)
        known |= facts
        _keep(facts)
    return [known[digest] for digest in digests]


def _pieces(every: list[Digest], count: int) -> Iterator[list[Digest]]:
    for low in range(0, len(every), count):
        yield every[low : low + count]


def _keep(new: dict[Digest, Facts]) -> None:
    with _lock:
        _kept.update(new)
        while len(_kept) > IMAGE_FACTS_MAX:
            _kept.popitem(last=False)


@dataclass(frozen=True)
class Measured:
    """What a thread measures of an image: all but the thumbnail, which is made of many `small` ones at a time."""

    facts: Facts
    small: images.Pixels


def _measured(pixels: images.Pixels) -> Measured:
    height, width = pixels.shape[:2]
    grey = images.grey_of(pixels)[None]
    colour = tuple(np.atleast_1d(pixels[0, 0]).tolist()) if image_measures.constant(pixels[None])[0] else None
    brightness, sharpness = image_measures.brightness(grey)[0], image_measures.sharpness(grey)[0]
    small = image_measures.shrunk(grey, image_thumbnails.SOURCE_EDGE_MAX)[0]
    return Measured(Facts("", height, width, colour, float(brightness), float(sharpness)), small)


def _with_thumbnails(some: list[tuple[Digest, Measured]]) -> dict[Digest, Facts]:
    """Of images whose small ones have one shape."""
    found, known, plain = image_thumbnails.thumbnails(np.stack([one.small for _, one in some]))
    return {
        digest: replace(one.facts, thumbnail=found[at].tobytes() if known[at] else None, plain=bool(plain[at]))
        for at, (digest, one) in enumerate(some)
    }


def _fact(error: SourceError) -> str:
    """What an error says is wrong, without its advice: removing the row is the advice here."""
    return str(error).split(";")[0].removeprefix(f"{_NAME} ").removeprefix("is ")
