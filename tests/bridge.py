"""From the oracle's plain ops to the core's, so that both can judge the same history."""

from __future__ import annotations

from typing import Any

import msgspec

from crdtchain import limits
from crdtchain.codec import Link
from crdtchain.errors import InvalidOpError, RuleError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import BODIES, Kind, Op
from crdtchain.scalars import Author, OpId
from crdtchain.shapes import validate_body, validate_links
from tests.oracle.model import OracleOp


def to_core(op: OracleOp) -> Op:
    """Convert a plain op; its form is checked as `decode_op` would.

    Raises:
        InvalidOpError: it has no valid form.
    """
    if op.kind not in set(Kind) or not 0 <= op.time <= limits.TIME_MAX_MS:
        raise RuleError("shape", "an unknown kind, or a time out of bounds")
    kind = Kind(op.kind)
    try:
        body = msgspec.convert(_links(op.body), BODIES[kind], builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise RuleError("shape", str(error)) from None
    converted = Op(
        id=OpId(op.id),
        author=Author(op.author),
        seq=op.seq,
        prev=None if op.prev is None else OpId(op.prev),
        parents=tuple(OpId(parent) for parent in op.parents),
        time=op.time,
        kind=kind,
        body=body,
        size=300,
    )
    validate_links(converted)
    validate_body(converted)
    return converted


def _links(value: Any) -> Any:
    if isinstance(value, bytes):
        return Link(value) if len(value) == 36 else value
    if isinstance(value, dict):
        return {key: _links(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_links(item) for item in value]
    return value


def judge(ledger: Ledger, op: OracleOp) -> str | None:
    """Return the core's reason to refuse an op, or None when it is valid."""
    try:
        ledger.judge(to_core(op))
    except InvalidOpError as error:
        return error.code
    return None


def core_record(record: Any) -> dict[str, Any] | None:
    """Return a core record in the oracle's form."""
    if record is None:
        return None
    return {
        "winner": None if record.winner is None else bytes(record.winner),
        "cheats": [bytes(key) for key in record.cheats],
        "forfeits": [bytes(key) for key in record.forfeits],
        "votes": [bytes(vote) for vote in record.votes],
        "expired": record.expired,
    }
