"""Where a rank computes: what is there is found, and what is not is named with the fix."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from leptonstore.errors import BadInput  # noqa: E402
from trainers.config import DEVICES  # noqa: E402
from trainers.devices import KINDS, backend_of, find_device  # noqa: E402

HERE = torch.accelerator.current_accelerator(check_available=True)


def requires(kind: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """The mark to choose a test by, and the one that skips it where there is no such device."""

    def marked(test: Callable[[], None]) -> Callable[[], None]:
        skip = pytest.mark.skipif(HERE is None or HERE.type != kind, reason=f"no {kind} device")
        return getattr(pytest.mark, f"requires_{kind}")(skip(test))  # type: ignore[no-any-return]

    return marked


def test_the_cpu_is_always_there() -> None:
    assert find_device("cpu", 3) == torch.device("cpu")
    assert backend_of(torch.device("cpu")) == "gloo"


def test_auto_is_the_accelerator_or_the_cpu() -> None:
    assert find_device("auto").type == (HERE.type if HERE is not None and HERE.type in KINDS else "cpu")


@pytest.mark.parametrize("name", [name for name in KINDS if name != "cpu" and (HERE is None or HERE.type != name)])
def test_a_missing_device_is_named_with_the_fix(name: str) -> None:
    with pytest.raises(BadInput, match=f"no (torch_)?{name}.*(install|needs).*--device cpu"):
        find_device(name)


def test_the_configuration_knows_the_table() -> None:
    assert set(DEVICES) == {"auto", *KINDS}
    with pytest.raises(BadInput, match="no device 'gpu'"):
        find_device("gpu")


def test_several_ranks_on_a_device_without_collectives_are_refused() -> None:
    with pytest.raises(BadInput, match="several ranks cannot train on mps"):
        backend_of(torch.device("mps"))


@requires("cuda")
def test_cuda_has_a_device_for_each_local_rank() -> None:
    assert find_device("cuda", 0) == torch.device("cuda", 0)
    assert backend_of(torch.device("cuda", 0)) == "nccl"
    with pytest.raises(BadInput, match="has no cuda device of its own"):
        find_device("cuda", torch.cuda.device_count())


@requires("tpu")
def test_tpu_is_found_through_torch_tpu() -> None:
    assert find_device("tpu").type == "tpu"
    assert backend_of(find_device("tpu"))
