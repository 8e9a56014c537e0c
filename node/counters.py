"""What a node counts: every limit, refusal and end of a connection, as text for Prometheus.

Invariant: names and labels are those of `CATALOGUE`, so what a stranger sends never becomes a name or a label, and
the memory and the answer are bounded. A peer's words are put into one of the classes of `Drop` by `classify`.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Final

from msgspec import Struct


class Drop(StrEnum):
    """Why a connection has ended. Those of a peer's faults are the codes of `PeerError`."""

    PROTOCOL = "protocol"
    """The peer sent bytes that are no message, or one that can't be."""
    UNASKED = "unasked"
    """It asked or answered when it was not its turn."""
    HANDSHAKE = "handshake"
    """It did not say hello and prove its key as it must, or not in time."""
    VERSION = "version"
    """It speaks another version."""
    NETWORK = "network"
    """It is of another network."""
    SELF = "self"
    """It is this node."""
    DUPLICATE = "duplicate"
    """There is another connection to its node."""
    INVALID_OP = "invalid_op"
    """It sent an op that breaks a rule, or whose signature does not hold."""
    BLOB = "blob"
    """It sent other bytes than those of the blob."""
    CREDIT = "credit"
    """It sent more live ops than it may."""
    NEGOTIATION = "negotiation"
    """It talked more about ops than those that came were worth."""
    SLOW = "slow"
    """It reads too slowly."""
    SILENT = "silent"
    """It does not answer."""
    BUSY = "busy"
    """This node has as many connections as it takes, or takes none from there for a while."""
    ALLOW = "allow"
    """One of the two keys is not on the other side's list of allowed peers."""
    STORE = "store"
    """This node could not store what came."""
    STOPPING = "stopping"
    """This node stops."""
    CLOSED = "closed"
    """The peer closed the connection."""
    BROKEN = "broken"
    """The connection broke."""
    OTHER = "other"
    """None of these."""


PENALIZED: Final = frozenset({Drop.PROTOCOL, Drop.UNASKED, Drop.INVALID_OP, Drop.BLOB, Drop.CREDIT})
"""Broken rules: no honest peer of this version ends a connection in one of these ways."""

_TEXTS: Final = (
    ("the peer closed", Drop.CLOSED),
    ("the connection broke", Drop.BROKEN),
    ("already connected", Drop.DUPLICATE),
    ("the peer did not say hello", Drop.HANDSHAKE),
    ("the peer said hello twice", Drop.HANDSHAKE),
    ("the peer could not prove its key", Drop.HANDSHAKE),
    ("the peer proved its key before", Drop.HANDSHAKE),
    ("the peer speaks version", Drop.VERSION),
    ("the peer is of another network", Drop.NETWORK),
    ("the peer is this node itself", Drop.SELF),
    ("the peer sent an op that breaks a rule", Drop.INVALID_OP),
    ("the peer sent a blob that nobody", Drop.UNASKED),
    ("the peer sent an answer that nobody", Drop.UNASKED),
    ("the peer acknowledged a page", Drop.UNASKED),
    ("the peer answered what was not asked", Drop.UNASKED),
    ("the peer sent a page before", Drop.UNASKED),
    ("the peer sent an empty page", Drop.UNASKED),
    ("the peer sent a page of live ops without", Drop.UNASKED),
    ("the peer asked again before", Drop.UNASKED),
    ("the peer asks about another scope", Drop.UNASKED),
    ("the peer asked for a blob before", Drop.UNASKED),
    ("the peer's requests do not ascend", Drop.UNASKED),
    ("the peer sent a piece of a blob", Drop.BLOB),
    ("the peer sent a blob of another size", Drop.BLOB),
    ("the peer sent a chunk that is not", Drop.BLOB),
    ("the peer sent another list of chunks", Drop.BLOB),
    ("the peer sent other bytes than", Drop.BLOB),
    ("the peer sent more than it may", Drop.BLOB),
    ("the peer sent more live ops", Drop.CREDIT),
    ("the peer negotiates without", Drop.NEGOTIATION),
    ("the peer asks for the same ops", Drop.NEGOTIATION),
    ("the peer reads too slowly", Drop.SLOW),
    ("the peer does not answer", Drop.SILENT),
    ("the key of one node is not on", Drop.ALLOW),
    ("this node can't store", Drop.STORE),
    ("this node is stopping", Drop.STOPPING),
    ("this node has as many", Drop.BUSY),
    ("this node makes room", Drop.BUSY),
    ("this node takes no connections", Drop.BUSY),
    # What is left of the texts that begin so is about the form of frames, lists, ids, regions and blocks.
    ("the peer asked ", Drop.PROTOCOL),
    ("the peer described ", Drop.PROTOCOL),
    ("the peer sent a", Drop.PROTOCOL),
)


def classify(reason: str, code: str = "") -> Drop:
    """Return the class of a reason for which a connection ended: its code, or what the text begins with.

    A peer's own words come behind ours ("the peer closed: …"), so they choose nothing.
    """
    if code in _CODES:
        return Drop(code)
    return next((drop for text, drop in _TEXTS if reason.startswith(text)), Drop.OTHER)


_CODES: Final = frozenset(drop.value for drop in Drop)


class Counter(Struct, frozen=True):
    """One thing that is counted."""

    name: str
    text: str
    label: str = ""
    values: tuple[str, ...] = ("",)
    """All values of the label."""


DEFERRED: Final = Counter(
    "crdtchain_admission_deferred_total",
    "Live ops that were not taken when they were offered; they are found later.",
    "limit",
    ("author", "newcomers", "witness", "chain", "ahead", "hold"),
)
HELD: Final = Counter("crdtchain_admission_held_total", "Live ops that were held until their claimed time came.")
NEEDED: Final = Counter("crdtchain_admission_needed_total", "Live ops taken above a limit because others need them.")
LIVE: Final = Counter("crdtchain_admission_taken_total", "Live ops that were taken when they were offered.")
PACED: Final = Counter(
    "crdtchain_paced_total", "Frames that a peer was made to wait for.", "limit", ("ops", "bytes", "work")
)
REFUSED: Final = Counter(
    "crdtchain_connections_refused_total",
    "Connections that were not let in.",
    "reason",
    ("sockets", "socket_address", "full", "address", "half_open", "penalty", "out", "stopping"),
)
EVICTED: Final = Counter(
    "crdtchain_connections_evicted_total", "Connections that asked for nothing useful and were ended to make room."
)
DROPS: Final = Counter(
    "crdtchain_drops_total", "Connections to peers that ended.", "reason", tuple(drop.value for drop in Drop)
)
PENALTIES: Final = Counter(
    "crdtchain_penalties_total", "Broken rules that were noted against somebody.", "against", ("node", "address")
)
QUOTA_REFUSED: Final = Counter(
    "crdtchain_quota_refused_total", "What the quota of the disk refused.", "what", ("ops", "blobs")
)
CATALOGUE: Final = (
    LIVE, DEFERRED, HELD, NEEDED, PACED, REFUSED, EVICTED, DROPS, PENALTIES, QUOTA_REFUSED
)  # fmt: skip
"""All counters, in the order in which they are shown."""


class Gauge(Struct, frozen=True):
    """One thing that goes up and down."""

    name: str
    text: str
    read: Callable[[], int]


class Counters:
    """The counters of one node."""

    def __init__(self) -> None:
        self._values = {(counter.name, value): 0 for counter in CATALOGUE for value in counter.values}
        self._gauges: dict[str, Gauge] = {}

    def add(self, counter: Counter, value: str = "", count: int = 1) -> None:
        """Count something, under a value of the counter's label.

        Raises:
            KeyError: the counter has no such value, which is a mistake of the program.
        """
        key = counter.name, str(value)
        if key not in self._values:
            raise KeyError(f"{counter.name} has no {counter.label} {value!r}")
        self._values[key] += count

    def get(self, counter: Counter, value: str = "") -> int:
        """Return what was counted."""
        return self._values[counter.name, str(value)]

    def note_drop(self, reason: str, code: str = "") -> Drop:
        """Count the end of a connection; returns its class."""
        drop = classify(reason, code)
        self.add(DROPS, drop)
        return drop

    def watch(self, name: str, text: str, read: Callable[[], int]) -> None:
        """Show a number that is read whenever it is asked for."""
        self._gauges[name] = Gauge(name, text, read)

    def render(self) -> str:
        """Return all of it in the text format of Prometheus."""
        parts = []
        for counter in CATALOGUE:
            parts.append(f"# HELP {counter.name} {counter.text}\n# TYPE {counter.name} counter\n")
            for value in counter.values:
                labels = f'{{{counter.label}="{value}"}}' if counter.label else ""
                parts.append(f"{counter.name}{labels} {self._values[counter.name, value]}\n")
        parts.extend(render_gauge(gauge.name, gauge.text, gauge.read()) for gauge in self._gauges.values())
        return "".join(parts)


def render_gauge(name: str, text: str, value: int, kind: str = "gauge") -> str:
    """Return one number without labels in the text format of Prometheus."""
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value}\n"
