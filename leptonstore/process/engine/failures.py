"""Errors on their way from a worker to the caller. In the caller's process they are kept as they are; from others their text comes back,
through whatever Daft and Ray make of it, and a LeptonError is made anew of it. Nothing is unpickled.
"""

from __future__ import annotations

import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager

from leptonstore.errors import LeptonError
from leptonstore.process.engine.workers import Lent

_TOLD_CHARS_MAX = 16_384  # of an error that is sent; longer ones are sent as their first line
_MARK = re.compile(r"lepton-error:([A-Za-z0-9_=-]+):")


class Told(Exception):
    """Raised on a worker in place of an error; its text holds that error."""


@contextmanager
def told(lent: Lent) -> Iterator[None]:
    """Inside, on a worker, what is raised is made fit to come back to the caller."""
    try:
        yield
    except Exception as error:
        lent.fail(error)
        raise Told(_sent(error)) from error


def _sent(error: Exception) -> str:
    fields = vars(error) if isinstance(error, LeptonError) else {}
    said = str(error) if isinstance(error, LeptonError) else f"{type(error).__name__}: {error}"
    name = type(error).__name__ if isinstance(error, LeptonError) else LeptonError.__name__
    data = json.dumps([name, said, fields], default=str)
    if len(data) > _TOLD_CHARS_MAX:
        data = json.dumps([name, said.splitlines()[0][:1_000], {}])
    return f"{said} lepton-error:{urlsafe_b64encode(data.encode()).decode()}:"


def received(error: BaseException) -> LeptonError | None:
    """The error of ours that an exception of Daft's or Ray's tells of, None when it tells of none."""
    seen: BaseException | None = error
    while seen is not None:
        found = _MARK.search(str(seen))
        if found:
            return _made(found[1])
        seen = seen.__cause__ or seen.__context__
    return None


def _made(text: str) -> LeptonError:
    try:
        name, said, fields = json.loads(urlsafe_b64decode(text))
        kind = {one.__name__: one for one in _kinds(LeptonError)}.get(name, LeptonError)
        made = kind.__new__(kind)  # what its constructor makes of its arguments was made on the worker
        made.args = (str(said),)
        vars(made).update({str(key): value for key, value in dict(fields).items()})
    except (ValueError, TypeError):
        return LeptonError("a worker failed, and what it said of it cannot be read")
    return made


def _kinds(kind: type[LeptonError]) -> Iterator[type[LeptonError]]:
    yield kind
    for one in kind.__subclasses__():
        yield from _kinds(one)
