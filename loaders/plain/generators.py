"""States of random generators, and code that runs from such states without leaving a trace.

A shuffle of torch's samplers is a function of the generator that they draw from: the loader's own, or torch's global
one. Samplers that people write also draw from `random` and `numpy.random`. So a position in a pass over a sampler is
where these generators stood when the pass began, and a number of draws.

    take(names)            bytes of torch's, Python's and numpy's global generators, by name
    running_from(states)   a block that draws from such states
    text_of, bytes_of      bytes as text for a loader's state: base64 of zlib, 4.3 KB for torch's Mersenne Twister

Nothing is unpickled; what is not of the size of a state is refused (ValueError).
"""

from __future__ import annotations

import base64
import random
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# Bytes of any generator's state: torch's Mersenne Twister has 5,056, Python's and numpy's 2,509 and 2,509.
STATE_BYTES_MAX = 8_192

TORCH, PYTHON, NUMPY = "torch", "python", "numpy"
ALL = (TORCH, PYTHON, NUMPY)

_PYTHON = struct.Struct("<625I?d")  # random.getstate(): words and index, whether a second Gaussian waits, and it
_NUMPY = struct.Struct("<624Ii?d")  # numpy.random.get_state(): words, index, whether a second Gaussian waits, and it


def take(names: Iterable[str]) -> dict[str, bytes]:
    """The present states of the named global generators. numpy's is left out when another bit generator was set there."""
    states = {name: _TAKE[name]() for name in names}
    return {name: state for name, state in states.items() if state is not None}


def require(states: Mapping[str, bytes]) -> None:
    """Raise ValueError unless `running_from` can take them."""
    for name in states:
        if name not in _PUT:
            raise ValueError(f"there is no global generator {name!r}")
    with running_from(states):
        pass


@contextmanager
def kept() -> Iterator[None]:
    """Afterwards the global generators stand where they stood, whatever the block drew."""
    present = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(present[0])
        random.setstate(present[1])
        np.random.set_state(present[2])


@contextmanager
def running_from(states: Mapping[str, bytes]) -> Iterator[None]:
    """Run a block from `states`, and leave the global generators where they stood."""
    with kept():
        for name, state in states.items():
            _PUT[name](state)
        yield


def get_state(generator: torch.Generator) -> bytes:
    """The state of one of torch's generators."""
    return generator.get_state().numpy().tobytes()


def set_state(generator: torch.Generator, state: bytes) -> None:
    """Put `generator` into a state that `get_state` gave. Raises ValueError for anything else."""
    try:
        generator.set_state(torch.from_numpy(np.frombuffer(state, np.uint8).copy()))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"torch takes it for no state of a generator ({error})") from error


def text_of(state: bytes) -> str:
    """The state as text."""
    return base64.b64encode(zlib.compress(state, 1)).decode()


def bytes_of(text: Any) -> bytes:
    """The mirror image of `text_of`. Raises ValueError for anything else."""
    if not isinstance(text, str) or len(text) > 2 * STATE_BYTES_MAX:
        raise ValueError("it is no text of a generator's state")
    unpacking = zlib.decompressobj()
    try:
        state = unpacking.decompress(base64.b64decode(text, validate=True), STATE_BYTES_MAX)
    except zlib.error as error:
        raise ValueError(f"it does not decompress ({error})") from error
    if not unpacking.eof:
        raise ValueError("it is cut short, or longer than any state")
    return state


def _take_torch() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _put_torch(state: bytes) -> None:
    set_state(torch.default_generator, state)


def _take_python() -> bytes:
    _, words, gaussian = random.getstate()
    return _PYTHON.pack(*words, gaussian is not None, gaussian or 0.0)


def _put_python(state: bytes) -> None:
    *words, gaussian_waits, gaussian = _unpacked(_PYTHON, state)
    random.setstate((3, tuple(words), gaussian if gaussian_waits else None))


def _take_numpy() -> bytes | None:
    state = np.random.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        return None
    words = np.asarray(state["state"]["key"]).tolist()
    return _NUMPY.pack(*words, state["state"]["pos"], bool(state["has_gauss"]), state["gauss"])


def _put_numpy(state: bytes) -> None:
    *words, at, gaussian_waits, gaussian = _unpacked(_NUMPY, state)
    np.random.set_state(("MT19937", np.array(words, np.uint32), at, int(gaussian_waits), gaussian))


def _unpacked(layout: struct.Struct, state: bytes) -> tuple[Any, ...]:
    if len(state) != layout.size:
        raise ValueError(f"it has {len(state)} bytes, not {layout.size}")
    return layout.unpack(state)


_TAKE = {TORCH: _take_torch, PYTHON: _take_python, NUMPY: _take_numpy}
_PUT = {TORCH: _put_torch, PYTHON: _put_python, NUMPY: _put_numpy}
