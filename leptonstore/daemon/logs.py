"""Logs of a daemon: lines of JSON for machines, or plain ones for people; never a secret.

    {"time": "2026-11-27T13:00:00.123+00:00", "level": "warning", "logger": "lepton.daemon", "message": "…", "request": "9f86…"}

`configure` sets up what goes through Python's logging; LineLog is a file of lines of its own (the access log). Whatever looks like a token
or the value of an authorization header is replaced before a line is written, wherever it came from.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
import traceback
from datetime import UTC, datetime
from typing import TextIO

from leptonstore.errors import BadInput

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LINE_CHARS_MAX = 16_384  # of one entry: a traceback has some thousand
# Tokens (daemon/tokens.py, trainers/serving/tokens.py) and what stands behind "Bearer" or "Basic".
_SECRET = re.compile(r"lepton_[A-Za-z0-9_-]{40,}|(?<=[Bb]earer )[\w.~+/=-]{12,}|(?<=Basic )[\w+/=]{8,}")
_HIDDEN = "[secret]"
_OURS = ("lepton", "leptonstore")


def without_secrets(text: str) -> str:
    """`text`, in which what looks like a credential is replaced."""
    return _SECRET.sub(_HIDDEN, text)


class JsonLines(logging.Formatter):
    """One object in one line for each record; `extra={"request": id}` and other plain extras become fields."""

    _KNOWN = frozenset(vars(logging.LogRecord("", 0, "", 0, "", None, None))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        """As logging asks for it."""
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage())[:LINE_CHARS_MAX],
        }
        for name, value in vars(record).items():
            if name not in self._KNOWN and isinstance(value, str | int | float | bool):
                told[name] = without_secrets(value) if isinstance(value, str) else value
        if record.exc_info and record.exc_info[0] is not None:
            told["exception"] = record.exc_info[0].__name__
            told["traceback"] = without_secrets("".join(traceback.format_exception(*record.exc_info)))[-LINE_CHARS_MAX:]
        return json.dumps(told, ensure_ascii=False)


class PlainLines(logging.Formatter):
    """lepton: message; the trace of a bug below it."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging asks for it."""
        return without_secrets(super().format(record))


def configure(as_json: bool, level: str = "info", stream: TextIO | None = None) -> logging.Handler:
    """Send what the daemon logs to `stream` (stderr). Replaces what an earlier call set up; other loggers are left alone.

    Raises BadInput for a level that is none of LEVELS.
    """
    if level not in LEVELS:
        raise BadInput(f"log level {level!r}: one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if as_json else PlainLines("lepton: %(message)s"))
    handler.set_name("lepton-daemon")
    for name in _OURS:
        logger = logging.getLogger(name)
        for old in [each for each in logger.handlers if each.get_name() == "lepton-daemon"]:
            logger.removeHandler(old)
        logger.addHandler(handler)
        logger.setLevel(LEVELS[level])
        logger.propagate = False
    # What uvicorn says of itself: that a client sent garbage is counted, and no news.
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return handler


class LineLog:
    """A file to which lines are appended (or stderr, for "-"). Any thread. A full disk stops no request: lines are lost, and counted."""

    def __init__(self, path: str) -> None:
        """Raises BadInput when it cannot be written."""
        self._path, self._guard = path, threading.Lock()
        self.lost = 0
        try:
            self._file = self._opened()
        except OSError as error:
            raise BadInput(f"cannot write the log {path}: {error.strerror}") from None

    def write(self, line: str) -> None:
        """Append a line."""
        data = (without_secrets(line) + "\n").encode("utf-8", "replace")
        with self._guard:
            try:
                os.write(self._file, data)  # at once: O_APPEND keeps lines of several processes apart
            except OSError:
                self.lost += 1

    def reopen(self) -> None:
        """Go on in the file that has this name now: somebody has moved the old one away. One that cannot be opened keeps the old."""
        with self._guard, contextlib.suppress(OSError):
            new = self._opened()
            self._end()
            self._file = new

    def close(self) -> None:
        """No more lines."""
        with self._guard:
            self._end()
            self._file = -1

    def _opened(self) -> int:
        if self._path == "-":
            return sys.stderr.fileno()
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _end(self) -> None:
        if self._path != "-" and self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
