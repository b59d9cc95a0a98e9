from __future__ import annotations

import datetime
import ssl
import stat
from pathlib import Path

import certifi
import pytest
from cryptography import x509

from cupola.identity.certificates import (
    AUTHORITY_DAYS,
    RENEW_BEFORE_DAYS,
    SERVER_DAYS,
    Certificates,
    ensure_certificates,
)

NOW = datetime.datetime.now(datetime.UTC)


def days(number: float) -> datetime.timedelta:
    return datetime.timedelta(days=number)


@pytest.fixture
def files(tmp_path: Path) -> Certificates:
    return ensure_certificates(tmp_path / "tls", NOW)


def handshake(files: Certificates, host: str, trusted: Path) -> bytes:
    """A TLS handshake in memory, as strict as Python 3.13 is by default; returns what the client read."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(files.chain, files.key)
    client_side = ssl.create_default_context(cafile=str(trusted))
    client_side.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    for _ in range(20):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            done.add(side)
        if len(done) == 2:
            break
    server.write(b"hello")
    return client.read()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_strict_client_that_trusts_the_authority_accepts_the_server(files: Certificates, host: str) -> None:
    assert handshake(files, host, files.authority) == b"hello"
    assert handshake(files, host, files.bundle) == b"hello"


def test_another_host_is_not_vouched_for(files: Certificates) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"[Hh]ostname mismatch"):
        handshake(files, "example.com", files.authority)


def test_another_authority_does_not_vouch_for_the_server(files: Certificates, tmp_path: Path) -> None:
    other = ensure_certificates(tmp_path / "other", NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="verify failed"):
        handshake(files, "localhost", other.authority)


def test_the_bundle_holds_the_public_authorities_as_well(files: Certificates) -> None:
    bundle = files.bundle.read_bytes()
    assert bundle == files.authority.read_bytes() + Path(certifi.where()).read_bytes()


def test_keys_can_be_read_by_their_owner_only(files: Certificates) -> None:
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((files.directory / name).stat().st_mode) == 0o600


def test_the_authority_can_sign_servers_only_and_the_server_nothing(files: Certificates) -> None:
    server, authority = x509.load_pem_x509_certificates(files.chain.read_bytes())
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not server.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    assert server.not_valid_after_utc - NOW < days(SERVER_DAYS + 1)
    assert authority.not_valid_after_utc - NOW < days(AUTHORITY_DAYS + 1)


def contents(files: Certificates) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in files.directory.iterdir()}


def test_asking_again_changes_nothing(files: Certificates) -> None:
    before = contents(files)
    assert set(before) == {"ca.pem", "ca.key", "bundle.pem", "server.pem", "server.key"}
    ensure_certificates(files.directory, NOW + days(SERVER_DAYS - RENEW_BEFORE_DAYS - 1))
    assert contents(files) == before


def test_the_server_certificate_is_renewed_in_its_last_days_under_the_same_authority(files: Certificates) -> None:
    before = contents(files)
    later = NOW + days(SERVER_DAYS - RENEW_BEFORE_DAYS + 1)
    ensure_certificates(files.directory, later)
    after = contents(files)
    assert {name for name in after if after[name] != before[name]} == {"server.pem", "server.key"}
    (server, _) = x509.load_pem_x509_certificates(after["server.pem"])
    assert server.not_valid_after_utc > later + days(SERVER_DAYS - 1)


@pytest.mark.parametrize("lost", ["ca.pem", "ca.key"])
def test_an_authority_that_is_not_whole_is_made_anew_with_all_it_vouched_for(files: Certificates, lost: str) -> None:
    before = contents(files)
    (files.directory / lost).unlink()
    ensure_certificates(files.directory, NOW)
    after = contents(files)
    assert all(after[name] != before[name] for name in before)
    assert handshake(files, "localhost", files.authority) == b"hello"


@pytest.mark.parametrize("lost", ["server.pem", "server.key"])
def test_a_server_certificate_or_key_that_was_lost_is_made_anew(files: Certificates, lost: str) -> None:
    authority = files.authority.read_bytes()
    (files.directory / lost).unlink()
    ensure_certificates(files.directory, NOW)
    assert files.authority.read_bytes() == authority
    assert handshake(files, "localhost", files.authority) == b"hello"
