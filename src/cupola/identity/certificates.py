"""A private certificate authority and the server's certificate, so that TLS works with no outside help.

The extensions are those that Python 3.13's strict verification wants (wire contract, section 1.5).
"""

from __future__ import annotations

import datetime
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cupola.identity.secret import write_private

AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
RENEW_BEFORE_DAYS = 30


@dataclass(frozen=True)
class Certificates:
    """Files in one directory. `bundle` is the private authority and the public ones: what clients need to trust."""

    directory: Path

    @property
    def authority(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def bundle(self) -> Path:
        return self.directory / "bundle.pem"

    @property
    def chain(self) -> Path:
        return self.directory / "server.pem"

    @property
    def key(self) -> Path:
        return self.directory / "server.key"


def ensure_certificates(directory: Path, now: datetime.datetime, public_roots: Path | None = None) -> Certificates:
    """Make what is missing, and renew the server's certificate in its last days. `now` is in UTC.

    `public_roots` is a file of the authorities that clients trust besides; certifi's if it is not given.
    """
    directory.mkdir(parents=True, exist_ok=True)
    files = Certificates(directory)
    authority_key_file = directory / "ca.key"
    if not files.authority.exists() or not authority_key_file.exists():
        authority, authority_key = _make_authority(now)
        write_private(authority_key_file, _pem(authority_key))
        files.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        files.chain.unlink(missing_ok=True)
    authority = x509.load_pem_x509_certificate(files.authority.read_bytes())
    if _needs_renewal(files.chain, now) or not files.key.exists():
        key = serialization.load_pem_private_key(authority_key_file.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise TypeError(f"{authority_key_file} does not hold an elliptic curve key")
        certificate, server_key = _make_server_certificate(authority, key, now)
        write_private(files.key, _pem(server_key))
        files.chain.write_bytes(
            b"".join(item.public_bytes(serialization.Encoding.PEM) for item in (certificate, authority))
        )
    files.bundle.write_bytes(files.authority.read_bytes() + (public_roots or Path(certifi.where())).read_bytes())
    return files


def _needs_renewal(path: Path, now: datetime.datetime) -> bool:
    if not path.exists():
        return True
    ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    return ends - now < datetime.timedelta(days=RENEW_BEFORE_DAYS)


def _make_authority(now: datetime.datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Cupola private CA on {socket.gethostname()}"[:64])])
    certificate = (
        _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate, key


def _make_server_certificate(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, now: datetime.datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    alternatives: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    host = socket.gethostname()
    if host and host != "localhost" and host.isascii():
        alternatives.append(x509.DNSName(host))
    identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(name, authority.subject, key.public_key(), now, SERVER_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=sign_certificates, crl_sign=sign_certificates, encipher_only=False,
        decipher_only=False,
    )  # fmt: skip


def _pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
