"""The list of a private network: which nodes' keys may connect, both ways.

`peers.allow` has one did:key a line. No file: everybody may. A file without keys: nobody may. The file is read again
when it changes; while it can't be read or understood, the last list stays, and so it does when the file goes away
while the node runs: a private network never becomes an open one by a slip.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from crdtchain.codec import format_did, parse_did
from crdtchain.errors import CrdtchainError, PeerError, UsageError
from crdtchain.scalars import Author
from node.watched import WatchedFile, read_lines

ALLOW_FILE: Final = "peers.allow"
ALLOW_HEADER: Final = "Nodes that may connect, one did:key a line; without any line nobody may."
REFUSED: Final = "the key of one node is not on the other's list of allowed peers"
"""Both sides read it, so it takes neither's view."""

log = logging.getLogger(__name__)


class Allow:
    """Says which keys may connect."""

    def __init__(self, path: Path, is_required: bool = False) -> None:
        """`is_required`: the file was named by a setting, so it has to be there.

        Raises:
            UsageError: it is not, or is no list of keys.
        """
        self._watched = WatchedFile(path)
        self._keys: frozenset[Author] | None = None
        self._watched.has_changed()
        self._keys = read_keys(path)
        if is_required and self._keys is None:
            raise UsageError(f"the file {path} with the allowed peers is missing: add one with 'crdtchain peers allow'")

    @classmethod
    def open(cls, folder: Path, setting: str) -> Allow:
        """Return the list that a setting names, or else that of the data folder.

        Raises:
            UsageError: it can't be read, or is no list of keys.
        """
        return cls(folder / (setting or ALLOW_FILE), is_required=bool(setting))

    @property
    def is_private(self) -> bool:
        """Whether there is a list at all."""
        return self.keys is not None

    @property
    def keys(self) -> frozenset[Author] | None:
        """The allowed keys; None: everybody."""
        if self._watched.has_changed():
            self._reload()
        return self._keys

    def _reload(self) -> None:
        path = self._watched.path
        try:
            keys = read_keys(path)
        except UsageError as error:
            log.warning("The list of allowed peers stays as it was: %s.", error)
            return
        if keys is None and self._keys is not None:
            log.warning("%s is gone; its list holds until this node is started again.", path)
            return
        if keys != self._keys:
            self._keys = keys
            log.info("Allowed peers: %d keys in %s.", len(keys or ()), path)

    def is_allowed(self, key: Author) -> bool:
        """Whether a node may be connected."""
        keys = self.keys
        return keys is None or key in keys

    def check(self, key: Author) -> None:
        """Check the proven key of a peer.

        Raises:
            PeerError: it is not on the list.
        """
        if not self.is_allowed(key):
            log.info("A node that is not on the list of allowed peers was refused: %s.", format_did(key))
            raise PeerError(REFUSED)


def read_keys(path: Path) -> frozenset[Author] | None:
    """Return the keys of a file; None when there is no such file.

    Raises:
        UsageError: it can't be read, or a line is no did:key.
    """
    lines = read_lines(path)
    if lines is None:
        return None
    keys = set[Author]()
    for line in lines:
        try:
            keys.add(parse_did(line))
        except CrdtchainError as error:
            raise UsageError(f"{path}: {line[:100]!r} is no did:key: {error}") from None
    return frozenset(keys)
