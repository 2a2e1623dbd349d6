"""Batches on their way to a device: packed and unpacked unchanged, one ahead, in order. What needs CUDA is marked so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from loaders.ahead import Ahead  # noqa: E402
from loaders.device import ahead_on, device_of, packed  # noqa: E402
from loaders.stall import StageClock  # noqa: E402


def requires_cuda(test: Callable[[], None]) -> Callable[[], None]:
    """Both marks: the one to choose them by, and the one that skips them where there is no GPU."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return pytest.mark.requires_cuda(skip(test))


DTYPES = [torch.uint8, torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.uint16, torch.complex64]


class Pair(NamedTuple):
    left: Any
    right: Any


tensors = st.builds(
    lambda dtype, shape: (torch.arange(1, 1 + torch.Size(shape).numel()) % 7).to(dtype).reshape(shape),
    st.sampled_from(DTYPES),
    st.lists(st.integers(0, 4), max_size=3),
)
leaves = tensors | st.text(max_size=3) | st.none()
batches = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Pair, inner, inner)
        | st.dictionaries(st.sampled_from("abc"), inner)
    ),
    max_leaves=6,
)


def assert_equal(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found, expected)
    elif isinstance(found, dict):
        assert list(found) == list(expected)
        assert_equal(list(found.values()), list(expected.values()))
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal(one, other)
    else:
        assert found == expected


@settings(max_examples=60)
@given(batches)
def test_a_slab_holds_a_batch(batch: Any) -> None:
    slab, unpack = packed(batch)
    assert slab.dtype == torch.uint8 and slab.ndim == 1
    assert_equal(unpack(slab.clone()), batch)


def test_a_tensor_that_is_no_plain_piece_of_memory_stays_itself() -> None:
    batch = {"strided": torch.arange(12).reshape(3, 4).T, "sparse": torch.eye(3).to_sparse()}
    slab, unpack = packed(batch)
    found = unpack(slab)
    assert torch.equal(found["strided"], batch["strided"]) and found["sparse"] is batch["sparse"]


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_work_begins_ahead_and_batches_come_in_order(depth: int) -> None:
    begun: list[int] = []

    def begin(n: int) -> Callable[[], int]:
        begun.append(n)
        return lambda: n * 10

    for number, out in enumerate(Ahead(begin, iter(range(6)), depth)):
        assert out == number * 10
        assert begun == list(range(min(6, number + 1 + depth)))


def test_an_error_comes_at_its_batch_and_closing_closes() -> None:
    closed: list[bool] = []

    def source() -> Iterator[int]:
        try:
            yield 0
            yield 1
            raise KeyError("batch 2")
        finally:
            closed.append(True)

    out = Ahead(lambda n: lambda: n, source(), 2)
    assert [next(out), next(out)] == [0, 1]
    with pytest.raises(KeyError, match="batch 2"):
        next(out)
    closed.clear()
    out = Ahead(lambda n: lambda: n, source())
    next(out)
    out.close()
    assert closed == [True] and list(out) == []


def test_the_host_is_no_device() -> None:
    assert device_of(None) is device_of("cpu") is device_of(torch.device("cpu")) is None
    if not torch.accelerator.is_available():
        assert device_of("auto") is None
    with pytest.raises(RuntimeError, match="nonsense"):
        device_of("nonsense")


def test_a_device_without_streams_gets_each_tensor() -> None:
    """torch's "meta" device, which every machine has: shapes and dtypes arrive, other values are untouched."""
    host, clock = [{"x": torch.ones(3, 2), "text": ["a"]}, {"x": torch.ones(1), "text": []}], StageClock()
    out = list(ahead_on(torch.device("meta"), iter(host), clock))
    assert list(clock.seconds) == ["device"]
    assert [batch["x"].shape for batch in out] == [(3, 2), (1,)] and out[0]["x"].device.type == "meta"
    assert out[0]["text"] == ["a"]


@requires_cuda
def test_batches_arrive_on_the_device_unchanged() -> None:
    host = [{"x": torch.randn(256, 1000), "y": torch.arange(256) + n, "text": [str(n)]} for n in range(20)]
    for found, expected in zip(ahead_on(torch.device("cuda"), iter(host), StageClock()), host, strict=True):
        assert found["x"].is_cuda and found["text"] == expected["text"]
        found["x"].mul_(2)  # on the consumer's stream, while the next is copied
        assert torch.equal(found["x"].cpu(), expected["x"] * 2) and torch.equal(found["y"].cpu(), expected["y"])


@requires_cuda
def test_a_copy_overlaps_what_the_consumer_computes() -> None:
    """The copy of the next batch is queued on its own stream: it ends while the consumer's stream still works."""
    device = torch.device("cuda")
    weights = torch.randn(4096, 4096, device=device)
    copies = ahead_on(device, iter([{"x": torch.randn(1024, 1024)} for _ in range(3)]), StageClock())
    next(copies)
    done = torch.cuda.Event()
    for _ in range(50):
        weights = weights @ weights.clamp(-1, 1)
    done.record()
    copied = next(copies)["x"]  # waits for the copy on the consumer's stream, not on the host
    assert not done.query()  # the host has come here while the device still computes
    torch.cuda.synchronize()
    assert copied.shape == (1024, 1024) and torch.isfinite(copied).all()


@requires_cuda
def test_slabs_are_pinned() -> None:
    slab, _ = packed({"x": torch.ones(5)}, pin=True)
    assert slab.is_pinned()
