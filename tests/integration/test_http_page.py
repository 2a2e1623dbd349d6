"""docs/http.md: its commands and its code run, and what it says of paths, figures and errors is so."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from daemon_data import FILES, ROWS, Plane, control_plane, filled, jpeg

from leptonstore import errors
from leptonstore.daemon.http.table import route_of
from leptonstore.daemon.operations import OPERATIONS
from leptonstore.store.wire.errors import status_of

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with filled(tmp_path_factory.mktemp("http") / "data") as store, control_plane(store) as running:
        yield running


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_commands_of_the_page_run(plane: Plane, tmp_path: Path) -> None:
    environment = {"URL": plane.url, "TOKEN": plane.tokens["read"], "PATH": "/usr/bin:/bin"}
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, (block, done.stdout, done.stderr)
    assert (tmp_path / "seven.jpeg").read_bytes() == jpeg(7)
    assert (tmp_path / "b.bin").read_bytes() == FILES["deep/er/b.bin"]
    assert (tmp_path / "part.bin").read_bytes() == FILES["deep/er/b.bin"][1_000:2_000]
    assert np.load(tmp_path / "seven.npy").shape == (28, 28)
    assert pa.ipc.open_stream((tmp_path / "rows.arrow").read_bytes()).read_all().num_rows == 6


def test_the_code_of_the_page_runs(plane: Plane) -> None:
    names: dict[str, Any] = {"URL": plane.url, "TOKEN": plane.tokens["samples"], "np": np}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, names)
    assert names["table"].num_rows == ROWS and names["image"].shape == (28, 28)


def test_every_path_figure_and_error_is_on_the_page(plane: Plane) -> None:
    for operation in OPERATIONS.values():
        path = route_of(operation)[1]
        if not path.startswith("/v1/"):
            path = path.replace("{kind}", "KIND").replace("{version}", "NAME@REF").replace("{row}/{column}", "N/COLUMN")
            assert f"{path.replace('{digest}', 'DIGEST').replace('{path}', 'PATH')}`" in PAGE, path
    for line in plane.ask("/metrics").body.decode().splitlines():
        if line.startswith("# TYPE lepton_"):
            assert f"`{line.split()[2]}" in PAGE, line
    rows = {
        int(number): row
        for row in PAGE.splitlines()
        if re.match(r"\| \d{3}", row)
        for number in re.findall(r"\d{3}", row.split("|")[1])
    }
    for kind in (
        errors.BadInput,
        errors.NotAuthenticated,
        errors.NotPermitted,
        errors.NotFound,
        errors.Conflict,
        errors.TooBusy,
        errors.StoreFull,
    ):
        assert kind.__name__ in rows[status_of(kind("it"))]
