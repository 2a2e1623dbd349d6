"""What the tests of the hot cache share: keys, values, and processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from leptonstore.digest import digest_of

PROJECT = Path(__file__).resolve().parents[2]
BUDGET = 4 << 20


def key_of(number: int) -> bytes:
    return digest_of(b"%d" % number)


def value_of(number: int, size: int = 20_000) -> bytes:
    return number.to_bytes(4, "little") * (size // 4)


def run_python(code: str, *arguments: object) -> Any:
    """The JSON that a process of its own prints last: it may fork, which pytest's threads forbid."""
    done = start_python(code, *arguments)
    out, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    return json.loads(out.strip().split("\n")[-1])


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
