"""By what the members of a cluster know each other: a secret that all of them have, in the credential of each call.

It is given to each daemon, or is a document of the store's home, `cluster/secret`: whoever can read that place can read every pack there,
which is all that the credential opens (scope `peer`: blocks of packs as they are stored; in an encrypted store they are sealed).
"""

from __future__ import annotations

import hmac
import secrets

from leptonstore.digest import digest_of
from leptonstore.errors import BadInput, NotPermitted
from leptonstore.tiers.roles import HomeWriter

DOCUMENT = "cluster/secret"
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 16, 1024


def shared_secret(home: HomeWriter) -> bytes:
    """The store's own, which is made when there is none. Raises NotPermitted: this user cannot make one."""
    for _ in range(2):
        found = home.read_document(DOCUMENT, SECRET_BYTES_MAX)
        if found is not None:
            return require_secret(found)
        try:
            home.create_document(DOCUMENT, secrets.token_hex(32).encode())
        except NotPermitted:
            raise NotPermitted(
                f"{home.url if hasattr(home, 'url') else 'the store'} has no cluster secret, and this user cannot make one: give each "
                "daemon the same secret"
            ) from None
    raise BadInput("the cluster's secret comes and goes: look at who else writes to the store's home")


def require_secret(secret: bytes) -> bytes:
    """`secret`, when it is long enough. Raises BadInput."""
    secret = secret.strip()
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise BadInput(f"a cluster secret of {len(secret)} bytes: give {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}")
    return secret


def peer_token(secret: bytes) -> str:
    """The bearer token of a member: made from the secret, which it does not tell."""
    return "lpeer_" + digest_of(b"leptonstore peer token 1\0" + secret).hex()


def is_peer(authorization: str | None, secret: bytes) -> bool:
    """Whether `authorization` (the header's value) is that of a member."""
    return authorization is not None and hmac.compare_digest(
        authorization.encode(errors="replace"), f"Bearer {peer_token(secret)}".encode()
    )
