"""Opening audio and video that stand in bytes, with PyAV (FFmpeg): what of it is let in.

The bytes are not trusted. FFmpeg reads formats that name other files and addresses (playlists, concatenations, sessions): only formats that
carry their content themselves are let in, and no protocol at all, so that nothing but the bytes is read. Sizes are bounded before decoding.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

from loaders.source import MissingExtra, SourceError

# Demuxers by FFmpeg's names. What is missing here can be added when it carries its content itself.
FORMATS = "aac,aiff,amr,asf,avi,caf,flac,flv,matroska,webm,mov,mp4,m4a,3gp,mj2,mp3,mpeg,mpegts,ogg,wav,w64"


def av() -> ModuleType:
    """PyAV. Raises MissingExtra."""
    try:
        return importlib.import_module("av")
    except ModuleNotFoundError:
        raise MissingExtra("decoding audio and video", "media", "av") from None


def libraries() -> dict[str, str]:
    """What decodes, and its version."""
    try:
        return {"av": metadata.version("av")}
    except metadata.PackageNotFoundError:
        return {}


@contextlib.contextmanager
def opened(data: Any, kind: str) -> Iterator[tuple[Any, Any]]:
    """(container, its first stream of `kind`, "audio" or "video"). One thread decodes: loaders have their own.

    Raises SourceError for bytes that are no such file, and inside for what FFmpeg finds wrong with them; MissingExtra.
    """
    module = av()
    if data is None:
        raise SourceError(f"the value is null and no {kind}: fill it in a new version, or leave out its row")
    if not isinstance(data, bytes | bytearray | memoryview):
        raise SourceError(f"encoded {kind} is bytes, not {type(data).__name__}")
    try:
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        with module.open(io.BytesIO(data), options=options, metadata_errors="ignore") as container:
            streams = getattr(container.streams, kind)
            if not streams:
                raise SourceError(f"the file has no {kind} stream")
            streams[0].codec_context.thread_count = 1
            yield container, streams[0]
    except module.FFmpegError as error:
        raise SourceError(f"{kind} that cannot be decoded: {error.strerror}") from None
