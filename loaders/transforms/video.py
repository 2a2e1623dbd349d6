"""DecodeVideo: some frames of a video file, by time.

    times, ascending -> seek to the key frame before, where the next time is far -> decode -> the frame that is shown at that time

The frame shown at time t is the last one that begins at or before t. What is decoded is what stands between the times and the key frames
before them, never the whole file for a part of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.source import IMAGE_PIXELS_MAX, BadInput, SourceError
from loaders.transforms.base import Transform
from loaders.transforms.container import libraries, opened
from loaders.transforms.spans import Span, bytes_of, check_times, field_of

Frames = npt.NDArray[np.uint8]

SEEK_GAP_S = 2.0  # how far ahead a frame must be for a seek: about as far apart as key frames commonly are
VIDEO_FRAMES_MAX = 1 << 16  # of one value
VIDEO_BYTES_MAX = 4 << 30  # of the frames of one value


class DecodeVideo(Transform):
    """Encoded video (bytes) -> uint8 of shape (frames, height, width, 3), RGB.

    at        times in seconds from the beginning of the file: numbers, or the name of a field of the value that has them. Or:
    start     second at which the stretch begins: a number, or the name of a field.
    duration  of the stretch: a number, or the name of a field; None: to the end.
    frames    how many frames, spread evenly: those shown in the middle of as many equal parts of the stretch. Or:
    rate      frames per second, from `start` on. Without both: every frame that begins in the stretch.
    size      (height, width) to which frames are scaled (bilinear); None: as they are.
    data      name of the field that has the bytes, where values are dicts: structs, or bundles of columns (loaders.bundle).

    A time at which the file shows no frame any more is refused. Rotation that the file asks viewers for is not applied. Needs the extra
    `media`.
    """

    threads = True

    def __init__(
        self,
        *,
        at: Sequence[float] | str | None = None,
        start: float | str = 0.0,
        duration: float | str | None = None,
        frames: int | None = None,
        rate: float | None = None,
        size: tuple[int, int] | None = None,
        data: str = "data",
    ) -> None:
        if at is not None and (start, duration, frames, rate) != (0.0, None, None, None):
            raise BadInput("frames of a video are told by at=, or by start=, duration=, frames= and rate=, not by both")
        if frames is not None and rate is not None:
            raise BadInput("frames= (how many) and rate= (how many a second) exclude each other")
        if not (frames is None or 1 <= frames <= VIDEO_FRAMES_MAX) or not (rate is None or 0 < rate < math.inf):
            raise BadInput(f"frames is between 1 and {VIDEO_FRAMES_MAX} and rate above 0, not {frames} and {rate}")
        if size is not None and (min(size) < 1 or math.prod(size) > IMAGE_PIXELS_MAX):
            raise BadInput(f"size is (height, width) of at most {IMAGE_PIXELS_MAX} pixels, not {size}")
        check_times(start, duration, *(() if at is None or isinstance(at, str) else at))
        self.at = at if at is None or isinstance(at, str) else tuple(at)
        self.start, self.duration, self.frames, self.rate = start, duration, frames, rate
        self.size, self.data = size, data

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {
            "at": self.at,
            "start": self.start,
            "duration": self.duration,
            "frames": self.frames,
            "rate": self.rate,
            "size": self.size,
            "data": self.data,
        }

    def libraries(self) -> dict[str, str]:
        """See Transform."""
        return libraries()

    def __call__(self, value: bytes | Mapping[str, Any], rng: Any = None) -> Frames:
        with opened(bytes_of(value, self.data), "video") as (container, stream):
            video = _Video(container, stream, self.size)
            if self.at is not None:
                return video.shown_at(_times(field_of(value, self.at) if isinstance(self.at, str) else self.at))
            span = Span.of(value, self.start, self.duration)
            if self.frames is None and self.rate is None:
                return video.within(span)
            end = video.end if span.end is None else span.end
            if self.frames is not None:
                step = (end - span.start) / self.frames
                return video.shown_at([span.start + (number + 0.5) * step for number in range(self.frames)])
            assert self.rate is not None
            count = min(max(math.floor((end - span.start) * self.rate + 1e-6), 0), VIDEO_FRAMES_MAX + 1)
            return video.shown_at([span.start + number / self.rate for number in range(count)])


def _times(given: Any) -> list[float]:
    times = np.asarray(given, np.float64)
    if times.ndim != 1 or not np.isfinite(times).all() or (times < 0).any():
        raise SourceError("times of frames are a list of seconds from 0 on")
    return [float(time) for time in times]


class _Video:
    """An open file. Times are seconds from its beginning."""

    def __init__(self, container: Any, stream: Any, size: tuple[int, int] | None) -> None:
        self._container, self._stream, self._size = container, stream, size
        self._origin = stream.start_time or 0
        height, width = stream.codec_context.height, stream.codec_context.width
        if not 1 <= height * width <= IMAGE_PIXELS_MAX:
            raise SourceError(f"video of {height} x {width} pixels")
        self._shape = (*(size or (height, width)), 3)

    @property
    def end(self) -> float:
        """When the last frame ends, as the file tells."""
        stream, container = self._stream, self._container
        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        if container.duration is not None:
            return float(container.duration / 1e6)
        raise SourceError("the file does not tell how long the video is: give duration=")

    def within(self, span: Span) -> Frames:
        """The frames that begin in [start, end)."""
        out = []
        for time, frame in self._from(span.start):
            if span.end is not None and time >= span.end - 1e-9:
                break
            if time >= span.start - 1e-9:
                out.append(self._pixels(frame))
                self._require_room(len(out))
        return np.stack(out) if out else np.empty((0, *self._shape), np.uint8)

    def shown_at(self, times: list[float]) -> Frames:
        """The frames that are shown at some times, in any order."""
        self._require_room(len(times))
        out = np.empty((len(times), *self._shape), np.uint8)
        frames: Iterator[tuple[float, Any]] = iter(())
        # The frame that is shown, and the one after it.
        shown: tuple[float, Any] | None = None
        following: tuple[float, Any] | None = None
        pixels: Frames | None = None
        for place in sorted(range(len(times)), key=times.__getitem__):
            time = times[place] + 1e-6  # a time that was computed may lie a little before the frame that it means
            begins = following is None and shown is None
            if begins or (following is not None and time - following[0] > SEEK_GAP_S):
                frames = self._from(time)
                shown, following, pixels = None, next(frames, None), None
            while following is not None and (following[0] <= time or shown is None):
                shown, following, pixels = following, next(frames, None), None
            if shown is None or (following is None and time > self._until(shown) + 1e-3):
                raise SourceError(f"the video shows no frame at {times[place]:.3f} s")
            pixels = self._pixels(shown[1]) if pixels is None else pixels
            out[place] = pixels
        return out

    def _until(self, shown: tuple[float, Any]) -> float:
        """When the last frame ends."""
        time, frame = shown
        if frame.duration:
            return time + float(frame.duration * frame.time_base)
        rate = self._stream.average_rate
        return time + (float(1 / rate) if rate else 0.0)

    def _from(self, start: float) -> Iterator[tuple[float, Any]]:
        """(time, frame) from a frame at or before `start` on, or from the first; in the order in which they are shown."""
        back = 0.0
        while True:
            frames = self._decoded(start - back)
            first = next(frames, None)
            # Some formats seek by the order of decoding, and so to a key frame that is shown a little later.
            if first is not None and first[0] > start and start - back > 0:
                back = 2 * back + 1
                continue
            break
        if first is not None:
            yield first
            yield from frames

    def _decoded(self, start: float) -> Iterator[tuple[float, Any]]:
        stream = self._stream
        self._container.seek(self._origin + max(int(start / stream.time_base), 0), stream=stream)
        for frame in self._container.decode(stream):
            if frame.pts is not None:
                yield float((frame.pts - self._origin) * frame.time_base), frame

    def _pixels(self, frame: Any) -> Frames:
        if frame.height * frame.width > IMAGE_PIXELS_MAX:
            raise SourceError(f"video of {frame.height} x {frame.width} pixels")
        height, width = self._shape[:2]
        pixels: Frames = frame.to_ndarray(format="rgb24", width=width, height=height)
        return pixels

    def _require_room(self, frames: int) -> None:
        if frames > VIDEO_FRAMES_MAX or frames * math.prod(self._shape) > VIDEO_BYTES_MAX:
            raise SourceError(
                f"{frames} frames of {self._shape[0]} x {self._shape[1]} pixels are more than one value may have: "
                "ask for fewer, or for a smaller size"
            )
