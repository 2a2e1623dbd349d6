"""The package's door: what needs torch says so, and what does not works without it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import loaders

WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH + code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_without_torch_the_missing_extra_is_named() -> None:
    code = (
        "from leptonstore.errors import MissingExtra\n"
        "try:\n    from loaders import DataLoader\nexcept MissingExtra as error:\n    print(error)"
    )
    assert 'pip install "leptonstore[train]"' in run(code)


@pytest.mark.parametrize("library", ["jax", "keras"])
def test_without_the_library_its_feed_names_the_extra(library: str) -> None:
    code = (
        f"import sys; sys.modules[{library!r}] = None\nfrom leptonstore.errors import MissingExtra\n"
        f"try:\n    import loaders.{library}\nexcept MissingExtra as error:\n    print(error)"
    )
    assert f'pip install "leptonstore[{library}]"' in run(code)


def test_order_shares_and_states_work_without_torch() -> None:
    code = (
        "from loaders import LoaderStateError, Order; import loaders.share; print(Order(4, 1).rows_at(0, 4).tolist())"
    )
    assert sorted(json.loads(run(code))) == [0, 1, 2, 3]


def test_everything_promised_is_there() -> None:
    pytest.importorskip("torch")
    assert all(hasattr(loaders, name) for name in loaders.__all__)
    with pytest.raises(AttributeError, match="module 'loaders' has no attribute 'Loader'"):
        loaders.Loader  # noqa: B018
