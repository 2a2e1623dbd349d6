"""s3://, gs:// and az:// -> ObjectTier.

Where credentials and endpoints come from: the variables of each provider, which obstore reads by itself (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME,
AZURE_STORAGE_ACCOUNT_KEY; and more). It does not read ~/.aws: when no variable names a key and botocore is installed (boto3 and
s3fs bring it), botocore is asked, which knows profiles, SSO and roles. Nothing secret may stand in a URL.
"""

from __future__ import annotations

import importlib
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlparse

from leptonstore import limits
from leptonstore.errors import BadInput
from leptonstore.tiers.object import ObjectTier
from leptonstore.tiers.object_client import Client

SCHEMES = {"s3": "S3Store", "gs": "GCSStore", "az": "AzureStore"}


def open_bucket(url: str) -> ObjectTier:
    """The tier at s3://BUCKET[/PREFIX], gs://... or az://CONTAINER[/PREFIX]. No request is made. Raises BadInput, MissingExtra."""
    url = url.rstrip("/")
    parsed = urlparse(url)
    if not parsed.netloc or "@" in parsed.netloc or parsed.query or parsed.fragment:
        raise BadInput(
            f"{parsed.scheme}://{parsed.hostname or ''}{parsed.path}: give {parsed.scheme}://BUCKET/PREFIX and nothing else; "
            "credentials and endpoints come from the environment"
        )
    if any(part in ("", ".", "..") for part in parsed.path.split("/")[1:]):
        raise BadInput(f"{url}: a prefix has no empty parts, and neither . nor ..")
    return ObjectTier(Client(url, lambda obstore: _make(obstore, parsed.scheme, url)))


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
    if scheme == "s3" and not {"access_key_id", "skip_signature"} & _given(store):
        more = _from_botocore()
        if more:
            store = kind.from_url(url, **options, **more)
    return store


def _given(store: Any) -> set[str]:
    """The settings that obstore found."""
    return {str(name).removeprefix("aws_") for name in store.config}


def _from_botocore() -> dict[str, Any]:
    """What the user's AWS profile says, nothing when there is none (or no botocore)."""
    try:
        botocore = importlib.import_module("botocore.session")
        errors = importlib.import_module("botocore.exceptions")
    except ImportError:
        return {}
    try:
        session = botocore.Session()
        found = session.get_credentials()
        region = session.get_config_variable("region")
    except errors.BotoCoreError as error:
        raise BadInput(f"the AWS profile cannot be used: {error}") from None
    if found is None:
        return {}

    def credentials() -> dict[str, Any]:
        frozen = found.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=10),  # botocore renews them by itself
        }

    return {"credential_provider": credentials, **({"region": region} if region else {})}
