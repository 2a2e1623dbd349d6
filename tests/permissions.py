"""What may not be read or written is so for root, too, as long as root lays its power over files down (Linux: capabilities(7))."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_LIBC = ctypes.CDLL(None, use_errno=True)
_VERSION_3 = 0x20080522
_OVER_FILES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextlib.contextmanager
def of_an_ordinary_user() -> Iterator[None]:
    """The permissions of files hold for this thread, and for threads and processes that it starts, whoever runs it."""
    if os.geteuid() != 0:
        yield
        return
    header, data = _Header(_VERSION_3, 0), (_Data * 2)()
    _call("capget", header, data)
    before = data[0].effective
    data[0].effective &= ~_OVER_FILES
    _call("capset", header, data)
    try:
        yield
    finally:
        data[0].effective = before
        _call("capset", header, data)


def _call(name: str, header: _Header, data: ctypes.Array[_Data]) -> None:
    if getattr(_LIBC, name)(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
