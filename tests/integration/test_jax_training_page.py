"""The code of docs/jax-training.md runs, on eight forced devices, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from leptonstore.store import Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "jax-training.md"


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_the_code_of_the_page_runs(store: Store) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 2
    opened = "import sys\nfrom leptonstore.store import Store\nstore = Store.open(sys.argv[1])\n"
    program = opened + "\n".join(blocks) + "\nassert 'torch' not in sys.modules\n"
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", program, store.url]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
