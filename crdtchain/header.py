"""The header of an op, from its block: its fields, with a body that is not looked into yet.

`decode_header` is the rule: the whole block is validated, then decoded, then given its shape. `read_header` only looks
at the places where things have to be, for the profile has one order of fields. A block that it does not take, or that
turns out to be at fault later, is for `decode_header` to judge.

Invariant: what `read_header` returns, `decode_header` returns too, unless a link is to no op.

Not here: bodies, and rules about fields (`crdtchain.shapes`).
"""

from __future__ import annotations

from functools import cache
from struct import Struct
from typing import Final, TypeAlias, cast

import msgspec

from crdtchain import codec, limits
from crdtchain.errors import DecodeError
from crdtchain.ops import Header, Kind

_START: Final = b"\x82\xa8\x61v\x01\x63seq"
_BODY: Final = b"\x64body"
_KIND: Final = b"\x64kind"
_PREV: Final = b"\x64prev"
_TIME: Final = b"\x64time"
_AUTHOR: Final = b"\x66author\x58\x20"
_PARENTS: Final = b"\x67parents"
_SIGNATURE: Final = b"\x58\x40"
_SIGNATURE_BYTES: Final = 66
_BODY_BYTES_MAX: Final = 2_048
"""A shorter body can't bring a block above the bound on items, whatever is in it."""
_LINK_HEADS: Final = {codec.LINK_HEAD}
_NULL: Final = 0xF6
_EMPTY: Final = 0xA0
_Body: TypeAlias = dict[str, object]
_KINDS: Final = {bytes((0x60 + len(kind.value),)) + kind.value.encode(): kind for kind in Kind}


def decode_header(block: bytes) -> Header:
    """Decode a block, its body not looked into.

    Raises:
        DecodeError: the bytes are not in the profile, or not the shape of an op.
    """
    value = codec.decode(block)
    if type(value) is not list or len(value) != 2:
        raise DecodeError("shape", "a block is an array of an op and its signature")
    content, signature = value
    if type(signature) is not bytes or len(signature) != 64:
        raise DecodeError("shape", "the signature must be 64 bytes")
    try:
        return msgspec.convert(content, Header, builtin_types=(bytes,))
    except msgspec.ValidationError as error:
        raise DecodeError("shape", f"not the shape of an op: {error}") from None


def read_header(block: bytes) -> Header | None:
    """Return what `decode_header` returns, in a third of the time, or None when that has to judge the block."""
    try:
        return _read(block)
    except (DecodeError, IndexError):
        return None


def _read(block: bytes) -> Header | None:
    startswith = block.startswith
    if not startswith(_START):
        return None
    seq, pos = _read_number(block, len(_START))
    start = pos + len(_BODY)
    end = start + 1 if block[start] == _EMPTY else codec.find_end(block, start)
    if not startswith(_BODY, pos) or end - start > _BODY_BYTES_MAX or not startswith(_KIND, end):
        return None
    pos = end + len(_KIND)
    after = pos + block[pos] - 0x5F
    kind = _KINDS.get(block[pos:after])
    if kind is None or not startswith(_PREV, after):
        return None
    pos = after + len(_PREV)
    prev: bytes | None = None
    if block[pos] == _NULL:
        pos += 1
    elif startswith(codec.LINK_HEAD, pos):
        prev, pos = block[pos + 5 : pos + 41], pos + 41
    if not startswith(_TIME, pos):
        return None
    time, pos = _read_number(block, pos + len(_TIME))
    key = pos + len(_AUTHOR)
    if time > limits.TIME_MAX_MS or not startswith(_AUTHOR, pos) or not startswith(_PARENTS, key + 32):
        return None
    pos = key + 32 + len(_PARENTS)
    count = block[pos] - 0x80
    after = pos + 1 + 41 * count
    if not 0 <= count < 24 or len(block) != after + _SIGNATURE_BYTES or not startswith(_SIGNATURE, after):
        return None
    fields = _find_links(count).unpack_from(block, pos + 1)
    body = {} if block[start] == _EMPTY else codec.build(block[start:end])
    if type(body) is not dict or (count and set(fields[::2]) != _LINK_HEADS):
        return None
    # Links are bytes here, as good as `Link` for all that reads a header.
    links = cast(tuple[codec.Link, ...], fields[1::2])
    return Header(1, block[key : key + 32], seq, cast(codec.Link | None, prev), links, time, kind, cast(_Body, body))


def _read_number(block: bytes, pos: int) -> tuple[int, int]:
    """Return the number at pos, and the position behind it."""
    head = block[pos]
    if head < 0x18:
        return head, pos + 1
    number, end = codec.read_argument(block, pos, head)
    if head > 0x1B or number > limits.INT_MAX:
        raise DecodeError("int_range", "not a number of a header")
    return number, end


@cache
def _find_links(count: int) -> Struct:
    """Return the places of so many links: what stands before each, and its id."""
    return Struct("5s36s" * count)
