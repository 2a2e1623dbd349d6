"""docs/serving.md: its code runs, and its tables are those of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import torch
from training_data import patterns, quick_config, write_patterns

from leptonstore.store import Store
from trainers.deploy import deploy, load_bundle
from trainers.loop import Trainer
from trainers.serving.limits import ServeLimits
from trainers.serving.metrics import ROUTES
from trainers.serving.model import Served
from trainers.serving.payload import ANSWERS, IMAGES
from trainers.serving.refusal import TYPES
from trainers.serving.server import ModelServer

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text()


def test_the_code_of_the_page_runs(store: Store) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        Trainer(quick_config(), store, write_patterns(store), run="run").fit(max_steps=2)
        deploy(store, "run", "mnist-cnn")
        images = patterns(40)[0]
        known: dict[str, Any] = {"store": store, "images": images, "json": json, "np": np, "torch": torch}
        known |= {"Request": Request, "urlopen": urlopen}
        server = ModelServer(Served.of(load_bundle(store, "mnist-cnn")), ServeLimits(batch_rows=32), threads=1)
        with server:
            known["server_url"] = server.url
            blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
            assert len(blocks) == 3
            for block in blocks:
                exec(block, known)
        assert known["logits"].shape == (40, 3)
    finally:
        torch.set_num_threads(threads)


def test_routes_types_and_errors_are_on_the_page() -> None:
    for name in (*ROUTES, *ANSWERS, *IMAGES):
        assert f"{name}`" in PAGE, name
    rows = [line for line in PAGE.splitlines() if re.match(r"\| \d{3}", line)]
    told: dict[str, int] = {}
    for row in rows:
        statuses, kinds, _ = (cell.strip() for cell in row.strip("|").split("|"))
        numbers = [int(number) for number in statuses.split(", ")]
        names = kinds.split(", ")
        told |= dict(zip(names, numbers * (len(names) if len(numbers) == 1 else 1), strict=True))
    assert told == TYPES
