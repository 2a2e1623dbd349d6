"""Fixtures of the integration tests: a real S3 server, and a small dataset that can be learnt."""

from __future__ import annotations

import pytest
from training_data import write_patterns

from leptonstore.dataset import Dataset
from leptonstore.store import Store
from tests.integration.seaweed import bucket_url, s3_server

__all__ = ["bucket_url", "patterns", "s3_server"]


@pytest.fixture
def patterns(store: Store) -> Dataset:
    """50 + 21 rows of three classes (training_data)."""
    return write_patterns(store)
