"""Image transforms: torchvision's numbers, Pillow's pixels, and one fused program that gives what its steps give."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from image_data import ENCODED, encoded, jpegs, picture
from PIL import Image

from leptonstore.errors import BadInput, MissingExtra
from loaders.source import ColumnSpec
from loaders.transforms import (
    CenterCrop,
    DecodeImage,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    SampleFailed,
    SampleKeys,
    ToFloat,
    compile_chain,
    resample,
)
from loaders.transforms.image_program import ImageProgram
from loaders.transforms.program import ChainProgram

pytest.importorskip("cv2")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KEYS = SampleKeys(1, 2, np.arange(100, 112))


def by_pillow(part: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(part).resize(size[::-1], Image.Resampling.BILINEAR))


def run(program: Any, values: list[Any], keys: SampleKeys) -> Any:
    out = program.buffer(len(values))
    program.sample(values, keys, out, 0)
    return program.batch(out, keys)


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(224, 224), (64, 80), (33, 17), (300, 400)])
def test_the_default_resize_is_pillows(size: tuple[int, int]) -> None:
    """Mean error at most 0.1 grey level, over shrinking and enlarging."""
    errors = []
    for seed in range(8):
        part = picture(seed, 375, 500)[seed : 300 - 9 * seed, 5 * seed : 470]
        difference = np.abs(resample.resize(part, size).astype(int) - by_pillow(part, size))
        assert difference.max() <= 2
        errors.append(difference.mean())
    assert np.mean(errors) <= 0.1


def test_without_torch_the_default_resize_is_pillow_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "_torch", lambda: None)
    part = picture(0, 90, 70)[3:80, 5:60]
    assert np.array_equal(resample.resize(part, (24, 32)), by_pillow(part, (24, 32)))
    assert set(resample.libraries(True)) == {"pillow"}


def test_without_opencv_all_but_the_fast_mode_works_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = [DecodeImage(), RandomResizedCrop(32), RandomHorizontalFlip(), Normalize(MEAN, STD)]
    values = jpegs(6)
    expected = run(compile_chain(chain, ENCODED), values, KEYS)
    monkeypatch.setattr(resample, "_opencv", lambda: None)
    assert (run(compile_chain(chain, ENCODED), values, KEYS) == expected).all()
    with pytest.raises(MissingExtra, match=r"antialias=False.*leptonstore\[images\]"):
        compile_chain([DecodeImage(), Resize((8, 8), antialias=False)], ENCODED)


def test_the_fast_mode_is_bilinear_between_neighbours() -> None:
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    half = resample.resize(ramp, (20, 50), antialias=False)
    assert np.array_equal(half[0, :, 0], np.arange(1, 200, 4))


def test_resize_counts_the_other_edge_as_torchvision() -> None:
    assert Resize(256)(picture(0, 375, 500)).shape == (256, 341, 3)
    assert Resize(100)(picture(0, 333, 111)).shape == (300, 100, 3)
    assert Resize((30, 50))(picture(0)).shape == (30, 50, 3)


def test_center_crop_takes_the_middle_and_pads_with_black() -> None:
    image = picture(0, 50, 60)
    assert np.array_equal(CenterCrop((20, 30))(image), image[15:35, 15:45])
    padded = CenterCrop(80)(image)
    assert padded.shape == (80, 80, 3) and np.array_equal(padded[15:65, 10:70], image)
    assert not padded[:15].any() and not padded[:, :10].any() and not padded[65:].any()
    mixed = CenterCrop((20, 100))(image)
    assert np.array_equal(mixed[:, 20:80], image[15:35]) and not mixed[:, :20].any()


def test_random_crop_reaches_every_place_alike() -> None:
    image = picture(0, 12, 12)
    keys = SampleKeys(0, 0, np.arange(4_000))
    tops = [RandomCrop(10).plan((12, 12), keys.rng(i, 0))[0][:2] for i in range(len(keys))]
    counts = np.array([tops.count((top, left)) for top in range(3) for left in range(3)])
    assert counts.sum() == 4_000 and abs(counts - 4_000 / 9).max() < 5 * math.sqrt(4_000 / 9)
    top, left = tops[0]
    assert np.array_equal(RandomCrop(10)(image, keys.rng(0, 0)), image[top : top + 10, left : left + 10])


@pytest.mark.parametrize("shape", [(375, 500), (500, 120), (10, 600), (1, 1)])
def test_random_resized_crops_are_in_the_image_and_of_the_asked_area_and_aspect(shape: tuple[int, int]) -> None:
    crop = RandomResizedCrop(224, scale=(0.2, 0.9), ratio=(0.8, 1.25))
    keys = SampleKeys(5, 0, np.arange(1_000))
    areas, aspects = [], []
    for i in range(len(keys)):
        part, size = crop.plan(shape, keys.rng(i, 1))
        assert size == (224, 224) and part.height > 0 and part.width > 0
        assert 0 <= part.top <= shape[0] - part.height and 0 <= part.left <= shape[1] - part.width
        areas.append(part.height * part.width / (shape[0] * shape[1]))
        aspects.append(part.width / part.height)
    if shape == (375, 500):
        assert (
            0.19 < min(areas) < 0.22 and 0.85 < max(areas) < 0.91 and 0.46 < np.mean(areas) < 0.52
        )  # wide ones often do not fit
        assert min(aspects) > 0.79 and max(aspects) < 1.26 and abs(np.log(aspects).mean()) < 0.03


def test_floats_are_torchvisions() -> None:
    image = picture(0, 8, 9)
    made = ToFloat()(image)
    assert made.dtype == np.float32 and made.shape == (3, 8, 9)
    np.testing.assert_array_equal(made, np.moveaxis(image, 2, 0).astype(np.float32) / np.float32(255))
    normal = Normalize(MEAN, STD)(made)
    expected = (made - np.float32(MEAN)[:, None, None]) / np.float32(STD)[:, None, None]
    np.testing.assert_array_equal(normal, expected)
    np.testing.assert_array_equal(Normalize(MEAN, STD)(image), expected)


def test_flips_come_with_their_probability_and_mirror() -> None:
    keys = SampleKeys(0, 0, np.arange(2_000))
    image = picture(0, 6, 5)
    flips = [np.array_equal(RandomHorizontalFlip(0.3)(image, keys.rng(i, 0)), image[:, ::-1]) for i in range(2_000)]
    assert abs(sum(flips) - 600) < 5 * math.sqrt(2_000 * 0.3 * 0.7)
    planar = ToFloat()(image)
    assert np.array_equal(RandomHorizontalFlip(1.0)(planar, keys.rng(0, 0)), planar[..., ::-1])


# -- programs ----------------------------------------------------------------------------------------------------------

CROP = RandomResizedCrop(48)
CHAINS: dict[str, list[Any]] = {
    "training": [DecodeImage(), CROP, RandomHorizontalFlip(), Normalize(MEAN, STD)],
    "fast": [DecodeImage(), RandomResizedCrop(48, antialias=False), RandomHorizontalFlip(), ToFloat()],
    "evaluation": [DecodeImage(), Resize(64), CenterCrop(56), ToFloat(), Normalize(MEAN, STD)],
    "pixels": [DecodeImage(), Resize(80), RandomCrop(64), RandomHorizontalFlip()],
    "grey": [DecodeImage("L"), Resize((28, 28)), RandomHorizontalFlip(), Normalize([0.5], [0.25])],
    "padded": [DecodeImage(), CenterCrop(200), RandomHorizontalFlip(1.0), ToFloat()],
    "flip after": [DecodeImage(), CROP, ToFloat(), RandomHorizontalFlip(), RandomHorizontalFlip()],
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_fused_program_gives_what_its_steps_give(name: str) -> None:
    values = [*jpegs(9), encoded(picture(3, 70, 40)), encoded(picture(4), "PNG"), encoded(picture(5)[..., 0])]
    fused = compile_chain(CHAINS[name], ENCODED)
    assert isinstance(fused, ImageProgram) and fused.threads
    plain = ChainProgram(fused.steps, "image", None, 0)
    here, there = run(fused, values, KEYS), run(plain, values, KEYS)
    assert np.array_equal(here, there) and here.flags["C_CONTIGUOUS"] and here.dtype == there.dtype
    assert fused.fingerprint == plain.fingerprint
    assert run(fused, [], KEYS.part(0, 0)).shape == (0, *here.shape[1:])


def test_columns_of_pixels_are_fused_too() -> None:
    images = np.stack([picture(seed, 40, 40) for seed in range(12)])
    images.flags.writeable = False  # as in the arena of a hot cache
    spec = ColumnSpec("image", "", np.dtype(np.uint8), (40, 40, 3))
    fused = compile_chain([RandomCrop(32), RandomHorizontalFlip(), ToFloat()], spec)
    assert isinstance(fused, ImageProgram)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(run(fused, images, KEYS), run(ChainProgram(fused.steps, "image", None, 0), images, KEYS))  # type: ignore[arg-type]
        resized = run(compile_chain([Resize((20, 20))], spec), images, KEYS)  # type: ignore[arg-type]
    assert resized.shape == (12, 20, 20, 3)


def brighter(image: np.ndarray) -> np.ndarray:
    return np.minimum(image.astype(int) + 10, 255).astype(np.uint8)


def test_what_is_not_known_runs_step_by_step() -> None:
    program = compile_chain([DecodeImage(), brighter, CROP, ToFloat()], ENCODED)
    assert isinstance(program, ChainProgram) and not program.threads
    assert run(program, jpegs(3), KEYS).shape == (3, 3, 48, 48)


def test_scaled_decoding_is_close_and_shrinks() -> None:
    values = [encoded(picture(seed, 600, 800), quality=92) for seed in range(4)]
    chain = [Resize((64, 64)), ToFloat()]
    exact = run(compile_chain([DecodeImage(), *chain], ENCODED), values, KEYS)
    scaled = run(compile_chain([DecodeImage(scaled=True), *chain], ENCODED), values, KEYS)
    assert not np.array_equal(exact, scaled) and np.abs(exact - scaled).mean() < 3 / 255
    small = [encoded(picture(0, 100, 120))]
    both = [run(compile_chain([DecodeImage(scaled=on), *chain], ENCODED), small, KEYS) for on in (False, True)]
    assert np.array_equal(*both), "nothing to shrink"


@pytest.mark.parametrize("name", ["training", "pixels"])
@pytest.mark.parametrize("bad", [b"no image", None, encoded(picture(0))[:500]])
def test_a_bad_sample_is_named_by_its_place(name: str, bad: Any) -> None:
    values = jpegs(5)
    values[3] = bad
    for program in (compile_chain(CHAINS[name], ENCODED), ChainProgram(CHAINS[name], "image", None, 0)):
        out = program.buffer(5)
        with pytest.raises(SampleFailed) as caught:
            program.sample(values, KEYS, out, 0)
        assert caught.value.index == 3 and isinstance(caught.value.__cause__, BadInput)


def test_parameters_that_make_no_sense_are_refused() -> None:
    for make in (
        lambda: Resize(0),
        lambda: CenterCrop((3, 4, 5)),
        lambda: RandomResizedCrop(8, scale=(0.5, 0.1)),
        lambda: RandomResizedCrop(8, ratio=(0, 1)),
        lambda: RandomHorizontalFlip(1.5),
        lambda: Normalize([0.5], [0.0]),
        lambda: Normalize([0.5], [0.2, 0.3]),
        lambda: DecodeImage("CMYK"),  # type: ignore[arg-type]
    ):
        with pytest.raises(BadInput):
            make()


def test_steps_that_do_not_fit_say_so() -> None:
    with pytest.raises(SampleFailed) as caught:
        run(compile_chain([Resize((8, 8))], ENCODED), jpegs(1), KEYS)
    assert "begin the chain with DecodeImage()" in str(caught.value.__cause__)
    with pytest.raises(SampleFailed) as caught:
        run(compile_chain([DecodeImage(), CROP, Normalize([0.5], [0.5])], ENCODED), jpegs(1), KEYS)
    assert "1 means and an image of 3 channels" in str(caught.value.__cause__)
    with pytest.raises(TypeError, match=r"did you mean ToFloat\(...\)\?"):
        compile_chain([ToFloat], ENCODED)


def test_fingerprints_tell_what_changes_a_result() -> None:
    prints = {
        compile_chain(chain, ENCODED).fingerprint
        for chain in (*CHAINS.values(), [DecodeImage(), RandomResizedCrop(47), RandomHorizontalFlip(), ToFloat()])
    }
    assert len(prints) == len(CHAINS) + 1
