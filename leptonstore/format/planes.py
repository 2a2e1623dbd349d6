"""Byte planes: n values of w bytes <-> w planes of n bytes, so that bytes of the same rank stand together and compress.

The bytes after the last whole value follow as they are.
"""

from __future__ import annotations

import numpy as np

from leptonstore.digest import Buffer


def to_planes(data: Buffer, width: int) -> bytes:
    """Values -> planes."""
    values = np.frombuffer(data, np.uint8)
    whole = len(values) // width * width
    return values[:whole].reshape(-1, width).T.tobytes() + values[whole:].tobytes()


def from_planes(data: Buffer, width: int) -> bytes:
    """Planes -> values."""
    planes = np.frombuffer(data, np.uint8)
    whole = len(planes) // width * width
    return planes[:whole].reshape(width, -1).T.tobytes() + planes[whole:].tobytes()
