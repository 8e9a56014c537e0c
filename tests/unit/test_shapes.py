"""Every bound of headers and bodies, at the bound and one beyond, through the bytes of a block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from crdtchain import codec
from crdtchain.adapters.keys import SigningKey
from crdtchain.codec import Link
from crdtchain.errors import InvalidOpError
from crdtchain.ledger.state import Ledger
from crdtchain.ops import Genesis, Job, Kind
from crdtchain.shapes import decode_op, encode_payload, is_pinned_image, join_block, to_plain
from tests.builders import World

INT_MAX = 2**53 - 1
OP_LINK = Link(b"\x01\x71\x12\x20" + bytes(32))
RAW_LINK = Link(b"\x01\x55\x12\x20" + bytes(32))
KEYS = sorted(SigningKey.from_seed(bytes([number]) * 32).author for number in range(40))
AUTHOR, OTHER = bytes(KEYS[0]), bytes(KEYS[1])
SMALL_ORDER = bytes(32)

WORLD = World(witnesses=4)
GENESIS = to_plain(WORLD.genesis.op.body)
TERMS = to_plain(WORLD.terms())
RECORD = {"winner": None, "cheats": [], "forfeits": [], "votes": [], "expired": False}

VALID: dict[str, Any] = {
    "transfer": {"to": OTHER, "amount": 1, "memo": None},
    "job": TERMS,
    "stake": {"job": OP_LINK},
    "bid": {"job": OP_LINK, "loss": 0, "commit": bytes(32)},
    "reveal": {"bid": OP_LINK, "model": RAW_LINK, "size": 0},
    "vote": {"reveal": OP_LINK, "verdict": "valid", "loss": None},
    "beat": {},
    "attest": {"job": OP_LINK, "record": RECORD},
    "claim": {"of": OP_LINK},
    "profile": {"name": "", "about": ""},
}


def make_block(kind: str, body: Any, /, **header: Any) -> bytes:
    """Encode an op from plain values, whatever they are."""
    first = kind == "genesis"
    fields = {
        "v": 1,
        "author": AUTHOR,
        "seq": 0 if first else 1,
        "prev": None if first else OP_LINK,
        "parents": [],
        "time": 0,
        "kind": kind,
        "body": body,
    }
    return join_block(codec.encode({**fields, **header}), bytes(64))


def find_code(block: bytes) -> str | None:
    """Return the code of the rule that a block breaks, or None."""
    try:
        signed = decode_op(block)
    except InvalidOpError as error:
        return error.code
    assert signed.block == block
    assert join_block(signed.payload, signed.signature) == block
    return None


def changed(value: Any, path: str, new: Any) -> Any:
    """Return plain values with one place changed; a path is names and numbers with dots."""
    head, _, rest = path.partition(".")
    key: Any = int(head) if head.isdigit() else head
    copy = list(value) if isinstance(value, list) else dict(value)
    copy[key] = changed(copy[key], rest, new) if rest else new
    return copy


def files(count: int) -> list[Any]:
    return [[f"f{number:03}", RAW_LINK] for number in range(count)]


def arrays(count: int) -> list[Any]:
    return [[f"a{number:03}", "float64", [1]] for number in range(count)]


HEADERS: list[tuple[str, Any, bool]] = [
    ("v", 1, True),
    ("v", 2, False),
    ("author", SMALL_ORDER, False),
    ("author", AUTHOR[:31], False),
    ("author", OP_LINK, False),
    ("seq", 0, False),
    ("seq", INT_MAX, True),
    ("seq", -1, False),
    ("prev", None, False),
    ("prev", RAW_LINK, False),
    ("prev", bytes(36), False),
    ("parents", [OP_LINK], True),
    ("parents", [RAW_LINK], False),
    ("parents", [OP_LINK, OP_LINK], False),
    ("parents", [Link(OP_LINK[:35] + bytes([n])) for n in range(64)], True),
    ("parents", [Link(OP_LINK[:35] + bytes([n])) for n in range(65)], False),
    ("parents", [Link(OP_LINK[:35] + bytes([n])) for n in (1, 0)], False),
    ("time", 2**52, True),
    ("time", 2**52 + 1, False),
    ("time", -1, False),
    ("time", True, False),
    ("kind", "gift", False),
    ("kind", "edit", False),
    ("more", 1, False),
]


@pytest.mark.parametrize(("field", "value", "accepted"), HEADERS)
def test_headers(field: str, value: Any, accepted: bool) -> None:
    assert (find_code(make_block("profile", VALID["profile"], **{field: value})) is None) == accepted


BODIES: list[tuple[str, str, Any, bool]] = [
    ("transfer", "to", AUTHOR, False),
    ("transfer", "to", SMALL_ORDER, False),
    ("transfer", "to", OTHER[:31], False),
    ("transfer", "amount", 0, False),
    ("transfer", "amount", INT_MAX, True),
    ("transfer", "amount", "1", False),
    ("transfer", "memo", "x" * 200, True),
    ("transfer", "memo", "x" * 201, False),
    ("transfer", "memo", "é" * 100, True),
    ("transfer", "memo", "é" * 101, False),
    ("stake", "job", RAW_LINK, False),
    ("stake", "job", bytes(36), False),
    ("bid", "job", RAW_LINK, False),
    ("bid", "loss", INT_MAX, True),
    ("bid", "loss", -1, False),
    ("bid", "commit", bytes(33), False),
    ("bid", "commit", RAW_LINK, False),
    ("reveal", "bid", RAW_LINK, False),
    ("reveal", "model", OP_LINK, True),
    ("reveal", "size", -1, False),
    ("vote", "reveal", RAW_LINK, False),
    ("vote", "verdict", "cheat", True),
    ("vote", "verdict", "missing", True),
    ("vote", "verdict", "maybe", False),
    ("vote", "loss", 0, True),
    ("vote", "loss", -1, False),
    ("claim", "of", RAW_LINK, False),
    ("profile", "name", "x" * 100, True),
    ("profile", "name", "x" * 101, False),
    ("profile", "about", "x" * 1_000, True),
    ("profile", "about", "x" * 1_001, False),
    ("attest", "job", RAW_LINK, False),
    ("attest", "record.winner", OP_LINK, True),
    ("attest", "record.winner", RAW_LINK, False),
    ("attest", "record.forfeits", [bytes([n // 256, n % 256]) + bytes(30) for n in range(500)], True),
    ("attest", "record.forfeits", [bytes([n // 256, n % 256]) + bytes(30) for n in range(501)], False),
    ("attest", "record.forfeits", [OTHER, AUTHOR], False),
    ("attest", "record.forfeits", [AUTHOR, AUTHOR], False),
    ("attest", "record.cheats", [AUTHOR], False),
    ("attest", "record.votes", [Link(OP_LINK[:34] + bytes([n // 256, n % 256])) for n in range(500)], True),
    ("attest", "record.votes", [Link(OP_LINK[:34] + bytes([n // 256, n % 256])) for n in range(501)], False),
    ("attest", "record.votes", [RAW_LINK], False),
    ("attest", "record.expired", True, True),
    ("attest", "record.expired", 1, False),
    ("attest", "record", {**RECORD, "cheats": [AUTHOR], "forfeits": [AUTHOR, OTHER]}, True),
    ("attest", "record", {**RECORD, "winner": OP_LINK, "expired": True}, False),
    ("attest", "record", {**RECORD, "forfeits": [AUTHOR], "expired": True}, False),
    ("attest", "record", {**RECORD, "votes": [OP_LINK], "expired": True}, False),
    ("job", "title", "", False),
    ("job", "title", "x" * 200, True),
    ("job", "title", "x" * 201, False),
    ("job", "tags", [f"t{n}" for n in range(8)], True),
    ("job", "tags", [f"t{n}" for n in range(9)], False),
    ("job", "tags", ["b", "a"], False),
    ("job", "tags", ["a", "a"], False),
    ("job", "tags", [""], False),
    ("job", "tags", ["x" * 50], True),
    ("job", "tags", ["x" * 51], False),
    ("job", "metric", "accuracy", False),
    ("job", "tolerance", -1, False),
    ("job", "max_loss", None, True),
    ("job", "max_loss", 0, True),
    ("job", "bounty", 0, False),
    ("job", "bounty", -5, False),
    ("job", "bounty", INT_MAX, False),
    ("job", "stake", 0, False),
    ("job", "pool", INT_MAX, False),
    ("job", "on_cheat", "forgive", False),
    ("job", "bid_until", 2**52 + 1, False),
    ("job", "editors", [bytes(key) for key in KEYS[:32]], True),
    ("job", "editors", [bytes(key) for key in KEYS[:33]], False),
    ("job", "editors", [OTHER, AUTHOR], False),
    ("job", "editors", [SMALL_ORDER], False),
    ("job", "task.runtime", "shell", False),
    ("job", "task.image", "latest", False),
    ("job", "task.code", [], False),
    ("job", "task.code", [["../x", RAW_LINK]], False),
    ("job", "task.code", [["a/b", RAW_LINK]], False),
    ("job", "task.code", [[".x", RAW_LINK]], False),
    ("job", "task.code", [["x\n", RAW_LINK]], False),
    ("job", "task.code", [["b", RAW_LINK], ["a", RAW_LINK]], False),
    ("job", "task.params", {f"p{n}": n for n in range(32)}, True),
    ("job", "task.params", {f"p{n}": n for n in range(33)}, False),
    ("job", "task.params", {"x" * 64: 1}, True),
    ("job", "task.params", {"1x": 1}, False),
    ("job", "task.params", {"x": "y" * 1_024}, True),
    ("job", "task.params", {"x": "y" * 1_025}, False),
    ("job", "task.params", {"x": None}, False),
    ("job", "task.params", {"x": [1]}, False),
    ("job", "task.resources.cpus", 0, False),
    ("job", "task.resources.cpus", 1_024, True),
    ("job", "task.resources.cpus", 1_025, False),
    ("job", "task.resources.memory_mib", 15, False),
    ("job", "task.resources.memory_mib", 2**24, True),
    ("job", "task.resources.memory_mib", 2**24 + 1, False),
    ("job", "task.resources.disk_mib", 0, False),
    ("job", "task.resources.seconds", 0, False),
    ("job", "task.resources.seconds", 2_592_000, True),
    ("job", "task.resources.seconds", 2_592_001, False),
    ("job", "task.resources.gpus", 64, True),
    ("job", "task.resources.gpus", 65, False),
    ("job", "data.train", files(64), True),
    ("job", "data.train", files(65), False),
    ("job", "data.train", [], False),
    ("job", "data.features", files(64), True),
    ("job", "data.features", files(65), False),
    ("job", "data.labels", bytes(36), False),
    ("job", "model.format", "pickle", False),
    ("job", "model.arrays", [], False),
    ("job", "model.arrays", arrays(256), True),
    ("job", "model.arrays", arrays(257), False),
    ("job", "model.arrays", [["w", "object", [1]]], False),
    ("job", "model.arrays", [["w", "float64", [1] * 8]], True),
    ("job", "model.arrays", [["w", "float64", [1] * 9]], False),
    ("job", "model.arrays", [["w", "float64", [0]]], False),
    ("job", "model.arrays", [["w", "float64", [2**31 - 1]]], True),
    ("job", "model.arrays", [["w", "float64", [2**31]]], False),
    ("job", "model.arrays", [["w", "float64", [2**16, 2**15]]], True),
    ("job", "model.arrays", [["w", "float64", [2**16, 2**15 + 1]]], False),
    ("job", "model.arrays", [["b", "int8", []], ["a", "int8", []]], False),
]


@pytest.mark.parametrize(("kind", "path", "value", "accepted"), BODIES)
def test_bodies(kind: str, path: str, value: Any, accepted: bool) -> None:
    assert (find_code(make_block(kind, changed(VALID[kind], path, value))) is None) == accepted


@pytest.mark.parametrize("kind", VALID)
def test_fields_are_exactly_those(kind: str) -> None:
    assert find_code(make_block(kind, VALID[kind])) is None
    assert find_code(make_block(kind, {**VALID[kind], "extra": None})) == "shape"
    for name in VALID[kind]:
        assert find_code(make_block(kind, {key: value for key, value in VALID[kind].items() if key != name})) == "shape"


def test_docker_and_wasm_terms_have_what_their_runtime_needs() -> None:
    image = "sha256:" + "ab" * 32
    docker = {**TERMS["task"], "runtime": "docker", "image": image, "train": ["python"], "predict": ["python"]}  # type: ignore[index,call-overload,dict-item]
    wasm = {**docker, "runtime": "wasm", "image": "m.wasm", "code": [["m.wasm", RAW_LINK]], "train": [], "predict": []}
    cases: list[tuple[dict[str, Any], bool]] = [
        (docker, True),
        ({**docker, "train": []}, False),
        ({**docker, "train": ["x"] * 32}, True),
        ({**docker, "train": ["x"] * 33}, False),
        ({**docker, "predict": ["x" * 1_024]}, True),
        ({**docker, "predict": ["x" * 1_025]}, False),
        ({**docker, "image": "python:3.12"}, False),
        ({**docker, "code": files(32)}, True),
        ({**docker, "code": files(33)}, False),
        (wasm, True),
        ({**wasm, "train": ["x"]}, False),
        ({**wasm, "image": "other.wasm"}, False),
    ]
    for task, accepted in cases:
        assert (find_code(make_block("job", {**TERMS, "task": task})) is None) == accepted, task  # type: ignore[dict-item]


def test_only_digests_pin_an_image() -> None:
    digest = "sha256:" + "0f" * 32
    for image in (digest, f"repo@{digest}", f"host:5000/a/b_c@{digest}"):
        assert is_pinned_image(image)
    for image in ("python", "python:3", digest.upper(), digest[:-1], f"@{digest}", f"Repo@{digest}", f"a b@{digest}"):
        assert not is_pinned_image(image)


GENESES: list[tuple[str, Any, bool]] = [
    ("name", "", False),
    ("name", "x" * 100, True),
    ("name", "x" * 101, False),
    ("witnesses", [], False),
    ("witnesses", [bytes(key) for key in KEYS[:32]], True),
    ("witnesses", [bytes(key) for key in KEYS[:33]], False),
    ("witnesses", [OTHER, AUTHOR], True),
    ("witnesses", [AUTHOR, AUTHOR], False),
    ("witnesses", [SMALL_ORDER], False),
    ("grants", [], True),
    ("grants", [[AUTHOR, 0]], False),
    ("grants", [[AUTHOR, INT_MAX]], True),
    ("grants", [[AUTHOR, INT_MAX], [OTHER, 1]], False),
    ("grants", [[OTHER, 1], [AUTHOR, 1]], False),
    ("grants", [[AUTHOR, 1], [AUTHOR, 1]], False),
    ("grants", [[SMALL_ORDER, 1]], False),
    ("elector_min", 0, False),
    ("verdict_min", 0, False),
    ("bounty_min", 0, False),
    ("delta_ms", 0, False),
    ("expiry_ms", 0, False),
    ("tick_ms", 1, False),
]


@pytest.mark.parametrize(("field", "value", "accepted"), GENESES)
def test_genesis(field: str, value: Any, accepted: bool) -> None:
    assert (find_code(make_block("genesis", changed(GENESIS, field, value))) is None) == accepted


def test_a_thousand_grants_are_allowed_and_one_more_is_not() -> None:
    keys = sorted(bytes(SigningKey.from_seed(number.to_bytes(32, "big")).author) for number in range(1_001))
    for count, accepted in ((1_000, True), (1_001, False)):
        body = {**GENESIS, "grants": [[key, 1] for key in keys[:count]]}  # type: ignore[dict-item]
        assert (find_code(make_block("genesis", body)) is None) == accepted


def test_a_genesis_has_no_links_and_is_nobody_elses_op() -> None:
    assert find_code(make_block("genesis", GENESIS, parents=[OP_LINK])) == "genesis"
    assert find_code(make_block("genesis", GENESIS, seq=1, prev=OP_LINK)) == "genesis"
    body = WORLD.genesis.op.body
    assert isinstance(body, Genesis)
    payload = encode_payload(WORLD.key("alice"), 0, None, (), 5, body)
    with pytest.raises(InvalidOpError, match="only as its own network's first op"):
        WORLD.ledger.judge(decode_op(join_block(payload, bytes(64))).op)


def test_an_equivocation_comes_with_its_evidence() -> None:
    world = World(witnesses=1)
    ledger = Ledger(world.genesis.op)
    one = world.sign("alice", decode_op(make_block("profile", {"name": "one", "about": ""})).op.body)
    two = world.sign("alice", decode_op(make_block("profile", {"name": "two", "about": ""})).op.body)
    ledger.add(one.op)
    author = ledger.dag.find_author(world.key("alice"))
    assert author is not None
    assert ledger.dag.chains.find_equivocation(author) is None
    ledger.add(two.op)
    pair = ledger.dag.chains.find_equivocation(author)
    assert pair is not None
    assert {ledger.dag.ids[op] for op in pair} == {one.op.id, two.op.id}


CONTEXT: list[tuple[str, Callable[[Job], int], str | None]] = [
    ("bounty", lambda terms: 10**9, "balance"),
    ("bid_until", lambda terms: terms.bid_until + 1, "terms"),
    ("reveal_until", lambda terms: terms.bid_until, "terms"),
    ("verdict_until", lambda terms: terms.reveal_until, "terms"),
]


@pytest.mark.parametrize(("field", "value", "code"), CONTEXT)
def test_terms_against_the_network(field: str, value: Callable[[Job], int], code: str | None) -> None:
    world = World(witnesses=4)
    terms = world.terms()
    signed = world.sign("alice", world.terms(**{field: value(terms)}))
    with pytest.raises(InvalidOpError) as caught:
        world.ledger.judge(signed.op)
    assert caught.value.code == code
    world.ledger.judge(world.sign("alice", terms).op)


def test_every_kind_has_a_valid_body_here() -> None:
    assert {*VALID, "genesis"} == {kind.value for kind in Kind}
