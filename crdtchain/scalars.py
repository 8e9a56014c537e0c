"""Names for the plain values that travel everywhere, so that a type says what a number means."""

from __future__ import annotations

from typing import NewType

OpId = NewType("OpId", bytes)
"""The 36 bytes of an op's CIDv1: 01 71 12 20 and the SHA-256 of its block."""

BlobId = NewType("BlobId", bytes)
"""The 36 bytes of a blob's CIDv1: raw (01 55 12 20 …), or dag-cbor for a list of chunks."""

Author = NewType("Author", bytes)
"""An Ed25519 public key, 32 bytes: one key, one device, one chain."""

Millis = NewType("Millis", int)
"""Milliseconds; as a time, since the Unix epoch."""

Credits = NewType("Credits", int)
"""An amount of credits, 0 … 2^53 - 1."""

Micros = NewType("Micros", int)
"""A loss in millionths, 0 or more; lower is better."""
