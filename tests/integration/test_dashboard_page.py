"""docs/dashboard.md: the pages that it names are those that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="the extra server is not installed")

from starlette.routing import Route

from leptonstore.daemon.access import Access
from leptonstore.daemon.http.pages import Pages
from leptonstore.daemon.http.pages_context import PagesContext
from leptonstore.daemon.metrics import Metrics
from leptonstore.store import Store

PAGE = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text()
UNTOLD = {"/", "/ui/live", "/ui/login", "/ui/logout", "/ui/static/{stamp}/{file}", "/ui/{rest:path}"}
PARTS = {"{kind}/{name}/{ref}": "dataset/NAME/REF", "{kind}/{name}": "dataset/NAME", "{name}": "NAME", "{row:int}": "N"}


def test_the_pages_of_the_docs_are_those_that_there_are(store: Store) -> None:
    pages = Pages(PagesContext(store, "data", Access.of(store), Metrics()))
    there = set()
    for route in pages.routes():
        assert isinstance(route, Route)
        path = route.path
        if "GET" not in (route.methods or ()) or path in UNTOLD or "/value/" in path:
            continue
        for part, told in PARTS.items():
            path = path.replace(part, told)
        there |= (
            {path.replace("{kind}", kind) for kind in ("dataset", "model", "checkpoint")}
            if "{kind}" in path
            else {path}
        )
    pages.close()
    table = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
    assert set(re.findall(r"`(/ui[^`]*)`", table)) == there
