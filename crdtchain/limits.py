"""Every bound in one place: those of the protocol (the same everywhere) and those of admission (local defaults).

A protocol bound has vectors at the bound and one beyond it. An admission limit only delays, holds or disconnects; it
never makes an op invalid.
"""

from __future__ import annotations

from typing import Final

INT_MAX: Final = 2**53 - 1
"""Largest integer in a block, and the largest amount."""

TIME_MAX_MS: Final = 2**52
BLOCK_BYTES_MAX: Final = 65_536
DEPTH_MAX: Final = 16
ITEMS_MAX: Final = 4_096
KEY_BYTES_MAX: Final = 64
TEXT_BYTES_MAX: Final = 8_192
BYTES_MAX: Final = 32_768
PARENTS_MAX: Final = 16
WITNESS_PARENTS_MAX: Final = 64

WITNESSES_MAX: Final = 32
GRANTS_MAX: Final = 1_000
NAME_BYTES_MAX: Final = 100
ABOUT_BYTES_MAX: Final = 1_000
MEMO_BYTES_MAX: Final = 200
TITLE_BYTES_MAX: Final = 200
TAGS_MAX: Final = 8
TAG_BYTES_MAX: Final = 50
EDITORS_MAX: Final = 32

BIDS_MAX: Final = 32
"""Bids of one author on one job, along one chain."""

EXAMINED_MAX: Final = 32
"""Revealed bids that an outcome examines."""

FORFEITS_MAX: Final = 500
VOTES_MAX: Final = 500

CODE_FILES_MAX: Final = 32
DATA_FILES_MAX: Final = 64
ARGV_MAX: Final = 32
ARG_BYTES_MAX: Final = 1_024
PARAMS_MAX: Final = 32
ARRAYS_MAX: Final = 256
DIMS_MAX: Final = 8
ELEMENTS_MAX: Final = 2**31

BLOB_BYTES_MAX: Final = 256 * 2**20
CHUNK_BYTES: Final = 2**20
BLOB_PIECE_BYTES: Final = 256 * 1024
BLOB_HOPS_MAX: Final = 4

FRAME_BYTES_MAX: Final = 2**20
BATCH_OPS_MAX: Final = 200
PAGE_BYTES: Final = 256 * 1024
WAITING_OPS_MAX: Final = 2_048
WAITING_BYTES_MAX: Final = 16 * 2**20
WAITING_MS_MAX: Final = 600_000
WAITING_PEER_OPS_MAX: Final = 64
WAITING_PEER_BYTES_MAX: Final = 512 * 1024
OUTBOUND_BYTES_MAX: Final = 4 * 2**20
CONNECTIONS_IN_MAX: Final = 64
CONNECTIONS_ADDRESS_MAX: Final = 4
HANDSHAKE_S: Final = 10
PING_S: Final = 20
HTTP_BODY_BYTES_MAX: Final = 2**20
