"""Fixtures of the integration tests: a real S3 server."""

from __future__ import annotations

from tests.integration.seaweed import bucket_url, s3_server

__all__ = ["bucket_url", "s3_server"]
