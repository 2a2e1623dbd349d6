"""URL or path -> tier. Object and block tiers will be added here."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

from leptonstore.errors import BadInput
from leptonstore.tiers.local import LocalTier


def open_tier(url: str | Path) -> LocalTier:
    """The tier at `url`: a directory's path or a file:// URL. The directory need not exist yet.

    Raises BadInput for any other scheme.
    """
    text = str(url)
    parsed = urlparse(text)
    if parsed.scheme == "file":
        text = unquote(parsed.path)
    elif "://" in text:
        raise BadInput(
            f"{text}: this version keeps stores in local directories only; give a path or a file:// URL "
            "(to use a bucket today, mount it or copy the store)"
        )
    if not text:
        raise BadInput("the store's path is empty; give a directory")
    return LocalTier(Path(text).expanduser().absolute())
