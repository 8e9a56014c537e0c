"""TLS of the peer port, and of the connections that this node dials.

The peer port has a certificate and its key in two PEM files. They are tried against each other before the port opens,
by a handshake in memory, so that what is wrong with them is said in words; afterwards they are followed: a renewed
certificate counts for new connections.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from pathlib import Path
from typing import Final

from crdtchain.errors import UsageError
from node.watched import WatchedFile

FOLLOW_S: Final = 30.0
"""So often the files are looked at."""
SOON_S: Final = 7 * 86_400
"""A certificate that ends within it is warned of."""
_EXPIRED: Final = 10
_NOT_YET: Final = 9
"""Codes of OpenSSL's verification."""

log = logging.getLogger(__name__)


def make_client_context(authority: str = "") -> ssl.SSLContext:
    """Return how this node checks others' certificates: by the system's authorities, and one of its own.

    Raises:
        UsageError: the authority's file can't be used.
    """
    context = ssl.create_default_context()
    if authority:
        # A certificate that was signed by itself is trusted when the file names it, though it is no authority.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(cafile=authority)
        except OSError as error:
            raise UsageError(f"tls_ca: {_describe(Path(authority), error, 'certificates')}") from None
    return context


class ServerTls:
    """The peer port's certificate."""

    def __init__(self, certificate: str, key: str) -> None:
        """Read and try both files.

        Raises:
            UsageError: they can't be used.
        """
        self._certificate, self._key = Path(certificate), Path(key)
        self._watched = (WatchedFile(self._certificate), WatchedFile(self._key))
        self._has_changed()
        self.context = self._make()
        check_certificate(self.context, self._certificate)

    @classmethod
    def open(cls, certificate: str, key: str) -> ServerTls | None:
        """Return the certificate that settings name, or None when they name none.

        Raises:
            UsageError: only one of the two is named, or they can't be used.
        """
        if not certificate and not key:
            return None
        if not certificate or not key:
            raise UsageError(f"tls_{'key' if certificate else 'cert'} is missing: TLS needs tls_cert and tls_key")
        return cls(certificate, key)

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        for name, path in (("tls_cert", self._certificate), ("tls_key", self._key)):
            try:
                with path.open("rb"):
                    pass
            except OSError as error:
                raise UsageError(f"{name}: {_describe(path, error, 'PEM')}") from None
        try:
            context.load_cert_chain(self._certificate, self._key, password=_refuse_password)
        except OSError as error:
            if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
                text = f"the key {self._key} is not the one of the certificate {self._certificate}"
                raise UsageError(f"tls_key: {text}") from None
            both = f"{self._certificate} and {self._key}"
            raise UsageError(f"TLS: {both} are not a certificate and its key in PEM form") from None

    def _has_changed(self) -> bool:
        # Each is asked, so that each remembers.
        return True in [watched.has_changed() for watched in self._watched]

    def reload(self) -> None:
        """Read the files again, for new connections; what can't be used is told, and the old ones stay."""
        try:
            check_certificate(self._make(), self._certificate)
            self._load(self.context)
        except UsageError as error:
            log.warning("The certificate stays the old one: %s.", error)
            return
        log.info("The certificate of the peer port was read again.")

    async def follow(self) -> None:
        """Read the files again whenever they change."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            if self._has_changed():
                # A program that renews writes one file after the other.
                await asyncio.sleep(2)
                self._has_changed()
                self.reload()


def _refuse_password() -> str:
    raise UsageError("tls_key: the key is encrypted; a node needs one without a passphrase")


def check_certificate(context: ssl.SSLContext, certificate: Path) -> None:
    """Try a server's certificate with a client that trusts it alone.

    Raises:
        UsageError: it is expired, or not valid yet, or can't be used.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cafile=certificate)
        found = _shake_hands(context, client)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_EXPIRED, _NOT_YET):
            word = "has expired" if error.verify_code == _EXPIRED else "is not valid yet"
            raise UsageError(f"tls_cert: the certificate {certificate} {word}: renew it, or set the clock") from None
        raise UsageError(f"tls_cert: the certificate {certificate} can't be used: {error.verify_message}") from None
    except OSError as error:
        raise UsageError(f"tls_cert: the certificate {certificate} can't be used: {error}") from None
    if isinstance(end := found.get("notAfter"), str) and ssl.cert_time_to_seconds(end) < time.time() + SOON_S:
        log.warning("The certificate %s ends on %s.", certificate, end)


def _shake_hands(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> dict[str, object]:
    """Return the certificate that a server shows to a client, both in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    client = client_context.wrap_bio(to_client, to_server)
    # A handshake takes two flights each way; more would be a fault of ours.
    done: set[ssl.SSLObject] = set()
    for _ in range(8):
        for side in (client, server):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
        if len(done) == 2:
            break
    return dict(client.getpeercert() or {})


def _describe(path: Path, error: OSError, what: str) -> str:
    if isinstance(error, ssl.SSLError):
        return f"the file {path} holds no {what}"
    if isinstance(error, FileNotFoundError):
        return f"the file {path} is missing"
    return f"the file {path} can't be read: {error.strerror or os.strerror(error.errno or 0)}"
