"""docs/serving.md: a model `mnist-cnn`, a server of it, and images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from urllib.request import Request, urlopen

import numpy as np
import torch

from tests.integration.docs_blocks import Place
from tests.integration.training_data import patterns, quick_config, write_patterns
from trainers.deploy import deploy, load_bundle
from trainers.loop import Trainer
from trainers.serving.limits import ServeLimits
from trainers.serving.model import Served
from trainers.serving.server import ModelServer


def setting(place: Place) -> Iterator[None]:
    Trainer(quick_config(), place.store, write_patterns(place.store), run="run").fit(max_steps=2)
    deploy(place.store, "run", "mnist-cnn")
    place.names |= {"store": place.store, "images": patterns(40)[0], "json": json, "np": np, "torch": torch}
    place.names |= {"Request": Request, "urlopen": urlopen}
    bundle = load_bundle(place.store, "mnist-cnn")
    with ModelServer(Served.of(bundle), ServeLimits(batch_rows=32), threads=1) as server:
        place.names["server_url"] = server.url
        yield
    assert place.names["logits"].shape == (40, 3)
