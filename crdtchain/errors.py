"""Every exception of crdtchain, in one tree; the class shows whose fault it is.

A handler that catches `CrdtchainError` catches all of them. Each carries its evidence as attributes, and its text
is one sentence a person can act on. The command line maps the classes to its exit codes.
"""

from __future__ import annotations


class CrdtchainError(Exception):
    """Base of all: never raised itself."""


class UsageError(CrdtchainError):
    """The caller's words or files are wrong; nothing was changed."""


class InvalidOpError(CrdtchainError):
    """An op breaks a rule and is refused for ever.

    Attributes:
        code: a stable word for the rule, as listed in docs/protocol.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class DecodeError(InvalidOpError):
    """Bytes that are not in the encoding profile or not the shape of an op."""


class SignatureError(InvalidOpError):
    """A key or signature that the signature rule refuses."""


class RuleError(InvalidOpError):
    """A well-formed, signed op that breaks a causal rule."""


class PeerError(CrdtchainError):
    """The other side of a connection broke the protocol or went away.

    Attributes:
        code: a stable word for the reason, for counters.
    """

    def __init__(self, text: str = "", code: str = "protocol") -> None:
        super().__init__(text)
        self.code = code


class NoPeerError(PeerError):
    """Nobody answers at an address."""


class StoreError(CrdtchainError):
    """The disk or the database can't do what is needed."""


class StoreFullError(StoreError):
    """No space is left; reads go on, and nothing half-written stays."""


class StoreBusyError(StoreError):
    """Another process uses this data folder."""


class StoreVersionError(StoreError):
    """The database was written by a newer version."""


class KeyFileError(CrdtchainError):
    """A key file is missing, unreadable, or readable by others."""


class SandboxError(CrdtchainError):
    """No sandbox can be used, or the one in use went away."""


class ModelError(CrdtchainError):
    """A model, data or prediction file is not what its schema says."""
