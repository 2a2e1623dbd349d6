"""Small files of audio and video, made with PyAV: for tests of what decodes them."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np

RATE, SECONDS = 44_100, 4.0
FPS, FRAMES, GOP = 10, 80, 10


def sound(channels: int = 2) -> np.ndarray:
    """(channels, samples): a rising tone, a different one in each channel."""
    time = np.arange(int(RATE * SECONDS)) / RATE
    return np.stack([0.4 * np.sin(2 * np.pi * (200 + 300 * k + 150 * time) * time) for k in range(channels)]).astype(
        np.float32
    )


def audio_file(container: str, codec: str, samples: np.ndarray, rate: int = RATE) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        layout = "stereo" if len(samples) == 2 else "mono"
        stream = file.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        fifo = av.AudioFifo()
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            fifo.write(part)
        size = stream.codec_context.frame_size or 1024
        while (part := fifo.read(size, partial=True)) is not None:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return out.getvalue()


def video_file(container: str = "mp4", codec: str = "libx264", options: dict[str, str] | None = None) -> bytes:
    """Frame i is i * 3 bright, and shown from i / FPS on."""
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream = file.add_stream(codec, rate=FPS, options=options or {"crf": "1", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = GOP
        for number in range(FRAMES):
            pixels = np.full((48, 64, 3), number * 3, np.uint8)
            pixels[:, 32:] += 10
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames these are."""
    assert (frames[:, 5, 50].astype(int) > frames[:, 5, 10]).all()
    return np.rint(frames[:, 5, 10].mean(-1) / 3).astype(int).tolist()
