"""Fixtures of a real S3 server (leptonstore/testing/seaweed.py), started once by the first test that needs it.

It is killed at the end of the session. Each test gets a bucket of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from leptonstore.testing.seaweed import Server, make_bucket, start, stop


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of this session."""
    server = start(tmp_path_factory.mktemp("weed"))
    try:
        yield server
    finally:
        stop(server)


@pytest.fixture
def bucket_url(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A prefix of a new bucket; the environment has what S3 clients need for it."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{make_bucket(s3_server)}/some/prefix"
