"""docs/http.md: what it says of paths, figures and errors is so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon_data import Plane, control_plane, filled

from leptonstore import errors
from leptonstore.daemon.http.table import route_of
from leptonstore.daemon.operations import OPERATIONS
from leptonstore.store.wire.errors import status_of

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with filled(tmp_path_factory.mktemp("http") / "data") as store, control_plane(store) as running:
        yield running


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
