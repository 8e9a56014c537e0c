"""Bytes and values: the strict DAG-CBOR profile, CIDs, and did:key.

`validate_profile` walks over the bytes once, before anything decodes them; `decode` then leaves the building of
values to cbor2, which by that time can only meet input that it treats well. `encode` is written here, because it has
to refuse whatever the profile can't carry, and a check in front of cbor2's encoder would cost as much as encoding.

Invariants:

1. `encode(decode(data)) == data` for all accepted data: each value has one encoding, and no two encodings share a
   value.
2. Every refusal of bytes is a `DecodeError` with a stable code; no input raises anything else, or takes more than
   linear time, or more memory than a small multiple of its length.
3. Nothing is allocated on the word of a length field: counts are charged against the bound on items when a container
   opens, and a slice never reaches beyond the input.

The codes: `block_bytes`, `truncated`, `trailing`, `depth`, `items`, `not_shortest`, `indefinite`, `reserved`,
`int_range`, `bytes_length`, `text_length`, `utf8`, `key_type`, `key_length`, `key_order`, `key_duplicate`, `tag`,
`link`, `float`, `simple`. Bytes with several faults get the code of one of them.

Sources: RFC 8949, the IPLD DAG-CBOR and CID specifications, the W3C did:key method; protocol section 2. Not here:
what the values of an op mean (`crdtchain.ops`, `crdtchain.shapes`).
"""

from __future__ import annotations

from base64 import b32decode, b32encode
from collections.abc import Callable
from hashlib import sha256
from typing import Final, NoReturn, TypeAlias

import cbor2

from crdtchain.errors import DecodeError, UsageError
from crdtchain.limits import (
    BLOCK_BYTES_MAX,
    BYTES_MAX,
    CHUNK_BYTES,
    DEPTH_MAX,
    INT_MAX,
    ITEMS_MAX,
    KEY_BYTES_MAX,
    TEXT_BYTES_MAX,
)
from crdtchain.scalars import Author, BlobId, OpId

CID_BYTES: Final = 36
OP_CID_PREFIX: Final = b"\x01\x71\x12\x20"
"""CIDv1, dag-cbor, sha2-256, 32 bytes."""
RAW_CID_PREFIX: Final = b"\x01\x55\x12\x20"
"""CIDv1, raw, sha2-256, 32 bytes."""


class Link(bytes):
    """A CID of 36 bytes, as it stands behind the 0x00 of tag 42; equal to the plain bytes, but encoded as a link."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Link({bytes(self)!r})"


Value: TypeAlias = "bool | int | str | bytes | Link | list[Value] | dict[str, Value] | None"
"""What the profile can carry."""

LINK_HEAD: Final = b"\xd8\x2a\x58\x25\x00"
"""What stands before the 36 bytes of a link."""
_LINK_STARTS: Final = (LINK_HEAD + OP_CID_PREFIX, LINK_HEAD + RAW_CID_PREFIX)
_LINK_BYTES: Final = len(LINK_HEAD) + CID_BYTES

_FIXED: Final = bytes(
    1 if head < 0x18 or 0x20 <= head < 0x38 or 0xF4 <= head <= 0xF6 else head - 0x3F if 0x40 <= head < 0x58 else 0
    for head in range(256)
)
"""By initial byte: the size of an item that its first byte tells all about, 0 for others."""
_HEADS: Final = tuple(bytes((head,)) for head in range(256))

_CID_CHARS: Final = 59
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DID_START: Final = "did:key:z"
_DID_CODEC: Final = b"\xed\x01"
_DID_DIGITS_MAX: Final = 48


def validate_profile(data: bytes, *, links: bool = True) -> None:
    """Check in one pass that data is exactly one item of the encoding profile, within all its bounds.

    With `links=False` tag 42 is refused like every other tag.

    Raises:
        DecodeError: it is not; the code says why.
    """
    if len(data) > BLOCK_BYTES_MAX:
        raise DecodeError("block_bytes", f"a block has at most {BLOCK_BYTES_MAX} bytes, this one {len(data)}")
    try:
        end = _walk(data, _LINK_STARTS if links else ())
    except IndexError:
        end = len(data) + 1
    if end > len(data):
        raise DecodeError("truncated", f"the data ends within an item, after {len(data)} bytes")
    if end < len(data):
        raise DecodeError("trailing", f"the item ends at byte {end}, and {len(data) - end} bytes follow it")


def find_end(data: bytes, pos: int) -> int:
    """Return the position behind the item of the encoding profile at pos; it counts as one whole, for the bounds too.

    Raises:
        DecodeError: there is none.
    """
    try:
        end = _walk(data, _LINK_STARTS, pos)
    except IndexError:
        end = len(data) + 1
    if end > len(data):
        raise DecodeError("truncated", f"the data ends within an item, after {len(data)} bytes")
    return end


def _walk(data: bytes, link_starts: tuple[bytes, ...], pos: int = 0) -> int:
    """Return the position behind the item at pos, which is beyond the data when that was cut short within a string.

    The hottest loop of catching up: hence one function, and the frequent items ahead of the rare ones. `key` is None
    within an array, and the last key within a map. Encoded keys compare as the profile sorts them, since a shorter one
    has a lower head. An IndexError says that the data ended where an item should begin.
    """
    fixed, startswith = _FIXED, data.startswith
    stack: list[tuple[int, bytes | None]] = []
    key: bytes | None = None
    left, items = 1, 1
    while True:
        if not left:
            if not stack:
                return pos
            left, key = stack.pop()
            continue
        left -= 1
        if key is not None:
            head = data[pos]
            end = pos + head - 0x5F if 0x60 <= head < 0x78 else _find_key_end(data, pos, head)
            last, key = key, data[pos:end]
            if key <= last:
                _refuse_key(last, key, pos)
            if not key.isascii():
                _validate_utf8(data, pos, end)
            pos = end
        head = data[pos]
        if fixed[head]:
            pos += fixed[head]
        elif head == 0xD8 and startswith(link_starts, pos):
            pos += _LINK_BYTES
            items += 1
        elif head == 0x58 and data[pos + 1] > 23:
            pos += data[pos + 1] + 2
        elif 0x60 <= head < 0x78:
            end = pos + head - 0x5F
            if not data[pos:end].isascii():
                _validate_utf8(data, pos, end)
            pos = end
        elif 0x80 <= head < 0xC0:
            count, end = (head & 31, pos + 1) if head & 31 < 24 else read_argument(data, pos, head)
            items += count if head < 0xA0 else 2 * count
            if len(stack) == DEPTH_MAX:
                raise DecodeError("depth", f"arrays and maps nest at most {DEPTH_MAX} deep, more at byte {pos}")
            stack.append((left, key))
            left, key, pos = count, None if head < 0xA0 else b"", end
        else:
            pos = _find_rare_end(data, pos, head)
        if items > ITEMS_MAX:
            raise DecodeError("items", f"a block has at most {ITEMS_MAX} items, this one has more by byte {pos}")


def read_argument(data: bytes, pos: int, head: int) -> tuple[int, int]:
    """Return the argument of the item at pos, whose first byte is head, and the position behind it.

    Raises:
        DecodeError: it has none, or not the shortest.
    """
    info = head & 31
    if info < 24:
        return info, pos + 1
    if info == 31:
        raise DecodeError("indefinite", f"lengths must be definite, one at byte {pos} is not")
    if info > 27:
        raise DecodeError("reserved", f"the initial byte 0x{head:02x} at byte {pos} is reserved")
    width = 1 << (info - 24)
    end = pos + 1 + width
    if end > len(data):
        raise DecodeError("truncated", f"the data ends within an item, after {len(data)} bytes")
    argument = int.from_bytes(data[pos + 1 : end], "big")
    if argument < 24 or (width > 1 and argument >> (width << 2) == 0):
        raise DecodeError("not_shortest", f"the number at byte {pos} has a shorter encoding")
    return argument, end


def _find_rare_end(data: bytes, pos: int, head: int) -> int:
    """Return the position behind the integer, byte string or text at pos, whose length has bytes of its own."""
    major = head >> 5
    if major > 5:
        _refuse_head(data, pos, head)
    argument, end = read_argument(data, pos, head)
    if major < 2:
        if argument + major > INT_MAX:
            raise DecodeError("int_range", f"integers stay within ±{INT_MAX}, the one at byte {pos} does not")
        return end
    bound, code = (BYTES_MAX, "bytes_length") if major == 2 else (TEXT_BYTES_MAX, "text_length")
    if argument > bound:
        raise DecodeError(code, f"the string at byte {pos} has {argument} bytes, more than {bound}")
    if major == 3 and not data[end : end + argument].isascii():
        _validate_utf8(data, end, end + argument)
    return end + argument


def _find_key_end(data: bytes, pos: int, head: int) -> int:
    """Return the position behind the map key at pos."""
    if head >> 5 != 3:
        raise DecodeError("key_type", f"keys of maps are texts, the one at byte {pos} is not")
    length, start = read_argument(data, pos, head)
    if length > KEY_BYTES_MAX:
        raise DecodeError("key_length", f"the key at byte {pos} has {length} bytes, more than {KEY_BYTES_MAX}")
    return start + length


def _refuse_key(last: bytes, key: bytes, pos: int) -> NoReturn:
    """Say what is wrong with a key that does not come after the last one."""
    if key == last:
        raise DecodeError("key_duplicate", f"the key at byte {pos} is there twice")
    raise DecodeError("key_order", f"keys are sorted by length, then bytes; the one at byte {pos} comes too late")


def _validate_utf8(data: bytes, start: int, end: int) -> None:
    """Check a text that is not ASCII (its head may be in the slice: a short one is ASCII itself)."""
    try:
        data[start:end].decode("utf-8")
    except UnicodeDecodeError:
        raise DecodeError("utf8", f"the text at byte {start} is not valid UTF-8") from None


def _refuse_head(data: bytes, pos: int, head: int) -> NoReturn:
    """Say what is wrong with an item of major type 6 or 7."""
    if head >> 5 == 6:
        if data.startswith(b"\xd8\x2a", pos):
            raise DecodeError("link", f"the link at byte {pos} is not one allowed here: 0x00 and a CIDv1 of 36 bytes")
        raise DecodeError("tag", f"no tag but 42 is allowed, there is another at byte {pos}")
    if head in (0xF9, 0xFA, 0xFB):
        raise DecodeError("float", f"floating-point numbers are not allowed, there is one at byte {pos}")
    raise DecodeError("simple", f"of simple values only false, true and null are allowed, not that at byte {pos}")


def decode(data: bytes) -> Value:
    """Decode one item of the encoding profile; links come as `Link`.

    Raises:
        DecodeError: the bytes are not in the profile.
    """
    validate_profile(data)
    return build(data)


def build(data: bytes) -> Value:
    """Return the value of bytes that have been found to be one item of the profile."""
    value: Value = cbor2.loads(data, tag_hook=_make_link)
    return value


def _make_link(tag: cbor2.CBORTag, _immutable: bool) -> Link:
    """Turn the only tag that passes validation into a link."""
    return Link(tag.value[1:])


def encode(value: Value, *, bounded: bool = False) -> bytes:
    """Encode a value in the profile: the one encoding that `decode` accepts for it.

    Unless `bounded` is set, lengths and the count of items may be beyond what a block can hold: a digest of the whole
    state is taken over such an encoding.

    Raises:
        UsageError: the profile can't carry the value: a type, an integer or a depth; or, if bounded, a length.
    """
    parts: list[bytes] = []
    try:
        _write(value, parts.append, 0)
    except UnicodeEncodeError:
        raise UsageError("a text holds half of a surrogate pair; texts must be valid Unicode") from None
    data = b"".join(parts)
    if bounded:
        try:
            validate_profile(data)
        except DecodeError as error:
            raise UsageError(f"this can't be put into a block: {error}") from None
    return data


def _write(value: Value, write: Callable[[bytes], None], depth: int) -> None:
    """Hand the pieces of a value's encoding to `write`; depth counts the containers around it.

    Types are compared, not asked for with isinstance: an enum or a number of a library would not decode to itself.
    """
    if type(value) is str:
        text = value.encode()
        write(_make_head(0x60, len(text)))
        write(text)
    elif type(value) is int:
        if not -INT_MAX <= value <= INT_MAX:
            raise UsageError(f"integers stay within ±{INT_MAX}, one of {value.bit_length()} bits does not")
        write(_make_head(0x00, value) if value >= 0 else _make_head(0x20, -1 - value))
    elif type(value) is bytes:
        write(_make_head(0x40, len(value)))
        write(value)
    elif type(value) is Link:
        if not is_op_id(value) and not is_raw_blob_id(value):
            raise UsageError("a link is the 36 bytes of a CIDv1 with dag-cbor or raw, and sha2-256")
        write(LINK_HEAD)
        write(value)
    elif value is None:
        write(b"\xf6")
    elif type(value) is bool:
        write(b"\xf5" if value else b"\xf4")
    else:
        _write_container(value, write, depth + 1)


def _write_container(value: Value, write: Callable[[bytes], None], depth: int) -> None:
    """Write a list or a map, and what is in it."""
    if depth > DEPTH_MAX:
        raise UsageError(f"arrays and maps nest at most {DEPTH_MAX} deep")
    if type(value) is list:
        write(_make_head(0x80, len(value)))
        for item in value:
            _write(item, write, depth)
    elif type(value) is dict:
        write(_make_head(0xA0, len(value)))
        for key, item in sorted((_encode_key(name), item) for name, item in value.items()):
            write(key)
            _write(item, write, depth)
    else:
        raise UsageError(f"the ledger's encoding has no form for values of type {type(value).__name__}")


def _encode_key(name: object) -> bytes:
    """Encode the key of a map; sorted as bytes, encoded keys come in the profile's order."""
    if type(name) is not str:
        raise UsageError(f"keys of maps are texts, not values of type {type(name).__name__}")
    text = name.encode()
    return _make_head(0x60, len(text)) + text


def _make_head(major: int, argument: int) -> bytes:
    """Make the shortest head of an item."""
    if argument < 24:
        return _HEADS[major + argument]
    if argument < 0x100:
        return bytes((major + 24, argument))
    if argument < 0x10000:
        return _HEADS[major + 25] + argument.to_bytes(2, "big")
    if argument < 0x100000000:
        return _HEADS[major + 26] + argument.to_bytes(4, "big")
    return _HEADS[major + 27] + argument.to_bytes(8, "big")


def compute_op_id(block: bytes) -> OpId:
    """Compute an op's id: the CID of its whole block, signature included."""
    return OpId(OP_CID_PREFIX + sha256(block).digest())


def compute_blob_id(data: bytes) -> BlobId:
    """Compute the id of a blob, or of a chunk, of at most 1 MiB: its raw CID.

    Raises:
        UsageError: it is larger; then the CID is that of the list of its chunks.
    """
    if len(data) > CHUNK_BYTES:
        raise UsageError(f"a raw blob has at most {CHUNK_BYTES} bytes, this one {len(data)}; split it into chunks")
    return BlobId(RAW_CID_PREFIX + sha256(data).digest())


def is_op_id(cid: bytes) -> bool:
    """Say whether these are the 36 bytes of an op's CID (a list of chunks has the same form)."""
    return len(cid) == CID_BYTES and cid.startswith(OP_CID_PREFIX)


def is_raw_blob_id(cid: bytes) -> bool:
    """Say whether these are the 36 bytes of a raw blob's CID."""
    return len(cid) == CID_BYTES and cid.startswith(RAW_CID_PREFIX)


def format_cid(cid: bytes) -> str:
    """Write a CID as people see it: multibase `b`, base32 in lower case without padding."""
    return "b" + b32encode(cid).decode().rstrip("=").lower()


def parse_cid(text: str) -> bytes:
    """Read the 36 bytes of an op's or blob's CID; the only spelling accepted is that of `format_cid`.

    Raises:
        UsageError: it is not one.
    """
    if len(text) == _CID_CHARS and text.isascii() and text.islower():
        try:
            cid = b32decode(text[1:].upper() + "======")
        except ValueError:
            cid = b""
        if (is_op_id(cid) or is_raw_blob_id(cid)) and format_cid(cid) == text:
            return cid
    raise UsageError(f"not an id of an op or blob: {_shorten(text)}; one has {_CID_CHARS} characters and starts with b")


def format_did(author: Author) -> str:
    """Write an author as did:key: multibase base58btc of the key behind its multicodec."""
    number = int.from_bytes(_DID_CODEC + author, "big")
    digits = []
    while number:
        number, digit = divmod(number, 58)
        digits.append(_BASE58[digit])
    return _DID_START + "".join(reversed(digits))


def parse_did(text: str) -> Author:
    """Read the key of a did:key; whether it passes the key rule is for `crdtchain.signing` to say.

    Raises:
        UsageError: it is not the did:key of an Ed25519 key, in its one spelling.
    """
    digits = text[len(_DID_START) :]
    if text.startswith(_DID_START) and len(digits) <= _DID_DIGITS_MAX:
        number = 0
        for digit in digits:
            number = number * 58 + _BASE58.find(digit)
        data = number.to_bytes(_DID_DIGITS_MAX, "big")[-34:] if number > 0 else b""
        author = Author(data[2:])
        if data.startswith(_DID_CODEC) and format_did(author) == text:
            return author
    raise UsageError(f"not an Ed25519 did:key: {_shorten(text)}; one starts with did:key:z6Mk")


def _shorten(text: str) -> str:
    """Quote foreign text in an error, cut to what a line holds."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
