"""Runs the examples of docs/feeds.md, in one process with eight JAX devices. Run by test_feeds_page.py.

python feeds_run.py PAGE STORE
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from leptonstore.dataset import Dataset


def main(page: str, store: str) -> None:
    names: dict[str, Any] = {"ds": Dataset.open(store, "samples")}
    examples = re.findall(r"^```python\n(.*?)^```", Path(page).read_text(), re.MULTILINE | re.DOTALL)
    for number, example in enumerate(examples):
        exec(compile(example, f"example {number + 1}", "exec"), names)  # so that a traceback says which
    print(len(examples))


if __name__ == "__main__":
    main(*sys.argv[1:])
