"""Multipart uploads that a crashed process left on S3: found and aborted. obstore cannot list them, so these two requests are signed here.

A bucket keeps the parts of an unfinished upload, and charges for them, until somebody ends it. The age of an upload is told by the server's
clock: the date of its own answer, less when it says that the upload began. GCS and Azure are left to their own rules (Azure drops
parts after a week); buckets whose keys only obstore knows (instance roles without botocore) to a lifecycle rule.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlparse
from xml.etree import ElementTree

from leptonstore import limits
from leptonstore.errors import TierUnavailable

_ANSWER_BYTES_MAX = 4 * limits.MIB  # a page of 1,000 uploads is about 500 KB
_EMPTY = hashlib.sha256(b"").hexdigest()
_UPLOAD_OF_OURS = re.compile(r"packs/[0-9a-f]{2}/[0-9a-f]{32}\.pack")


@dataclass(frozen=True)
class Access:
    """What it takes to sign requests to a bucket. `endpoint`: scheme://host[:port], or empty for AWS itself."""

    bucket: str
    key: str
    secret: str
    token: str
    region: str
    endpoint: str


def abort_stale(access: Access, prefix: str) -> int:
    """Abort the uploads of packs below `prefix` that began more than UPLOAD_STALE_S ago. Returns how many.

    Raises TierUnavailable. Of more than 1,000 uploads the rest is left to the next call.
    """
    start = f"{prefix}/" if prefix else ""
    headers, body = _request(access, "GET", "", {"max-uploads": "1000", "prefix": start, "uploads": ""})
    aborted = 0
    for upload in _uploads(body):
        key, upload_id, began = upload.get("Key", ""), upload.get("UploadId", ""), upload.get("Initiated", "")
        if not key.startswith(start) or not _UPLOAD_OF_OURS.fullmatch(key.removeprefix(start)):
            continue
        if _age_s(began, headers.get("Date", "")) > limits.UPLOAD_STALE_S:
            _request(access, "DELETE", key, {"uploadId": upload_id})
            aborted += 1
    return aborted


def _age_s(began: str, now: str) -> float:
    try:
        return (parsedate_to_datetime(now) - datetime.fromisoformat(began)).total_seconds()
    except (TypeError, ValueError):
        raise TierUnavailable("the server listed its uploads with times that are none") from None


def _uploads(body: bytes) -> list[dict[str, str]]:
    """The <Upload> elements of a listing. No document type is allowed in it: entities are how XML attacks its readers."""
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise TierUnavailable("the server listed its uploads in a way that is not S3's")
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        raise TierUnavailable("the server listed its uploads in a way that is not S3's") from None
    return [
        {child.tag.rpartition("}")[2]: child.text or "" for child in element}
        for element in root.iter()
        if element.tag.rpartition("}")[2] == "Upload"
    ]


def _request(access: Access, method: str, key: str, query: Mapping[str, str]) -> tuple[Mapping[str, str], bytes]:
    if access.endpoint:
        parsed = urlparse(access.endpoint)
        secure, host, path = parsed.scheme == "https", parsed.netloc, f"/{access.bucket}"
    else:
        secure, host, path = True, f"{access.bucket}.s3.{access.region}.amazonaws.com", ""
    path += "/" + quote(key, safe="/~") if key or not path else ""
    asked = "&".join(f"{quote(name, safe='~')}={quote(query[name], safe='~')}" for name in sorted(query))
    headers = _signed(access, method, host, path, asked)
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(host, timeout=limits.OBJECT_STALL_S)
    try:
        connection.request(method, f"{path}?{asked}", headers=headers)
        answer = connection.getresponse()
        body = answer.read(_ANSWER_BYTES_MAX)
        if answer.status not in (200, 204, 404):
            raise TierUnavailable(f"{access.bucket}: the server answered {answer.status} to a question for its uploads")
        return dict(answer.getheaders()), body
    except (OSError, http.client.HTTPException) as error:
        raise TierUnavailable(f"{access.bucket}: the server did not list its uploads ({error})") from None
    finally:
        connection.close()


def _signed(access: Access, method: str, host: str, path: str, asked: str) -> dict[str, str]:
    """AWS Signature Version 4 of a request without a body. This host's clock is in it, as in every signature."""
    now = datetime.now(UTC)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    headers = {"host": host, "x-amz-content-sha256": _EMPTY, "x-amz-date": stamp}
    if access.token:
        headers["x-amz-security-token"] = access.token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = "\n".join((method, path, asked, lines, names, _EMPTY))
    scope = f"{day}/{access.region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{access.secret}".encode()
    for part in (day, access.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    headers["Authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access.key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers
