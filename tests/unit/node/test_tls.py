"""Certificates of the peer port: what is wrong with them is said in words, and renewed ones count."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path

import pytest

from crdtchain.errors import UsageError
from node.tls import ServerTls, make_client_context
from tests.certificates import Authority


def serial(tls: ServerTls, authority: Path) -> object:
    """Return the serial number of the certificate that a client gets to see."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = tls.context.wrap_bio(to_server, to_client, server_side=True)
    client = make_client_context(str(authority)).wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return (client.getpeercert() or {})["serialNumber"]


def test_a_certificate_serves_and_a_renewed_one_takes_its_place(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("node")
    tls = ServerTls.open(str(certificate), str(key))
    assert tls is not None
    before = serial(tls, authority.path)
    fresh = authority.sign("fresh")
    for source, target in zip(fresh, (certificate, key), strict=True):
        shutil.copy(source, target)
    assert tls._has_changed() and not tls._has_changed()
    tls.reload()
    assert serial(tls, authority.path) != before
    assert ServerTls.open("", "") is None


def test_a_bad_renewal_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("node")
    tls = ServerTls(str(certificate), str(key))
    before = serial(tls, authority.path)
    shutil.copy(authority.sign("fresh")[0], certificate)
    tls.reload()
    assert serial(tls, authority.path) == before
    assert "is not the one of the certificate" in caplog.text


def test_what_is_wrong_with_the_files_is_told(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.sign("good")
    other, other_key = authority.sign("other")
    expired = authority.sign("expired", begin_days=-30, end_days=-1)
    early = authority.sign("early", begin_days=2)
    locked = authority.sign("locked", passphrase=b"secret")
    empty = tmp_path / "empty"
    empty.touch()
    for files, text in (
        ((certificate, ""), "tls_key is missing"),
        (("", key), "tls_cert is missing"),
        ((tmp_path / "none", key), "tls_cert: the file .*none is missing"),
        ((certificate, tmp_path / "none"), "tls_key: the file .*none is missing"),
        ((tmp_path, key), "tls_cert: the file .* can't be read: Is a directory"),
        ((empty, key), "not a certificate and its key in PEM form"),
        ((key, certificate), "not a certificate and its key in PEM form"),
        ((certificate, other_key), "is not the one of the certificate"),
        ((other, key), "is not the one of the certificate"),
        (expired, "has expired"),
        (early, "is not valid yet"),
        (locked, "without a passphrase"),
    ):
        with pytest.raises(UsageError, match=text):
            ServerTls.open(*map(str, files))
    if os.geteuid():
        key.chmod(0)
        with pytest.raises(UsageError, match=r"tls_key: .*can't be read: Permission denied"):
            ServerTls(str(certificate), str(key))


def test_a_certificate_that_ends_soon_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    certificate, key = Authority(tmp_path).sign("node", end_days=3)
    ServerTls(str(certificate), str(key))
    assert "ends on" in caplog.text


def test_an_authority_is_read_or_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    assert make_client_context(str(authority.path)).verify_mode is ssl.CERT_REQUIRED
    empty = tmp_path / "empty"
    empty.write_text("nothing")
    for path, text in ((empty, "holds no certificates"), (tmp_path / "none", "is missing")):
        with pytest.raises(UsageError, match=f"tls_ca: .*{text}"):
            make_client_context(str(path))
