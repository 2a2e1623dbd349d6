"""s3://, gs:// and az:// -> ObjectTier.

Where credentials and endpoints come from: the variables of each provider, which obstore reads by itself (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME,
AZURE_STORAGE_ACCOUNT_KEY; and more). It does not read ~/.aws: when no variable names a key and botocore is installed (boto3 and
s3fs bring it), botocore is asked, which knows profiles, SSO and roles. Nothing secret may stand in a URL.
"""

from __future__ import annotations

import importlib
import os
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlparse

from leptonstore import limits
from leptonstore.errors import BadInput, TierUnavailable
from leptonstore.tiers.object import ObjectTier
from leptonstore.tiers.object_client import Client

SCHEMES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # as obstore looks for them


def open_bucket(url: str) -> ObjectTier:
    """The tier at s3://BUCKET[/PREFIX], gs://... or az://CONTAINER[/PREFIX]. No request is made. Raises BadInput, MissingExtra."""
    client = open_client(url)
    parsed = urlparse(client.url)
    if parsed.scheme != "s3":
        return ObjectTier(client)
    return ObjectTier(client, lambda: _abort_stale(parsed.netloc, parsed.path.strip("/")))


def open_client(url: str) -> Client:
    """Requests below such a URL. No request is made. Raises BadInput, MissingExtra."""
    url = url.rstrip("/")
    parsed = urlparse(url)
    if not parsed.netloc or "@" in parsed.netloc or parsed.query or parsed.fragment:
        raise BadInput(
            f"{parsed.scheme}://{parsed.hostname or ''}{parsed.path}: give {parsed.scheme}://BUCKET/PREFIX and nothing else; "
            "credentials and endpoints come from the environment"
        )
    if any(part in ("", ".", "..") for part in parsed.path.split("/")[1:]):
        raise BadInput(f"{url}: a prefix has no empty parts, and neither . nor ..")
    if parsed.scheme == "s3":
        _require_endpoint()
    return Client(url, lambda obstore: _make(obstore, parsed.scheme, url))


def _require_endpoint() -> None:
    """obstore ends in a panic where the endpoint is no URL. Raises BadInput."""
    for name in _ENDPOINTS:
        value = os.environ.get(name)
        if value and (urlparse(value).scheme not in ("http", "https") or not urlparse(value).hostname):
            raise BadInput(f"{name} is {value[:200]!r}: give http://HOST[:PORT] or https://HOST[:PORT]")


def _make(obstore: Any, scheme: str, url: str) -> Any:
    kind = getattr(obstore.store, SCHEMES[scheme])
    options: dict[str, Any] = {
        "client_options": {
            "allow_http": True,  # of an endpoint that the user chose
            "connect_timeout": timedelta(seconds=limits.OBJECT_CONNECT_S),
            "read_timeout": timedelta(seconds=limits.OBJECT_STALL_S),
            "timeout": timedelta(seconds=limits.OBJECT_REQUEST_S),
        },
        "retry_config": {
            "max_retries": limits.OBJECT_RETRIES_MAX,
            "retry_timeout": timedelta(seconds=limits.OBJECT_RETRY_S),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=limits.OBJECT_BACKOFF_S_MAX),
                "base": 2.0,
            },
        },
    }
    store = kind.from_url(url, **options)
    if scheme == "s3" and not any(name in os.environ for name in ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE")):
        session, found = _profile()
        if found is not None:
            region = session.get_config_variable("region")
            more = {"region": region} if region and "AWS_REGION" not in os.environ else {}
            store = kind.from_url(url, **options, credential_provider=_Credentials(found), **more)
    return store


class _Credentials:
    """What obstore asks for credentials: botocore's, which renews them by itself."""

    def __init__(self, found: Any) -> None:
        self._found = found

    def __call__(self) -> dict[str, Any]:
        frozen = self._found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=10),
        }


def _profile() -> tuple[Any, Any]:
    """botocore's session and the credentials that it finds, None where there are none (or no botocore). Raises BadInput."""
    try:
        botocore = importlib.import_module("botocore.session")
        errors = importlib.import_module("botocore.exceptions")
    except ImportError:
        return None, None
    try:
        session = botocore.Session()
        return session, session.get_credentials()
    except errors.BotoCoreError as error:
        raise BadInput(f"the AWS profile cannot be used: {error}") from None


def _abort_stale(bucket: str, prefix: str) -> int:
    """See object_uploads. 0 also where this user may not list uploads: they cost money, not data."""
    from leptonstore.tiers.object_uploads import Access, abort_stale

    key, secret, token = (
        os.environ.get(f"AWS_{name}", "") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")
    )
    if not key:
        _, found = _profile()
        if found is None:
            return 0
        frozen = found.get_frozen_credentials()
        key, secret, token = frozen.access_key, frozen.secret_key, frozen.token or ""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    try:
        return abort_stale(Access(bucket, key, secret, token, region, endpoint), prefix)
    except TierUnavailable:
        return 0
