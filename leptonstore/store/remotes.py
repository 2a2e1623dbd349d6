"""Other stores that this one remembers by name: a setting in the log, so that everybody who opens the store knows them.

    remotes   {name: URL}

A URL holds no secret: keys of object stores come from the environment, passphrases from whoever opens the remote. Anybody who reads the
store reads the URLs.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlparse

from leptonstore import limits
from leptonstore.errors import BadInput, FormatTooNew, NotFound, listed
from leptonstore.store.log import LogState, Proposal
from leptonstore.store.store import Store

SETTING = "remotes"
DEFAULT = "origin"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_SCHEME = re.compile(r"[a-z0-9+.-]+:/")


def remotes_of(state: LogState) -> dict[str, str]:
    """Name -> URL. Raises FormatTooNew when they are something that we do not understand."""
    found = state.settings.get(SETTING, {})
    if not isinstance(found, dict) or not all(isinstance(url, str) for url in found.values()):
        raise FormatTooNew("the store's remotes are not understood: upgrade LeptonStore")
    return dict(sorted(found.items()))


def add_remote(store: Store, name: str, url: str) -> str:
    """Remember `url` under `name`; returns it as it is remembered. It need not exist yet. Raises BadInput."""
    if not _NAME.fullmatch(name):
        raise BadInput(f"{name!r} is no name for a remote: use a-z, 0-9, - and _, at most 32 characters")
    kept = absolute_url(url)

    def propose(state: LogState) -> Proposal:
        known = remotes_of(state)
        if known.get(name, kept) != kept:
            raise BadInput(
                f"there is a remote {name!r} already, {known[name]}: remove it with `lepton remote rm {name}`"
            )
        if len(known) >= limits.REMOTES_MAX and name not in known:
            raise BadInput(f"{len(known)} remotes are as many as a store remembers: remove one with `lepton remote rm`")
        return Proposal("settings", settings={SETTING: {**known, name: kept}})

    if remotes_of(store.state).get(name) != kept:
        store.append(propose)
    return kept


def remove_remote(store: Store, name: str) -> None:
    """Forget it; the store there is not touched. Raises NotFound."""

    def propose(state: LogState) -> Proposal:
        known = remotes_of(state)
        if name not in known:
            raise NotFound(_unknown(store, name))
        left = {other: url for other, url in known.items() if other != name}
        return Proposal("settings", settings={SETTING: left or None})

    store.append(propose)


def remote_url(store: Store, name_or_url: str) -> tuple[str, str]:
    """(name, URL) of a remote that is remembered, or of a URL or path; its name is "" when nobody gave it one. Raises NotFound."""
    known = remotes_of(store.state)
    if name_or_url in known:
        return name_or_url, known[name_or_url]
    if _NAME.fullmatch(name_or_url) and not Path(name_or_url).exists():
        raise NotFound(_unknown(store, name_or_url))
    url = absolute_url(name_or_url)
    return next((name for name, other in known.items() if other == url), ""), url


def absolute_url(url: str) -> str:
    """`url` as it may be remembered: paths absolute. Raises BadInput where it holds a secret."""
    if not _SCHEME.match(url):
        if not url:
            raise BadInput("the remote's URL is empty")
        return str(Path(url).expanduser().absolute())
    parsed = urlparse(url)
    if "@" in parsed.netloc or parsed.query or parsed.fragment:
        raise BadInput(
            f"the URL of a remote holds a user, a secret or options ({parsed.scheme}://…): give those in the environment"
        )
    if len(url) > limits.REMOTE_URL_CHARS_MAX:
        raise BadInput(f"the remote's URL has more than {limits.REMOTE_URL_CHARS_MAX} characters")
    return url.rstrip("/")


def _unknown(store: Store, name: str) -> str:
    known = listed(remotes_of(store.state))
    return f"no remote {name!r} in {store.url}; there is: {known}; add it with `lepton remote add {name} URL`"
