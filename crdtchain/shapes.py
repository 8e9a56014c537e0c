"""From bytes to an `Op` and back, with every check that needs nothing but the op itself.

Invariants:

1. A block that decodes has exactly one encoding, its own bytes; encoding what was decoded gives them back.
2. Every `Op` has passed all the checks of its kind, so later code relies on bounds without looking again.
3. Unknown fields, kinds and versions, and missing fields, are refused: an op means the same everywhere or nothing.

Source: protocol sections 2, 3 and 7. Not here: anything that needs an op's past.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, cast

import msgspec

from crdtchain import codec, limits
from crdtchain.codec import Link
from crdtchain.errors import DecodeError, InvalidOpError, RuleError, SignatureError
from crdtchain.header import decode_header, read_header
from crdtchain.ops import (
    BODIES,
    Attest,
    Bid,
    Body,
    Claim,
    Genesis,
    Header,
    Job,
    Kind,
    ModelSpec,
    Op,
    Profile,
    Record,
    Reveal,
    SignedOp,
    Stake,
    Task,
    Transfer,
    Vote,
)
from crdtchain.scalars import Author, OpId
from crdtchain.signing import validate_key

DTYPES: Final = frozenset({"float64", "float32", "int64", "int32", "int16", "int8", "uint8", "bool"})
"""What the arrays of a model may hold."""


def decode_op(block: bytes, op_id: OpId | None = None) -> SignedOp:
    """Decode one block and check everything about it that needs no past and no signature.

    `op_id`: the block's id, when the caller has computed it.

    Raises:
        DecodeError: the bytes are not in the profile, or not the shape of an op.
        RuleError: a rule that the op breaks by itself.
        SignatureError: the author's key breaks the key rule.
    """
    header = read_header(block)
    if header is not None:
        try:
            return _make_op(block, op_id, header)
        except InvalidOpError:
            # The whole block is judged first, by the rule.
            pass
    return _make_op(block, op_id, decode_header(block))


def _make_op(block: bytes, op_id: OpId | None, header: Header) -> SignedOp:
    try:
        body = msgspec.convert(header.body, BODIES[header.kind], builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise DecodeError("shape", f"not the shape of an op: {error}") from None
    author = cast(Author, header.author)
    op = Op(
        id=codec.compute_op_id(block) if op_id is None else op_id,
        author=author,
        seq=header.seq,
        prev=cast(OpId | None, header.prev),
        parents=cast(tuple[OpId, ...], header.parents),
        time=header.time,
        kind=header.kind,
        body=body,
        size=len(block),
    )
    validate_key(author)
    validate_links(op)
    validate_body(op)
    return SignedOp(op=op, block=block)


def encode_payload(
    author: Author, seq: int, prev: OpId | None, parents: Sequence[OpId], time: int, body: Body
) -> bytes:
    """Encode the map that an author signs; `parents` are sorted here."""
    return codec.encode(
        {
            "v": 1,
            "author": bytes(author),
            "seq": seq,
            "prev": None if prev is None else Link(prev),
            "parents": [Link(parent) for parent in sorted(parents)],
            "time": time,
            "kind": find_kind(body).value,
            "body": to_plain(body),
        }
    )


def join_block(payload: bytes, signature: bytes) -> bytes:
    """Put a signed map and its signature together: the block."""
    return b"\x82" + payload + b"\x58\x40" + signature


def find_kind(body: Body) -> Kind:
    """Return the kind that a body belongs to."""
    return _KINDS[type(body)]


def to_plain(value: object) -> codec.Value:
    """Turn bodies, and what they hold, into the plain values of the codec."""
    if isinstance(value, Body):
        return {name: to_plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, (tuple, list)):
        return [to_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): to_plain(item) for name, item in value.items()}
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return value
    raise TypeError(f"a body can't hold {type(value).__name__}")


def validate_links(op: Op) -> None:
    """Check seq, prev and parents as far as the op alone shows.

    Raises:
        RuleError: a link to a blob, parents unsorted or twice, a missing or a superfluous prev, or no link at all.
    """
    links = op.parents if op.prev is None else (op.prev, *op.parents)
    for link in links:
        if not link.startswith(codec.OP_CID_PREFIX):
            raise RuleError("links", "prev and parents must be links to ops")
    if len(op.parents) > 1 and list(op.parents) != sorted(set(op.parents)):
        raise RuleError("links", "parents must be sorted and unique")
    if (op.prev is None) != (op.seq == 0):
        raise RuleError("seq", "seq is 0 exactly when prev is null")
    if op.kind is Kind.GENESIS:
        if links or op.seq:
            raise RuleError("genesis", "genesis has seq 0 and no links")
    elif not links:
        raise RuleError("links", "every op but genesis links to at least one op")


def validate_body(op: Op) -> None:
    """Check the rules of a body that go beyond its fields' types.

    Raises:
        RuleError, SignatureError: the rule that it breaks.
    """
    check = _CHECKS.get(op.kind)
    if check is not None:
        check(op)


def _text(name: str, text: str, bytes_max: int, bytes_min: int = 0) -> None:
    length = len(text.encode())
    if not bytes_min <= length <= bytes_max:
        raise RuleError("text", f"{name} has {length} bytes; {bytes_min} to {bytes_max} are allowed")


def _sorted_unique(name: str, items: Sequence[bytes] | Sequence[str]) -> None:
    encoded = [item.encode() if isinstance(item, str) else item for item in items]
    if any(left >= right for left, right in pairwise(encoded)):
        raise RuleError("sorted", f"{name} must be sorted and unique")


def _op_link(name: str, link: Link) -> None:
    if not codec.is_op_id(link):
        raise RuleError("links", f"{name} must be a link to an op")


def _check_genesis(op: Op) -> None:
    body = op.body
    assert isinstance(body, Genesis)
    _text("name", body.name, limits.NAME_BYTES_MAX, 1)
    if len(set(body.witnesses)) != len(body.witnesses):
        raise RuleError("genesis", "witnesses must be unique")
    _sorted_unique("grants", [key for key, _ in body.grants])
    for key in (*body.witnesses, *(key for key, _ in body.grants)):
        validate_key(key)
    if sum(amount for _, amount in body.grants) > limits.INT_MAX:
        raise RuleError("genesis", "all grants together must stay within 2^53 - 1")
    if body.tick_ms < body.delta_ms:
        raise RuleError("genesis", "tick_ms must be at least delta_ms")


def _check_transfer(op: Op) -> None:
    body = op.body
    assert isinstance(body, Transfer)
    if body.memo is not None:
        _text("memo", body.memo, limits.MEMO_BYTES_MAX)
    if body.to == op.author:
        raise RuleError("transfer", "a transfer to oneself")
    try:
        validate_key(body.to)
    except SignatureError:
        raise RuleError("transfer", "the key credited breaks the key rule") from None


def _check_job(op: Op) -> None:
    body = op.body
    assert isinstance(body, Job)
    _text("title", body.title, limits.TITLE_BYTES_MAX, 1)
    for tag in body.tags:
        _text("a tag", tag, limits.TAG_BYTES_MAX, 1)
    _sorted_unique("tags", body.tags)
    _sorted_unique("editors", body.editors)
    for editor in body.editors:
        validate_key(editor)
    if body.bounty + body.pool > limits.INT_MAX:
        raise RuleError("terms", "bounty and pool together must stay within 2^53 - 1")
    if body.on_cheat == "refund" and body.stake < 1:
        raise RuleError("terms", "with on_cheat refund the stake must be at least 1")
    _check_task(body.task)
    _check_model(body.model)
    for name, files in (("train", body.data.train), ("features", body.data.features)):
        _files(f"data.{name}", files)
    _blob_link("labels", body.data.labels)


def _check_task(task: Task) -> None:
    _files("code", task.code)
    for name, argv in (("train", task.train), ("predict", task.predict)):
        if (task.runtime == "docker") != (len(argv) > 0):
            raise RuleError("task", f"{name} must have a command for docker, and none for wasm")
        for word in argv:
            _text(f"an argument of {name}", word, limits.ARG_BYTES_MAX)
    for name, value in task.params.items():
        if isinstance(value, str):
            _text(f"param {name}", value, limits.ARG_BYTES_MAX)
    if task.runtime == "docker":
        if not is_pinned_image(task.image):
            raise RuleError("task", "a docker image must be sha256:<64 hex> or repo@sha256:<64 hex>")
    elif task.image not in {name for name, _ in task.code}:
        raise RuleError("task", "a wasm image must name a file of code")


def is_pinned_image(image: str) -> bool:
    """Whether an image's name is a digest, and so always the same bytes."""
    repository, separator, digest = image.rpartition("@")
    if separator and not _is_repository(repository):
        return False
    algorithm, _, value = digest.partition(":")
    return algorithm == "sha256" and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _is_repository(name: str) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyz0123456789._-/:")
    return bool(name) and set(name) <= allowed and name[0].isalnum() and name[-1].isalnum()


def _check_model(model: ModelSpec) -> None:
    _sorted_unique("arrays", [name for name, _, _ in model.arrays])
    total = 0
    for name, dtype, dims in model.arrays:
        if dtype not in DTYPES:
            raise RuleError("model", f"array {name} has an unknown dtype {dtype!r}")
        count = 1
        for size in dims:
            if size > 2**31 - 1:
                raise RuleError("model", f"a dimension of array {name} is above 2^31 - 1")
            count *= size
        total += count
    if total > limits.ELEMENTS_MAX:
        raise RuleError("model", "the arrays together have more than 2^31 elements")
    if model.format == "npy" and len(model.arrays) != 1:
        raise RuleError("model", "the npy format holds exactly one array")


def _files(name: str, files: Sequence[tuple[str, Link]]) -> None:
    _sorted_unique(name, [file for file, _ in files])
    for _, link in files:
        _blob_link(name, link)


def _blob_link(name: str, link: Link) -> None:
    # A blob above 1 MiB is named by the dag-cbor block that lists its chunks, so both prefixes name blobs.
    if not (codec.is_raw_blob_id(link) or codec.is_op_id(link)):
        raise RuleError("links", f"{name} must link to a blob")


def _check_reveal(op: Op) -> None:
    body = op.body
    assert isinstance(body, Reveal)
    _op_link("bid", body.bid)
    _blob_link("model", body.model)


def _check_attest(op: Op) -> None:
    body = op.body
    assert isinstance(body, Attest)
    _op_link("job", body.job)
    validate_record(body.record)


def validate_record(record: Record) -> None:
    """Check a record's shape: sorted lists, cheats among forfeits, expired means empty.

    Raises:
        RuleError: the rule that it breaks.
    """
    if record.winner is not None:
        _op_link("winner", record.winner)
    for vote in record.votes:
        _op_link("votes", vote)
    for name in ("cheats", "forfeits", "votes"):
        _sorted_unique(name, getattr(record, name))
    if not set(record.cheats) <= set(record.forfeits):
        raise RuleError("record", "cheats must be among the forfeits")
    if record.expired and (record.winner is not None or record.forfeits or record.votes):
        raise RuleError("record", "an expired record has nothing else")


def _check_profile(op: Op) -> None:
    body = op.body
    assert isinstance(body, Profile)
    _text("name", body.name, limits.NAME_BYTES_MAX)
    _text("about", body.about, limits.ABOUT_BYTES_MAX)


def _check_stake(op: Op) -> None:
    assert isinstance(op.body, Stake)
    _op_link("job", op.body.job)


def _check_bid(op: Op) -> None:
    assert isinstance(op.body, Bid)
    _op_link("job", op.body.job)


def _check_vote(op: Op) -> None:
    assert isinstance(op.body, Vote)
    _op_link("reveal", op.body.reveal)


def _check_claim(op: Op) -> None:
    assert isinstance(op.body, Claim)
    _op_link("of", op.body.of)


_CHECKS: Final[dict[Kind, Callable[[Op], None]]] = {
    Kind.GENESIS: _check_genesis,
    Kind.TRANSFER: _check_transfer,
    Kind.JOB: _check_job,
    Kind.STAKE: _check_stake,
    Kind.BID: _check_bid,
    Kind.REVEAL: _check_reveal,
    Kind.VOTE: _check_vote,
    Kind.ATTEST: _check_attest,
    Kind.CLAIM: _check_claim,
    Kind.PROFILE: _check_profile,
}
_KINDS: Final = {body: kind for kind, body in BODIES.items()}
