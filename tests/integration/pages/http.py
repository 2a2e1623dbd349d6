"""docs/http.md: a control plane over the store of daemon_data, with its tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from tests.integration.daemon_data import FILES, ROWS, control_plane, filled, jpeg
from tests.integration.docs_blocks import Place


def setting(place: Place) -> Iterator[None]:
    with filled(place.folder / "data") as store, control_plane(store) as plane:
        os.environ |= {"URL": plane.url, "TOKEN": plane.tokens["read"]}
        place.names |= {"URL": plane.url, "TOKEN": plane.tokens["samples"], "np": np}
        yield
    folder = place.folder
    assert (folder / "seven.jpeg").read_bytes() == jpeg(7)
    assert (folder / "b.bin").read_bytes() == FILES["deep/er/b.bin"]
    assert (folder / "part.bin").read_bytes() == FILES["deep/er/b.bin"][1_000:2_000]
    assert np.load(folder / "seven.npy").shape == (28, 28)
    assert place.names["table"].num_rows == ROWS and place.names["image"].shape == (28, 28)
