"""DecodeAudio: a stretch of time of an audio file, as floats of one sampling rate.

    bytes -> seek to a little before -> decode -> the stretch and a margin -> mix -> resample -> the stretch

What comes out for a stretch is what decoding everything and cutting would give. So decoding begins PREROLL_S before it (codecs with
memory, as AAC and Opus, need some packets to be right), resampling begins MARGIN_S before it, at an instant that is a sample of both
rates, and formats without an exact index are decoded from their beginning. Times are exact to the file's time base (milliseconds in
Matroska).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loaders.source import BadInput, SourceError
from loaders.transforms.base import Transform
from loaders.transforms.container import av, libraries, opened
from loaders.transforms.spans import Span, bytes_of, check_times

Samples = npt.NDArray[np.float32]

PREROLL_S = 0.25  # Opus wants 80 ms, AAC and MP3 two to four frames of 20 to 50 ms
MARGIN_S = 0.05  # of libswresample's filter, at rates from 8 kHz on
AUDIO_RATE_MAX = 1_000_000  # Hz
AUDIO_SAMPLES_MAX = 1 << 28  # of all channels of a stretch: 93 minutes at 48 kHz, 1 GiB of floats
# Demuxers that seek by guessing from the mean bit rate: their stretches are found from the beginning.
_GUESSED = frozenset({"mp3", "aac", "amr"})
_SCALES = {"u1": (128, 128), "i2": (0, 1 << 15), "i4": (0, 1 << 31), "i8": (0, 1 << 63)}


class DecodeAudio(Transform):
    """Encoded audio (bytes) -> float32 of shape (samples,), or (samples, channels) with `mono=False`; from -1 to 1.

    rate      of the result, in Hz; None: the file's.
    start     second at which the stretch begins, from the beginning of the file: a number, or the name of a field of the value.
    duration  of the stretch, in seconds: a number, or the name of a field; None: to the end. The result is shorter where the file ends.
    mono      whether channels are mixed to one (their mean).
    data      name of the field that has the bytes, where values are dicts: structs, or bundles of columns (loaders.bundle).

    Several lengths want a collate: pad(0.0, extra="lengths") or ragged(). Needs the extra `media`.
    """

    threads = True

    def __init__(
        self,
        rate: int | None = None,
        *,
        start: float | str = 0.0,
        duration: float | str | None = None,
        mono: bool = True,
        data: str = "data",
    ) -> None:
        if rate is not None and not 1 <= rate <= AUDIO_RATE_MAX:
            raise BadInput(f"rate of audio is between 1 and {AUDIO_RATE_MAX} Hz, not {rate}")
        check_times(start, duration)
        self.rate, self.start, self.duration, self.mono, self.data = rate, start, duration, mono, data

    def parameters(self) -> dict[str, Any]:
        """See Transform."""
        return {
            "rate": self.rate,
            "start": self.start,
            "duration": self.duration,
            "mono": self.mono,
            "data": self.data,
        }

    def libraries(self) -> dict[str, str]:
        """See Transform."""
        return libraries()

    def __call__(self, value: bytes | Mapping[str, Any], rng: Any = None) -> Samples:
        return decode_audio(bytes_of(value, self.data), Span.of(value, self.start, self.duration), self.rate, self.mono)


def decode_audio(data: Any, span: Span, rate: int | None, mono: bool) -> Samples:
    """See DecodeAudio. Raises SourceError, which names the cause only; MissingExtra."""
    with opened(data, "audio") as (container, stream):
        source_rate = int(stream.codec_context.sample_rate)
        if not 1 <= source_rate <= AUDIO_RATE_MAX:
            raise SourceError(f"audio of {source_rate} Hz")
        rate = rate or source_rate
        margin = round(MARGIN_S * source_rate) if rate != source_rate else 0
        grid = source_rate // math.gcd(
            source_rate, rate
        )  # every so many samples of the file, one of the result is at the same time
        first = max(round(span.start * source_rate) - margin, 0) // grid * grid
        end = None if span.end is None else round(span.end * source_rate) + margin
        samples = _samples(container, stream, source_rate, first, end)
    if mono and samples.shape[0] > 1:
        samples = samples.mean(0, keepdims=True)
    if rate != source_rate:
        samples = np.stack([_resampled(channel, source_rate, rate) for channel in samples])
    begin = round(span.start * rate) - first // grid * (rate // math.gcd(source_rate, rate))
    count = None if span.end is None else round(span.end * rate) - round(span.start * rate)
    part = samples[:, begin : None if count is None else begin + count]
    return np.ascontiguousarray(part[0] if mono else part.T)


def _samples(container: Any, stream: Any, rate: int, first: int, end: int | None) -> Samples:
    """Samples [first, end) of the file, or to its end, (channels, samples)."""
    origin = stream.start_time or 0
    if first > 2 * PREROLL_S * rate and _GUESSED.isdisjoint(container.format.name.split(",")):
        container.seek(origin + int((first / rate - PREROLL_S) / stream.time_base), stream=stream)
    pieces: list[tuple[int, Samples]] = []
    following: int | None = None  # sample after the last frame
    for frame in container.decode(stream):
        if frame.sample_rate != rate:
            raise SourceError(f"audio that changes from {rate} to {frame.sample_rate} Hz")
        if frame.pts is not None:
            told = round((frame.pts - origin) * frame.time_base * rate)
            slack = 1 + math.ceil(frame.time_base * rate)  # as much as the time base rounds
            if following is None or abs(told - following) > slack:
                following = told
        at = following or 0
        following = at + frame.samples
        if following > first:
            pieces.append((at, _floats(frame)))
            if len(pieces) > 1 and pieces[-1][1].shape[0] != pieces[0][1].shape[0]:
                raise SourceError("audio whose number of channels changes")
        if end is not None and following >= end:
            break
        if (following - first) * max(len(pieces[0][1]) if pieces else 1, 1) > AUDIO_SAMPLES_MAX:
            raise SourceError(f"audio of more than {AUDIO_SAMPLES_MAX} samples: ask for a shorter stretch of it")
    if not pieces:
        return np.zeros((max(stream.codec_context.channels, 1), 0), np.float32)
    last = following if end is None else min(end, following or 0)
    out = np.zeros((pieces[0][1].shape[0], max((last or 0) - first, 0)), np.float32)
    for at, piece in pieces:
        skipped = max(first - at, 0)
        place = at + skipped - first
        part = piece[:, skipped : skipped + max(out.shape[1] - place, 0)]
        out[:, place : place + part.shape[1]] = part
    return out


def _floats(frame: Any) -> Samples:
    """(channels, samples) of a frame of any sample format, from -1 to 1."""
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, frame.layout.nb_channels).T
    if array.dtype.kind == "f":
        return np.asarray(array, np.float32)
    middle, scale = _SCALES[array.dtype.str[1:]]
    return (array.astype(np.float64 if array.itemsize > 2 else np.float32) - middle).astype(np.float32) / np.float32(
        scale
    )


def _resampled(samples: Samples, source_rate: int, rate: int) -> Samples:
    """One channel at another rate, by libswresample; the first sample of both is at the same time."""
    module = av()
    resampler = module.AudioResampler(format="fltp", layout="mono", rate=rate)
    frame = module.AudioFrame.from_ndarray(np.ascontiguousarray(samples[None]), format="fltp", layout="mono")
    frame.sample_rate = source_rate
    frames = [*(resampler.resample(frame) if len(samples) else ()), *resampler.resample(None)] if len(samples) else []
    return np.concatenate([one.to_ndarray()[0] for one in frames]) if frames else np.zeros(0, np.float32)
