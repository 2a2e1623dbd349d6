"""One browser, one daemon and its store for each file of tests of the dashboard: both keep threads and loops that others must not meet."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from signing_in import sign_in

if TYPE_CHECKING:
    from leptonstore.testing.daemon import Served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra dev)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on the path")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A daemon with the store of dashboard_store.py, in this process: tests look at its parts, too."""
    pytest.importorskip("uvicorn", reason="the extra server is not installed")
    from dashboard_store import make_store

    from leptonstore.testing import daemon

    folder = tmp_path_factory.mktemp("dashboard")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        make_store(folder / "store")
        with daemon.running(folder / "store", in_process=True, cache=str(folder / "hot")) as running:
            yield running


@pytest.fixture
def visit(chromium: Any, served: Served) -> Callable[..., Any]:
    """A context manager: a browser of its own, signed in (unless token is ""), in a scheme and a width.

    What its pages complained of, and what they asked for elsewhere, fails the test; `expected` are parts of messages that may come.
    """

    @contextmanager
    def show(
        token: str | None = None, scheme: str = "light", width: int = 1280, expected: tuple[str, ...] = ()
    ) -> Iterator[Any]:
        context = chromium.new_context(
            viewport={"width": width, "height": 844}, color_scheme=scheme, base_url=served.http_url
        )
        context.set_default_timeout(60_000)
        page = context.new_page()
        wrong: list[str] = []
        page.on(
            "request",
            lambda one: (
                None if one.url.startswith((served.http_url, "data:")) else wrong.append(f"asked for {one.url}")
            ),
        )
        page.on("console", lambda one: wrong.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda one: wrong.append(str(one)))
        if token != "":
            sign_in(page, token or served.token)
        yield page
        context.close()
        assert [one for one in wrong if not any(part in one for part in expected)] == []

    return show
