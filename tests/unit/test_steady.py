"""Batch sizes that agree: found for a model whose kernels differ, and not found for one whose rows depend on each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainers.serving.steady import Steady
from trainers.signature import TensorSpec, probe_rows

SPEC = TensorSpec("rows", "float32", (5,))


def alike(rows: Tensor) -> Tensor:
    return rows.cumsum(1)


def differing_below(least: int) -> object:
    """As kernels do: few rows are added up in another order."""

    def model(rows: Tensor) -> Tensor:
        return rows.flip(1).sum(1, keepdim=True) + (0.0 if len(rows) >= least else 1e-7)

    return model


@pytest.mark.parametrize(("least", "sizes"), [(1, (1, 2, 4, 8, 16)), (3, (4, 8, 16)), (8, (8, 16)), (16, (16,))])
def test_the_sizes_that_agree_are_found(least: int, sizes: tuple[int, ...]) -> None:
    steady = Steady(differing_below(least), SPEC, 16)  # type: ignore[arg-type]
    assert (steady.sizes, steady.exact, steady.spread) == (sizes, True, 0.0)


@settings(deadline=None)
@given(
    least=st.sampled_from([1, 2, 5, 16]),
    parts=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    seed=st.integers(0, 99),
)
def test_a_row_gives_the_same_bits_however_rows_are_cut(least: int, parts: list[int], seed: int) -> None:
    seen: list[int] = []
    inner = differing_below(least)

    def model(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return inner(rows)  # type: ignore[operator, no-any-return]

    steady = Steady(model, SPEC, 16)
    seen.clear()
    rows = torch.randn((sum(parts), 5), generator=torch.Generator().manual_seed(seed))
    cut = torch.cat([steady(part) for part in rows.split(parts)])
    assert torch.equal(cut, steady(rows)) and len(cut) == len(rows)
    assert set(seen) <= set(steady.sizes)  # the model never sees another size


@pytest.mark.parametrize(
    "model",
    [
        lambda rows: rows - rows.mean(0),  # company
        lambda rows: rows * torch.arange(1, len(rows) + 1)[:, None],  # place
    ],
)
def test_rows_that_depend_on_each_other_are_noticed(model: object) -> None:
    steady = Steady(model, SPEC, 8)  # type: ignore[arg-type]
    assert not steady.exact and steady.spread > 0.01
    assert steady(torch.ones(3, 5)).shape == (3, 5)


def test_nan_and_signed_zeros_are_bits_too() -> None:
    assert Steady(lambda rows: rows * torch.nan, SPEC, 8).sizes == (1, 2, 4, 8)
    assert Steady(lambda rows: torch.full_like(rows, 0.0 if len(rows) >= 4 else -0.0), SPEC, 8).sizes == (4, 8)


@given(
    spec=st.builds(
        TensorSpec,
        st.just("x"),
        st.sampled_from(["uint8", "int64", "float32"]),
        st.lists(st.integers(1, 3), max_size=3).map(tuple),
        st.integers(0, 5),
        st.integers(5, 200),
    )
)
def test_probes_are_rows_that_the_model_takes(spec: TensorSpec) -> None:
    rows = probe_rows(spec, 7)
    assert tuple(rows.shape) == (7, *spec.shape) and rows.dtype == spec.torch_dtype
    assert spec.low is not None and spec.high is not None
    assert float(rows.min()) >= spec.low and float(rows.max()) <= spec.high
    assert torch.equal(rows, probe_rows(spec, 7))
    assert TensorSpec.from_dict(spec.to_dict()) == spec
