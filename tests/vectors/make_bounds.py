"""Write bounds.json: each bound of the encoding profile, at the bound and one beyond it.

The bytes are put together here by hand, from RFC 8949 alone; nothing of the package is used, so its codec and these
vectors can't share a mistake. Run it to write the file anew: `python tests/vectors/make_bounds.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

CID = bytes(range(32))
LINK = b"\xd8\x2a\x58\x25\x00"
OP, RAW = b"\x01\x71\x12\x20", b"\x01\x55\x12\x20"

Case = tuple[str, bytes, str | None]
"""Id, bytes, and the code of the refusal, None when accepted."""


def head(major: int, argument: int, width: int | None = None) -> bytes:
    """Make the head of an item, in the shortest form or with so many bytes of argument."""
    if width is None:
        width = next((w for w in (0, 1, 2, 4, 8) if argument < (24 if w == 0 else 256**w)), 8)
    info = argument if width == 0 else {1: 24, 2: 25, 4: 26, 8: 27}[width]
    return bytes([major << 5 | info]) + (argument.to_bytes(width, "big") if width else b"")


def text(content: str | bytes) -> bytes:
    """Make a text."""
    content = content.encode() if isinstance(content, str) else content
    return head(3, len(content)) + content


def string(length: int) -> bytes:
    """Make a byte string."""
    return head(2, length) + bytes(length)


def array(*items: bytes) -> bytes:
    """Make an array."""
    return head(4, len(items)) + b"".join(items)


def pairs(*items: tuple[bytes, bytes]) -> bytes:
    """Make a map, its pairs in the order given."""
    return head(5, len(items)) + b"".join(key + value for key, value in items)


def nested(depth: int, kind: str) -> bytes:
    """Make so many containers within each other, the innermost one empty."""
    opening = b"\x81" if kind == "array" else b"\xa1\x61a"
    return opening * (depth - 1) + (b"\x80" if kind == "array" else b"\xa0")


def sized(total: int) -> bytes:
    """Make a document of exactly so many bytes, of strings that are within their bound."""
    rest = total - 1 - 2 * (3 + 32_000) - 3
    return array(string(32_000), string(32_000), string(rest))


def sizes() -> list[Case]:
    """Bounds on the block, depth, items and strings."""
    return [
        ("block/65536", sized(65_536), None),
        ("block/65537", sized(65_537), "block_bytes"),
        *((f"depth/{kind}/16", nested(16, kind), None) for kind in ("array", "map")),
        *((f"depth/{kind}/17", nested(17, kind), "depth") for kind in ("array", "map")),
        ("depth/16 with scalars", b"\x81" * 15 + array(b"\x00", string(3), LINK + RAW + CID), None),
        ("depth/17 after a deep sibling", array(nested(15, "array"), nested(16, "array")), "depth"),
        ("items/array/4096", array(*[b"\x00"] * 4095), None),
        ("items/array/4097", array(*[b"\x00"] * 4096), "items"),
        ("items/map/4096", array(pairs(*((text(f"{i:04}"), b"\x00") for i in range(2047)))), None),
        ("items/map/4097", pairs(*((text(f"{i:04}"), b"\x00") for i in range(2048))), "items"),
        ("items/nested/4096", array(*[b"\x80"] * 4095), None),
        ("items/nested/4097", array(*[b"\x80"] * 4096), "items"),
        ("items/link counts two/last within", array(*[b"\x00"] * 4093, LINK + OP + CID), None),
        ("items/link counts two/last beyond", array(*[b"\x00"] * 4094, LINK + OP + CID), "items"),
        ("items/claimed/array of 2^32", head(4, 2**32), "items"),
        ("items/claimed/array of 2^64-1", head(4, 2**64 - 1), "items"),
        ("items/claimed/map of 2^64-1", head(5, 2**64 - 1), "items"),
        ("bytes/32768", string(32_768), None),
        ("bytes/32769", string(32_769), "bytes_length"),
        ("bytes/claimed 2^64-1", head(2, 2**64 - 1), "bytes_length"),
        ("text/8192", text("x" * 8192), None),
        ("text/8193", text("x" * 8193), "text_length"),
        ("text/8192 in UTF-8", text("é" * 4096), None),
        ("text/8194 in UTF-8", text("é" * 4097), "text_length"),
        ("text/claimed 2^64-1", head(3, 2**64 - 1), "text_length"),
        ("key/empty", pairs((text(""), b"\x00")), None),
        ("key/64", pairs((text("x" * 64), b"\x00")), None),
        ("key/65", pairs((text("x" * 65), b"\x00")), "key_length"),
        ("key/64 in UTF-8", pairs((text("é" * 32), b"\x00")), None),
        ("key/66 in UTF-8", pairs((text("é" * 33), b"\x00")), "key_length"),
        *(
            (f"{name}/{length}", make(length), None)
            for name, make in (("bytes", string), ("text", lambda n: text("x" * n)))
            for length in (0, 23, 24, 255, 256)
        ),
    ]


def numbers() -> list[Case]:
    """Integers at the bounds and at each change of width; the longer forms of them; everything else of major type 7."""
    cases: list[Case] = []
    for major, sign, top in ((0, "", 2**53 - 1), (1, "-", 2**53 - 2)):
        cases += [
            (f"int/{sign}(2^53-1)", head(major, top), None),
            (f"int/{sign}2^53", head(major, top + 1), "int_range"),
            (f"int/{sign}2^63", head(major, 2**63), "int_range"),
            (f"int/argument 2^64-1, major {major}", head(major, 2**64 - 1), "int_range"),
        ]
    for width, below, least in ((1, 0, 24), (2, 1, 2**8), (4, 2, 2**16), (8, 4, 2**32)):
        for major in (0, 1):
            cases.append((f"shortest/major {major}/{least} in {width}", head(major, least, width), None))
            cases.append((f"shortest/major {major}/{least - 1} in {below}", head(major, least - 1, below), None))
            cases.append(
                (f"shortest/major {major}/{least - 1} in {width}", head(major, least - 1, width), "not_shortest")
            )
            cases.append((f"shortest/major {major}/0 in {width}", head(major, 0, width), "not_shortest"))
        for major, unit in ((2, b"x"), (3, b"x"), (4, b"\x00"), (5, b"\x61x\x00")):
            count = 1 if major == 5 else 3
            cases.append(
                (f"shortest/major {major}/{count} in {width}", head(major, count, width) + unit * count, "not_shortest")
            )
        if width < 4:
            for major in (2, 3):
                content = head(major, least - 1, width) + b"x" * (least - 1)
                cases.append((f"shortest/major {major}/{least - 1} in {width}", content, "not_shortest"))
        cases.append((f"shortest/key/1 in {width}", b"\xa1" + head(3, 1, width) + b"x\x00", "not_shortest"))
        cases.append(
            (
                f"shortest/tag 42 in {width}",
                head(6, 42, width) + (LINK + OP + CID)[2:],
                None if width == 1 else "tag",
            )
        )
    cases.append(("shortest/key/23 in 1", b"\xa1" + head(3, 23, 1) + b"x" * 23 + b"\x00", "not_shortest"))
    simple = {0xF4: None, 0xF5: None, 0xF6: None, 0xF7: "simple", 0xE0: "simple", 0xF3: "simple", 0xFF: "simple"}
    cases += [(f"simple/{byte:02x}", bytes([byte]), code) for byte, code in simple.items()]
    cases += [(f"simple/f8{byte:02x}", bytes([0xF8, byte]), "simple") for byte in (0, 20, 24, 31, 32, 255)]
    floats = (
        "f90000",
        "f98000",
        "f93c00",
        "f97c00",
        "f97e00",
        "fa00000000",
        "fa47c35000",
        "fb3ff8000000000000",
        "fb7ff0000000000000",
    )
    cases += [(f"float/{code}", bytes.fromhex(code), "float") for code in floats]
    cases += [
        (f"reserved/{major << 5 | info:02x}", bytes([major << 5 | info, 0, 0]), "reserved")
        for major in range(6)
        for info in (28, 29, 30)
    ]
    return cases


def structure() -> list[Case]:
    """Indefinite lengths, keys, UTF-8, tags, links, and where the data ends."""
    zero = b"\x00"
    link = LINK + OP + CID
    wrong = {
        "no zero byte": b"\xd8\x2a\x58\x24" + OP + CID,
        "one in front instead of zero": b"\xd8\x2a\x58\x25\x01" + OP + CID,
        "digest of 31": b"\xd8\x2a\x58\x24\x00" + OP + CID[:31],
        "digest of 33": b"\xd8\x2a\x58\x26\x00" + OP + CID + b"x",
        "CIDv0": b"\xd8\x2a\x58\x23\x00\x12\x20" + CID,
        "CIDv2": LINK + b"\x02\x71\x12\x20" + CID,
        "dag-pb": LINK + b"\x01\x70\x12\x20" + CID,
        "sha2-512 said": LINK + b"\x01\x71\x13\x20" + CID,
        "length 31 said": LINK + b"\x01\x71\x12\x1f" + CID,
        "over a text": b"\xd8\x2a\x78\x25\x00" + OP + CID,
        "over an integer": b"\xd8\x2a\x00",
        "over an array": b"\xd8\x2a" + array(zero),
        "empty": b"\xd8\x2a\x40",
        "length in two bytes": b"\xd8\x2a\x59\x00\x25\x00" + OP + CID,
        "of a link": b"\xd8\x2a" + link,
    }
    return [
        *(
            (f"indefinite/{data.hex()}", data, "indefinite")
            for data in (
                b"\x5f\x41x\xff",
                b"\x7f\x61x\xff",
                b"\x9f\x00\xff",
                b"\xbf\x61x\x00\xff",
                b"\x9f\xff",
                b"\xa1\x7f\x61x\xff\x00",
            )
        ),
        ("keys/by length, then bytes", pairs((text("b"), zero), (text("aa"), zero), (text("ab"), zero)), None),
        ("keys/bytes are not signed", pairs((text("\x7f"), zero), (text("é"), zero), (text("z" * 3), zero)), None),
        ("keys/23 before 24", pairs((text("z" * 23), zero), (text("a" * 24), zero)), None),
        ("keys/24 before 23", pairs((text("a" * 24), zero), (text("z" * 23), zero)), "key_order"),
        ("keys/alphabetical is wrong", pairs((text("aa"), zero), (text("b"), zero)), "key_order"),
        ("keys/unsorted", pairs((text("b"), zero), (text("a"), zero)), "key_order"),
        ("keys/duplicate", pairs((text("a"), zero), (text("a"), b"\x01")), "key_duplicate"),
        ("keys/duplicate empty", pairs((text(""), zero), (text(""), zero)), "key_duplicate"),
        (
            "keys/duplicate after a nested map",
            pairs((text("a"), pairs((text("b"), zero))), (text("a"), zero)),
            "key_duplicate",
        ),
        ("keys/same in a nested map", pairs((text("a"), pairs((text("a"), zero))), (text("b"), zero)), None),
        *(
            (f"keys/not text/{key.hex()}", pairs((key, zero)), "key_type")
            for key in (zero, b"\x20", b"\x41a", array(), pairs(), b"\xf6", b"\xf5", link, b"\xc0\x61a")
        ),
        *(
            (f"utf8/accepted/{content.hex()}", text(content), None)
            for content in map(
                bytes.fromhex, ("c280", "dfbf", "e0a080", "ed9fbf", "ee8080", "efbfbf", "f0908080", "f48fbfbf", "00")
            )
        ),
        *(
            (f"utf8/refused/{content.hex()}", text(content), "utf8")
            for content in map(
                bytes.fromhex,
                (
                    "80",
                    "bf",
                    "c0af",
                    "c1bf",
                    "c3",
                    "e08080",
                    "e282",
                    "eda080",
                    "edbfbf",
                    "f0808080",
                    "f4908080",
                    "f5808080",
                    "ff",
                    "6180",
                ),
            )
        ),
        ("utf8/refused in a key", pairs((text(b"\xc3"), zero)), "utf8"),
        ("utf8/refused in a long text", text(b"x" * 300 + b"\xff"), "utf8"),
        ("utf8/not joined over two texts", array(text(b"\xc3"), text(b"\xa9")), "utf8"),
        *((f"tag/{tag}", head(6, tag) + zero, "tag") for tag in (0, 1, 2, 23, 24, 25, 28, 29, 41, 43, 256, 258, 55799)),
        ("link/op", link, None),
        ("link/raw", LINK + RAW + CID, None),
        ("link/in a map", pairs((text("a"), link)), None),
        *((f"link/{name}", data, "link") for name, data in wrong.items()),
        ("end/empty", b"", "truncated"),
        ("end/trailing zero", b"\x00\x00", "trailing"),
        ("end/trailing break", b"\x80\xff", "trailing"),
        ("end/two documents", array(zero) + array(zero), "trailing"),
        *(
            (f"end/cut/{data.hex()[:16]}", data[:-1], "truncated")
            for data in (
                array(zero),
                b"\x18\x18",
                b"\x19\x01\x00",
                head(0, 2**32),
                string(5),
                string(32),
                string(300),
                text("ab"),
                text("x" * 30),
                pairs((text("a"), zero)),
                array(array(zero), zero),
            )
        ),
        ("end/cut after a key", b"\xa1\x61a", "truncated"),
        ("end/cut within a key", b"\xa1\x62a", "truncated"),
        ("end/cut within a link", link[:-1], "truncated"),
    ]


def main() -> None:
    """Write the file next to this script."""
    cases = [
        {"id": name, "hex": data.hex(), "accept": code is None, "code": code}
        for name, data, code in sizes() + numbers() + structure()
    ]
    assert len({case["id"] for case in cases}) == len(cases), "ids are unique"
    lines = ",\n".join(json.dumps(case) for case in cases)
    path = Path(__file__).with_name("bounds.json")
    path.write_text('{"source": "tests/vectors/make_bounds.py", "cases": [\n' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
