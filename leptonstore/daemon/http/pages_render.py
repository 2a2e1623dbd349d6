"""Templates, the style sheet and the script: read once, when the routes are made.

Everything printed passes `harmless` (process/report.py): cut short (but `Whole` text), without characters that act, and then escaped.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from starlette.responses import HTMLResponse, Response

from leptonstore.digest import digest_of
from leptonstore.process.report import cleaned, environment, harmless
from leptonstore.version import __version__

HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",  # with "no-referrer" browsers say "Origin: null" of our own forms
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


class Renderer:
    """Any thread."""

    def __init__(self, name: str) -> None:
        self._files = {one: _read("static", one) for one in ("style.css", "dashboard.js", "icon.svg")}
        # Part of their addresses, so that a browser keeps them until they change.
        self.stamp = digest_of(b"".join(self._files.values())).hex()[:16]
        self._environment = environment(
            lambda one: _read("templates", one).decode(), "the dashboard", "server", finalize=_printed
        )
        self._environment.globals.update(store_name=name, version=__version__, stamp=self.stamp)
        self._environment.filters.update(when=when, machine_time=machine_time, ago=ago)

    def text(self, template: str, variables: Mapping[str, Any]) -> str:
        """A template with its variables."""
        return self._environment.get_template(template).render(variables)

    def page(self, template: str, status: int, variables: Mapping[str, Any]) -> Response:
        """As a response."""
        return HTMLResponse(self.text(template, variables), status, HEADERS)

    def static(self, name: str) -> Response | None:
        """A file beside the pages; None when there is no such one."""
        data = self._files.get(name)
        if data is None:
            return None
        headers = {**HEADERS, "cache-control": "public, max-age=31536000, immutable"}
        return Response(data, media_type=_TYPES[name.rpartition(".")[2]], headers=headers)


class Whole(str):
    """Text that somebody has cut where it must be cut: it is printed as it is, but for characters that act."""


def _printed(value: Any) -> Any:
    return cleaned(value) if isinstance(value, Whole) else harmless(value)


def when(time_s: float | None) -> str:
    """A moment, in UTC: whoever looks may be elsewhere than the daemon."""
    return "–" if time_s is None else f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M} UTC"


def machine_time(time_s: float) -> str:
    """For <time datetime>."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def ago(time_s: float) -> str:
    """How long it is since a moment, in one unit."""
    seconds = max(0.0, time.time() - time_s)
    for unit, size in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
        count = int(seconds // size)
        if count:
            return f"{count:,} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def _read(folder: str, name: str) -> bytes:
    return resources.files("leptonstore.daemon").joinpath(folder, name).read_bytes()
