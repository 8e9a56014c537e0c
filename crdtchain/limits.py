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

SCOPE_BYTES_MAX: Final = 8_192
"""Bytes of what a partial replica says that it keeps."""

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
CONNECTIONS_OUT_MAX: Final = 8
CONNECTIONS_ADDRESS_MAX: Final = 4
SOCKETS_MAX: Final = 128
"""Connections to the peer port, whatever they ask for: a process has few descriptors, and its store needs some."""
SOCKETS_ADDRESS_MAX: Final = 16
"""Of them, those of one address."""
HALF_OPEN_MAX: Final = 32
"""Peers that have not finished their handshake."""
HANDSHAKE_S: Final = 10
PING_S: Final = 20
HTTP_BODY_BYTES_MAX: Final = 2**20

AHEAD_TAKE_MS: Final = 300_000
"""An op dated so far ahead of our clock is taken at once."""
AHEAD_HOLD_MS: Final = 900_000
"""An op dated so far ahead is held until its time has come; one further ahead is not taken for now."""
HELD_OPS_MAX: Final = 1_024
HELD_BYTES_MAX: Final = 4 * 2**20
HELD_PEER_OPS_MAX: Final = 64
HELD_PEER_BYTES_MAX: Final = 512 * 1024

AUTHOR_OPS_S: Final = 10
"""Live ops of one author with credits, a second."""
AUTHOR_OPS_BURST: Final = 200
NEWCOMER_OPS_S: Final = 1
"""Live ops of all authors without credits together, a second."""
NEWCOMER_OPS_BURST: Final = 16
WITNESS_OPS_S: Final = 100
"""Live ops of one witness, a second."""
WITNESS_OPS_BURST: Final = 2_000
AUTHORS_MAX: Final = 16_384
"""Authors whose allowances are kept at once; further ones share that of authors without credits."""
REMEMBERED_MAX: Final = 8_192
"""Deferred ops that are remembered, so that what follows them on their chains is deferred too, and charged ones."""
NEEDED_STEPS_MAX: Final = 256
"""So many waiting ops are looked at to find out whether one of them needs an op."""
PULL_DELAY_S: Final = (1, 60)
"""How long a peer that offered too much is not asked for what it has besides: at first, and at most."""

LINK_OPS_S: Final = 200
"""Live ops of one connection, a second."""
LINK_OPS_BURST: Final = 2_000
LINK_BYTES_S: Final = 2**20
"""Live bytes of one connection, a second."""
LINK_BYTES_BURST: Final = 2**23
LINK_WORK_S: Final = 400
"""Work that a peer's requests may cost, a second, in units of `node.admission.WORK`."""
LINK_WORK_BURST: Final = 2_000

QUOTA_PERCENT: Final = 90
"""Above this part of the quota, or of the room that there is, foreign ops and blobs are refused."""

PENALTY_HALF_LIFE_MS: Final = 3_600_000
"""Broken rules count half after so long."""
PENALTY_SCORE_MAX: Final = 4
"""From this score on, the square of the number of broken rules, new connections are refused for a while."""
PENALTY_STEP_MS: Final = 15_000
"""How long they are refused for each point of the score."""
PENALTY_MAX_MS: Final = 3_600_000
PENALTIES_MAX: Final = 4_096
"""Nodes and addresses whose broken rules are remembered; the least burdened are forgotten first."""

SKEW_MAX_MS: Final = 300_000
"""A witness whose clock differs more from its peers' stops, or by more than Δ, if that is less."""
SKEW_MIN_MS: Final = 60_000
"""A smaller difference stops nobody, however small Δ is: what a peer tells takes time to come."""
SKEW_PEERS_MIN: Final = 3
"""So many peers' clocks make a judgement."""
SKEW_ODD_MS: Final = 86_400_000
"""A clock that differs by more is broken, and left out."""
