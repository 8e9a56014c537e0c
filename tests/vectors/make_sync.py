"""Write sync.json: trees, tags, items, prefixes, signed bytes and frames of the sync protocol, with what they come to.

Everything here is worked out anew from docs/protocol/sync.md, slowly and plainly; nothing of the package is used, so
its code and these vectors can't share a mistake. Run it to write the file anew: `python tests/vectors/make_sync.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any

Op = tuple[int, bytes]
"""Depth, and the digest of the id."""
Tree = dict[str, Any]

NETWORK = b"\x01\x71\x12\x20" + sha256(b"network").digest()
SALT = bytes(range(16))


# -- the tree --


def make_key(op: Op) -> str:
    """Return an op's key as digits."""
    return op[0].to_bytes(5, "big").hex() + op[1].hex()


def make_digest(text: str) -> bytes:
    """Return some digest."""
    return sha256(text.encode()).digest()


def hash_region(keys: Sequence[str], place: int = 0) -> bytes:
    """Return the value of a region: `keys`, ascending, all start with the same `place` digits."""
    if len(keys) <= 32:
        return sha256(b"\x00" + b"".join(bytes.fromhex(key[10:]) for key in keys)).digest()
    children = {digit: list(part) for digit, part in groupby(keys, lambda key: key[place])}
    if len(children) == 1:
        return hash_region(keys, place + 1)
    bits = sum(1 << int(digit, 16) for digit in children)
    values = b"".join(hash_region(part, place + 1) for part in children.values())
    return sha256(b"\x01" + bits.to_bytes(2, "big") + values).digest()


def hash_root(ops: Sequence[Op]) -> bytes:
    """Return the root of a set."""
    return hash_region(sorted(map(make_key, ops)))


def make_tag(salt: bytes, value: bytes) -> bytes:
    """Return the tag of a value or digest."""
    return sha256(salt + value).digest()[:4]


def view_region(keys: Sequence[str], prefix: str, salt: bytes) -> dict[str, Any]:
    """Return the view of a region of a set."""
    inner = sorted(key for key in keys if key.startswith(prefix))
    if len(inner) <= 32:
        tags = [make_tag(salt, bytes.fromhex(key[10:])) for key in inner]
        return {"sort": "leaf", "prefix": prefix, "tags": [tag.hex() for tag in tags]}
    place = len(prefix)
    while len({key[place] for key in inner}) == 1:
        place += 1
    groups = {digit: list(part) for digit, part in groupby(inner, lambda key: key[place])}
    return {
        "sort": "branch",
        "prefix": inner[0][:place],
        "base": len(prefix),
        "children": [int(digit, 16) for digit in groups],
        "tags": [make_tag(salt, hash_region(part, place + 1)).hex() for part in groups.values()],
    }


# -- items --


def pack_item(before: str, item: dict[str, Any]) -> bytes:
    """Encode one item behind another one's prefix."""
    prefix: str = item["prefix"]
    shared = 0
    while shared < min(len(before), len(prefix)) and before[shared] == prefix[shared]:
        shared += 1
    rest = prefix[shared:]
    head = bytes([shared, len(rest)]) + bytes.fromhex(rest + "0" * (len(rest) % 2))
    tags = b"".join(bytes.fromhex(tag) for tag in item.get("tags", ()))
    bits: bytes = sum(1 << place for place in item.get("children", ())).to_bytes(2, "big")
    match item["sort"]:
        case "leaf":
            return head + bytes([len(tags) // 4]) + tags
        case "branch":
            return head + bytes([0x80 + int(item["base"])]) + bits + tags
        case "whole":
            return head + b"\x40" + bits
        case "only":
            return head + b"\x41" + (len(tags) // 4).to_bytes(2, "big") + tags
        case _:
            return head + b"\x42" + (len(tags) // 4).to_bytes(2, "big") + tags


def pack_items(items: Sequence[dict[str, Any]]) -> bytes:
    """Encode items."""
    befores = ["", *(item["prefix"] for item in items)]
    return b"".join(pack_item(before, item) for before, item in zip(befores, items, strict=False))


# -- messages --


def pack_head(major: int, argument: int) -> bytes:
    """Make the head of a CBOR item."""
    for info, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 24:
            return bytes([major << 5 | argument])
        if argument < 256**width:
            return bytes([major << 5 | info]) + argument.to_bytes(width, "big")
    raise ValueError("too large")


def pack_value(value: object) -> bytes:
    """Encode what messages are made of."""
    match value:
        case bool():
            return b"\xf5" if value else b"\xf4"
        case int():
            return pack_head(0, value)
        case bytes():
            return pack_head(2, len(value)) + value
        case str():
            return pack_head(3, len(value.encode())) + value.encode()
        case list():
            return pack_head(4, len(value)) + b"".join(map(pack_value, value))
    raise TypeError(str(value))


def pack_frame(fields: list[object], *blocks: bytes) -> bytes:
    """Encode a message."""
    head = pack_value(fields)
    return len(head).to_bytes(2, "big") + head + b"".join(blocks)


# -- cases --


def make_sets() -> dict[str, list[Op]]:
    """Return sets by name: around the bounds, and of odd shapes."""
    line = [(depth, make_digest(f"line {depth}")) for depth in range(300)]
    crowd = [(7, make_digest(f"crowd {number}")) for number in range(350)]
    alike = [(9, bytes(30) + number.to_bytes(2, "big")) for number in range(0, 4_000, 17)]
    return {
        "none": [],
        "one": line[:1],
        "32 ops": line[:32],
        "33 ops": line[:33],
        "33 ops of one depth": crowd[:33],
        "256 ops": line[:256],
        "257 ops": line[:257],
        "a line": line,
        "a crowd": crowd,
        "long common prefixes": alike,
        "some of each": line[:90] + crowd[:90] + alike[:90],
        "high depths": [(2**40 - 1 - number, make_digest(f"high {number}")) for number in range(40)],
    }


def list_trees() -> list[Tree]:
    """Return sets with their roots and some views."""
    cases = []
    for name, ops in make_sets().items():
        keys = sorted(map(make_key, ops))
        prefixes = ["", *sorted({keys[0][:9], keys[-1][:12], keys[len(keys) // 2][:10]})] if keys else [""]
        views = [view_region(keys, prefix, SALT) for prefix in prefixes]
        cases.append(
            {
                "id": name,
                "ops": [[depth, digest.hex()] for depth, digest in ops],
                "root": hash_root(ops).hex(),
                "views": views,
                "items": pack_items(views).hex(),
            }
        )
    return cases


def list_items() -> list[dict[str, Any]]:
    """Return lists of items with their bytes, and bytes that are no items."""
    tags = [make_tag(SALT, make_digest(str(number))).hex() for number in range(512)]
    good: dict[str, list[dict[str, Any]]] = {
        "none": [],
        "an empty leaf": [{"sort": "leaf", "prefix": "", "tags": []}],
        "a full leaf": [{"sort": "leaf", "prefix": "00000000001", "tags": tags[:32]}],
        "a branch": [{"sort": "branch", "prefix": "0000", "base": 1, "children": [0, 15], "tags": tags[:2]}],
        "a branch of 16": [{"sort": "branch", "prefix": "f", "base": 0, "children": [*range(16)], "tags": tags[:16]}],
        "parts": [
            {"sort": "whole", "prefix": "0000000001", "children": [0, 3, 9]},
            {"sort": "only", "prefix": "00000000024", "tags": tags[:1]},
            {"sort": "except", "prefix": "00000000025", "tags": []},
            {"sort": "except", "prefix": "1", "tags": tags},
        ],
        "the same prefix, a longer one, a shorter one": [
            {"sort": "leaf", "prefix": "ab", "tags": []},
            {"sort": "leaf", "prefix": "ab", "tags": []},
            {"sort": "leaf", "prefix": "abc", "tags": []},
            {"sort": "leaf", "prefix": "a", "tags": []},
        ],
        "a whole key": [{"sort": "only", "prefix": "0" * 74, "tags": tags[:1]}],
    }
    bad = {
        "cut in a prefix": "00",
        "cut in tags": "000001aabbcc",
        "more digits than a key": "004b" + "00" * 38 + "00",
        "more shared than there is": "010000",
        "a low half that is not 0": "00011100",
        "shares less than it could": "00021200" + "00021300",
        "an unknown sort": "00007f",
        "a leaf of 33": "000021" + "00" * 132,
        "a branch of one": "0000800001aabbccdd",
        "a branch of none": "0000800000",
        "a branch whose region is within it": "0000810003aabbccddaabbccdd",
        "a branch at the end of a key": "004a" + "00" * 37 + "800003aabbccddaabbccdd",
        "a whole of nothing": "0000400000",
        "an only of nothing": "0000410000",
        "an except of 513": "0000420201" + "00" * 4 * 513,
    }
    cases: list[dict[str, Any]] = [
        {"id": name, "items": items, "hex": pack_items(items).hex(), "accept": True} for name, items in good.items()
    ]
    return cases + [{"id": name, "hex": data, "accept": False} for name, data in bad.items()]


def make_hello(name: str, version: int = 2) -> list[object]:
    """Return the fields of somebody's hello."""
    key, nonce = sha256(b"key of " + name.encode()).digest(), sha256(b"nonce of " + name.encode()).digest()
    return [0, version, NETWORK, key, nonce, sha256(b"root").digest(), 70_000, b"", 1_800_000_000_000, ":7600"]


def list_frames() -> list[dict[str, Any]]:
    """Return each message with its frame, and frames that are none."""
    items = pack_items([{"sort": "leaf", "prefix": "", "tags": []}])
    root = sha256(b"root").digest()
    messages: list[tuple[str, list[object], list[bytes]]] = [
        ("Hello", make_hello("dialler"), []),
        ("Auth", [1, bytes(64)], []),
        ("Probe", [2, root, 2**32], []),
        ("Tree", [3, b"", SALT, items], []),
        ("TreeReply", [4, 1, b""], []),
        ("Get", [5, 24, b"scope", SALT, items], []),
        ("More", [6, 256], []),
        ("Ops", [7, 0, True, [3, 5]], [b"one", b"three"]),
        ("Credit", [8, 65_536], []),
        ("Announce", [9, root[:16]], []),
        ("Prune", [10, bytes(range(32)) + root], []),
        ("Graft", [11, root[:8]], []),
        ("Addresses", [12, ["wss://one.example:7600", "ws://[::1]:7600"]], []),
        ("BlobGet", [13, NETWORK, 2**20, 4, False], []),
        ("Blob", [14, 2**20, 4], [b"blob"]),
        ("BlobNone", [15, True], []),
    ]
    good = [
        {"id": name, "head": pack_value(fields).hex(), "blocks": [block.hex() for block in blocks]}
        | {"frame": pack_frame(fields, *blocks).hex(), "accept": True}
        for name, fields, blocks in messages
    ]
    bad = {
        "nothing": b"",
        "no head": b"\x00\x00",
        "cut": pack_frame([6, 256])[:-1],
        "something behind": pack_frame([6, 256]) + b"\x00",
        "unknown message": pack_frame([16]),
        "a field too few": pack_frame([3, b"", SALT]),
        "a field too many": pack_frame([6, 1, 1]),
        "a short salt": pack_frame([3, b"", SALT[:-1], b""]),
        "request 0": pack_frame([6, 0]),
        "text for bytes": pack_frame([11, "AAAA"]),
        "a number for a truth": pack_frame([15, 1]),
        "another version, fields unknown": pack_frame([0, 3, NETWORK, "whatever"]),
        "an older version": pack_frame([0, 1, NETWORK, b"", bytes(16)]),
        "a block of no bytes": pack_frame([7, 0, True, [0]]),
        "fewer blocks than said": pack_frame([7, 0, True, [3, 5]], b"one"),
        "no list": pack_frame([])[:2] + b"\x80",
        "a longer number than needed": b"\x00\x04\x82\x06\x18\x01",
    }
    return good + [{"id": name, "frame": frame.hex(), "accept": False} for name, frame in bad.items()]


def list_auths() -> list[dict[str, str]]:
    """Return what both sides sign."""
    dialler, listener = make_hello("dialler"), make_hello("listener")
    cases = []
    for role in ("dialler", "listener"):
        both = b"".join(bytes(hello[place]) for place in (3, 4) for hello in (dialler, listener))  # type: ignore[call-overload]
        cases.append(
            {
                "id": role,
                "dialler": pack_frame(dialler).hex(),
                "listener": pack_frame(listener).hex(),
                "signed": (b"crdtchain/sync/2:" + role.encode() + b":" + NETWORK + both).hex(),
            }
        )
    return cases


def list_tags() -> list[dict[str, str]]:
    """Return tags."""
    salts = (bytes(16), SALT, b"\xff" * 16)
    values = (bytes(32), make_digest("value"))
    return [
        {"salt": salt.hex(), "value": value.hex(), "tag": make_tag(salt, value).hex()}
        for salt in salts
        for value in values
    ]


def make_vectors() -> dict[str, Any]:
    """Return what the file holds."""
    return {
        "source": "tests/vectors/make_sync.py",
        "salt": SALT.hex(),
        "trees": list_trees(),
        "tags": list_tags(),
        "items": list_items(),
        "auths": list_auths(),
        "frames": list_frames(),
    }


def main() -> None:
    """Write the file next to this script."""
    lines = []
    for name, value in make_vectors().items():
        cases = ",\n".join(map(json.dumps, value)) if isinstance(value, list) else ""
        lines.append(f"{json.dumps(name)}: " + (f"[\n{cases}\n]" if cases else json.dumps(value)))
    Path(__file__).with_name("sync.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
