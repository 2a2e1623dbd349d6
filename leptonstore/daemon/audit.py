"""The audit log: one JSON line for every write, and for every request that was refused.

    {"time": "2026-11-27T13:30:00.123Z", "outcome": "ok", "operation": "publish", "principal": "3f2a…", "name": "ci",
     "address": "10.0.0.7", "what": "birds@main"}

outcome: "ok", or the class of the error ("NotAuthenticated", "NotPermitted", "TooBusy", "Conflict", …). No credential, no argument and
no value of a request stands in it, only the names that the caller passes as `what`.

The file is only ever appended to, one write(2) a line, by its owner alone (mode 0600); at AUDIT_FILE_BYTES it becomes NAME.1, that NAME.2
and so on, and the oldest of AUDIT_FILES goes. It is synced when it is rotated and closed; a power cut may cost the last seconds. Who
cannot authenticate cannot push real entries out: such denials are kept at AUDIT_STRANGERS, and the next one says how many were left out.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from leptonstore.daemon.rates import Buckets, Rate
from leptonstore.errors import BadInput

AUDIT_FILE_BYTES = 16 << 20  # about 80,000 lines
AUDIT_FILES = 8  # with the one that is being written
AUDIT_STRANGERS = Rate(10, 100)  # lines of denials without a principal
WHAT_CHARS_MAX = 400  # of what a request was about

# What a name should never be and may have been typed as one: the text of a token.
_SECRET = re.compile(r"(lepton_[0-9a-f]{16}|lpeer)_[A-Za-z0-9_-]+")

log = logging.getLogger("lepton.daemon.audit")


class AuditLog:
    """Appends to `path`. Any thread. Never raises after it was opened: a full disk must not stop reads; `lost` counts the lines."""

    def __init__(
        self,
        path: str | Path,
        file_bytes: int = AUDIT_FILE_BYTES,
        files: int = AUDIT_FILES,
        strangers: Rate | None = AUDIT_STRANGERS,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes the file, in a folder that is there; "-" is stderr, which is not rotated. Raises BadInput when it cannot be written."""
        self.path, self._file_bytes, self._files, self._now = Path(path), file_bytes, files, now
        self.lost = 0
        self._strangers, self._left_out = Buckets(strangers, clock), 0
        self._guard = threading.Lock()
        self._own_file = str(path) != "-"
        try:
            self._fd, self._bytes = self._open()
        except OSError as error:
            raise BadInput(f"the audit log {self.path} cannot be written: {error.strerror}") from None

    def _open(self) -> tuple[int, int]:
        if not self._own_file:
            return os.dup(2), 0
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        return fd, os.fstat(fd).st_size

    def write(
        self, operation: str, outcome: str, principal: str | None, name: str, address: str, what: str = ""
    ) -> None:
        """Append a line. principal: None for somebody whom nobody knows."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "outcome": outcome,
            "operation": operation[:WHAT_CHARS_MAX],
            "principal": principal,
            "name": name,
            "address": address,
        }
        if what:
            entry["what"] = _SECRET.sub(r"\1_…", what)[:WHAT_CHARS_MAX]
        with self._guard:
            if principal is None:
                if self._strangers.take("", 1):
                    self._left_out += 1
                    return
                if self._left_out:
                    entry["left_out"], self._left_out = self._left_out, 0
            self._append(json.dumps(entry, separators=(",", ":")).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        try:
            full = self._own_file and self._bytes and self._bytes + len(line) > self._file_bytes
            if self._fd < 0 or full:
                self._rotate()
            written = os.write(self._fd, line)
            self._bytes += written
            if written < len(line):  # a full disk: the rest of the line is missing, so the next one begins anew
                os.write(self._fd, b"\n")
                raise OSError("short write")
        except OSError as error:
            self.lost += 1
            if self.lost.bit_count() == 1:  # the 1st, 2nd, 4th, 8th … : a full disk must not fill the other log, too
                log.error("the audit log cannot be written (%s): %d lines are lost", error.strerror, self.lost)

    def _rotate(self) -> None:
        if self._fd >= 0:
            os.fsync(self._fd)
            os.close(self._fd)
            self._fd = -1
            for number in range(self._files - 1, 0, -1):
                newer = self.path if number == 1 else self._numbered(number - 1)
                with contextlib.suppress(FileNotFoundError):
                    os.replace(newer, self._numbered(number))
            if self._files == 1:
                self.path.unlink(missing_ok=True)
        self._fd, self._bytes = self._open()

    def _numbered(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def close(self) -> None:
        """Sync and close. May be called twice; writing opens it again."""
        with self._guard:
            if self._fd >= 0:
                with contextlib.suppress(OSError):
                    os.fsync(self._fd)
                os.close(self._fd)
                self._fd = -1
