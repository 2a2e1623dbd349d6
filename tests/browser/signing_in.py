"""How tests of the dashboard sign in."""

from __future__ import annotations

from typing import Any


def sign_in(page: Any, token: str) -> None:
    """As people do: paste a token."""
    page.goto("/ui/login")
    page.get_by_label("Token").fill(token)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url("**/ui")
