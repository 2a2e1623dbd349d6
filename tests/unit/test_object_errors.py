"""What a failed request means: by the status and the code of the answer, never by numbers that stand elsewhere in its text."""

from __future__ import annotations

import pytest

from leptonstore.errors import NotPermitted, StoreFull, TierMissing, TierUnavailable
from leptonstore.tiers.object_client import Client, _gave_up_early


class GenericError(Exception):
    """Of obstore's, by name."""


def body(code: str) -> str:
    return f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>m</Message><RequestId>507403</RequestId></Error>'


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Error performing GET http://h:50700/b in 507ms - HTTP error: error sending request", TierUnavailable),
        (
            "in 403.1ms after 8 retries - Server returned non-2xx status code: 503 Unavailable: " + body("SlowDown"),
            TierUnavailable,
        ),
        ("status code: 507 Insufficient Storage: ", StoreFull),
        ("status code: 403 Forbidden: " + body("QuotaExceeded"), StoreFull),
        ("status code: 403 Forbidden: " + body("SignatureDoesNotMatch"), NotPermitted),
        ("status code: 400 Bad Request: " + body("ExpiredToken"), NotPermitted),
        ("status code: 404 Not Found: " + body("NoSuchBucket"), TierMissing),
        ("Error performing PUT http://169.254.169.254/latest/api/token in 5s - HTTP error", NotPermitted),
    ],
)
def test_an_error_is_told_by_what_the_server_said(text: str, kind: type[Exception]) -> None:
    told = Client("s3://b/p", lambda obstore: None).error(GenericError(text), "config")
    assert type(told) is kind
    assert str(told).startswith("s3://b/p") and "\n" not in str(told) and len(str(told)) < 700


def test_what_a_server_says_is_bounded_and_printable() -> None:
    told = Client("s3://b/p", lambda obstore: None).error(GenericError("x\x1b[31m\r\n" * 10_000), "log/1")
    assert str(told).isprintable() and len(str(told)) < 700


def test_an_object_that_is_not_there_is_no_failure() -> None:
    client = Client("s3://b/p", lambda obstore: None)
    told = client.error(FileNotFoundError("status code: 404 Not Found: " + body("NoSuchKey")), "log/1")
    assert isinstance(told, FileNotFoundError) and told.filename == "s3://b/p/log/1"


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("Error performing HEAD http://h:1/b in 258.7us - HTTP error: error sending request", True),
        ("in 3s, after 2 retries, max_retries: 8 - HTTP error: error sending request", True),
        ("in 3s, after 8 retries, max_retries: 8 - HTTP error: error sending request", False),
        ("in 3s - Server returned non-2xx status code: 404 Not Found", False),
    ],
)
def test_a_connection_that_ended_is_tried_again_as_long_as_tries_are_left(text: str, again: bool) -> None:
    assert _gave_up_early(text) is again
