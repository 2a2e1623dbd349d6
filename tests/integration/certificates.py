"""Certificates for tests of TLS: an authority's, and what it signs. Without `cryptography` the module that imports this is skipped."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

x509 = pytest.importorskip("cryptography.x509")
from cryptography.hazmat.primitives import hashes, serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec  # noqa: E402
from cryptography.x509.oid import NameOID  # noqa: E402

HERE: tuple[Any, ...] = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


class Made(NamedTuple):
    """A certificate and its key, as objects, and as PEM files."""

    certificate: Any
    key: Any
    chain: Path
    key_file: Path


def make(
    folder: Path,
    name: str,
    by: Made | None = None,
    alternative: Sequence[Any] = (),
    common: Sequence[str] | None = None,
) -> Made:
    """NAME.crt and NAME.key in `folder`: of an authority, or signed by one. alternative: its names; common: its common names (NAME)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one) for one in (common or [name])])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), True)
    )
    if alternative:
        made = made.add_extension(x509.SubjectAlternativeName(alternative), False)
    certificate = made.sign(key if by is None else by.key, hashes.SHA256())
    chain, key_file = folder / f"{name}.crt", folder / f"{name}.key"
    chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    key_file.chmod(0o600)
    return Made(certificate, key, chain, key_file)
