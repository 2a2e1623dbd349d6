"""Audio and video by time: stretches are those of the whole, frames those that are shown; bytes are not trusted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av")

from leptonstore.errors import BadInput, MissingExtra, SourceError  # noqa: E402
from loaders.transforms import DecodeAudio, DecodeVideo  # noqa: E402
from tests.unit.media_files import FRAMES, GOP, RATE, SECONDS, audio_file, numbers, sound, video_file  # noqa: E402


@pytest.fixture(scope="module")
def video() -> bytes:
    return video_file()


CODECS = [
    ("wav", "pcm_s16le"),
    ("flac", "flac"),
    ("ogg", "libopus"),
    ("mp4", "aac"),
    ("mp3", "libmp3lame"),
    ("w64", "pcm_f32le"),
]


@pytest.mark.parametrize(("container", "codec"), CODECS)
def test_a_stretch_of_audio_is_that_of_the_whole(container: str, codec: str) -> None:
    rate = 48_000 if codec == "libopus" else RATE
    data = audio_file(container, codec, sound(), rate)
    whole = DecodeAudio(mono=False)(data)
    assert whole.dtype == np.float32 and whole.shape[1] == 2 and abs(len(whole) / rate - SECONDS) < 0.1
    lossy = codec in ("libopus", "aac", "libmp3lame")
    for start, duration in ((0.0, 0.5), (1.234, 0.777), (2.5, 1.0), (3.2, 5.0)):
        part = DecodeAudio(mono=False, start=start, duration=duration)(data)
        first = round(start * rate)
        expected = whole[first : round((start + duration) * rate)]
        assert part.shape == expected.shape
        if codec == "aac":  # its decoder fills quiet bands with noise, other noise each time
            assert np.abs(part - expected).mean() < 1e-3 and np.abs(part - expected).max() < 0.05
        else:
            np.testing.assert_allclose(part, expected, atol=2e-3 if lossy else 0)
    if not lossy:
        np.testing.assert_allclose(whole, sound().T, atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_a_resampled_stretch_is_that_of_the_resampled_whole(rate: int) -> None:
    data = audio_file("wav", "pcm_f32le", sound())
    whole = DecodeAudio(rate)(data)
    assert whole.shape == (round(SECONDS * rate),)
    time = np.arange(len(whole)) / rate
    ideal = np.mean([0.4 * np.sin(2 * np.pi * (200 + 300 * k + 150 * time) * time) for k in range(2)], 0)
    inner = slice(rate // 20, -rate // 20)
    np.testing.assert_allclose(whole[inner], ideal[inner], atol=2e-3)
    for start, duration in ((0.0, 1.0), (0.711, 0.5), (2.0, 1.5)):
        part = DecodeAudio(rate, start=start, duration=duration)(data)
        first = round(start * rate)
        assert len(part) == round((start + duration) * rate) - first
        np.testing.assert_allclose(part, whole[first : first + len(part)], atol=2e-4)


def test_times_come_from_the_fields_of_a_value() -> None:
    data = audio_file("flac", "flac", sound(1))
    decode = DecodeAudio(start="from", duration="for", data="file")
    part = decode({"file": data, "from": np.float32(1.5), "for": 0.25})
    np.testing.assert_array_equal(part, DecodeAudio(start=1.5, duration=0.25)(data))
    assert len(decode({"file": data, "from": 99, "for": 1})) == 0  # after the end
    for value, message in (
        (data, "'file' is a field|'from' is a field of the value, and the value is bytes: .*Bundle"),
        ({"file": data, "from": 1}, "no field 'for'; it has file, from"),
        ({"file": data, "from": None, "for": 1}, "no number of seconds"),
        ({"file": data, "from": -1, "for": 1}, "seconds from 0 on"),
        ({"file": None, "from": 0, "for": 1}, "null and no audio"),
    ):
        with pytest.raises(SourceError, match=message):
            decode(value)


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mp4", "libx264", {"crf": "1", "bf": "2"}),
        ("matroska", "mpeg4", {"b": "4M"}),
        ("avi", "mjpeg", {"qscale": "2"}),
    ],
)
def test_frames_are_those_that_are_shown(container: str, codec: str, options: dict[str, str]) -> None:
    data = video_file(container, codec, options) if codec != "mjpeg" else video_file("avi", "mpeg4", {"b": "4M"})
    whole = DecodeVideo()(data)
    assert whole.shape == (FRAMES, 48, 64, 3) and numbers(whole) == list(range(FRAMES))
    times = [5.05, 0.0, 3.3, 3.35, 7.95, 0.19, 3.3]
    assert numbers(DecodeVideo(at=times)(data)) == [50, 0, 33, 33, 79, 1, 33]
    assert numbers(DecodeVideo(start=2.0, duration=0.6)(data)) == [20, 21, 22, 23, 24, 25]
    assert numbers(DecodeVideo(start=7.5)(data)) == [75, 76, 77, 78, 79]
    assert numbers(DecodeVideo(start=4.0, duration=2.0, frames=4)(data)) == [42, 47, 52, 57]
    assert numbers(DecodeVideo(start=1.0, duration=2.0, rate=2)(data)) == [10, 15, 20, 25]
    assert numbers(DecodeVideo(frames=2)(data)) == [20, 60]
    small = DecodeVideo(at=[6.0], size=(12, 16))(data)
    assert small.shape == (1, 12, 16, 3) and abs(int(small[0, 2, 2, 0]) - 180) < 6
    assert DecodeVideo(at=[])(data).shape == (0, 48, 64, 3)


def test_times_of_frames_come_from_a_field(video: bytes) -> None:
    decode = DecodeVideo(at="times", data="video")
    assert numbers(decode({"video": video, "times": np.array([1.0, 0.5])})) == [10, 5]
    with pytest.raises(SourceError, match=r"shows no frame at 8.500 s"):
        decode({"video": video, "times": [0.1, 8.5]})
    with pytest.raises(SourceError, match="list of seconds"):
        decode({"video": video, "times": [-1.0]})


def test_what_stands_before_the_key_frame_is_not_decoded(monkeypatch: pytest.MonkeyPatch, video: bytes) -> None:
    from loaders.transforms import video as module

    decoded: list[float] = []
    original = module._Video._decoded

    def counting(self: Any, start: float) -> Any:
        for time, frame in original(self, start):
            decoded.append(time)
            yield time, frame

    monkeypatch.setattr(module._Video, "_decoded", counting)
    DecodeVideo(at=[6.5, 1.2])(video)
    assert len(decoded) <= 3 * GOP and not any(2.5 < time < 5.9 for time in decoded)


def test_the_same_from_the_same_bytes_in_every_thread(video: bytes) -> None:
    from concurrent.futures import ThreadPoolExecutor

    decode = DecodeVideo(at=[3.3, 6.1])
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(decode, [video] * 6))
    assert all(np.array_equal(found[0], other) for other in found)


@pytest.mark.parametrize("transform", [DecodeAudio(), DecodeVideo()])
def test_damaged_bytes_are_refused(transform: Any, video: bytes) -> None:
    rng = np.random.default_rng(0)
    for data in (b"", b"text", rng.bytes(5_000), video[:200], None, 3, "text"):
        with pytest.raises(SourceError):
            transform(data)
    silent = audio_file("wav", "pcm_s16le", sound(1)[:, :1000])
    with pytest.raises(SourceError, match=r"no (audio|video) stream"):
        (DecodeVideo() if isinstance(transform, DecodeVideo) else DecodeAudio())(
            silent if isinstance(transform, DecodeVideo) else video
        )


def test_bytes_cannot_name_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FFmpeg itself opens what such a file names: the second of these, for instance."""
    monkeypatch.chdir(tmp_path)
    secret = tmp_path / "secret.wav"
    secret.write_bytes(audio_file("wav", "pcm_s16le", sound(1)))
    assert len(DecodeAudio()(secret.read_bytes())) > 0
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfile://{secret}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.wav\n",
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 9 RTP/AVP 0\na=control:{secret}\n",
    ):
        with pytest.raises(SourceError):
            DecodeAudio()(text.encode())


def test_arguments_that_do_not_fit_are_refused() -> None:
    for make, message in (
        (lambda: DecodeAudio(0), "rate of audio"),
        (lambda: DecodeAudio(start=-1), "seconds from 0 on"),
        (lambda: DecodeVideo(at=[1.0], start=2.0), "not by both"),
        (lambda: DecodeVideo(frames=3, rate=2), "exclude each other"),
        (lambda: DecodeVideo(frames=0), "between 1 and"),
        (lambda: DecodeVideo(size=(0, 4)), "size is"),
        (lambda: DecodeVideo(at=[float("nan")]), "seconds from 0 on"),
    ):
        with pytest.raises(BadInput, match=message):
            make()


def test_without_pyav_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"leptonstore\[media\]"):
        DecodeAudio()(b"RIFF")


def test_what_decides_the_result_is_told() -> None:
    one, other = DecodeAudio(16_000, start="a"), DecodeAudio(16_000, start="b")
    assert one.parameters() != other.parameters() and one.libraries() == {"av": av.__version__}
    assert one.deterministic and one.threads and DecodeVideo(at=[1]).parameters()["at"] == (1,)
